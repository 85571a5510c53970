"""JSON Schema (Draft 2020-12) of a function's parameters, from its type hints and docstring."""

from __future__ import annotations

import contextlib
import functools
import inspect
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path, PurePath
from typing import Any, cast

import msgspec

from edgellm.errors import ToolError
from edgellm.toolbox.context import ToolContext

Schema = dict[str, Any]

CONTEXT_PARAMETER = "call"
_CONSTRAINTS = ("ge", "gt", "le", "lt", "multiple_of", "min_length", "max_length", "pattern")
_ORDER = "x-order"
_MISSING = inspect.Parameter.empty


@dataclass(frozen=True, slots=True)
class Parameter:
    """One argument of a tool.

    `members` are the types a value is converted to, tried in order: one, unless the hint is a union that
    msgspec cannot tell apart by itself.
    """

    name: str
    members: tuple[Any, ...]
    schema: Schema
    is_required: bool


@dataclass(frozen=True, slots=True)
class Signature:
    """What a function's hints and docstring say: `schema` is the object schema of all parameters."""

    description: str
    parameters: tuple[Parameter, ...]
    schema: Schema
    has_context: bool


def where(function: Callable[..., Any]) -> str:
    """Place of a function, "path:line", or its module where there is no source."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    if isinstance(code, types.CodeType):
        return f"{code.co_filename}:{code.co_firstlineno}"
    return str(getattr(function, "__module__", None) or "unknown place")


def check_declaration(function: Callable[..., Any], name: str, *, is_method: bool) -> None:
    """Looks at parameter kinds and missing hints, without resolving a hint. Raises ToolError."""
    if inspect.isasyncgenfunction(inspect.unwrap(function)):
        raise ToolError(
            f"Tool {name!r} ({where(function)}) is an async generator: it has no result.",
            hint="Return a list instead of yielding.",
        )
    for parameter in _plain_parameters(function, name, is_method=is_method):
        if parameter.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD):
            stars = "*" if parameter.kind is inspect.Parameter.VAR_POSITIONAL else "**"
            raise ToolError(
                f"Tool {name!r} ({where(function)}) takes {stars}{parameter.name}: "
                "a model cannot be told what goes there.",
                hint="Name each argument, or take one list or dict.",
            )
        if parameter.kind is inspect.Parameter.POSITIONAL_ONLY:
            raise ToolError(
                f"Tool {name!r} ({where(function)}): parameter {parameter.name!r} cannot be given by name.",
                hint="Remove the '/' from its signature.",
            )
        if parameter.annotation is _MISSING:
            raise ToolError(
                f"Tool {name!r} ({where(function)}): parameter {parameter.name!r} has no type hint.",
                hint=f"Write one, such as `{parameter.name}: str`.",
            )


def read_signature(function: Callable[..., Any], name: str, *, is_method: bool) -> Signature:
    """Schema and conversions of a function. Raises ToolError naming tool, parameter and place."""
    check_declaration(function, name, is_method=is_method)
    hints = _hints(function, name)
    description, documented = read_docstring(inspect.getdoc(function) or "")
    parameters: list[Parameter] = []
    has_context = False
    for plain in _plain_parameters(function, name, is_method=is_method):
        hint = hints.get(plain.name, plain.annotation)
        if hint is ToolContext:
            if plain.name != CONTEXT_PARAMETER:
                raise ToolError(
                    f"Tool {name!r} ({where(function)}): the ToolContext parameter is called {plain.name!r}.",
                    hint=f"Call it {CONTEXT_PARAMETER!r}.",
                )
            has_context = True
            continue
        try:
            parameters.append(_parameter(plain, hint, documented.get(plain.name, "")))
        except (TypeError, ValueError, NotImplementedError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise ToolError(
                f"Tool {name!r} ({where(function)}): the type of parameter {plain.name!r} cannot be a JSON Schema: "
                f"{reason.rstrip('.:')}.",
                hint="Use str, int, float, bool, list, dict, Literal, Enum, dataclass, TypedDict or a pydantic model.",
            ) from error
    return Signature(description, tuple(parameters), _object_schema(parameters), has_context)


def _plain_parameters(
    function: Callable[..., Any], name: str, *, is_method: bool
) -> tuple[inspect.Parameter, ...]:
    try:
        parameters = tuple(inspect.signature(function).parameters.values())
    except (TypeError, ValueError) as error:
        raise ToolError(
            f"Tool {name!r}: Python does not tell the parameters of {function!r}.",
            hint="Wrap it in a function with type hints.",
        ) from error
    return parameters[1:] if is_method else parameters


def _hints(function: Callable[..., Any], name: str) -> dict[str, Any]:
    target: Any = function
    while isinstance(target, functools.partial):
        target = target.func
    target = inspect.unwrap(target)
    # A module may import ToolContext for type checkers only.
    known = {"ToolContext": ToolContext}
    try:
        return typing.get_type_hints(target, localns=known, include_extras=True)
    except NameError as error:
        raise ToolError(
            f"Tool {name!r} ({where(function)}): the type hint {error.name!r} is not known where the tool is defined.",
            hint="Define or import it at the top of the module, not inside a function or under TYPE_CHECKING.",
        ) from error
    except (TypeError, SyntaxError) as error:
        raise ToolError(
            f"Tool {name!r} ({where(function)}): its type hints cannot be read: {error}.",
            hint="Write hints as Python types.",
        ) from error


def read_docstring(text: str) -> tuple[str, dict[str, str]]:
    """Description and parameter descriptions of a Google-style docstring; one line each parameter."""
    if not text.strip():
        return "", {}
    import griffe  # 0.15 s of CPU: only once a schema is really wanted

    description: list[str] = []
    documented: dict[str, str] = {}
    for section in griffe.Docstring(text).parse("google", warnings=False):
        if section.kind is griffe.DocstringSectionKind.text:
            description.append(str(section.value).strip())
        elif section.kind is griffe.DocstringSectionKind.parameters:
            for item in section.value:
                documented[str(item.name)] = " ".join(str(item.description).split())
    return "\n\n".join(part for part in description if part), documented


def _parameter(plain: inspect.Parameter, hint: Any, documented: str) -> Parameter:
    if type(plain.default).__name__ == "FieldInfo":
        raise TypeError(
            f"a pydantic Field as default value is not read; write `{plain.name}: Annotated[..., Field(...)] = value`"
        )
    is_required = plain.default is _MISSING
    hint = translate(hint)
    members = _members(hint)
    parts = [tidy(_schema_of(member)) for member in members]
    schema = parts[0] if len(parts) == 1 else {"anyOf": parts}
    if not is_required and plain.default is None:
        # Leaving the argument out says the same as null, and one type is easier for a small model.
        schema = _without_null(schema)
    if documented and "description" not in schema:
        schema = {"description": documented, **schema}
    if not is_required and plain.default is not None:
        # A default that JSON cannot spell still works; the model only does not see it.
        with contextlib.suppress(TypeError, ValueError, NotImplementedError):
            schema = {**schema, "default": msgspec.to_builtins(plain.default, enc_hook=_encode_default)}
    return Parameter(plain.name, members, schema, is_required)


def _object_schema(parameters: list[Parameter]) -> Schema:
    definitions: Schema = {}
    properties: Schema = {}
    for parameter in parameters:
        schema = dict(parameter.schema)
        definitions.update(schema.pop("$defs", {}))
        properties[parameter.name] = schema
    required = [parameter.name for parameter in parameters if parameter.is_required]
    result: Schema = {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }
    if definitions:
        result["$defs"] = definitions
    return result


def translate(hint: Any) -> Any:
    """The hint with constraints of pydantic and annotated_types said in msgspec's words."""
    alias: Any = getattr(hint, "__value__", None)
    if type(hint).__name__ == "TypeAliasType" and alias is not None:
        return translate(alias)
    origin = typing.get_origin(hint)
    if origin is typing.Annotated:
        inner, *metadata = typing.get_args(hint)
        meta = _meta(metadata)
        return translate(inner) if meta is None else typing.Annotated[translate(inner), meta]
    if origin is typing.Literal:
        return _in_order(hint, list(typing.get_args(hint)))
    if isinstance(hint, type) and issubclass(hint, Enum):
        return _in_order(hint, [member.value for member in hint])
    if origin is None:
        return hint
    arguments = tuple(translate(argument) for argument in typing.get_args(hint))
    if origin in (typing.Union, types.UnionType):
        return typing.Union[arguments]  # noqa: UP007 (the members are known at run time only)
    if arguments == typing.get_args(hint):
        return hint
    return origin[arguments]


def _in_order(hint: Any, values: list[Any]) -> Any:
    # msgspec sorts; "low", "medium", "high" tells a model more in the order they were written.
    return typing.Annotated[hint, msgspec.Meta(extra_json_schema={_ORDER: values})]


def _meta(metadata: list[Any]) -> msgspec.Meta | None:
    found: dict[str, Any] = {}
    for item in metadata:
        if isinstance(item, str):
            found.setdefault("description", item)
            continue
        for name in (*_CONSTRAINTS, "description", "extra_json_schema"):
            value = getattr(item, name, None)
            if value is not None and not callable(value):
                found[name] = value
        documentation = getattr(item, "documentation", None)
        if isinstance(documentation, str):
            found["description"] = documentation
        nested = getattr(item, "metadata", None)
        if isinstance(nested, list):
            inner = _meta(cast("list[Any]", nested))
            for name in _CONSTRAINTS if inner is not None else ():
                if getattr(inner, name) is not None:
                    found[name] = getattr(inner, name)
    return msgspec.Meta(**found) if found else None


def _members(hint: Any) -> tuple[Any, ...]:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        try:
            msgspec.json.schema(hint, schema_hook=_schema_hook)
        except TypeError as error:
            if "union" not in str(error).lower():
                raise
            return typing.get_args(hint)
        if any(_is_foreign(member) for member in typing.get_args(hint)):
            # msgspec hands a union with an unknown type to the hook of that type alone.
            return typing.get_args(hint)
    return (hint,)


def _is_foreign(hint: Any) -> bool:
    return isinstance(hint, type) and (hasattr(hint, "model_json_schema") or issubclass(hint, PurePath))


def _schema_of(hint: Any) -> Schema:
    if hint is object:
        return {}
    return msgspec.json.schema(hint, schema_hook=_schema_hook)


def _schema_hook(hint: Any) -> Schema:
    if isinstance(hint, type):
        if issubclass(hint, PurePath):
            return {"type": "string"}
        describe = getattr(hint, "model_json_schema", None)
        if callable(describe):
            return cast("Schema", describe())
    # NotImplementedError would be turned into msgspec's own words, which speak of hooks.
    raise TypeError(f"{getattr(hint, '__name__', hint)} has no form in JSON")


def decode_hook(hint: Any, value: Any) -> Any:
    """For msgspec.convert: paths and pydantic models. Raises ValueError or TypeError with pydantic's words."""
    if isinstance(hint, type):
        if issubclass(hint, PurePath) and isinstance(value, str):
            return Path(value) if hint is Path else hint(value)
        validate = getattr(hint, "model_validate", None)
        if callable(validate):
            try:
                return validate(value)
            except ValueError as error:
                raise ValueError(_words_of_pydantic(error)) from error
    raise TypeError(f"expected {getattr(hint, '__name__', hint)}, got {type(value).__name__}")


def _words_of_pydantic(error: ValueError) -> str:
    listed: Any = getattr(error, "errors", None)
    if not callable(listed):
        return str(error)
    found = cast("list[dict[str, Any]]", listed())
    return "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in found[:4])


def _encode_default(value: Any) -> Any:
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, Enum):
        return value.value
    dump = getattr(value, "model_dump", None)
    if callable(dump):
        return dump(mode="json")
    raise NotImplementedError


def _without_null(schema: Schema) -> Schema:
    options = schema.get("anyOf")
    if isinstance(options, list):
        left = [option for option in cast("list[Schema]", options) if option.get("type") != "null"]
        if len(left) == 1:
            return {**left[0], **{key: value for key, value in schema.items() if key != "anyOf"}}
        return {**schema, "anyOf": left}
    values = schema.get("enum")
    if isinstance(values, list) and None in values:
        return {**schema, "enum": [value for value in cast("list[Any]", values) if value is not None]}
    return schema


def _ordered(schema: Schema) -> Schema:
    order = schema.pop(_ORDER, None)
    return schema if order is None else {**schema, "enum": order}


def tidy(schema: Schema) -> Schema:
    """The same schema with references inlined (recursive ones stay in `$defs`), titles dropped, objects closed."""
    kept: Schema = {}
    recursive: set[str] = set()

    def visit(node: Any, definitions: Schema, stack: tuple[str, ...]) -> Any:
        if isinstance(node, list):
            return [visit(item, definitions, stack) for item in cast("list[Any]", node)]
        if not isinstance(node, dict):
            return node
        node = cast("Schema", node)
        definitions = {**definitions, **node.get("$defs", {})}
        if "$ref" in node:
            name = str(node["$ref"]).rsplit("/", 1)[-1]
            beside = {key: value for key, value in node.items() if key not in ("$ref", "$defs")}
            if name in stack:
                recursive.add(name)
                return {"$ref": f"#/$defs/{name}", **beside}
            target = visit(definitions[name], definitions, (*stack, name))
            if name in recursive:
                kept[name] = target
                return {"$ref": f"#/$defs/{name}", **beside}
            return _ordered({**target, **beside})
        result: Schema = {}
        for key, value in node.items():
            if key in ("title", "$defs", "$schema"):
                continue
            if key in ("properties", "patternProperties", "dependentSchemas"):
                result[key] = {name: visit(part, definitions, stack) for name, part in value.items()}
            elif key in ("enum", "const", "default", "examples", "required", _ORDER):
                result[key] = value
            else:
                result[key] = visit(value, definitions, stack)
        if "properties" in result:
            result.setdefault("additionalProperties", False)
        # A set takes a value twice without harm, and grammars cannot count.
        result.pop("uniqueItems", None)
        return _ordered(result) if "enum" in result else result

    done = cast("Schema", visit(schema, {}, ()))
    return {**done, "$defs": kept} if kept else done
