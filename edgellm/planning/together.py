"""Whether several models fit into memory at once, each with a context of its own."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

from edgellm.errors import OutOfMemory
from edgellm.planning.demand import Demand, Machine, this_machine
from edgellm.planning.fit import Fitting, available, gigabytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgellm.models.gguf_info import GGUFInfo
    from edgellm.types import LoadOptions

_NAMED = 3


@dataclass(frozen=True, slots=True)
class Wanted:
    """A model to load. `scale`: it is a copy in another type, with so many bytes of weights for one of `info`'s."""

    info: GGUFInfo
    name: str
    scale: float = 1.0


def check_together(
    models: Sequence[Wanted],
    options: LoadOptions,
    *,
    logit_rows: int,
    hint: str,
    machine: Machine | None = None,
) -> None:
    """Raises OutOfMemory with the sum where the models do not fit into memory beside each other, all loaded with the
    same options and `logit_rows` rows of logits held for each; ConfigError where llama.cpp refuses the options.
    """
    there = machine or this_machine(options.devices)
    demands: list[Demand] = []
    for is_rehearsed in (False, True):  # an estimate is high: what fits by it, fits
        demands = [_demand(model, options, there, logit_rows, is_rehearsed=is_rehearsed) for model in models]
        if _sum(demands).fits(there):
            return
    raise OutOfMemory(_told(models, demands, there), hint=hint)


def _demand(
    model: Wanted, options: LoadOptions, machine: Machine, logit_rows: int, *, is_rehearsed: bool
) -> Demand:
    with Fitting(model.info, machine, options) as fitting:
        settings = fitting.wanted()
        own = fitting.demand(settings) if is_rehearsed else fitting.estimate(settings)
    return replace(
        own,
        weights_bytes=round(own.weights_bytes * model.scale),
        gpu_weights_bytes=round(own.gpu_weights_bytes * model.scale),
        other_bytes=own.other_bytes + 4 * logit_rows * model.info.tokenizer.vocabulary_size,
    )


def _sum(demands: Sequence[Demand]) -> Demand:
    return Demand(**{item.name: sum(getattr(one, item.name) for one in demands) for item in fields(Demand)})


def _told(models: Sequence[Wanted], demands: Sequence[Demand], machine: Machine) -> str:
    # In a folder of many files the largest tell enough.
    parts = sorted(zip(demands, models, strict=True), key=lambda pair: -pair[0].all_bytes)
    named = [f"{gigabytes(demand.all_bytes)} {model.name}" for demand, model in parts[:_NAMED]]
    if rest := parts[_NAMED:]:
        named.append(f"{gigabytes(sum(demand.all_bytes for demand, _ in rest))} {len(rest)} more")
    total = gigabytes(sum(demand.all_bytes for demand in demands))
    asked = f"{len(models)} models do not fit into memory together: {total} = {' + '.join(named)}"
    if len(models) == 1:
        asked = f"{models[0].name} does not fit into memory: it takes {total}"
    return f"{asked}; {available(machine)}."
