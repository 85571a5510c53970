"""Taps: copies of the top rows at one point of the chain, and a quick way to the top of a whole vocabulary."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from edgellm.native.vector import softmax_weights
from edgellm.sampling.draw import ordered, others_run_python, top_rows
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
        self._found: tuple[int, NDArray[np.intp]] | None = None
        height = _height(len(logits))
        self._width = len(logits) // height
        self._split = self._width * height
        if self._width:
            self._columns = logits[: self._split].reshape(height, self._width)
            self._maxima: NDArray[np.float32] = _column_maxima(self._columns)
            self._rest = logits[self._split :]
            self.maximum = float(self._maxima.max())
            if len(self._rest):
                # np.maximum, unlike max(), lets a NaN through.
                self.maximum = float(np.maximum(self.maximum, self._rest.max()))
        else:
            self.maximum = float(logits.max())

    def ids(self, k: int) -> NDArray[np.intp]:
        """Ids, the k largest entries (and what equals them) among them; few more than k."""
        if self._found is None or self._found[0] < k:
            self._found = k, self._search(k)
        return self._found[1]

    def _search(self, k: int) -> NDArray[np.intp]:
        logits = self._logits
        if k * 4 > self._width:
            if k >= len(logits):
                return np.arange(len(logits))
            return np.flatnonzero(logits >= np.partition(logits, len(logits) - k)[len(logits) - k])
        bound = _kth_largest(self._maxima, k)
        if bound == -math.inf:
            return np.flatnonzero(logits > bound)
        columns = (self._maxima >= bound).nonzero()[0]
        hits = (self._columns.take(columns, axis=1).ravel() >= bound).nonzero()[0]
        row = hits // len(columns)
        found = row * self._width + columns[hits - row * len(columns)]
        if len(self._rest):
            found = np.concatenate((found, self._split + np.flatnonzero(self._rest >= bound)))
        return found


@cache
def _height(n: int) -> int:
    """Rows to see `n` entries in: of no more than _WIDEST columns, and with no entry left over where that can be."""
    least = max(8, -(-n // _WIDEST))
    return next((height for height in range(least, 2 * least) if n % height == 0), least)


def _column_maxima(columns: NDArray[np.float32]) -> NDArray[np.float32]:
    if not others_run_python():
        return np.maximum.reduce(columns, axis=0)
    # Row by row numpy keeps the GIL, as for all short arrays.
    maxima = columns[0].copy()
    for row in columns[1:]:
        np.maximum(maxima, row, out=maxima)
    return maxima


def _kth_largest(values: NDArray[np.float32], k: int) -> float:
    if not others_run_python():
        return float(np.partition(values, len(values) - k)[len(values) - k])
    return sorted(values.tolist(), reverse=True)[k - 1]


@dataclass(slots=True)
class Snapshot:
    """The rows left after a stage, copied; `total` and `entropy_bits` are given for the whole vocabulary only."""

    stage: str
    ids: NDArray[np.int32]
    logits: NDArray[np.float32]
    n_left: int
    total: float = 0.0
    maximum: float = 0.0
    entropy_bits: float = 0.0

    def rows(self, n: int) -> Rows:
        """The `n` most probable, in order."""
        order = ordered(self.ids, self.logits)
        in_order = self.logits[order].astype(np.float64)
        if self.total:
            probs = np.exp(in_order[:n] - self.maximum) / self.total
            entropy = self.entropy_bits
        else:
            shifted = in_order - in_order[0]
            weights = np.exp(shifted)
            total = float(weights.sum())
            # Rows at -inf weigh nothing; 0 * -inf has to be told so.
            entropy = _entropy_bits(total, float(weights @ np.maximum(shifted, _LOWEST)))
            probs = weights[:n] / total
        return Rows(
            self.stage,
            self.ids[order[:n]],
            in_order[:n].astype(np.float32),
            probs.astype(np.float32),
            self.n_left,
            entropy,
        )


class Tap:
    """Copies rows. Holds two scratch arrays of n_vocab floats, so that a step allocates none."""

    def __init__(self, n_vocab: int) -> None:
        self._contiguous = np.empty(n_vocab, dtype=np.float32)
        self._weights = np.empty(n_vocab, dtype=np.float32)

    def raw(
        self, logits: NDArray[np.float32], top: VocabularyTop, found: NDArray[np.intp]
    ) -> tuple[Snapshot, float]:
        """The rows `found` of the whole vocabulary, and logsumexp of its logits (natural log)."""
        total, entropy = self._mass(logits, top.maximum)
        snapshot = Snapshot(
            "raw", found.astype(np.int32), logits[found], len(logits), total, top.maximum, entropy
        )
        return snapshot, top.maximum + math.log(total)

    def after(self, stage: str, ids: NDArray[np.int32], logits: NDArray[np.float32], n: int) -> Snapshot:
        """What a stage left, ids and logits (m,); of many rows only the `n` most probable are copied."""
        if len(logits) <= _SHORT:
            return Snapshot(stage, ids.copy(), logits.copy(), len(logits))
        values = self._contiguous[: len(logits)]
        np.copyto(values, logits)
        maximum = float(values.max())
        total, entropy = self._mass(values, maximum)
        order = top_rows(ids, values, n)
        return Snapshot(stage, ids[order], values[order], len(logits), total, maximum, entropy)

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
