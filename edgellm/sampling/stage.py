"""The contract of a Python sampler stage, and the decorator that makes a class one."""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Protocol,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    overload,
)

from edgellm.errors import SamplerError
from edgellm.sampling.registry import REGISTRY, Param, ParamKind, StageInfo, StageRegistry

if TYPE_CHECKING:
    from edgellm.sampling.candidates import Candidates

_MARK = "__edgellm_plugin__"
_INFO = "__edgellm_stage__"
_ARGUMENTS = "__edgellm_arguments__"

T = TypeVar("T")


class StageVocabulary(Protocol):
    """What a stage may know of the model's vocabulary."""

    @property
    def size(self) -> int:
        """Tokens in the vocabulary."""
        ...

    def piece(self, token: int) -> bytes:
        """The token's own bytes."""
        ...

    def tokenize(self, text: str) -> list[int]:
        """Token ids of a text."""
        ...


class SamplerStage(Protocol):
    """A Python stage. Only `apply` is required; the chain looks for the other methods and does without.

    accept(token) -> Rewind | None: the token is on the tape. A `Rewind` asks to take tokens back; it is ignored
        while a tape is replayed, and where it reaches beyond the tokens drawn since the last prompt.
    reset(): forget all tokens. After it `accept` is called for each token of the tape.
    bind(vocabulary): called once, before anything else, with a `StageVocabulary`.
    pending() -> int: how many of the last tokens may still be taken back; their text is held back meanwhile.
    """

    def apply(self, candidates: Candidates) -> None:
        """Look at the rows, change logits, cut rows, or choose one."""
        ...


@dataclass(frozen=True, slots=True)
class Rewind:
    """A stage's wish to take back the last `tokens` tokens, the one just accepted included.

    When the first of them is drawn again, the ids in `ban` are forbidden there (empty: the token that stood
    there). `reason` is for people.
    """

    tokens: int
    ban: tuple[int, ...] = ()
    reason: str = ""


@overload
def sampler(stage_class: type[T], /) -> type[T]: ...
@overload
def sampler(*, name: str = "", chooses: bool = False) -> Callable[[type[T]], type[T]]: ...
def sampler(
    stage_class: type[T] | None = None, /, *, name: str = "", chooses: bool = False
) -> type[T] | Callable[[type[T]], type[T]]:
    """Make a class a sampler stage.

    Its name in chains is `name`, else the class's own in snake case. The constructor's parameters become the
    stage's arguments: types, defaults, and bounds from `Annotated[float, msgspec.Meta(ge=0)]` (any object with
    `ge`, `gt`, `le`, `lt`). `chooses`, or a class attribute of that name, says that `apply` picks the token.
    Discovery registers the class; without it, give its objects in a list. Raises SamplerError.
    """

    def decorate(decorated: type[T]) -> type[T]:
        if not callable(getattr(decorated, "apply", None)):
            raise SamplerError(
                f"sampler '{decorated.__name__}' has no method apply(candidates).",
                hint="docs/writing-a-sampler.md shows a complete one.",
            )
        named = name or _snake_case(decorated.__name__)
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", named):
            raise SamplerError(
                f"{named!r} is not a name for a sampler stage ({decorated.__name__}).",
                hint="Give one with @edgellm.sampler(name=...): a letter, then letters, digits and _.",
            )
        _record_arguments(decorated)
        info = StageInfo(
            name=named,
            doc=_first_paragraph(decorated),
            params=_params_of(decorated),
            chooses=chooses or bool(getattr(decorated, "chooses", False)),
            is_stateful=callable(getattr(decorated, "accept", None)),
            source=f"{decorated.__module__}",
            make=decorated,
        )
        setattr(decorated, _INFO, info)
        setattr(decorated, _MARK, "sampler")
        return decorated

    return decorate if stage_class is None else decorate(stage_class)


def register(stage_class: type, *, source: str = "", registry: StageRegistry = REGISTRY) -> StageInfo:
    """Make a decorated class known by name. `source` tells people where it is from. Raises SamplerError."""
    info = _info_of_class(stage_class)
    if source:
        info = StageInfo(
            info.name, info.doc, info.params, info.chooses, info.is_stateful, source=source, make=info.make
        )
    registry.register(info)
    return info


def info_of(stage: object) -> tuple[StageInfo, dict[str, Any]]:
    """What is known of a stage object or class, and the constructor arguments it was made with."""
    if isinstance(stage, type):
        return _info_of_class(stage), {}
    return _info_of_class(type(stage)), dict(getattr(stage, _ARGUMENTS, {}))


def _info_of_class(stage_class: type) -> StageInfo:
    # Looked up on the class itself: a subclass that is not decorated is another stage.
    info = vars(stage_class).get(_INFO)
    if not isinstance(info, StageInfo):
        raise SamplerError(
            f"{stage_class.__name__} is not a sampler stage.",
            hint="Decorate its class with @edgellm.sampler.",
        )
    return info


def _record_arguments(stage_class: type) -> None:
    original = stage_class.__init__
    signature = inspect.signature(original)

    @wraps(original)
    def recording(self: Any, *args: Any, **kwargs: Any) -> None:
        # Any: the arguments of any class's constructor.
        bound = signature.bind(self, *args, **kwargs)
        given = dict(list(bound.arguments.items())[1:])
        if not hasattr(self, _ARGUMENTS):
            object.__setattr__(self, _ARGUMENTS, given)
        original(self, *args, **kwargs)

    if original is not object.__init__:
        stage_class.__init__ = recording


def _params_of(stage_class: type) -> tuple[Param, ...]:
    constructor = stage_class.__init__
    if constructor is object.__init__:
        return ()
    try:
        hints = get_type_hints(constructor, include_extras=True)
    except (NameError, TypeError) as error:
        raise SamplerError(
            f"sampler '{stage_class.__name__}': a type hint cannot be read: {error}.",
            hint="Import the names it uses at the top of the module.",
        ) from error
    params: list[Param] = []
    for parameter in list(inspect.signature(constructor).parameters.values())[1:]:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
            raise SamplerError(
                f"sampler '{stage_class.__name__}': constructor parameter '{parameter}' has no name in a chain.",
                hint="Use ordinary parameters.",
            )
        is_required = parameter.default is parameter.empty
        default = None if is_required else parameter.default
        params.append(
            _param(stage_class, parameter.name, hints.get(parameter.name, Any), default, is_required)
        )
    return tuple(params)


_KINDS: dict[Any, ParamKind] = {int: "int", float: "float", str: "str", bool: "bool", Any: "any"}
_LIST_KINDS: dict[Any, ParamKind] = {int: "ints", float: "floats", str: "strings"}


def _param(stage_class: type, name: str, hint: Any, default: Any, is_required: bool) -> Param:
    # Any: type hints and defaults of any class.
    low, high, is_low_open, is_high_open = float("-inf"), float("inf"), False, False
    doc = ""
    if get_origin(hint) is Annotated:
        hint, *extras = get_args(hint)
        for extra in extras:
            doc = extra if isinstance(extra, str) else getattr(extra, "description", None) or doc
            for attribute, is_open in (("ge", False), ("gt", True)):
                if (bound := getattr(extra, attribute, None)) is not None:
                    low, is_low_open = float(bound), is_open
            for attribute, is_open in (("le", False), ("lt", True)):
                if (bound := getattr(extra, attribute, None)) is not None:
                    high, is_high_open = float(bound), is_open
    is_optional = False
    if get_origin(hint) in (Union, types.UnionType):
        members = [member for member in get_args(hint) if member is not type(None)]
        is_optional = len(members) < len(get_args(hint))
        hint = members[0] if len(members) == 1 else Any
    origin, arguments = get_origin(hint), get_args(hint)
    kind: ParamKind | None = _KINDS.get(hint)
    if kind is None and origin in (list, tuple, Sequence) and arguments:
        kind = _LIST_KINDS.get(arguments[0])
    if kind is None and origin is dict and arguments == (int, float):
        kind = "bias"
    if kind is None:
        raise SamplerError(
            f"sampler '{stage_class.__name__}': argument '{name}' has a type that a chain cannot write.",
            hint="Use int, float, str, bool, a list of these, or dict[int, float].",
        )
    return Param(
        name,
        kind,
        default,
        doc,
        low,
        high,
        is_low_open,
        is_high_open,
        is_optional or (default is None and not is_required),
        is_required,
    )


def _snake_case(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


def _first_paragraph(stage_class: type) -> str:
    doc = inspect.cleandoc(stage_class.__doc__ or "")
    return " ".join(doc.split("\n\n")[0].split())
