"""Steps of long ago, in few bytes: the top rows before and after the chain, packed until somebody looks."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from edgellm import Distribution, Rows
from edgellm_tui.distribution import FINAL

if TYPE_CHECKING:
    from edgellm import Step


class _Packed:
    """Two sets of rows in one bytes object: about half a kilobyte for twice 20 rows instead of two."""

    __slots__ = ("_counts", "_data", "_entropies", "_left")

    def __init__(self, points: tuple[Rows, Rows]) -> None:
        self._data = b"".join(
            part.tobytes() for rows in points for part in (rows.ids, rows.logits, rows.probs)
        )
        self._counts = tuple(len(rows.ids) for rows in points)
        self._left = tuple(rows.n_left for rows in points)
        self._entropies = tuple(rows.entropy_bits for rows in points)

    def __call__(self) -> tuple[Rows, ...]:
        found: list[Rows] = []
        start = 0
        for index, name in enumerate(("raw", FINAL)):
            count = self._counts[index]
            ids = np.frombuffer(self._data, np.int32, count, start)
            logits = np.frombuffer(self._data, np.float32, count, start + 4 * count)
            probs = np.frombuffer(self._data, np.float32, count, start + 8 * count)
            found.append(Rows(name, ids, logits, probs, self._left[index], self._entropies[index]))
            start += 12 * count
        return tuple(found)


def thinned(step: Step) -> Step:
    """The step with raw and final rows only."""
    seen = step.distribution
    if seen is None:
        return step
    return replace(step, distribution=Distribution(_Packed((seen.raw, seen.final)), seen.u))


def is_thin(step: Step) -> bool:
    """Only raw and final rows of it are left."""
    seen = step.distribution
    return seen is not None and bool(seen.stages) and seen.stages[-1].stage == FINAL
