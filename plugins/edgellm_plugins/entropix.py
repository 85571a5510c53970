"""Entropix-like: entropy and varentropy of the next token decide temperature and cut.

Idea: xjdr-alt/entropix (2024), https://github.com/xjdr-alt/entropix: entropy says how unsure the model is,
varentropy (the variance of surprise) whether it is torn between a few ways or just vague. This is the sampler
part of that idea; it does not insert tokens or branch.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from msgspec import Meta

import edgellm

_COOLEST = 0.05


@edgellm.sampler
class Entropix:
    """Adapts temperature and cut to how sure the model is.

    Sure (low entropy, low varentropy): almost greedy. Torn between few ways (low, high): warmer, so that the
    second way is tried. Vague (high, low): cooler, and a firm cut. Lost (high, high): cooler still, and the
    firmest cut. In between, all of it in proportion. Put it first, or behind a generous top_k.
    """

    def __init__(
        self,
        temperature: Annotated[float, Meta(gt=0, le=10, description="where nothing is remarkable")] = 0.7,
        entropy: Annotated[float, Meta(gt=0, description="bits that count as unsure")] = 3.0,
        varentropy: Annotated[float, Meta(gt=0, description="bits squared that count as torn")] = 5.0,
        min_p: Annotated[float, Meta(ge=0, le=1, description="the firmest cut")] = 0.2,
    ) -> None:
        self.temperature = temperature
        self.entropy = entropy
        self.varentropy = varentropy
        self.min_p = min_p

    def apply(self, candidates: edgellm.Candidates) -> None:
        probs = candidates.probs().astype(np.float64)
        surprise = -np.log2(np.maximum(probs, np.finfo(np.float64).tiny))
        entropy = float(probs @ surprise)
        varentropy = float(probs @ (surprise - entropy) ** 2)
        unsure = min(1.0, entropy / self.entropy)
        torn = min(1.0, varentropy / self.varentropy)
        # Corners: sure 0.3, torn 1.3, vague 0.8, lost 0.6 of the base temperature; bilinear in between.
        factor = (1 - unsure) * (0.3 + torn) + unsure * (0.8 - 0.2 * torn)
        cut = self.min_p * unsure * (0.5 + 0.5 * torn)
        candidates.logits[:] = candidates.logits / max(self.temperature * factor, _COOLEST)
        if cut > 0:
            candidates.keep(probs >= cut * probs.max())
