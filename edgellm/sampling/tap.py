"""Taps: copies of the top rows at one point of the chain, and a quick way to the top of a whole vocabulary."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from edgellm.sampling.draw import ordered, top_rows
from edgellm.types import Rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

_COLUMN = 64
_LN2 = math.log(2.0)
_SHORT = 1024


class VocabularyTop:
    """The largest entries of a long array, found through the maxima of its columns, without sorting.

    Seen as 64 rows of n // 64 columns, the k-th largest column maximum is a bound that at least k entries
    reach; only columns whose maximum reaches it can hold such entries. One pass over the array, whatever k.
    """

    def __init__(self, logits: NDArray[np.float32]) -> None:
        self._logits = logits
        self._width = len(logits) // _COLUMN
        self._split = self._width * _COLUMN
        if self._width:
            self._columns = logits[: self._split].reshape(_COLUMN, self._width)
            self._maxima: NDArray[np.float32] = np.maximum.reduce(self._columns, axis=0)
            self._rest = logits[self._split :]
            self.maximum = float(self._maxima.max())
            if len(self._rest):
                # np.maximum, unlike max(), lets a NaN through.
                self.maximum = float(np.maximum(self.maximum, self._rest.max()))
        else:
            self.maximum = float(logits.max())

    def ids(self, k: int) -> NDArray[np.intp]:
        """Ascending ids that hold the k largest entries, equal ones included; few more than k."""
        logits = self._logits
        if k * 4 > self._width:
            if k >= len(logits):
                return np.arange(len(logits))
            return np.flatnonzero(logits >= np.partition(logits, len(logits) - k)[len(logits) - k])
        bound = np.partition(self._maxima, self._width - k)[self._width - k]
        if bound == -math.inf:
            return np.flatnonzero(logits > bound)
        columns = np.flatnonzero(self._maxima >= bound)
        row, place = np.nonzero(self._columns[:, columns] >= bound)
        found = row * self._width + columns[place]
        if len(self._rest):
            found = np.concatenate((found, self._split + np.flatnonzero(self._rest >= bound)))
        return found


class Tap:
    """Makes `Rows`. Holds two scratch arrays of n_vocab floats, so that a step allocates none."""

    def __init__(self, n_vocab: int) -> None:
        self._shifted = np.empty(n_vocab, dtype=np.float32)
        self._weights = np.empty(n_vocab, dtype=np.float32)

    def raw(self, logits: NDArray[np.float32], top: VocabularyTop, n: int) -> tuple[Rows, float]:
        """The `n` most probable rows of the whole vocabulary, and logsumexp of its logits (natural log)."""
        found = top.ids(min(n, len(logits)))
        ids = found.astype(np.int32)
        order = ordered(ids, logits[found])[:n]
        total, entropy = self._mass(logits, top.maximum)
        best = ids[order]
        rows = Rows("raw", best, logits[best], self._weights[best] / total, len(logits), entropy)
        return rows, top.maximum + math.log(total)

    def rows(self, stage: str, ids: NDArray[np.int32], logits: NDArray[np.float32], n: int) -> Rows:
        """The `n` most probable of the rows left, ids and logits (m,) as a stage left them."""
        if len(logits) <= _SHORT:
            order = ordered(ids, logits)
            in_order = logits[order].astype(np.float64)
            shifted = in_order - in_order[0]
            weights = np.exp(shifted)
            total = float(weights.sum())
            with np.errstate(invalid="ignore"):
                product = float(weights @ shifted)
            probs = (weights[:n] / total).astype(np.float32)
            entropy = _entropy_bits(total, product, weights, shifted)
            return Rows(stage, ids[order[:n]], in_order[:n].astype(np.float32), probs, len(logits), entropy)
        maximum = float(logits.max())
        total, entropy = self._mass(logits, maximum)
        order = top_rows(ids, logits, n)
        probs = self._weights[order] / total
        return Rows(stage, ids[order], logits[order], probs, len(logits), entropy)

    def _mass(self, logits: NDArray[np.float32], maximum: float) -> tuple[float, float]:
        """Sum of exp(logit - maximum), left in the scratch array, and the entropy in bits."""
        n = len(logits)
        shifted = np.subtract(logits, np.float32(maximum), out=self._shifted[:n])
        weights = np.exp(shifted, out=self._weights[:n])
        total = float(weights.sum())
        return total, _entropy_bits(total, float(np.dot(weights, shifted)), weights, shifted)


def _entropy_bits(
    total: float, product: float, weights: NDArray[np.floating], shifted: NDArray[np.floating]
) -> float:
    if math.isnan(product):
        # Rows at -inf weigh nothing; 0 * -inf has to be told so.
        product = float(np.dot(weights, np.where(weights > 0, shifted, 0)))
    return max(0.0, (math.log(total) - product / total) / _LN2)
