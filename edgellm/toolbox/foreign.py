"""Schemas that came from elsewhere, made readable: for the check of arguments, not for the grammar."""

from __future__ import annotations

import re
from typing import Any, cast

# Values, not schemas: what looks like a keyword in them is none.
_VALUES = ("const", "enum", "default", "examples")
_MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")


def readable(schema: Any) -> Any:
    """The schema without the patterns that Python's `re` refuses (`\\p{L}`, `(?<name>...)`), booleans as objects.

    A pattern that only llguidance can read is still enforced by the grammar. Any: a JSON value.
    """
    if isinstance(schema, list):
        return [_as_object(readable(item)) for item in cast("list[Any]", schema)]
    if not isinstance(schema, dict):
        return schema
    made = {key: _inner(key, value) for key, value in cast("dict[str, Any]", schema).items()}
    if isinstance(pattern := made.get("pattern"), str) and not _is_readable(pattern):
        del made["pattern"]
    named = made.get("patternProperties")
    if isinstance(named, dict):
        patterns = cast("dict[str, Any]", named)
        made["patternProperties"] = {key: value for key, value in patterns.items() if _is_readable(key)}
        if len(made["patternProperties"]) < len(patterns):
            # Names that an unreadable pattern allows would count as additional ones.
            made.pop("additionalProperties", None)
    return made


def _inner(key: str, value: Any) -> Any:
    if key in _VALUES:
        return value
    if key in _MAPS and isinstance(value, dict):
        members = cast("dict[str, Any]", value)
        return {name: _as_object(readable(member)) for name, member in members.items()}
    return readable(value)


def _as_object(schema: Any) -> Any:
    if isinstance(schema, bool):
        return {} if schema else {"not": {}}
    return schema


def _is_readable(pattern: str) -> bool:
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError):
        return False
    return True
