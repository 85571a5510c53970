"""What would have been drawn without one stage, from the rows at hand, where that is certain.

Only part of the rows at each point is kept. Left out a stage, those behind it are run again on the rows in front of
it: `top_k`, `top_p`, `min_p` and `temperature` are plain enough for that. Where rows that were not kept could matter,
or another kind of stage stands behind, the answer is None: then the model has to be asked (`Chat.explain`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgellm import ChainSpec, Rows, Step


@dataclass(slots=True)
class _Known:
    """Tokens with logits, most probable first. `mass` is the sum of exp(logit) over all rows, None where unknown."""

    ids: list[int]
    logits: list[float]
    mass: float | None
    is_whole: bool

    def weights(self) -> list[float]:
        return [math.exp(value) for value in self.logits]

    def keep(self, count: int) -> None:
        self.ids, self.logits = self.ids[:count], self.logits[:count]
        self.mass, self.is_whole = sum(self.weights()), True


def without(step: Step, chain: ChainSpec, stage: int) -> int | None:
    """The token that the same random number would have drawn without stage `stage` of the chain, or None."""
    seen = step.distribution
    names = [spec.name for spec in chain.stages]
    if seen is None or names[-1] not in ("dist", "greedy") or len(seen.stages) < len(names) - 1:
        return None
    # In front of the chain may stand a grammar's cut; behind it, nothing.
    offset = len(seen.stages) - (len(names) - 1)
    points = (seen.raw, *seen.stages)
    known = _of(points[offset + stage])
    for spec in chain.stages[stage + 1 : -1]:
        if not _apply(known, spec.name, spec.complete_args):
            return None
    return _draw(known, names[-1], seen.u)


def _of(rows: Rows) -> _Known:
    logits = rows.logits.tolist()
    top = max(logits, default=0.0)
    known = _Known(rows.ids.tolist(), [value - top for value in logits], None, rows.n_left == len(logits))
    total = float(rows.probs.sum())
    known.mass = sum(known.weights()) / total if total > 0 else None
    return known


# Any: arguments of any stage.
def _apply(known: _Known, name: str, args: dict[str, object]) -> bool:
    """One stage on the rows; false where that cannot be told from them."""
    numbers = {key: value for key, value in args.items() if isinstance(value, int | float)}
    if name == "top_k":
        count = int(numbers["k"])
        if count > 0 and count <= len(known.ids):
            known.keep(count)
        return known.is_whole or (0 < count <= len(known.ids))
    if name == "min_p":
        floor = math.log(numbers["p"]) if numbers["p"] > 0 else -math.inf
        count = sum(value >= floor for value in known.logits)
        if count == len(known.ids) and not known.is_whole:
            return False
        known.keep(max(count, int(numbers.get("min_keep", 1)), 1))
        return True
    if name == "top_p":
        return _top_p(known, float(numbers["p"]), int(numbers.get("min_keep", 1)))
    if name == "temperature":
        value = float(next(iter(numbers.values())))
        if value <= 0:
            known.keep(1)
            return True
        known.logits = [logit / value for logit in known.logits]
        known.mass = sum(known.weights()) if known.is_whole else None
        return True
    return False


def _top_p(known: _Known, p: float, least: int) -> bool:
    if p >= 1:
        return True
    if known.mass is None:
        return False
    total = 0.0
    for index, weight in enumerate(known.weights(), 1):
        total += weight / known.mass
        if total >= p and index >= least:
            known.keep(index)
            return True
    return known.is_whole


def _draw(known: _Known, how: str, u: float) -> int | None:
    if how == "greedy":
        return known.ids[0]
    if known.mass is None or math.isnan(u):
        return None
    total = 0.0
    for token, weight in zip(known.ids, known.weights(), strict=True):
        total += weight / known.mass
        if total > u:
            return token
    # Among rows that were not kept, or beyond the last by a rounding.
    return known.ids[-1] if known.is_whole else None
