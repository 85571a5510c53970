"""Quadratic smoothing: the distance to the best logit is bent, so that the head gets flatter and the tail falls off.

Source: kalomaze, https://github.com/oobabooga/text-generation-webui/pull/5403 (factor) and pull/5551 (curve).
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from msgspec import Meta

import edgellm


@edgellm.sampler
class Quadratic:
    """Replaces the distance d of a logit from the best one by factor · (k·d² + s·d³), k = (3 - curve) / 2,
    s = (curve - 1) / 2. The order of rows stays."""

    def __init__(
        self,
        factor: Annotated[float, Meta(gt=0, le=100, description="larger falls off faster")] = 0.3,
        curve: Annotated[float, Meta(ge=1, le=3, description="1 is purely quadratic, 3 purely cubic")] = 1.0,
    ) -> None:
        self.factor = factor
        self.curve = curve

    def apply(self, candidates: edgellm.Candidates) -> None:
        best = float(candidates.logits.max())
        distance = best - candidates.logits.astype(np.float64)
        bent = (3 - self.curve) / 2 * distance**2 + (self.curve - 1) / 2 * distance**3
        # A row far down the tail may leave the range of float32: -inf removes it, as it should.
        with np.errstate(over="ignore"):
            candidates.logits[:] = best - self.factor * bent
