"""llama.cpp's quantizer: a GGUF in another quantization, made by a process of its own."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import deque
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from edgellm.errors import Cancelled, ConfigError, ModelCorrupt, ModelNotFound
from edgellm.machine import usable_cores
from edgellm.models.gguf_info import split_names
from edgellm.native.importance import ImportanceMatrix

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Mapping, Sequence

KINDS = (
    *("F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q5_1", "Q5_0", "Q4_K_M", "Q4_K_S", "Q4_1"),
    *("Q4_0", "IQ4_NL", "IQ4_XS", "MXFP4_MOE", "Q3_K_L", "Q3_K_M", "IQ3_M", "Q3_K_S", "IQ3_S"),
    *("IQ3_XS", "IQ3_XXS", "Q2_K", "Q2_K_S", "IQ2_M", "IQ2_S", "IQ2_XS", "IQ2_XXS", "Q2_0", "TQ2_0", "IQ1_M"),
    *("TQ1_0", "IQ1_S", "Q1_0", "COPY"),
)
"""All of llama.cpp's quantizations, finest first; COPY only puts the tensors of all parts into one file."""

TENSOR_TYPES = (
    *(
        "F32",
        "F16",
        "BF16",
        "Q8_0",
        "Q6_K",
        "Q5_K",
        "Q5_1",
        "Q5_0",
        "Q4_K",
        "Q4_1",
        "Q4_0",
        "IQ4_NL",
        "IQ4_XS",
    ),
    *("MXFP4", "Q3_K", "IQ3_S", "IQ3_XXS", "Q2_K", "IQ2_S", "IQ2_XS", "IQ2_XXS", "TQ2_0", "IQ1_M"),
    *("TQ1_0", "IQ1_S"),
)
"""What a single tensor can be made, finest first."""

_UNQUANTIZED = ("F32", "F16", "BF16", "COPY")

DONE_MARK = "== done"
"""The line that the quantizer's process prints behind each type that went well."""

_MIB = 1 << 20
_TENSOR = re.compile(
    r"\[ *(\d+)/ *(\d+)\] +(\S+) +- +\[[\d, ]+\], type = +(\S+), size = +([\d.]+) MiB"
    r"(?: -> +([\d.]+) MiB \((\w+)\))?"
)
_STARTED = re.compile(r"\[ *(\d+)/ *(\d+)\] +(\S+)")
_TOTAL = re.compile(r"(model|quant) size +=? *= +([\d.]+) MiB")
_NEEDS_MATRIX = "require an imatrix"
_FALLBACK = re.compile(r"(\d+) of (\d+) tensor\(s\) required fallback")
_REGEX_ERROR = re.compile("regular expression|regex")
_LOG_KEPT = 60


@dataclass(frozen=True, slots=True)
class QuantizeOptions:
    """How a model is quantized, besides its type.

    `importance` is a file with an importance matrix. `tensors` gives tensors whose name matches a regular expression a
    type of their own ({"attn_v": "Q8_0"}). `pure` makes all tensors that can be quantized the same type; else
    llama.cpp gives some of them more bits. `threads` 0 is all cores.
    """

    importance: str = ""
    tensors: Mapping[str, str] = field(default_factory=dict[str, str])
    pure: bool = False
    threads: int = 0


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """A tensor's type and bytes before and after."""

    name: str
    old_type: str
    new_type: str
    old_bytes: int
    new_bytes: int


@dataclass(frozen=True, slots=True)
class QuantizePlan:
    """What a quantization would give. Sizes are of the tensors, to 0.01 MiB each; the file has its vocabulary besides.

    `fallback_tensors` have rows that the type's blocks do not fit: they get a similar type.
    """

    kind: str
    tensors: tuple[PlannedTensor, ...]
    old_bytes: int
    new_bytes: int
    needs_importance: bool
    fallback_tensors: int


def plan_quantization(source: Path, kind: str, options: QuantizeOptions) -> QuantizePlan:
    """Sizes and types of what `quantize_file` would write, in well under a second: nothing is computed or written.

    Raises ConfigError, also for a type of a tensor's own that no tensor would get; ModelNotFound, ModelCorrupt.
    """
    name = _checked(source, kind, options)
    with _running(source, Path(os.devnull), (name,), options, is_dry=True) as lines:
        plan = _read_plan(name, lines)
        for _ in lines:
            pass
    assert plan is not None  # else the block has raised
    _check_overrides(plan, options.tensors)
    return plan


def _check_overrides(plan: QuantizePlan, tensors: Mapping[str, str]) -> None:
    """Raises ConfigError for a pattern that changes nothing: llama.cpp would not say so."""
    if tensors and plan.kind in _UNQUANTIZED:
        raise ConfigError(
            f"types for single tensors have no effect in {plan.kind}: llama.cpp heeds them in quantizations alone.",
            hint="Leave them out, or take the nearest quantization, such as Q8_0.",
        )
    claimed: set[str] = set()  # by an earlier pattern: the first that matches counts
    for pattern, kind in tensors.items():
        matching = [tensor for tensor in plan.tensors if re.search(pattern, tensor.name)]
        if not matching:
            raise ConfigError(
                f"no tensor's name matches {pattern!r}.",
                hint="They are called blk.0.attn_v.weight and so on, in lower case: see --dry-run with a type.",
            )
        own = [tensor for tensor in matching if tensor.name not in claimed]
        if not own:
            raise ConfigError(
                f"all tensors that {pattern!r} matches have their type from another pattern before it.",
                hint="The first pattern that matches counts: put the narrower one first.",
            )
        if all(tensor.new_type.upper() != kind.upper() for tensor in own):
            raise ConfigError(
                f"no tensor that {pattern!r} matches can be {kind.upper()}: {own[0].name} would be"
                f" {own[0].new_type}.",
                hint="Norms and other small tensors stay as they are; rows must hold whole blocks of a type.",
            )
        claimed.update(tensor.name for tensor in own)


def plan_every_kind(source: Path) -> dict[str, QuantizePlan | ModelCorrupt]:
    """The plans of all types, finest first; an error in place of the plan where llama.cpp refuses it.

    Raises ModelNotFound.
    """
    found: dict[str, QuantizePlan | ModelCorrupt] = {}
    _checked(source, KINDS[0], QuantizeOptions())
    while left := [kind for kind in KINDS if kind not in found]:
        # One process for all: it ends at a type that it cannot do, and the next goes on behind that.
        try:
            with _running(source, Path(os.devnull), left, QuantizeOptions(), is_dry=True) as lines:
                for kind in left:
                    plan = _read_plan(kind, lines)
                    if plan is None:
                        break
                    found[kind] = plan
        except ModelCorrupt as error:
            found[next(kind for kind in left if kind not in found)] = error
    return found


def _read_plan(kind: str, lines: Iterator[str]) -> QuantizePlan | None:
    """The plan that the lines up to the next end mark tell; None where there is no end mark."""
    tensors: list[PlannedTensor] = []
    totals: dict[str, int] = {}
    needs_importance, fallback = False, 0
    for line in lines:
        if line.startswith(DONE_MARK):
            break
        if found := _TENSOR.match(line):
            _, _, tensor, old, size, new_size, new = found.groups()
            old_bytes = round(float(size) * _MIB)
            new_bytes = round(float(new_size) * _MIB) if new_size else old_bytes
            tensors.append(PlannedTensor(tensor, old, new or old, old_bytes, new_bytes))
        elif found := _TOTAL.search(line):
            totals[found[1]] = round(float(found[2]) * _MIB)
        elif found := _FALLBACK.search(line):
            fallback = int(found[1])
        needs_importance = needs_importance or _NEEDS_MATRIX in line
    else:
        return None
    old_total = totals.get("model", sum(tensor.old_bytes for tensor in tensors))
    new_total = totals.get("quant", sum(tensor.new_bytes for tensor in tensors))
    return QuantizePlan(kind, tuple(tensors), old_total, new_total, needs_importance, fallback)


def quantize_file(
    source: Path,
    target: Path,
    kind: str,
    options: QuantizeOptions,
    *,
    progress: Callable[[int, int, str], bool | None] | None = None,
) -> Path:
    """Writes `source` in quantization `kind` to `target`, under another name until it is whole.

    Tensors that are quantized already are quantized again, which loses more than starting from F16. `progress` gets
    tensors begun, tensors in all and a tensor's name, and may return False to stop (raises Cancelled); whatever ends
    the work early leaves no file. Raises ConfigError, ModelNotFound, ModelCorrupt.
    """
    plan = check_quantization(source, target, kind, options, has_importance=bool(options.importance))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent)
    except OSError as error:
        raise ConfigError(
            f"cannot write to {target.parent}: {error.strerror}.", hint="Choose a folder you can write to."
        ) from error
    os.close(handle)
    try:
        with _running(source, Path(temporary), (plan.kind,), options, is_dry=False) as lines:
            for line in lines:
                begun = _STARTED.match(line)
                if begun is None or progress is None:
                    continue
                if progress(int(begun[1]), int(begun[2]), begun[3]) is False:
                    raise Cancelled(f"quantizing {source.name} was cancelled; no file was written.")
        os.chmod(temporary, 0o644)
        os.replace(temporary, target)
    finally:
        Path(temporary).unlink(missing_ok=True)
    return target


def check_quantization(
    source: Path, target: Path, kind: str, options: QuantizeOptions, *, has_importance: bool
) -> QuantizePlan:
    """The plan, if `quantize_file` can begin: what would be wrong is said before anything is computed.

    `has_importance`: there is an importance matrix, or will be. Raises ConfigError, ModelNotFound, ModelCorrupt.
    """
    check_target(target)
    plan = plan_quantization(source, kind, options)
    if plan.needs_importance and not has_importance:
        raise ConfigError(
            f"quantization {plan.kind} needs an importance matrix.",
            hint="Give one (--imatrix FILE), or let it be made from a text like yours (--calibrate FILE).",
        )
    folder = next((each for each in target.absolute().parents if each.is_dir()), None)
    free = shutil.disk_usage(folder).free if folder is not None else 0
    if free < plan.new_bytes:
        raise ConfigError(
            f"{target.parent} has {free / 1e6:,.0f} MB free; the file takes {plan.new_bytes / 1e6:,.0f} MB.",
            hint="Choose another folder, or a smaller type.",
        )
    return plan


def check_target(target: Path) -> None:
    """Raises ConfigError where a model cannot be written to that file."""
    if target.exists():
        raise ConfigError(f"{target} exists already.", hint="Remove it, or choose another name.")
    if (count := len(split_names(target.name))) > 1:
        raise ConfigError(
            f"{target.name} is the name of one part of {count}, and the model would be in one file.",
            hint="Choose another name, such as model.gguf.",
        )


def _checked(source: Path, kind: str, options: QuantizeOptions) -> str:
    """The type's name as llama.cpp spells it. Raises ConfigError and ModelNotFound for what cannot be done."""
    name = kind.upper()
    if name not in KINDS:
        raise ConfigError(f"quantization {kind!r} is unknown.", hint=f"Choose one of {', '.join(KINDS)}.")
    if not source.is_file():
        raise ModelNotFound(f"no model file at {source}.", hint="Check the path.")
    for pattern, tensor_type in options.tensors.items():
        if tensor_type.upper() not in TENSOR_TYPES:
            raise ConfigError(
                f"tensor type {tensor_type!r} (for {pattern!r}) is unknown.",
                hint=f"Choose one of {', '.join(TENSOR_TYPES)}.",
            )
        try:
            re.compile(pattern)
        except re.error as error:
            raise ConfigError(
                f"{pattern!r} is not a regular expression: {error}.",
                hint="Write a part of the tensors' names.",
            ) from None
    if options.importance:
        ImportanceMatrix.read(Path(options.importance))
    return name


@contextmanager
def _running(
    source: Path, target: Path, kinds: Sequence[str], options: QuantizeOptions, *, is_dry: bool
) -> Generator[Iterator[str]]:
    """The quantizer's log, line by line as it comes; the process is gone when the block ends.

    llama.cpp's quantizer cannot be stopped, and ends its process over some files: neither may happen to ours.
    """
    job = {
        "source": str(source),
        "target": str(target),
        "kinds": list(kinds),
        "is_dry": is_dry,
        "options": {**asdict(options), "threads": options.threads or usable_cores()},
    }
    child = subprocess.Popen(
        [sys.executable, "-P", "-m", "edgellm.native.quantizer_process"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONUNBUFFERED": "1"},
        start_new_session=True,  # Ctrl-C at a terminal goes to us, and we end it
    )
    assert child.stdin is not None and child.stdout is not None
    said: deque[str] = deque(maxlen=_LOG_KEPT)

    def lines() -> Iterator[str]:
        assert child.stdout is not None
        for line in child.stdout:
            said.append(line)
            yield line

    try:
        # stdin stays open: where we die, the child finds it closed and takes its unfinished file along.
        child.stdin.write(json.dumps(job) + "\n")
        child.stdin.flush()
        read = lines()
        yield read
        for _ in read:
            pass
        if child.wait() != 0:
            reason = _reason(said) or "no reason given"
            if options.tensors and _REGEX_ERROR.search(reason):
                raise ConfigError(
                    f"llama.cpp cannot read a tensor's pattern ({', '.join(options.tensors)}): {reason}.",
                    hint="Its regular expressions are ECMAScript's: without flags such as (?i), for one.",
                )
            raise ModelCorrupt(
                f"llama.cpp cannot quantize {source.name}: {reason}.",
                hint=f"Check the file (edgellm inspect {source}) and the type.",
                log="".join(said),
            )
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()
        child.stdin.close()
        child.stdout.close()


def _reason(said: deque[str]) -> str:
    for line in reversed(said):
        if "failed to quantize" in line or "GGML_ASSERT" in line or "Error" in line:
            return line.rpartition("failed to quantize: ")[2].strip()[:300]
    return next((line.strip()[:300] for line in reversed(said) if line.strip()), "")
