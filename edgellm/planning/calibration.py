"""How fast this machine is: two seconds of llama.cpp on a model of zeros, once a processor or GPU and type of weights.

The model is a header in front of a hole in a file: nothing is written to the disk. llama.cpp computes on zeros as fast
as on anything else, and reads them from memory like real weights.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgellm.errors import EdgeError
from edgellm.folders import cache_dir
from edgellm.machine import IDLE_CORES, Neighbours, usable_cores
from edgellm.models.gguf_file import TENSOR_TYPES
from edgellm.native import devices
from edgellm.native.context import Context
from edgellm.native.library import wait_policy
from edgellm.native.model import Model
from edgellm.types import LoadOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_WIDE = (4, 1024, 3072)  # layers, width, feed-forward: 57 M weights, larger than the caches of small machines
_LARGE = (4, 2048, 8192)  # for a GPU: 243 M weights, larger than its caches
_NARROW = (16, 64, 64)  # next to no weights: what is left is the cost of starting and joining threads
_PREFILL_ROWS = 64
_GPU_PREFILL_ROWS = 256  # few rows leave most of a GPU idle
_CONTEXT = 512
_BUDGET_S = 0.35
_CALM_LOOK_S = 0.25
_FEWER_THREADS_GAIN = (
    1.05  # by so much must fewer threads be faster to be taken: text depends on their number
)
_FILE = "calibration.json"
_TYPE_IDS = {name: number for number, (name, _, _) in TENSOR_TYPES.items()}


@dataclass(frozen=True, slots=True)
class TypeSpeed:
    """One type of weights: bytes read a second in decode, multiply-adds a second in prefill."""

    decode_bytes_s: float
    prefill_macs_s: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """The speed of this machine's processor, or of a GPU, with so many `threads`, and `threads_batch` in prefill (of a
    GPU: those that went with it). `layer_s` is what a layer costs beside its weights.

    `types` maps names such as "Q4_0" to their speed. `fastest_threads` decode fastest, 0 where that was not looked for.
    `others_cores` are cores that other programs used meanwhile.
    """

    threads: int
    layer_s: float
    types: dict[str, TypeSpeed] = field(default_factory=dict[str, TypeSpeed])
    threads_batch: int = 0
    fastest_threads: int = 0
    others_cores: float = 0.0

    @property
    def is_disturbed(self) -> bool:
        """Other programs were busy: the machine may be faster than this."""
        return self.others_cores > IDLE_CORES


@dataclass(frozen=True, slots=True)
class Threads:
    """How many threads decode, and how many prefill."""

    decode: int
    batch: int

    @classmethod
    def of(cls, options: LoadOptions) -> Threads:
        """Those that a context with these options has, as long as nobody else needs the cores."""
        cores = usable_cores()
        return cls(options.threads or cores, options.threads_batch or options.threads or cores)


@dataclass(frozen=True, slots=True)
class _Subject:
    """What is measured: the processor, or the GPU `device`, on a model of that `shape`."""

    device: str = ""

    @property
    def shape(self) -> tuple[int, int, int]:
        return _LARGE if self.device else _WIDE

    @property
    def prefill_rows(self) -> int:
        return _GPU_PREFILL_ROWS if self.device else _PREFILL_ROWS


def machine_key(device: str = "", threads: Threads | None = None) -> str:
    """What a calibration holds for: processor, cores, threads, llama.cpp's version, how its threads wait, GPUs; and
    which of them was measured."""
    threads = threads or Threads.of(LoadOptions())
    try:
        version = metadata.version("llama-cpp-python")
    except metadata.PackageNotFoundError:
        version = "unknown"
    counts = f"{threads.decode}/{threads.batch} threads"
    key = f"{_processor()} x{usable_cores()}, {counts}, llama-cpp-python {version}, {wait_policy()}"
    # Large batches are computed on a GPU also where all layers are on the processor.
    gpus = [f"{one.name} ({one.description})" for one in devices.devices() if one.kind in ("gpu", "igpu")]
    return f"{key}{', beside ' if gpus else ''}{', '.join(gpus)}{f': {device}' if device else ''}"


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() in ("model name", "Model", "Hardware"):
                return value.strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def known_calibration(device: str = "", threads: Threads | None = None) -> Calibration | None:
    """What was measured on this machine before, if anything was: of the GPU `device`, "" for the processor; with all
    threads, unless others are given."""
    try:
        kept = json.loads((cache_dir() / _FILE).read_text(encoding="utf-8"))[machine_key(device, threads)]
        return Calibration(
            int(kept["threads"]),
            float(kept["layer_s"]),
            {name: TypeSpeed(**speed) for name, speed in kept["types"].items()},
            int(kept["threads_batch"]),
            int(kept["fastest_threads"]),
            float(kept["others_cores"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def calibrate(
    types: Iterable[str], device: str = "", threads: Threads | None = None, *, is_anew: bool = False
) -> Calibration:
    """The speed for these types of weights, of the GPU `device` or, "", of the processor, with all threads unless
    others are given; what is not known yet is measured, a second each, and kept.

    It is measured anew with `is_anew`, and where other programs were busy when it was measured and are not now.
    A type that cannot be measured is left out. Raises EdgeError where nothing can.
    """
    subject = _Subject(device)
    threads = threads or Threads.of(LoadOptions())
    found = known_calibration(device, threads)
    if found is not None and (is_anew or (found.is_disturbed and _is_calm())):
        found = None
    neighbours = Neighbours()
    if found is None:
        fastest, layer_s = _measure_layers(subject, threads)
        found = Calibration(threads.decode, layer_s, threads_batch=threads.batch, fastest_threads=fastest)
    missing = [name for name in types if name in _TYPE_IDS and name not in found.types]
    for name in missing:
        try:
            found.types[name] = _measure_type(subject, name, threads, found.layer_s)
        except EdgeError:  # this build has no kernels for it
            continue
    if missing:
        found = replace(found, others_cores=max(found.others_cores, round(neighbours.cores(), 2)))
        _keep(found, machine_key(device, threads))
    return found


def _is_calm() -> bool:
    """Other programs leave the processor alone just now."""
    neighbours = Neighbours()
    time.sleep(_CALM_LOOK_S)
    return neighbours.cores() <= IDLE_CORES


def _keep(found: Calibration, key: str) -> None:
    file = cache_dir() / _FILE
    try:
        everything: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        everything = {}
    everything[key] = asdict(found)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=file.parent, delete=False, encoding="utf-8") as beside:
            json.dump(everything, beside, indent=1)
        os.replace(beside.name, file)
    except OSError:  # a cache that cannot be written costs two seconds next time
        return


def _measure_layers(subject: _Subject, threads: Threads) -> tuple[int, float]:
    """(threads that decode fastest, seconds a layer costs beside reading its weights with `threads`).

    The fastest are looked for on the processor, where all cores decode; else they are 0.
    """
    cores = usable_cores()
    candidates = dict.fromkeys((cores, max(1, cores - 1), max(1, cores // 2)))
    best = 0
    with tempfile.TemporaryDirectory() as folder:
        if not subject.device and threads.decode == cores:
            best = cores
            wide = _hollow_model(Path(folder) / "wide.gguf", "Q8_0", subject.shape)
            times = {count: _timed(wide, count, subject) for count in candidates}
            for count in candidates:
                if times[count] * _FEWER_THREADS_GAIN < times[best]:
                    best = count
        narrow = _hollow_model(Path(folder) / "narrow.gguf", "Q8_0", _NARROW)
        return best, _timed(narrow, threads.decode, subject) / _NARROW[0]


def _measure_type(subject: _Subject, name: str, threads: Threads, layer_s: float) -> TypeSpeed:
    rows = subject.prefill_rows
    with tempfile.TemporaryDirectory() as folder:
        path = _hollow_model(Path(folder) / "wide.gguf", name, subject.shape)
        size = _weights(subject.shape)
        block, block_bytes = next((b, s) for n, b, s in TENSOR_TYPES.values() if n == name)
        beside = layer_s * subject.shape[0]
        seconds = _timed(path, threads.decode, subject)
        rows_s = _timed(path, threads.batch, subject, rows=rows)
    return TypeSpeed(
        decode_bytes_s=size // block * block_bytes / max(seconds - beside, seconds / 10),
        prefill_macs_s=size * rows / max(rows_s - beside, rows_s / 10),
    )


def _weights(shape: tuple[int, int, int]) -> int:
    layers, width, feed_forward = shape
    return layers * (2 * width * (width + _kv_width(width)) + 3 * width * feed_forward)


def _kv_width(width: int) -> int:
    return max(1, width // 256) * 64


def _hollow_model(path: Path, kind: str, shape: tuple[int, int, int]) -> Path:
    """A llama of zeros in weights of that type, without a vocabulary."""
    import gguf
    import numpy as np

    layers, width, feed_forward = shape
    # Any: gguf carries no types.
    writer: Any = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(layers)
    writer.add_context_length(_CONTEXT)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(feed_forward)
    writer.add_head_count(width // 64)
    writer.add_head_count_kv(max(1, width // 256))
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(32)
    writer.add_tokenizer_model("none")
    kv_width = _kv_width(width)
    total = 0

    def tensor(name: str, rows: int, columns: int, of: str) -> None:
        nonlocal total
        block, size = next((b, s) for n, b, s in TENSOR_TYPES.values() if n == of)
        size_bytes = rows * columns // block * size
        shape_given = [rows, columns] if rows > 1 else [columns]
        kind_given = gguf.GGMLQuantizationType[of]
        bytes_shape = gguf.quants.quant_shape_to_byte_shape(shape_given, kind_given)
        if of == "F32":
            writer.add_tensor_info(name, shape_given, np.dtype(np.float32), size_bytes)
        else:
            writer.add_tensor_info(name, bytes_shape, np.dtype(np.uint8), size_bytes, raw_dtype=kind_given)
        total += -(-size_bytes // 32) * 32

    tensor("token_embd.weight", 32, width, "F32")
    tensor("output.weight", 32, width, "F32")
    tensor("output_norm.weight", 1, width, "F32")
    for layer in range(layers):
        for name, rows, columns in (
            ("attn_q", width, width),
            ("attn_k", kv_width, width),
            ("attn_v", kv_width, width),
            ("attn_output", width, width),
            ("ffn_gate", feed_forward, width),
            ("ffn_up", feed_forward, width),
            ("ffn_down", width, feed_forward),
        ):
            tensor(f"blk.{layer}.{name}.weight", rows, columns, kind)
        tensor(f"blk.{layer}.attn_norm.weight", 1, width, "F32")
        tensor(f"blk.{layer}.ffn_norm.weight", 1, width, "F32")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    start = -(-path.stat().st_size // 32) * 32
    os.truncate(path, start + total)
    return path


def _timed(path: Path, threads: int, subject: _Subject, *, rows: int = 1) -> float:
    """Seconds that a batch of so many tokens takes."""
    device = subject.device
    options = LoadOptions(
        n_ctx=_CONTEXT,
        n_seq_max=1,
        threads=threads,
        threads_batch=threads,
        n_gpu_layers="all" if device else 0,
        devices=(device,) if device else (),
        fit="off",
    )
    model = Model.load(path, options)
    try:
        context = Context(model, options)
        try:
            return _median_s(lambda: _decode(context, rows))
        finally:
            context.close()
    finally:
        model.close()


def _decode(context: Context, rows: int) -> None:
    context.remove(0, 0)
    context.decode([(index % 32, index, 0, index == rows - 1) for index in range(rows)])
    context.logits(rows - 1)


def _median_s(run: Callable[[], None]) -> float:
    run()
    taken: list[float] = []
    started = time.perf_counter()
    while len(taken) < 2 or time.perf_counter() - started < _BUDGET_S:
        before = time.perf_counter()
        run()
        taken.append(time.perf_counter() - before)
    return statistics.median(taken)
