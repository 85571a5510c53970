"""Taps: copies of the top rows at one point of the chain."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgellm.distribution import Rows
from edgellm.errors import SamplerError
from edgellm.native.scan import MOST_ROWS, ROW, rows_of
from edgellm.sampling.draw import ordered

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from edgellm.native.native_draw import NativeDraw
    from edgellm.native.samplers import CandidateBuffer

_LN2 = math.log(2.0)
_FEW = 64
_LOWEST = np.finfo(np.float64).min


@dataclass(slots=True)
class Snapshot:
    """The rows left after a stage, copied as bytes of ROW; `total` and `entropy_bits` are given where those are not all
    of the `n_left`."""

    stage: str
    data: bytes
    n_left: int
    total: float = 0.0
    maximum: float = 0.0
    entropy_bits: float = 0.0

    def rows(self, n: int) -> Rows:
        """The `n` most probable, in order."""
        copied = rows_of(self.data)
        ids, logits = copied["id"], copied["logit"]
        order = ordered(ids, logits)
        in_order = logits[order].astype(np.float64)
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
            ids[order[:n]],
            in_order[:n].astype(np.float32),
            probs.astype(np.float32),
            self.n_left,
            entropy,
        )

    def cut(self, n: int) -> Snapshot:
        """The same with the `n` most probable rows alone, where that spares memory."""
        copied = rows_of(self.data)
        if len(copied) <= _FEW:
            return self
        order = ordered(copied["id"], copied["logit"])
        total, maximum, entropy = self.total, self.maximum, self.entropy_bits
        if not total:
            maximum = float(copied["logit"][order[0]])
            shifted = copied["logit"].astype(np.float64) - maximum
            weights = np.exp(shifted)
            total = float(weights.sum())
            entropy = _entropy_bits(total, float(weights @ np.maximum(shifted, _LOWEST)))
        return Snapshot(self.stage, copied[order[:n]].tobytes(), self.n_left, total, maximum, entropy)


class Tap:
    """Copies rows of a chain's buffer. Holds scratch memory for a vocabulary, so that a step allocates none."""

    def __init__(self, buffer: CandidateBuffer) -> None:
        self._buffer = buffer
        self._contiguous = np.empty(buffer.n_vocab, dtype=np.float32)
        self._rows = np.zeros(buffer.n_vocab, dtype=ROW)

    def raw(self, logits: NDArray[np.float32], maximum: float) -> tuple[Snapshot, float]:
        """The rows in the buffer, the most probable of the vocabulary, and logsumexp of its logits (natural log)."""
        total, product = self._buffer.scan.mass(logits, maximum)
        entropy = _entropy_bits(total, product)
        snapshot = Snapshot("raw", self._buffer.copy(), len(logits), total, maximum, entropy)
        return snapshot, maximum + math.log(total)

    def after(self, stage: str, n: int) -> Snapshot:
        """What a stage left in the buffer; of many rows only the `n` most probable are copied."""
        buffer = self._buffer
        left = buffer.n
        if left <= MOST_ROWS:
            return Snapshot(stage, buffer.copy(), left)
        values = self._contiguous[:left]
        np.copyto(values, buffer.live_logits())
        count, maximum = buffer.scan.top(values, n, self._rows)
        if not math.isfinite(maximum):
            raise SamplerError(
                f"sampler stage '{stage}' left {maximum} among its logits.", hint="Loosen its arguments."
            )
        total, product = buffer.scan.mass(values, maximum)
        most = self._rows[:count].copy()
        # A scan numbers what it finds by place.
        most["id"] = buffer.live_ids()[most["id"]]
        return Snapshot(stage, most.tobytes(), left, total, maximum, _entropy_bits(total, product))


def snapshots_of(draw: NativeDraw, names: Sequence[str], n_vocab: int) -> tuple[list[Snapshot], float]:
    """What a traced draw has copied, with the stages' names; and logsumexp of the logits (natural log)."""
    total, product = draw.mass()
    raw, *behind = draw.copies()
    found = [Snapshot("raw", raw, n_vocab, total, draw.maximum, _entropy_bits(total, product))]
    for name, data in zip(names, behind, strict=True):
        found.append(Snapshot(name, data, len(data) // ROW.itemsize))
    return found, draw.maximum + math.log(total)


def _entropy_bits(total: float, product: float) -> float:
    """Entropy of weights that sum to `total`; `product` sums each weight times its own logarithm."""
    return max(0.0, (math.log(total) - product / total) / _LN2)
