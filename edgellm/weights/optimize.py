"""Which other type of the same weights is quicker here, at a loss within a bound."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgellm.errors import ConfigError
from edgellm.models.gguf_info import inspect_gguf
from edgellm.native.quantizer import QuantizeOptions, check_target, plan_quantization, quantize_file
from edgellm.planning.together import Wanted
from edgellm.weights.compare import Comparison, Measured, check_measuring, check_room, compare_files

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

FAST_KINDS = ("Q8_0", "Q4_0", "IQ4_NL")
"""Types for which llama.cpp has the quickest kernels on most CPUs: whole blocks at a time, repacked as weights load."""

LOSS_BOUND = 0.02
"""Mean divergence from the original, in nats a token, that counts as no loss."""

_WORTH = 0.95  # another file is kept only for a turn that is quicker by a twentieth


@dataclass(frozen=True, slots=True)
class Optimization:
    """The original and the copies measured beside it; `best` is the original where no copy is worth it.

    `kinds` are the types tried, in the order of `comparison.files` behind the original. `bound` is in nats.
    """

    comparison: Comparison
    kinds: tuple[str, ...]
    bound: float
    best: Measured

    @property
    def original(self) -> Measured:
        """The file asked about."""
        return self.comparison.reference

    @property
    def is_better(self) -> bool:
        """A copy is quicker by 5 % or more and loses no more than the bound."""
        return self.best is not self.original

    @property
    def best_kind(self) -> str:
        """The type of the best copy; empty where the original is best."""
        return self.kinds[self.comparison.files.index(self.best) - 1] if self.is_better else ""


def optimize_file(
    source: Path,
    folder: Path,
    text: str,
    *,
    kinds: Sequence[str] = FAST_KINDS,
    bound: float = LOSS_BOUND,
    windows: int = 4,
    rounds: int = 3,
    threads: int = 0,
    progress: Callable[[int, int, str], bool | None] | None = None,
) -> Optimization:
    """Writes copies of `source` to `folder`, one a type, and measures all; the copies stay there.

    What cannot be made, or not be held in memory beside the others, is said before anything is written. Raises
    ConfigError, OutOfMemory, Cancelled, and what quantizing and loading raise.
    """
    check_measuring(windows, rounds)
    if not 0 <= bound < math.inf:
        raise ConfigError(
            f"a loss of {bound} nats bounds nothing.", hint="Give a number of nats, such as 0.02."
        )
    names = tuple(dict.fromkeys(kind.strip().upper() for kind in kinds))
    if not names:
        raise ConfigError("there is no type to try.", hint=f"Name some, such as {', '.join(FAST_KINDS)}.")
    options = QuantizeOptions(threads=threads)
    _check(source, folder, names, options)
    copies: list[Path] = []
    for name in names:

        def tell(done: int, total: int, _tensor: str, name: str = name) -> bool | None:
            return progress(done, total, f"making {name}") if progress is not None else None

        copies.append(quantize_file(source, _copy(source, folder, name), name, options, progress=tell))
    found = compare_files(
        [source, *copies],
        text,
        reference=source,
        windows=windows,
        rounds=rounds,
        threads=threads,
        progress=progress,
    )
    best = found.best(bound)
    if best.turn_s() > _WORTH * found.reference.turn_s():
        best = found.reference
    return Optimization(found, names, bound, best)


def _check(source: Path, folder: Path, names: Sequence[str], options: QuantizeOptions) -> None:
    info = inspect_gguf(source)
    models = [Wanted(info, source.name)]
    for name in names:
        plan = plan_quantization(source, name, options)
        if plan.needs_importance:
            raise ConfigError(
                f"{name} needs an importance matrix, and none is made here.",
                hint="Leave it out; or make the file (edgellm quantize --calibrate) and compare both"
                " (edgellm compare).",
            )
        check_target(_copy(source, folder, name))
        models.append(Wanted(info, f"as {name}", plan.new_bytes / max(1, plan.old_bytes)))
    check_room(models, "Try fewer types at a time (--types)")


def _copy(source: Path, folder: Path, name: str) -> Path:
    return folder / f"{source.stem}.{name}.gguf"
