"""Taps: copies of the top rows at one point of the chain, and a quick way to the top of a whole vocabulary."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from edgellm.native.vector import softmax_weights
from edgellm.sampling.draw import ordered, top_rows
from edgellm.types import Rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

# numpy keeps the GIL for arrays of up to 500 elements; every release may cost a switch interval.
_WIDEST = 480
_LN2 = math.log(2.0)
_SHORT = 1024
_LOWEST = np.finfo(np.float64).min


class VocabularyTop:
    """The largest entries of a long array, found through the maxima of its columns, without sorting.

    Seen as rows of up to 480 columns, the k-th largest column maximum is a bound that at least k entries
    reach; only columns whose maximum reaches it can hold such entries. One pass over the array, whatever k.
    """

    def __init__(self, logits: NDArray[np.float32]) -> None:
        self._logits = logits
        height = max(8, -(-len(logits) // _WIDEST))
        self._width = len(logits) // height
        self._split = self._width * height
        if self._width:
            self._columns = logits[: self._split].reshape(height, self._width)
            self._maxima: NDArray[np.float32] = np.maximum.reduce(self._columns, axis=0)
            self._rest = logits[self._split :]
            self.maximum = float(self._maxima.max())
            if len(self._rest):
                # np.maximum, unlike max(), lets a NaN through.
                self.maximum = float(np.maximum(self.maximum, self._rest.max()))
        else:
            self.maximum = float(logits.max())

    def ids(self, k: int) -> NDArray[np.intp]:
        """Ascending ids, the k largest entries (and what equals them) among them; few more than k."""
        logits = self._logits
        if k * 4 > self._width:
            if k >= len(logits):
                return np.arange(len(logits))
            return np.flatnonzero(logits >= np.partition(logits, len(logits) - k)[len(logits) - k])
        bound = np.partition(self._maxima, self._width - k)[self._width - k]
        if bound == -math.inf:
            return np.flatnonzero(logits > bound)
        columns = (self._maxima >= bound).nonzero()[0]
        hits = (self._columns.take(columns, axis=1).ravel() >= bound).nonzero()[0]
        row, place = np.divmod(hits, len(columns))
        found = row * self._width + columns[place]
        if len(self._rest):
            found = np.concatenate((found, self._split + np.flatnonzero(self._rest >= bound)))
        return found


class Tap:
    """Makes `Rows`. Holds two scratch arrays of n_vocab floats, so that a step allocates none."""

    def __init__(self, n_vocab: int) -> None:
        self._contiguous = np.empty(n_vocab, dtype=np.float32)
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
            # Rows at -inf weigh nothing; 0 * -inf has to be told so.
            product = float(weights @ np.maximum(shifted, _LOWEST))
            probs = (weights[:n] / total).astype(np.float32)
            entropy = _entropy_bits(total, product)
            return Rows(stage, ids[order[:n]], in_order[:n].astype(np.float32), probs, len(logits), entropy)
        values = self._contiguous[: len(logits)]
        np.copyto(values, logits)
        total, entropy = self._mass(values, float(values.max()))
        order = top_rows(ids, values, n)
        probs = self._weights[order] / total
        return Rows(stage, ids[order], values[order], probs, len(logits), entropy)

    def _mass(self, logits: NDArray[np.float32], maximum: float) -> tuple[float, float]:
        """Sum of exp(logit - maximum), left in the scratch array, and the entropy in bits. logits: contiguous."""
        weights = self._weights[: len(logits)]
        total, product = softmax_weights(logits, maximum, weights)
        if math.isnan(product):
            # Rows at -inf weigh nothing; 0 * -inf has to be told so.
            product = float(np.dot(weights, np.where(weights > 0, logits, 0)))
        return total, _entropy_bits(total, product - maximum * total)


def _entropy_bits(total: float, product: float) -> float:
    """Entropy of weights that sum to `total`; `product` sums each weight times its logarithm."""
    return max(0.0, (math.log(total) - product / total) / _LN2)
