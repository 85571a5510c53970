"""A chain in which one token is made more or less likely."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from edgellm import ChainSpec

if TYPE_CHECKING:
    from collections.abc import Mapping

_STAGE = "logit_bias"


def bias_of(spec: ChainSpec, token: int) -> float:
    """What the chain adds to a token's logit."""
    return _biases(spec).get(token, 0.0)


def biased(spec: ChainSpec, token: int, amount: float) -> ChainSpec:
    """The chain with `amount` added to a token's logit, in front of all other stages; 0 takes its bias off."""
    bias = {each: value for each, value in _biases(spec).items() if each != token}
    if amount:
        bias[token] = amount
    others = [stage for stage in spec.stages if stage.name != _STAGE]
    if not bias:
        return ChainSpec(tuple(others))
    first = next((stage for stage in spec.stages if stage.name == _STAGE), None)
    if first is None:
        first = ChainSpec.parse(f"{_STAGE}({{{token}: {amount}}})").stages[0]
    return ChainSpec((first.with_arg("bias", bias), *others))


def amount_of(text: str) -> float:
    """The number that a text spells; -inf forbids a token. Raises ValueError, in words."""
    try:
        amount = float(text.strip() or "0")
    except ValueError:
        raise ValueError("Give a number such as 2, -1.5 or -inf.") from None
    if math.isnan(amount) or amount == math.inf:
        raise ValueError("Give a finite number, or -inf.")
    return amount


def _biases(spec: ChainSpec) -> Mapping[int, float]:
    found: dict[int, float] = {}
    for stage in spec.stages:
        if stage.name == _STAGE:
            found.update(stage.complete_args["bias"])
    return found
