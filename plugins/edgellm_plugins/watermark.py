"""A watermark: the previous token splits the vocabulary into green and red tokens, and green ones are favoured.

Source: Kirchenbauer et al., "A Watermark for Large Language Models", arXiv:2301.10226 (soft watermark, one token of
context). Whoever knows the key finds it with `detect`; nobody needs the model for that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from msgspec import Meta

import edgellm

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


@edgellm.sampler
class Watermark:
    """Adds `delta` to the logits of the share `gamma` of tokens that previous token and `key` make green."""

    def __init__(
        self,
        delta: Annotated[
            float, Meta(ge=0, le=100, description="strength; 2 is readable and detectable")
        ] = 2.0,
        gamma: Annotated[float, Meta(gt=0, lt=1, description="share of green tokens")] = 0.25,
        key: Annotated[int, Meta(ge=0, description="the secret of whoever wants to detect it")] = 15485863,
    ) -> None:
        self.delta = delta
        self.gamma = gamma
        self.key = key

    def apply(self, candidates: edgellm.Candidates) -> None:
        tokens = candidates.context.tokens
        if not len(tokens):
            return
        previous = np.full(1, tokens[-1])
        candidates.logits[is_green(previous, candidates.ids, key=self.key, gamma=self.gamma)] += self.delta


@dataclass(frozen=True, slots=True)
class Detection:
    """`green` of `scored` tokens are green. `z_score` is in standard deviations of text without a watermark, where
    a share `gamma` would be; `p_value` is the chance of at least that score in such text (normal approximation)."""

    green: int
    scored: int
    z_score: float
    p_value: float


def detect(tokens: Sequence[int], *, gamma: float = 0.25, key: int = 15485863) -> Detection:
    """How strongly a text's tokens carry the watermark. Each pair of neighbours counts once, as the paper advises
    for repetitive text. Fewer than two tokens give a z-score of 0."""
    pairs = np.array(sorted(set(pairwise(tokens))), dtype=np.int64).reshape(-1, 2)
    scored = len(pairs)
    if not scored:
        return Detection(0, 0, 0.0, 0.5)
    green = int(is_green(pairs[:, 0], pairs[:, 1], key=key, gamma=gamma).sum())
    z_score = (green - gamma * scored) / math.sqrt(scored * gamma * (1 - gamma))
    return Detection(green, scored, z_score, 0.5 * math.erfc(z_score / math.sqrt(2)))


def is_green(previous: NDArray[Any], tokens: NDArray[Any], *, key: int, gamma: float) -> NDArray[np.bool_]:
    """Which tokens are green after which: arrays of ids that broadcast to one shape.

    A token is green where SplitMix64's output function of key, previous id and id lies below `gamma` · 2**64.
    """
    # Any: integer arrays of any width.
    with np.errstate(over="ignore"):
        state = _mix(np.full(1, key % 2**64, dtype=np.uint64) + previous.astype(np.uint64))
        drawn = _mix(state ^ tokens.astype(np.uint64))
    return drawn < np.uint64(int(gamma * 2.0**64))


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64 (Steele, Lea, Flood 2014): one step of its stream from state x."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
