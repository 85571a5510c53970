"""The table of sampler stages: names, documentation, arguments with types, ranges and defaults.

The parser, `edgellm samplers`, the documentation and any user interface read this one table.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Literal

from edgellm.errors import SamplerError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

ParamKind = Literal["int", "float", "str", "bool", "strings", "floats", "ints", "bias", "any"]

_KIND_WORDS: dict[str, str] = {
    "int": "a whole number",
    "float": "a number",
    "str": "a string",
    "bool": "True or False",
    "strings": "a list of strings",
    "floats": "a list of numbers",
    "ints": "a list of whole numbers",
    "bias": "a dict of token id to number, such as {42: -1.5}",
    "any": "a value",
}


@dataclass(frozen=True, slots=True)
class Param:
    """One argument of a stage. `low`, `high` bound a number, inclusive unless `is_low_open`/`is_high_open`.

    `default` is meaningless where `is_required`. `is_optional` admits None.
    """

    name: str
    kind: ParamKind
    default: Any = None
    doc: str = ""
    low: float = -math.inf
    high: float = math.inf
    is_low_open: bool = False
    is_high_open: bool = False
    is_optional: bool = False
    is_required: bool = False

    def expected(self) -> str:
        """What a value must be, in words."""
        words = _KIND_WORDS[self.kind]
        has_low, has_high = self.low != -math.inf, self.high != math.inf
        if has_low and has_high:
            low = f"above {_plain(self.low)}" if self.is_low_open else f"from {_plain(self.low)}"
            high = f"below {_plain(self.high)}" if self.is_high_open else f"to {_plain(self.high)}"
            words += f" {low} {high}"
        elif has_low:
            words += f" above {_plain(self.low)}" if self.is_low_open else f", {_plain(self.low)} or more"
        elif has_high:
            words += f" below {_plain(self.high)}" if self.is_high_open else f", {_plain(self.high)} or less"
        return words + (" or None" if self.is_optional else "")

    def checked(self, value: Any) -> Any:
        """The value in its own type (a whole number given for a float becomes one). Raises ValueError."""
        # Any: a literal from a chain's text, or an argument of a Python call.
        if value is None:
            if self.is_optional:
                return None
            raise ValueError(self.expected())
        converted = _CONVERTERS[self.kind](value)
        if converted is None:
            raise ValueError(self.expected())
        if self.kind in ("int", "float") and not self._is_in_range(converted):
            raise ValueError(self.expected())
        return converted

    def _is_in_range(self, value: float) -> bool:
        above = value > self.low if self.is_low_open else value >= self.low
        below = value < self.high if self.is_high_open else value <= self.high
        return above and below and math.isfinite(value)


def _plain(number: float) -> str:
    return str(int(number)) if number == int(number) else f"{number:g}"


def _as_int(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _as_float(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _as_list(value: Any, one: Callable[[Any], Any]) -> tuple[Any, ...] | None:
    if not isinstance(value, list | tuple):
        return None
    items = tuple(one(item) for item in value)
    return None if any(item is None for item in items) else items


def _as_bias(value: Any) -> dict[int, float] | None:
    if not isinstance(value, Mapping):
        return None
    pairs = {_as_int(key): _as_float(number) for key, number in value.items()}
    if any(k is None or n is None or math.isnan(n) or n == math.inf for k, n in pairs.items()):
        return None
    return {k: n for k, n in pairs.items() if k is not None and n is not None}


def _as_str(value: Any) -> str | None:
    return value if isinstance(value, str) else None


_CONVERTERS: dict[str, Callable[[Any], Any]] = {
    "int": _as_int,
    "float": _as_float,
    "str": _as_str,
    "bool": lambda value: value if isinstance(value, bool) else None,
    "strings": lambda value: _as_list(value, _as_str),
    "floats": lambda value: _as_list(value, _as_float),
    "ints": lambda value: _as_list(value, _as_int),
    "bias": _as_bias,
    "any": lambda value: value,
}


def format_value(value: Any) -> str:
    """A value as the chain syntax writes it; parsing gives it back."""
    # Any: a checked argument.
    if isinstance(value, tuple | list):
        return "[" + ", ".join(map(format_value, value)) + "]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{format_value(k)}: {format_value(v)}" for k, v in value.items()) + "}"
    return repr(value)


@dataclass(frozen=True, slots=True)
class StageInfo:
    """What is known of a stage. `make` is None for native stages; otherwise it makes a plugin's object.

    `chooses`: the stage picks the token. `is_stateful`: it wants to be told of accepted tokens.
    `leaves_holes`: it cuts by setting logits to -inf; the chain removes those rows behind it.
    """

    name: str
    doc: str
    params: tuple[Param, ...] = ()
    chooses: bool = False
    is_stateful: bool = False
    leaves_holes: bool = False
    source: str = "llama.cpp"
    reference: str = ""
    make: Callable[..., Any] | None = None

    def param(self, name: str) -> Param | None:
        """The parameter of that name."""
        return next((param for param in self.params if param.name == name), None)

    def complete(self, args: Mapping[str, Any]) -> dict[str, Any]:
        """All arguments: those given, and the defaults of the others."""
        return {param.name: args.get(param.name, param.default) for param in self.params}

    def signature(self) -> str:
        """The stage as one would write it, with defaults: `top_p(p=0.9, min_keep=1)`."""
        inner = ", ".join(
            p.name if p.is_required else f"{p.name}={format_value(p.default)}" for p in self.params
        )
        return f"{self.name}({inner})"


def _taken(info: StageInfo, known: StageInfo) -> SamplerError:
    return SamplerError(
        f"sampler stage '{info.name}' of {info.source} has the name of one from {known.source}.",
        hint="Give it another name: @edgellm.sampler(name=...).",
    )


class StageRegistry:
    """Stages by name. `finder`, if set, is called once, at the first name nobody has registered."""

    def __init__(self, stages: Iterable[StageInfo] = ()) -> None:
        self._stages: dict[str, StageInfo] = {info.name: info for info in stages}
        self.finder: Callable[[], None] | None = None

    def register(self, info: StageInfo) -> None:
        """Add a stage. The same stage again is nothing new; another one of that name raises SamplerError."""
        known = self._stages.get(info.name)
        if known is None:
            self._stages[info.name] = info
        elif known.make is not info.make:
            raise _taken(info, known)

    def check_unregistered(self, info: StageInfo) -> None:
        """Raises SamplerError for a class that has the name of one of llama.cpp's stages: a saved chat would be opened
        with that one."""
        known = self._stages.get(info.name)
        if known is not None and known.make is None and info.make is not None:
            raise _taken(info, known)

    def unregister(self, name: str) -> None:
        """Take a stage out again (tests do)."""
        self._stages.pop(name, None)

    def get(self, name: str) -> StageInfo | None:
        """The stage of that name, or None."""
        info = self._stages.get(name)
        if info is None and self.finder is not None:
            finder, self.finder = self.finder, None
            finder()
            info = self._stages.get(name)
        return info

    def lookup(self, name: str) -> StageInfo:
        """The stage of that name. Raises SamplerError with the nearest known one."""
        info = self.get(name)
        if info is None:
            raise SamplerError(f"unknown sampler stage '{name}'.", hint=self.suggestion(name))
        return info

    def suggestion(self, name: str) -> str:
        """A hint for an unknown name."""
        wanted = _ALIASES.get(name.lower().replace("-", "_")) or nearest(name, self._stages)
        return f"Did you mean '{wanted}'?" if wanted else "`edgellm samplers list` shows all stages."

    def all(self) -> list[StageInfo]:
        """All registered stages: llama.cpp's in their usual order, then plugins by name."""
        native = [info for info in self._stages.values() if info.make is None]
        plugins = [info for info in self._stages.values() if info.make is not None]
        return native + sorted(plugins, key=lambda info: info.name)


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word closest in spelling, if one is close."""
    by_key = {name.lower().replace("_", ""): name for name in known}
    found = get_close_matches(word.lower().replace("_", "").replace("-", ""), list(by_key), n=1, cutoff=0.6)
    return by_key[found[0]] if found else None


_ALIASES = {
    "temp": "temperature",
    "temp_ext": "dynamic_temperature",
    "dynatemp": "dynamic_temperature",
    "typ_p": "typical",
    "typical_p": "typical",
    "nucleus": "top_p",
    "repetition_penalty": "penalties",
    "repeat_penalty": "penalties",
    "mirostat_2": "mirostat_v2",
    "multinomial": "dist",
    "softmax": "dist",
}

_MIN_KEEP = Param("min_keep", "int", 1, "rows that are kept in any case", low=0)
_SEED = Param("seed", "int", None, "seed; None takes the chain's", low=0, high=2**64 - 1, is_optional=True)

NATIVE_STAGES: tuple[StageInfo, ...] = (
    StageInfo(
        "logit_bias",
        "Adds a number to the logits of single tokens; -inf forbids them.",
        (Param("bias", "bias", doc="token id to number", is_required=True),),
        leaves_holes=True,
    ),
    StageInfo(
        "penalties",
        "Makes tokens of the last `last_n` less likely: divided by `repeat`, less `frequency` for each"
        " occurrence and `presence` once.",
        (
            Param("repeat", "float", 1.1, "1 does nothing", low=0, is_low_open=True),
            Param("last_n", "int", 64, "how far back to look, in tokens; 0 does nothing", low=0, high=2**20),
            Param("frequency", "float", 0.0, "subtracted for each occurrence", low=-100, high=100),
            Param("presence", "float", 0.0, "subtracted once", low=-100, high=100),
        ),
        is_stateful=True,
        reference="arXiv:1909.05858",
    ),
    StageInfo(
        "dry",
        "Don't repeat yourself: a penalty that grows with the length of the sequence a token would repeat.",
        (
            Param("multiplier", "float", 0.8, "0 does nothing", low=0),
            Param("base", "float", 1.75, "growth for each repeated token", low=1),
            Param("allowed_length", "int", 2, "repeats up to this length are free", low=0),
            Param("last_n", "int", 64, "how far back to look, in tokens", low=0, high=2**20),
            Param("breakers", "strings", ("\n", ":", '"', "*"), "texts at which a repeat ends"),
        ),
        is_stateful=True,
        reference="https://github.com/oobabooga/text-generation-webui/pull/5677",
    ),
    StageInfo(
        "top_n_sigma",
        "Keeps logits within `n` standard deviations of the largest.",
        (Param("n", "float", 1.0, "standard deviations", low=0, is_low_open=True),),
        leaves_holes=True,
        reference="arXiv:2411.07641",
    ),
    StageInfo(
        "top_k", "Keeps the `k` most probable rows.", (Param("k", "int", 40, "rows", low=1, high=2**31 - 1),)
    ),
    StageInfo(
        "typical",
        "Locally typical: keeps rows whose surprise is nearest to the entropy, up to a mass of `p`.",
        (Param("p", "float", 0.95, "probability mass", low=0, high=1, is_low_open=True), _MIN_KEEP),
        reference="arXiv:2202.00666",
    ),
    StageInfo(
        "top_p",
        "Nucleus: keeps the most probable rows up to a mass of `p`.",
        (Param("p", "float", 0.9, "probability mass", low=0, high=1, is_low_open=True), _MIN_KEEP),
        reference="arXiv:1904.09751",
    ),
    StageInfo(
        "min_p",
        "Keeps rows with at least `p` times the probability of the best.",
        (Param("p", "float", 0.05, "share of the best row's probability", low=0, high=1), _MIN_KEEP),
        reference="arXiv:2407.01082",
    ),
    StageInfo(
        "xtc",
        "Exclude top choices: with `probability`, drops all rows above `threshold` but the least probable of them.",
        (
            Param("probability", "float", 0.5, "chance that it acts", low=0, high=1),
            Param("threshold", "float", 0.1, "above 0.5 it does nothing", low=0, high=1),
            _MIN_KEEP,
            _SEED,
        ),
        reference="https://github.com/oobabooga/text-generation-webui/pull/6335",
    ),
    StageInfo(
        "temperature",
        "Divides logits; 0 leaves the best row only.",
        (Param("temperature", "float", 0.7, "1 does nothing, less is sharper", low=0, high=100),),
        leaves_holes=True,
    ),
    StageInfo(
        "dynamic_temperature",
        "Temperature between `temperature` ± `delta`, by the entropy of the rows.",
        (
            Param("temperature", "float", 0.8, "middle of the range", low=0, high=100),
            Param("delta", "float", 0.5, "half of the range; 0 is plain temperature", low=0, high=100),
            Param("exponent", "float", 1.0, "shape of the mapping from entropy", low=0, high=100),
        ),
        leaves_holes=True,
        reference="arXiv:2309.02772",
    ),
    StageInfo(
        "infill", "For fill-in-the-middle: merges tokens with a common prefix, ends early when in doubt."
    ),
    StageInfo("greedy", "Chooses the most probable row; of equal ones, the smallest id.", chooses=True),
    StageInfo(
        "dist",
        "Draws a row by its probability, with a number computed from seed, branch and position.",
        (_SEED,),
        chooses=True,
    ),
    StageInfo(
        "mirostat",
        "Mirostat 1: cuts and draws so that surprise stays near `tau`. Its state restarts after a rewind.",
        (
            Param("tau", "float", 5.0, "target surprise, in bits", low=0),
            Param("eta", "float", 0.1, "learning rate", low=0, high=1),
            Param("m", "int", 100, "rows used for the estimate", low=2),
            _SEED,
        ),
        chooses=True,
        reference="arXiv:2007.14966",
    ),
    StageInfo(
        "mirostat_v2",
        "Mirostat 2: cuts rows with more surprise than its running bound, and draws. Restarts after a rewind.",
        (
            Param("tau", "float", 5.0, "target surprise, in bits", low=0),
            Param("eta", "float", 0.1, "learning rate", low=0, high=1),
            _SEED,
        ),
        chooses=True,
        reference="arXiv:2007.14966",
    ),
    StageInfo(
        "adaptive_p",
        "Prefers rows with a probability near `target`, adapting to what was drawn. Restarts after a rewind.",
        (
            Param("target", "float", 0.5, "wanted probability; negative draws plainly", low=-1, high=1),
            Param("decay", "float", 0.9, "memory: about 1 / (1 - decay) tokens", low=0, high=0.99),
            _SEED,
        ),
        chooses=True,
        is_stateful=True,
        reference="https://github.com/ggml-org/llama.cpp/pull/17927",
    ),
)

REGISTRY = StageRegistry(NATIVE_STAGES)
"""The registry that chains are parsed against unless another is given."""
