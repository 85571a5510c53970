"""JSON Schemas made enforceable: what llguidance refuses is taken out, keyword by keyword, and said."""

from __future__ import annotations

import copy
import json
import re
from typing import TYPE_CHECKING, Any

from edgellm.errors import ConstraintError
from edgellm.sampling.schema_pattern import portable_pattern

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

# One way to write each value: a small model can otherwise spend its whole budget on white space.
JSON_STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}

_ONE = (
    "items", "additionalItems", "additionalProperties", "unevaluatedItems", "unevaluatedProperties", "contains",
    "propertyNames", "not", "if", "then", "else", "contentSchema",
)  # fmt: skip
_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
_MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_UNIMPLEMENTED = re.compile(r"^Unimplemented keys: (\[.*\])")
_FORMAT = re.compile(r"^Unknown format: (.*)$", re.MULTILINE)
_SIZES = ("minProperties", "maxProperties")
_IN_LARK = re.compile(r"%json\s*(?=\{)")
_MAX_ROUNDS = 64

Schema = dict[str, Any]


def relax(schema: Mapping[str, Any]) -> tuple[Schema, list[str]]:
    """The schema as llguidance can enforce it, and a note for each thing taken out (empty: all is enforced).

    What is relaxed accepts more than the schema: validate the result. Raises ConstraintError where the schema is
    broken in another way (an unknown type, a $ref that leads nowhere).
    """
    relaxed, notes = loosen(schema)
    _tighten(relaxed)
    return relaxed, notes


def loosen(schema: Mapping[str, Any]) -> tuple[Schema, list[str]]:
    """The schema less what llguidance refuses, as every reader of schemas understands it; otherwise as `relax`."""
    loosened: Schema = copy.deepcopy(dict(schema))
    notes: list[str] = []
    error = ""
    for _ in range(_MAX_ROUNDS):
        error = _refusal(loosened)
        if not error:
            return loosened, notes
        found = _repair(loosened, error)
        if not found:
            break
        notes += found
    raise ConstraintError(
        f"the JSON Schema cannot be enforced: {_one_line(error)}.", hint="Correct or simplify the schema."
    )


def relax_lark(grammar: str) -> tuple[str, list[str]]:
    """A Lark grammar with each JSON Schema in it (`%json {...}`) relaxed, and the notes. Raises as `relax` does."""
    parts: list[str] = []
    notes: list[str] = []
    at = 0
    for found in _IN_LARK.finditer(grammar):
        if found.start() < at:  # inside a schema: text that only looks like one
            continue
        try:
            schema, end = json.JSONDecoder().raw_decode(grammar, found.end())
        except ValueError:
            continue  # in a comment or in quotes
        relaxed, said = relax(schema)
        if relaxed != schema:
            parts += [grammar[at : found.end()], json.dumps(relaxed, ensure_ascii=False)]
            notes += said
        else:
            parts.append(grammar[at:end])
        at = end
    return "".join([*parts, grammar[at:]]), notes


def schema_grammar(schema: Mapping[str, Any]) -> str:
    """llguidance's grammar for a schema. Raises ConstraintError where it is no JSON object."""
    from llguidance import LLMatcher

    try:
        # llguidance's type says dict[str, Any] where any mapping that is JSON does.
        return LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=JSON_STYLE)  # type: ignore[arg-type]
    except (ValueError, TypeError) as error:
        raise ConstraintError(
            f"the JSON Schema cannot be read: {error}.", hint="It must be a JSON object."
        ) from error


def _refusal(schema: Schema) -> str:
    from llguidance import LLMatcher

    is_error, messages = LLMatcher.validate_grammar_with_warnings(schema_grammar(schema))
    return messages[0] if is_error else ""


def _one_line(text: str) -> str:
    return " ".join(text.split()).rstrip(".")[:200]


def _repair(schema: Schema, error: str) -> list[str]:
    """Takes out what `error` complains of, everywhere; returns notes, none where it does not know how."""
    unimplemented = _UNIMPLEMENTED.match(error)
    if unimplemented:
        keys = set(json.loads(unimplemented.group(1)))
        if keys & {"if", "then", "else"}:
            keys |= {"if", "then", "else"}
        return _drop(schema, lambda node, key: key in keys)
    if error.startswith("min/maxProperties"):
        return _drop(schema, lambda node, key: key in _SIZES)
    if unknown := _FORMAT.search(error):
        return _drop(schema, lambda node, key: key == "format" and node[key] == unknown.group(1))
    if "oneOf" in error:
        return _loosen_one_of(schema)
    if "regex" in error or "lookaround" in error:
        return _drop(
            schema, lambda node, key: key == "pattern" and not _is_usable(node[key])
        ) + _drop_patterns(schema)
    return []


def _tighten(schema: Schema) -> None:
    """Rewrites what llguidance 1.9 reads more loosely than it is meant, so that it writes nothing invalid."""
    for _, node in _walk(schema, "$"):
        if isinstance(pattern := node.get("pattern"), str):
            node["pattern"] = portable_pattern(pattern)
        _tighten_bounds(node)


def _tighten_bounds(node: Schema) -> None:
    """Of the numbers above 0 and below 0.5 llguidance also writes 0: a bound is moved by a millionth.

    That happens where an exclusive bound is a whole number and both bounds lie within one unit.
    """
    low, high = (_number(node, f"exclusive{end}", end.lower()) for end in ("Minimum", "Maximum"))
    if low is None or high is None or not 0 < high - low < 1:
        return
    if node.get("exclusiveMinimum") == low == round(low):
        del node["exclusiveMinimum"]
        node["minimum"] = low + (high - low) / 1e6
    if node.get("exclusiveMaximum") == high == round(high):
        del node["exclusiveMaximum"]
        node["maximum"] = high - (high - low) / 1e6


def _number(node: Schema, *keys: str) -> float | None:
    found = next((node[key] for key in keys if key in node), None)
    return found if isinstance(found, int | float) and not isinstance(found, bool) else None


def _drop(schema: Schema, is_wrong: Callable[[Schema, str], bool]) -> list[str]:
    notes: list[str] = []
    for path, node in list(_walk(schema, "$")):
        for key in [key for key in node if is_wrong(node, key)]:
            value = node.pop(key)
            detail = f" {json.dumps(value)}" if key in ("format", "pattern") else ""
            notes.append(f"{path}: '{key}'{detail} is not enforced")
    return notes


def _drop_patterns(schema: Schema) -> list[str]:
    notes: list[str] = []
    for path, node in list(_walk(schema, "$")):
        patterns = node.get("patternProperties")
        if isinstance(patterns, dict):
            for pattern in [pattern for pattern in patterns if not _is_usable(pattern)]:
                del patterns[pattern]
                notes.append(f"{path}: 'patternProperties' {json.dumps(pattern)} is not enforced")
    return notes


def _loosen_one_of(schema: Schema) -> list[str]:
    notes: list[str] = []
    for path, node in list(_walk(schema, "$")):
        if "oneOf" in node:
            choices = node.pop("oneOf")
            if "anyOf" in node:
                node["allOf"] = [*node.get("allOf", []), {"anyOf": choices}]
            else:
                node["anyOf"] = choices
            notes.append(f"{path}: 'oneOf' is enforced as 'anyOf'")
    return notes


def _is_usable(pattern: Any) -> bool:
    # Any: a schema may hold anything there.
    return isinstance(pattern, str) and not _refusal({"type": "string", "pattern": pattern})


def _walk(node: Any, path: str) -> Iterator[tuple[str, Schema]]:
    """All schemas inside a schema, with their paths; property names are not taken for keywords."""
    # Any: schemas may be booleans, and broken ones anything.
    if not isinstance(node, dict):
        return
    yield path, node
    for key in _ONE:
        yield from _walk(node.get(key), f"{path}.{key}")
    for key in _LISTS:
        if isinstance(choices := node.get(key), list):
            for index, choice in enumerate(choices):
                yield from _walk(choice, f"{path}.{key}[{index}]")
    for key in _MAPS:
        if isinstance(members := node.get(key), dict):
            for name, member in list(members.items()):
                yield from _walk(member, f"{path}.{name}" if key == "properties" else f"{path}.{key}.{name}")
