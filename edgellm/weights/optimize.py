"""Which other type of the same weights is quicker here, at a loss within a bound."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgellm.errors import ConfigError
from edgellm.native.quantizer import QuantizeOptions, quantize_file
from edgellm.weights.compare import Comparison, Measured, compare_files

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

    Raises ConfigError, Cancelled, and what quantizing and loading raise.
    """
    if not kinds:
        raise ConfigError("there is no type to try.", hint=f"Name some, such as {', '.join(FAST_KINDS)}.")
    names = tuple(dict.fromkeys(kind.upper() for kind in kinds))
    options = QuantizeOptions(threads=threads)
    copies: list[Path] = []
    for name in names:

        def tell(done: int, total: int, _tensor: str, name: str = name) -> bool | None:
            return progress(done, total, f"making {name}") if progress is not None else None

        copies.append(
            quantize_file(source, folder / f"{source.stem}.{name}.gguf", name, options, progress=tell)
        )
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
