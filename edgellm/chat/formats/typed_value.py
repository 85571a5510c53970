"""Text values get their type from the tool's schema, where the syntax itself has no types."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

from edgellm.chat.formats.json_text import loads, whole_characters
from edgellm.types import ToolSpec

_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")
_WORDS = {"true": True, "false": False, "null": None, "none": None}
_MISSING = object()


def properties(tools: Sequence[ToolSpec], name: str) -> Mapping[str, Any] | None:
    """The schemas of a tool's parameters; None for a tool that is not known."""
    for tool in tools:
        if tool.name == name:
            return cast("Mapping[str, Any]", tool.parameters.get("properties") or {})
    return None


def closed_parameters(tools: Sequence[ToolSpec], name: str) -> frozenset[str] | None:
    """The only parameters that a tool takes; None where it takes others too, names none, or is not known."""
    for tool in tools:
        if tool.name == name and not tool.parameters.get("additionalProperties"):
            return frozenset(tool.parameters.get("properties") or ()) or None
    return None


def types_of(schema: Any) -> tuple[str, ...]:
    """The JSON types that a schema allows, in the order it names them; () where it does not say."""
    if not isinstance(schema, Mapping):
        return ()
    schema = cast("Mapping[str, Any]", schema)
    kind: Any = schema.get("type")
    if isinstance(kind, str):
        return (kind, "null") if schema.get("nullable") else (kind,)
    if isinstance(kind, (list, tuple)):
        return tuple(str(item) for item in cast("list[Any]", kind))
    found: list[str] = []
    for word in ("anyOf", "oneOf", "allOf"):
        for option in cast("list[Any]", schema.get(word) or []):
            found += types_of(option)
    if not found:
        values: list[Any] = schema["enum"] if isinstance(schema.get("enum"), list) else []
        values += [schema["const"]] if "const" in schema else []
        found = [_type_name(value) for value in values]
    if not found and "properties" in schema:
        found = ["object"]
    if not found and "items" in schema:
        found = ["array"]
    return tuple(dict.fromkeys(found))


def is_text(schema: Any) -> bool:
    """Whether every value is taken as it stands, as text: the schema says string and nothing else, or nothing."""
    types = types_of(schema)
    return not types or types == ("string",)


def typed(text: str, schema: Any) -> Any:
    """`text` as the first of the schema's types that it can be; text where it can be none of them.

    A string among the types takes what only reads like another type if that type is not named too.
    """
    types = types_of(schema)
    if not types or types == ("string",):
        return text
    stripped = text.strip()
    for kind in sorted(types, key=lambda kind: (kind == "string", kind != "null")):
        if kind == "null" and "string" in types and stripped != "null":
            # "None" may be what a string says.
            continue
        value = _as(kind, stripped)
        if value is not _MISSING:
            return value
    return text


def guessed(text: str) -> Any:
    """`text` as the JSON value it spells, else as text: where neither schema nor syntax says a type."""
    value = _json(text.strip())
    return text if value is _MISSING else value


def _as(kind: str, text: str) -> Any:
    if kind == "string":
        return text
    if kind == "null":
        return None if text.lower() in ("null", "none") else _MISSING
    if kind == "boolean":
        return _WORDS[text.lower()] if text.lower() in ("true", "false") else _MISSING
    if kind in ("integer", "number"):
        return _number(text, kind)
    value = _json(text)
    if value is _MISSING and "\\" in text:
        # Written as if it stood inside a string.
        value = _json(text.replace('\\"', '"').replace("\\\\", "\\"))
    if value is _MISSING:
        value = _literal(text)
    wanted = dict if kind == "object" else list
    if isinstance(value, str):
        value = _json(value)
    return value if isinstance(value, wanted) else _MISSING


def _number(text: str, kind: str) -> Any:
    if not _NUMBER.fullmatch(text):
        return _MISSING
    if re.fullmatch(r"[+-]?\d+", text):
        return int(text) if len(text) < 400 else _MISSING
    value = float(text)
    if value in (float("inf"), float("-inf")):
        return _MISSING
    return int(value) if kind == "integer" and value.is_integer() else value


def _json(text: str) -> Any:
    try:
        return _in_characters(text, loads(text))
    except ValueError:
        return _MISSING


def _in_characters(text: str, value: Any) -> Any:
    """The value of a text, its texts of whole characters."""
    if "\\" not in text:
        return value
    spelled = json.dumps(value, ensure_ascii=False)
    clean = whole_characters(spelled)
    return value if clean == spelled else loads(clean)


def _literal(text: str) -> Any:
    """A Python literal, of lists and dicts."""
    if len(text) > 100_000 or text[:1] not in "[{(":
        return _MISSING
    try:
        value = ast.literal_eval(text)
        json.dumps(value)
        value = _in_characters(text, value)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return _MISSING
    return list(cast("tuple[Any, ...]", value)) if isinstance(value, tuple) else value


def _type_name(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    if value is None:
        return "null"
    names = {str: "string", int: "integer", float: "number", list: "array", dict: "object"}
    return names.get(type(value), "string")
