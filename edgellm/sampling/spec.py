"""A sampler chain as data: parsed from one line or made from a list, printed back, picked by precedence."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from edgellm.errors import SamplerError
from edgellm.sampling.registry import REGISTRY, StageInfo, StageRegistry, format_value, nearest
from edgellm.sampling.stage import info_of
from edgellm.sampling.syntax import ChainSyntaxError, parse_stages

DEFAULT_CHAIN = "top_k(40) | top_p(0.9) | temperature(0.7) | dist"
"""The chain where neither model, catalogue nor user says otherwise."""


@dataclass(frozen=True, slots=True)
class StageSpec:
    """One stage: its name and the arguments that were written, in the order of the stage's parameters.

    `info` is the stage's entry in the registry, or made from the class of an object given in a list.
    """

    name: str
    args: tuple[tuple[str, Any], ...] = ()
    info: StageInfo = field(compare=False, repr=False, default=StageInfo("", ""))

    @property
    def complete_args(self) -> dict[str, Any]:
        """All arguments, defaults included."""
        return self.info.complete(dict(self.args))

    def with_arg(self, name: str, value: Any) -> StageSpec:
        """The stage with one argument changed; what equals its default is not written. Raises SamplerError."""
        # Any: an argument of any type; the stage's table checks it.
        changed = _checked(self.info, {**dict(self.args), name: value})
        written = tuple(
            (key, one)
            for key, one in changed.args
            if (param := self.info.param(key)) is None or param.is_required or one != param.default
        )
        return StageSpec(self.name, written, self.info)

    def __str__(self) -> str:
        if not self.args:
            return self.name
        first = self.info.params[0].name if self.info.params else ""
        written = [
            format_value(value) if index == 0 and name == first else f"{name}={format_value(value)}"
            for index, (name, value) in enumerate(self.args)
        ]
        return f"{self.name}({', '.join(written)})"


def stage(name: str, *values: Any, registry: StageRegistry = REGISTRY, **args: Any) -> StageSpec:
    """One stage for a chain made from a list: `stage("top_k", 40)`. Raises SamplerError."""
    # Any: arguments of any stage; the registry's table checks them.
    info = registry.lookup(name)
    if len(values) > len(info.params):
        raise SamplerError(
            f"{name} takes at most {len(info.params)} arguments.", hint=f"Its form is {info.signature()}."
        )
    given = dict(zip((param.name for param in info.params), values, strict=False))
    for key, value in args.items():
        if key in given:
            raise SamplerError(f"{name}: '{key}' is given twice.")
        given[key] = value
    return _checked(info, given)


def _checked(info: StageInfo, given: Mapping[str, Any]) -> StageSpec:
    for key in given:
        if info.param(key) is None:
            wanted = nearest(key, [param.name for param in info.params])
            raise SamplerError(
                f"{info.name} has no argument '{key}'.",
                hint=f"Did you mean '{wanted}'?" if wanted else f"Its form is {info.signature()}.",
            )
    args: list[tuple[str, Any]] = []
    for param in info.params:
        if param.name in given:
            try:
                args.append((param.name, param.checked(given[param.name])))
            except ValueError as error:
                raise SamplerError(
                    f"{info.name}: '{param.name}' must be {error}, not {given[param.name]!r}."
                ) from None
        elif param.is_required:
            raise SamplerError(f"{info.name} needs '{param.name}'.", hint=f"Its form is {info.signature()}.")
    return StageSpec(info.name, tuple(args), info)


@dataclass(frozen=True, slots=True)
class ChainSpec:
    """A chain of stages that ends in exactly one stage that chooses; `dist` is added where none is written."""

    stages: tuple[StageSpec, ...]

    def __post_init__(self) -> None:
        if not self.stages:
            raise SamplerError("an empty sampler chain.", hint=f"The default is: {DEFAULT_CHAIN}.")
        for spec in self.stages[:-1]:
            if spec.info.chooses:
                raise SamplerError(_not_last(spec.name), hint="Only the last stage may choose the token.")
        if not self.stages[-1].info.chooses:
            # A frozen dataclass completes itself.
            object.__setattr__(self, "stages", (*self.stages, stage("dist")))

    @classmethod
    def parse(cls, text: str, registry: StageRegistry = REGISTRY) -> ChainSpec:
        """The chain that one line describes. Raises ChainSyntaxError, which points at a column."""
        parsed = parse_stages(text, registry)
        for one in parsed[:-1]:
            if one.info.chooses:
                raise ChainSyntaxError(
                    _not_last(one.info.name),
                    text,
                    one.column,
                    hint="Only the last stage may choose the token.",
                )
        return cls(tuple(_checked(one.info, one.args) for one in parsed))

    @classmethod
    def of(cls, chain: ChainLike, registry: StageRegistry = REGISTRY) -> ChainSpec:
        """A chain from whatever describes one: a spec, one line, or a list of stages.

        In a list may stand StageSpecs, texts of single stages, and objects of classes decorated with
        `@edgellm.sampler` (their constructor arguments were recorded; each chain makes its own object).
        """
        if isinstance(chain, ChainSpec):
            return chain
        if isinstance(chain, str):
            return cls.parse(chain, registry)
        if not isinstance(chain, Iterable):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise SamplerError(
                f"{type(chain).__name__} is no sampler chain.", hint="Write one line, or a list of stages."
            )
        stages: list[StageSpec] = []
        for item in chain:
            if isinstance(item, StageSpec):
                stages.append(item)
            elif isinstance(item, str):
                stages += [_checked(one.info, one.args) for one in parse_stages(item, registry)]
            else:
                info, given = info_of(item)
                registry.check_unregistered(info)
                stages.append(_checked(info, given))
        return cls(tuple(stages))

    @property
    def seed(self) -> int | None:
        """The seed written in the choosing stage, if any."""
        return self.stages[-1].complete_args.get("seed")

    def with_seed(self, seed: int) -> ChainSpec:
        """The same chain with another seed in its choosing stage (one without a seed is left alone)."""
        last = self.stages[-1]
        if last.info.param("seed") is None:
            return self
        return ChainSpec((*self.stages[:-1], _checked(last.info, {**dict(last.args), "seed": seed})))

    def __str__(self) -> str:
        return " | ".join(map(str, self.stages))


ChainLike = ChainSpec | str | Iterable[Any]
"""What describes a chain: see ChainSpec.of. Any: list items may be objects of plugins' classes."""


def _not_last(name: str) -> str:
    return f"'{name}' chooses the token and must be the last stage"


def default_chain() -> ChainSpec:
    """The default chain."""
    return ChainSpec.parse(DEFAULT_CHAIN)


def resolve_chain(
    *, user: ChainLike | None = None, catalogue: str | None = None, metadata: Mapping[str, str] | None = None
) -> tuple[ChainSpec, str]:
    """The chain that applies and who said so: "user", "catalogue", "model" or "default".

    The default chain is overridden by the GGUF's sampling metadata, that by the catalogue's entry, that by the
    user.
    """
    from edgellm.sampling.metadata import chain_from_metadata

    if user is not None:
        return ChainSpec.of(user), "user"
    if catalogue is not None:
        return ChainSpec.parse(catalogue), "catalogue"
    from_model = chain_from_metadata(metadata or {})
    if from_model is not None:
        return from_model, "model"
    return default_chain(), "default"
