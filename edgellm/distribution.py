"""What the sampler saw: rows of candidates at each point of the chain, and the token that was drawn from them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """The top rows of a distribution at one point of the sampler chain, most probable first.

    ids: int32 (n,); logits: float32 (n,); probs: float32 (n,), softmax over all rows that are left
    at this point, so they sum to at most 1. `n_left` counts the rows left. `entropy_bits` is over
    all rows left.
    """

    stage: str
    ids: NDArray[np.int32]
    logits: NDArray[np.float32]
    probs: NDArray[np.float32]
    n_left: int
    entropy_bits: float


class RowsPoint(Protocol):
    """Rows that were copied at one point of the chain; `entropy_bits` is known at once at the raw one only."""

    @property
    def entropy_bits(self) -> float:
        """Entropy over all rows that were left there."""
        ...

    def rows(self, n: int) -> Rows:
        """The `n` most probable, in order."""
        ...

    def cut(self, n: int) -> RowsPoint:
        """The same with no more rows than `n`, or few."""
        ...


class Distribution:
    """What the sampler saw for one token: `raw` rows, rows after each stage, and the draw.

    `u` is the uniform number in [0, 1) used by the inverse CDF (nan where the draw was greedy or made
    inside llama.cpp). The rows were copied when the token was drawn; they are put into order when somebody looks:
    `n` rows of each of the `points`, the first of which is the raw one. `is_thin`: the stages between were dropped,
    and the last rows' stage is called "final", since which stage did what is not known any more.
    """

    __slots__ = ("_n", "_points", "_rows", "is_thin", "u")

    def __init__(self, points: Sequence[RowsPoint], n: int, u: float, *, is_thin: bool = False) -> None:
        self._points = points
        self._n = n
        self._rows: list[Rows | None] = [None] * len(points)
        self.u = u
        self.is_thin = is_thin

    def thin(self) -> Distribution:
        """The same with raw and final rows alone: to keep for long."""
        ends = (self._points[0].cut(self._n), self._points[-1].cut(self._n))
        return Distribution(ends, self._n, self.u, is_thin=True)

    def _at(self, index: int) -> Rows:
        rows = self._rows[index]
        if rows is None:
            rows = self._points[index].rows(self._n)
            if self.is_thin and index:
                rows = replace(rows, stage="final")
            self._rows[index] = rows
        return rows

    @property
    def entropy_bits(self) -> float:
        """Entropy over the whole vocabulary, before any stage."""
        return self._points[0].entropy_bits

    @property
    def raw(self) -> Rows:
        """Rows before any stage."""
        return self._at(0)

    @property
    def stages(self) -> tuple[Rows, ...]:
        """Rows after each stage, in order."""
        return tuple(map(self._at, range(1, len(self._rows))))

    @property
    def final(self) -> Rows:
        """Rows the token was drawn from."""
        return self._at(len(self._rows) - 1)


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """One token on its way out of the engine.

    `piece` are the token's own bytes (special tokens included). `logprob` is the natural log of the raw
    model probability, None where no tap was on or the token was forced. `position` is its index on the tape.
    `is_forced`: nothing was drawn; `is_guided`: the `guided` tool strategy wrote it, or drew it greedily.
    """

    token: int
    piece: bytes
    position: int
    is_eog: bool = False
    is_control: bool = False
    is_forced: bool = False
    is_constrained: bool = False
    is_guided: bool = False
    logprob: float | None = None
    distribution: Distribution | None = None
