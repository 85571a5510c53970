"""Top-a: a cut that tightens with the square of the best row's probability.

Source: BlinkDL, RWKV-LM ("top-a sampling"), https://github.com/BlinkDL/RWKV-LM#the-top-a-sampling-method.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

import edgellm


@edgellm.sampler
class TopA:
    """Keeps rows with at least `a` times the square of the best row's probability: strict where the model is
    sure, generous where it is not."""

    def __init__(self, a: Annotated[float, Meta(ge=0, le=1, description="0 keeps everything")] = 0.2) -> None:
        self.a = a

    def apply(self, candidates: edgellm.Candidates) -> None:
        probs = candidates.probs()
        candidates.keep(probs >= self.a * probs.max() ** 2)
