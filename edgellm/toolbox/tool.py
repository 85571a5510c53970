"""`@tool` and `Tool`: a typed function that a model may call."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MethodType
from typing import Any, Generic, ParamSpec, TypeVar, cast, overload

from edgellm.errors import ToolError
from edgellm.toolbox.arguments import check_raw, check_typed
from edgellm.toolbox.context import ToolContext
from edgellm.toolbox.foreign import readable
from edgellm.toolbox.schema import (
    CONTEXT_PARAMETER,
    Schema,
    Signature,
    check_declaration,
    read_signature,
    where,
)
from edgellm.types import Permission, ToolExample, ToolSpec

P = ParamSpec("P")
R = TypeVar("R")

NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_-]{0,63}")
_PERMISSIONS = ("auto", "ask", "deny")


@dataclass(frozen=True, slots=True)
class ToolOptions:
    """What `@tool(...)` may say. None: taken from the function, or from ToolSpec's own default."""

    name: str | None = None
    description: str | None = None
    permission: Permission | None = None
    timeout_s: float | None = None
    max_result_tokens: int | None = None
    examples: tuple[ToolExample, ...] | None = None
    is_grantable: bool | None = None

    def over(self, other: ToolOptions) -> ToolOptions:
        """These options, and those of `other` where these say nothing."""
        merged = {name: getattr(self, name) for name in self.__slots__ if getattr(self, name) is not None}
        return replace(other, **merged)


class Tool(Generic[P, R]):
    """A function a model may call: still callable as the plain function, with a `spec`.

    `origin` says where it was defined. The schema is made at the first look at `spec`, so that importing a
    module of tools stays cheap; parameters without a hint, `*args` and `**kwargs` are refused at once.
    """

    def __init__(
        self,
        function: Callable[P, R],
        options: ToolOptions | None = None,
        *,
        schema: Schema | None = None,
        bound_to: object | None = None,
        is_method: bool | None = None,
    ) -> None:
        # On the object, not on the class: discovery collects whatever in a module carries the mark.
        self.__edgellm_plugin__ = "tool"
        self._options = options or ToolOptions()
        self._schema = schema
        self._bound_to = bound_to
        self.function = function
        name = self._options.name if self._options.name is not None else getattr(function, "__name__", "")
        if not NAME.fullmatch(name):
            raise ToolError(
                f"{name!r} is not a name for a tool ({where(function)}).",
                hint="Give one with @tool(name=...): a letter, then letters, digits, _ or -, at most 64.",
            )
        self.name = name
        self.origin = where(function)
        self._is_method = _looks_like_method(function) if is_method is None else is_method
        _check_options(name, self._options)
        if schema is None:
            check_declaration(function, name, is_method=self._is_method)
        functools.update_wrapper(self, function, updated=())

    @property
    def __edgellm_name__(self) -> str:
        return self.name

    def __edgellm_check__(self) -> None:
        """Raises ToolError if the declaration is wrong; plugin discovery calls it."""
        _ = self.spec

    @functools.cached_property
    def signature(self) -> Signature:
        """Schema and conversions from the function's hints. Raises ToolError."""
        return read_signature(self.function, self.name, is_method=self._is_method)

    @functools.cached_property
    def spec(self) -> ToolSpec:
        """Name, description, schema and limits. Raises ToolError where hints or examples are wrong."""
        options = self._options
        description = options.description
        if self._schema is None:
            parameters = self.signature.schema
            description = self.signature.description if description is None else description
        else:
            parameters = self._schema
        given = {
            name: getattr(options, name)
            for name in ("permission", "timeout_s", "max_result_tokens", "examples", "is_grantable")
            if getattr(options, name) is not None
        }
        spec = ToolSpec(
            name=self.name, description=(description or "").strip(), parameters=parameters, **given
        )
        for example in spec.examples:
            try:
                self._check(spec.parameters, example.arguments)
            except ToolError as error:
                raise ToolError(
                    f"Tool {self.name!r} ({self.origin}): its example {example.request!r} does not fit: "
                    f"{error.message}",
                    hint="Correct the example's arguments.",
                ) from error
        return spec

    def check(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments as Python values. Raises ToolError in words that a model can act on."""
        return self._check(self.spec.parameters, arguments)

    def _check(self, parameters: Schema, arguments: Mapping[str, Any]) -> dict[str, Any]:
        if self._schema is None:
            return check_typed(self.name, self.signature, arguments)
        return check_raw(self.name, parameters, arguments)

    def invoke(self, values: Mapping[str, Any], context: ToolContext) -> Any:
        """Calls the function with checked values; an async function gives its coroutine."""
        positional = () if self._bound_to is None else (self._bound_to,)
        named = dict(values)
        if self._schema is None and self.signature.has_context:
            named[CONTEXT_PARAMETER] = context
        return cast("Callable[..., Any]", self.function)(*positional, **named)

    @property
    def is_async(self) -> bool:
        """True where calling it gives a coroutine."""
        return inspect.iscoroutinefunction(inspect.unwrap(self.function))

    @property
    def is_unbound(self) -> bool:
        """True for a method seen on its class: it has no instance to run on."""
        return self._is_method and self._bound_to is None

    def with_options(self, options: ToolOptions) -> Tool[P, R]:
        """The same tool under other options, such as another name."""
        return Tool(
            self.function,
            options.over(self._options),
            schema=self._schema,
            bound_to=self._bound_to,
            is_method=self._is_method,
        )

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        if self._bound_to is not None:
            return cast("Callable[..., R]", self.function)(self._bound_to, *args, **kwargs)
        return self.function(*args, **kwargs)

    def __get__(self, instance: object | None, owner: type | None = None) -> Tool[..., R]:
        if instance is None or not self._is_method:
            return self
        bound: Tool[..., R] = Tool(
            self.function, self._options, schema=self._schema, bound_to=instance, is_method=True
        )
        if "signature" in self.__dict__:
            bound.__dict__["signature"] = self.__dict__["signature"]
        return bound

    def is_same(self, other: Tool[..., Any]) -> bool:
        """True where both call the same function on the same object under the same name."""
        return (
            self.function is other.function and self._bound_to is other._bound_to and self.name == other.name
        )

    def __repr__(self) -> str:
        return f"<Tool {self.name} from {self.origin}>"


@overload
def tool(function: Callable[P, R], /) -> Tool[P, R]: ...


@overload
def tool(
    function: Callable[P, R],
    /,
    *,
    name: str | None = None,
    description: str | None = None,
    permission: Permission | None = None,
    timeout_s: float | None = None,
    max_result_tokens: int | None = None,
    examples: Sequence[tuple[str, dict[str, Any]] | ToolExample] | None = None,
    is_grantable: bool | None = None,
) -> Tool[P, R]: ...


@overload
def tool(
    *,
    name: str | None = None,
    description: str | None = None,
    permission: Permission | None = None,
    timeout_s: float | None = None,
    max_result_tokens: int | None = None,
    examples: Sequence[tuple[str, dict[str, Any]] | ToolExample] | None = None,
    is_grantable: bool | None = None,
) -> Callable[[Callable[P, R]], Tool[P, R]]: ...


def tool(
    function: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    description: str | None = None,
    permission: Permission | None = None,
    timeout_s: float | None = None,
    max_result_tokens: int | None = None,
    examples: Sequence[tuple[str, dict[str, Any]] | ToolExample] | None = None,
    is_grantable: bool | None = None,
) -> Any:
    """Makes a typed function a tool. Works bare and with options, on functions, async functions and methods.

    `permission` is "ask" unless declared; `timeout_s` wall time; `max_result_tokens` caps what the model
    reads; `examples` pairs a request with the arguments that answer it; `is_grantable=False` asks at every
    call, whatever was allowed before. Raises ToolError.
    """
    options = ToolOptions(
        name, description, permission, timeout_s, max_result_tokens, _examples(examples), is_grantable
    )
    if function is None:

        def decorate(decorated: Callable[..., Any]) -> Tool[..., Any]:
            return _make(decorated, options)

        return decorate
    return _make(function, options)


def as_tool(value: object) -> Tool[..., Any] | None:
    """The tool that a member of an object is; None where it is none."""
    if isinstance(value, MethodType) and isinstance(value.__func__, Tool):
        # Below @classmethod: from Python 3.13 on that one binds what it holds as if it were a plain function.
        value = cast("Tool[..., Any]", value.__func__).__get__(value.__self__)
    return cast("Tool[..., Any]", value) if isinstance(value, Tool) else None


def _make(function: Callable[..., Any], options: ToolOptions) -> Tool[..., Any]:
    found = as_tool(function)
    if found is not None:
        return found.with_options(options)
    if isinstance(function, staticmethod):
        return Tool(cast("Callable[..., Any]", function.__func__), options, is_method=False)
    if isinstance(function, MethodType):
        return Tool(function.__func__, options, bound_to=function.__self__, is_method=True)
    if isinstance(function, (classmethod, property, type)) or not callable(function):
        kind = function.__name__ if isinstance(function, type) else type(function).__name__
        raise ToolError(
            f"@tool cannot be put on {kind!r}: it wants a function or a method.",
            hint="Write a function with type hints; below @classmethod, not above it.",
        )
    return Tool(function, options)


def raw_tool(
    schema: Mapping[str, Any], function: Callable[..., Any], options: ToolOptions | None = None
) -> Tool[..., Any]:
    """A tool from an OpenAI-style description and a callable that takes the arguments by keyword.

    `schema` is {"type": "function", "function": {...}} or its inner object: name, description, parameters
    (JSON Schema Draft 2020-12 of type object). Raises ToolError.
    """
    inner = schema.get("function", schema)
    if not isinstance(inner, Mapping):
        raise ToolError(
            "A tool description's 'function' is not an object.", hint="Give name, description, parameters."
        )
    inner = cast("Mapping[str, Any]", inner)
    name = inner.get("name")
    if not isinstance(name, str):
        raise ToolError(
            "A tool description has no 'name'.", hint='Write {"name": "...", "parameters": {...}}.'
        )
    parameters: Any = inner.get("parameters") or {"type": "object", "properties": {}}
    if not isinstance(parameters, dict) or cast("Schema", parameters).get("type", "object") != "object":
        raise ToolError(
            f"Tool {name!r}: 'parameters' is not a JSON Schema of type object.",
            hint='Write {"type": "object", "properties": {...}}.',
        )
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError

    try:
        Draft202012Validator.check_schema(readable(parameters))
    except SchemaError as error:
        place = "/".join(str(part) for part in error.absolute_path) or "top"
        raise ToolError(
            f"Tool {name!r}: its 'parameters' are no valid JSON Schema, at {place}: {error.message}.",
            hint="Draft 2020-12 is what is read.",
        ) from error
    given = ToolOptions(name=name, description=str(inner.get("description") or ""))
    chosen = (options or ToolOptions()).over(given)
    if isinstance(function, MethodType):
        return Tool(function.__func__, chosen, schema=parameters, bound_to=function.__self__, is_method=True)
    return Tool(function, chosen, schema=cast("Schema", parameters), is_method=False)


def _examples(
    examples: Sequence[tuple[str, dict[str, Any]] | ToolExample] | None,
) -> tuple[ToolExample, ...] | None:
    if examples is None:
        return None
    made: list[ToolExample] = []
    for item in examples:
        if isinstance(item, ToolExample):
            made.append(item)
            continue
        try:
            request, arguments = item
        except (TypeError, ValueError):
            raise ToolError(
                f"A tool example is {item!r}.", hint='Write ("the request", {"argument": value}).'
            ) from None
        made.append(ToolExample(request, arguments))
    return tuple(made)


def _looks_like_method(function: Callable[..., Any]) -> bool:
    # A decorator runs before the class exists: the first parameter's name is all there is to go by.
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return False
    return (
        bool(parameters)
        and parameters[0].name in ("self", "cls")
        and (parameters[0].annotation is inspect.Parameter.empty)
    )


def _check_options(name: str, options: ToolOptions) -> None:
    if options.permission is not None and options.permission not in _PERMISSIONS:
        raise ToolError(
            f"Tool {name!r}: permission {options.permission!r} is unknown.", hint="Use auto, ask or deny."
        )
    if options.timeout_s is not None and not options.timeout_s > 0:
        raise ToolError(f"Tool {name!r}: timeout_s is {options.timeout_s!r}.", hint="Give seconds above 0.")
    if options.max_result_tokens is not None and options.max_result_tokens < 1:
        raise ToolError(
            f"Tool {name!r}: max_result_tokens is {options.max_result_tokens!r}.", hint="Give at least 1."
        )
