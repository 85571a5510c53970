"""Sampling advice inside a GGUF: the `general.sampling.*` keys, as llama.cpp reads them, made into a chain."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from edgellm.sampling.spec import ChainSpec, StageSpec, default_chain, stage

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_PREFIX = "general.sampling."
# llama.cpp's own names of stages (common/sampling.cpp) and ours; its default order comes first.
_ORDER = ("penalties", "top_k", "top_p", "min_p", "xtc", "temperature")
_NAMES = {
    "temp": "temperature",
    "typ_p": "typical",
    "nucleus": "top_p",
    "topk": "top_k",
    "topp": "top_p",
    "minp": "min_p",
}


def chain_from_metadata(metadata: Mapping[str, str]) -> ChainSpec | None:
    """The chain that a model's metadata asks for; None where it says nothing.

    Values stand in for those of the default chain. A value that means "off" (`top_k` 0, `top_p` 1, `min_p` 0 ...)
    takes its stage out; `temp` 0 is `greedy`. `sequence` gives the order; stages it names without a value take
    the default chain's value, and are left out where that has none. Values that are no numbers are ignored,
    as llama.cpp does.
    """
    values = {
        key.removeprefix(_PREFIX): value.strip() for key, value in metadata.items() if key.startswith(_PREFIX)
    }
    if not values:
        return None
    numbers = {key: number for key, text in values.items() if (number := _number(text)) is not None}
    names = _sequence(values.get("sequence", ""))
    if not names and not numbers:
        return None
    defaults = {spec.name: spec for spec in default_chain().stages[:-1]}
    stages: list[StageSpec] = []
    for name in names or _ORDER:
        given = _FROM_VALUES.get(name, _nothing)(numbers)
        spec = defaults.get(name) if given is None else given
        if isinstance(spec, StageSpec):
            stages.append(spec)
    mirostat = numbers.get("mirostat", 0)
    if mirostat in (1, 2):
        kept = [spec for spec in stages if spec.name in ("penalties", "temperature")]
        name = "mirostat" if mirostat == 1 else "mirostat_v2"
        kept.append(
            stage(
                name,
                tau=max(numbers.get("mirostat_tau", 5.0), 0.0),
                eta=min(max(numbers.get("mirostat_eta", 0.1), 0.0), 1.0),
            )
        )
        return ChainSpec(tuple(kept))
    if numbers.get("temp", 1.0) <= 0:
        return ChainSpec((*(spec for spec in stages if spec.name == "penalties"), stage("greedy")))
    return ChainSpec((*stages, stage("dist")))


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _sequence(text: str) -> list[str]:
    """Our names of the stages that `penalties;top_k;temp` lists, each once; unknown ones are left out."""
    names: list[str] = []
    for written in text.split(";"):
        name = written.strip().lower().replace("-", "_")
        name = _NAMES.get(name, name)
        if name in _FROM_VALUES and name not in names:
            names.append(name)
    return names


_OFF = "off"


def _nothing(_numbers: Mapping[str, float]) -> StageSpec | str | None:
    return _OFF


def _top_k(numbers: Mapping[str, float]) -> StageSpec | str | None:
    if "top_k" not in numbers:
        return None
    return stage("top_k", int(numbers["top_k"])) if numbers["top_k"] >= 1 else _OFF


def _top_p(numbers: Mapping[str, float]) -> StageSpec | str | None:
    if "top_p" not in numbers:
        return None
    return stage("top_p", numbers["top_p"]) if 0 < numbers["top_p"] < 1 else _OFF


def _min_p(numbers: Mapping[str, float]) -> StageSpec | str | None:
    return stage("min_p", numbers["min_p"]) if 0 < numbers.get("min_p", 0) <= 1 else _OFF


def _temperature(numbers: Mapping[str, float]) -> StageSpec | str | None:
    if "temp" not in numbers:
        return None
    return stage("temperature", min(numbers["temp"], 100.0)) if numbers["temp"] > 0 else _OFF


def _xtc(numbers: Mapping[str, float]) -> StageSpec | str | None:
    probability = numbers.get("xtc_probability", 0.0)
    if not 0 < probability <= 1:
        return _OFF
    return stage("xtc", probability, min(max(numbers.get("xtc_threshold", 0.1), 0.0), 1.0))


def _penalties(numbers: Mapping[str, float]) -> StageSpec | str | None:
    repeat = numbers.get("penalty_repeat", 1.0)
    if repeat <= 0 or repeat == 1.0:
        return _OFF
    return stage("penalties", repeat, max(int(numbers.get("penalty_last_n", 64)), 0))


_FROM_VALUES: dict[str, Callable[[Mapping[str, float]], StageSpec | str | None]] = {
    "penalties": _penalties,
    "top_k": _top_k,
    "top_p": _top_p,
    "min_p": _min_p,
    "xtc": _xtc,
    "temperature": _temperature,
}
