"""Checking a call's arguments: exact first, then conversions that lose nothing, else words a model can act on.

Conversions, tried only where the exact value does not fit: "3" for an integer or a number, 3.0 for an
integer, "true"/"false" for a boolean, a number or boolean for a string, JSON text for a list or an object,
another spelling of case for an enum value, null for an optional argument (it is then left out).
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import msgspec

from edgellm.errors import ToolError
from edgellm.toolbox.foreign import readable
from edgellm.toolbox.schema import Parameter, Schema, Signature, decode_hook

if TYPE_CHECKING:
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import ValidationError

_INTEGER = re.compile(r"-?(0|[1-9][0-9]{0,18})")
_NUMBER = re.compile(r"-?(0|[1-9][0-9]{0,18})(\.[0-9]{1,18})?([eE][+-]?[0-9]{1,3})?")
_MOST_PROBLEMS = 4
_MOST_QUOTED = 60


def check_typed(name: str, signature: Signature, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a tool made from type hints, as Python values; absent optional ones stay absent.

    Raises ToolError that lists what is wrong with which argument.
    """
    problems, given = _check_names(name, signature.schema, arguments)
    values: dict[str, Any] = {}
    for parameter in signature.parameters:
        if parameter.name not in given:
            continue
        value = given[parameter.name]
        try:
            values[parameter.name] = _exact_or_lenient(parameter, value, signature.schema)
        except (msgspec.ValidationError, ValueError, TypeError, RecursionError) as error:
            if value is None and not parameter.is_required:
                continue
            problems.append(_problem(parameter.name, parameter.schema, value, detail=_detail(error)))
    _raise(name, problems)
    return values


def check_raw(name: str, schema: Schema, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a tool that came with its own JSON Schema (Draft 2020-12). Raises ToolError as check_typed."""
    from jsonschema import Draft202012Validator  # 0.1 s: not every toolset has such a tool

    problems, given = _check_names(name, schema := readable(schema), arguments)
    try:
        problems, given = _check_foreign(problems, given, schema, Draft202012Validator(schema))
    except RecursionError:
        problems = ["the arguments are nested too deeply"]
    _raise(name, problems)
    return given


def _check_foreign(
    problems: list[str], given: dict[str, Any], schema: Schema, validator: Draft202012Validator
) -> tuple[list[str], dict[str, Any]]:
    if not problems and any(True for _ in validator.iter_errors(given)):
        required = set(cast("list[str]", schema.get("required", [])))
        given = cast("dict[str, Any]", coerce(given, schema, schema))
        properties: Schema = schema.get("properties", {})
        for key in [key for key in given if given[key] is None and key not in required]:
            if not fits(None, properties.get(key, {}), schema):
                del given[key]
        problems = [_foreign_problem(error) for error in validator.iter_errors(given)]
    return problems, given


def _raise(name: str, problems: list[str]) -> None:
    if not problems:
        return
    shown = problems[:_MOST_PROBLEMS]
    if len(problems) > len(shown):
        shown.append(f"and {len(problems) - len(shown)} more")
    told = "; ".join(shown)
    told += "" if told.endswith("?") else "."
    raise ToolError(f"{name} was not run: {told}", hint="Correct the arguments and call it again.")


def _check_names(name: str, schema: Schema, arguments: Any) -> tuple[list[str], dict[str, Any]]:
    if not isinstance(arguments, Mapping):
        raise ToolError(
            f"{name} was not run: the arguments are {quote(arguments)}, not a JSON object.",
            hint="Give an object with a key for each argument.",
        )
    given = dict(cast("Mapping[str, Any]", arguments))
    properties: Schema = schema.get("properties", {})
    problems: list[str] = []
    if schema.get("additionalProperties") is False and "patternProperties" not in schema:
        for key in [key for key in given if key not in properties]:
            del given[key]
            problems.append(
                unknown_name("argument", key, [known for known in properties if known not in given])
            )
    for key in cast("list[str]", schema.get("required", [])):
        if key not in given:
            problems.append(f"argument {key!r} is missing ({describe(properties.get(key, {}))})")
    problems += [
        _problem(key, properties.get(key, {}), value, detail="Number out of range")
        for key, value in given.items()
        if not _is_finite(value)
    ]
    return problems, given


def _is_finite(value: Any) -> bool:
    """False where it is or holds a number that JSON cannot write: 1e999 is read as infinity."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, float) and not math.isfinite(one):
            return False
        if isinstance(one, dict):
            waiting += cast("dict[str, Any]", one).values()
        elif isinstance(one, list):
            waiting += cast("list[Any]", one)
    return True


def unknown_name(kind: str, name: str, known: list[str]) -> str:
    """ "unknown argument 'citty', did you mean 'city'?", or the list of what there is."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if near:
        return f"unknown {kind} {name!r}, did you mean {near[0]!r}?"
    listed = ", ".join(repr(item) for item in known[:20]) + (", ..." if len(known) > 20 else "")
    return f"unknown {kind} {name!r}" + (f", there is {listed}" if known else ", there is none")


def _exact_or_lenient(parameter: Parameter, value: Any, root: Schema) -> Any:
    try:
        return _convert(parameter, value, root)
    except (msgspec.ValidationError, ValueError, TypeError) as error:
        lenient = coerce(value, parameter.schema, root)
        if lenient is value:
            raise
        try:
            return _convert(parameter, lenient, root)
        except (msgspec.ValidationError, ValueError, TypeError):
            raise error from None


def _convert(parameter: Parameter, value: Any, root: Schema) -> Any:
    _refuse_unknown_keys(value, parameter.schema, root)
    first: Exception | None = None
    for member in parameter.members:
        try:
            return msgspec.convert(value, member, dec_hook=decode_hook)
        except (msgspec.ValidationError, ValueError, TypeError) as error:
            first = first or error
    assert first is not None
    raise first


def _refuse_unknown_keys(value: Any, schema: Schema, root: Schema) -> None:
    # msgspec drops keys it does not know; what a model wrote must not vanish in silence.
    schema = resolve(schema, root)
    if isinstance(value, list):
        items = schema.get("items")
        if isinstance(items, dict):
            for item in cast("list[Any]", value):
                _refuse_unknown_keys(item, cast("Schema", items), root)
    elif isinstance(value, dict):
        properties = cast("Schema | None", schema.get("properties"))
        if properties is None:
            return
        for key, item in cast("dict[str, Any]", value).items():
            if key in properties:
                _refuse_unknown_keys(item, properties[key], root)
            elif schema.get("additionalProperties") is False:
                raise ValueError(unknown_name("key", key, list(properties)))


def coerce(value: Any, schema: Schema, root: Schema) -> Any:
    """The value in the type the schema wants, where that loses nothing; else the very same object."""
    schema = resolve(schema, root)
    options = schema.get("anyOf") or schema.get("oneOf")
    if options:
        return _coerce_to_one_of(value, cast("list[Schema]", options), root)
    if "enum" in schema:
        return _coerce_enum(value, cast("list[Any]", schema["enum"]))
    kind = schema.get("type")
    if isinstance(kind, list):
        return _coerce_to_one_of(value, [{**schema, "type": one} for one in cast("list[str]", kind)], root)
    if isinstance(value, str):
        text = value.strip()
        if kind == "integer" and _INTEGER.fullmatch(text):
            return int(text)
        if kind == "number" and _NUMBER.fullmatch(text) and math.isfinite(float(text)):
            return int(text) if _INTEGER.fullmatch(text) else float(text)
        if kind == "boolean" and text.lower() in ("true", "false"):
            return text.lower() == "true"
        if (kind == "array" and text[:1] == "[") or (kind == "object" and text[:1] == "{"):
            try:
                value = json.loads(text)
            except (ValueError, RecursionError):
                return value
    elif kind == "string" and isinstance(value, (bool, int, float)):
        return json.dumps(value)
    elif kind == "integer" and isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    if kind == "array" and isinstance(value, list):
        return _coerce_list(cast("list[Any]", value), schema, root)
    if isinstance(value, dict) and isinstance(schema.get("properties"), dict):
        properties = cast("dict[str, Schema]", schema["properties"])
        items = cast("dict[str, Any]", value)
        made = {key: coerce(item, properties.get(key, {}), root) for key, item in items.items()}
        return made if any(made[key] is not items[key] for key in items) else items
    return value


def _coerce_list(items: list[Any], schema: Schema, root: Schema) -> list[Any]:
    first = cast("list[Schema]", schema.get("prefixItems", []))
    rest: Any = schema.get("items", {})
    rest = cast("Schema", rest) if isinstance(rest, dict) else {}
    made = [coerce(item, first[i] if i < len(first) else rest, root) for i, item in enumerate(items)]
    return made if any(new is not old for new, old in zip(made, items, strict=True)) else items


def _coerce_to_one_of(value: Any, options: list[Schema], root: Schema) -> Any:
    for option in options:
        if fits(value, option, root):
            return coerce(value, option, root)
    for option in options:
        made = coerce(value, option, root)
        if made is not value and fits(made, option, root):
            return made
    return value


def _coerce_enum(value: Any, values: list[Any]) -> Any:
    if any(value == known and type(value) is type(known) for known in values):
        return value
    if not isinstance(value, (str, int, float)):
        return value
    wanted = _plain(value)
    matches = [known for known in values if _plain(known) == wanted]
    return matches[0] if len(matches) == 1 else value


def _plain(value: Any) -> str:
    return (value if isinstance(value, str) else json.dumps(value)).strip().casefold()


def resolve(schema: Schema, root: Schema) -> Schema:
    """The schema behind a local `$ref`; itself without one."""
    for _ in range(8):
        reference = schema.get("$ref")
        if not isinstance(reference, str) or not reference.startswith("#/"):
            return schema
        target: Any = root
        for part in reference[2:].split("/"):
            target = cast("Schema", target).get(part, {}) if isinstance(target, dict) else {}
        schema = cast("Schema", target) if isinstance(target, dict) else {}
    return {}


def fits(value: Any, schema: Schema, root: Schema) -> bool:
    """True where the outermost type (or enum) is right; inner values are not looked at."""
    schema = resolve(schema, root)
    options = cast("list[Schema]", schema.get("anyOf") or schema.get("oneOf") or [])
    if options:
        return any(fits(value, option, root) for option in options)
    if "enum" in schema:
        return any(value == known and type(value) is type(known) for known in schema["enum"])
    if "const" in schema:
        return bool(value == schema["const"])
    kind = schema.get("type")
    kinds = cast("list[Any]", kind) if isinstance(kind, list) else [kind]
    return kind is None or any(_is_of(value, one) for one in kinds)


def _is_of(value: Any, kind: Any) -> bool:
    match kind:
        case "integer":
            return isinstance(value, int) and not isinstance(value, bool)
        case "number":
            return isinstance(value, (int, float)) and not isinstance(value, bool)
        case "boolean":
            return isinstance(value, bool)
        case "string":
            return isinstance(value, str)
        case "array":
            return isinstance(value, list)
        case "object":
            return isinstance(value, dict)
        case "null":
            return value is None
        case _:
            return False


def _problem(name: str, schema: Schema, value: Any, *, detail: str = "") -> str:
    wanted = describe(schema)
    text = f"argument {name!r} should be {wanted}, got {quote(value)}"
    return f"{text} ({detail})" if detail else text


def _detail(error: Exception) -> str:
    """The converter's own words, where they say more than expected and got types."""
    text = str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else ""
    place = ""
    if " - at `$" in text:
        text, _, path = text.partition(" - at `$")
        place = path.rstrip("`").lstrip(".")
    if text.startswith(("Expected `", "Invalid enum value")) and not place:
        return ""
    text = text.replace("`", "")
    return f"at {place}: {text}" if place else text


def _foreign_problem(error: ValidationError) -> str:
    path = [str(part) for part in error.absolute_path]
    if not path:
        return error.message
    schema: Any = error.schema
    inner = f" (at {'.'.join(path[1:])})" if len(path) > 1 else ""
    if error.validator in (
        "type",
        "enum",
        "minimum",
        "maximum",
        "exclusiveMinimum",
        "exclusiveMaximum",
        "anyOf",
    ):
        wanted = describe(cast("Schema", schema) if isinstance(schema, dict) else {})
        return f"argument {path[0]!r}{inner} should be {wanted}, got {quote(error.instance)}"
    message = error.message if len(error.message) < 200 else f"{error.validator} does not hold"
    return f"argument {path[0]!r}{inner}: {message}"


def quote(value: Any) -> str:
    """A value as short JSON, for a message."""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except RecursionError:
        return "a value nested too deeply"
    except (TypeError, ValueError):
        text = repr(value)
    return text if len(text) <= _MOST_QUOTED else text[:_MOST_QUOTED] + "..."


def describe(schema: Schema) -> str:
    """What a schema wants, in a few words: "an integer from 1 to 7", 'one of "a", "b"'."""
    if "enum" in schema:
        return "one of " + ", ".join(quote(value) for value in schema["enum"][:20])
    if "const" in schema:
        return quote(schema["const"])
    options = cast("list[Schema]", schema.get("anyOf") or schema.get("oneOf") or [])
    if options:
        return " or ".join(dict.fromkeys(describe(option) for option in options))
    kind = schema.get("type")
    if isinstance(kind, list):
        return " or ".join(describe({**schema, "type": one}) for one in cast("list[str]", kind))
    match kind:
        case "integer" | "number":
            return ("an integer" if kind == "integer" else "a number") + _range(schema)
        case "string":
            return "a string" + _length(schema, "characters") + _pattern(schema)
        case "boolean":
            return "true or false"
        case "null":
            return "null"
        case "array":
            items: Any = schema.get("items")
            known = isinstance(items, dict) and bool(items.keys() - {"description"})
            of = f", each {describe(cast('Schema', items))}" if known else ""
            return "a list" + _length(schema, "items") + of
        case "object":
            properties = list(schema.get("properties", {}))
            return "an object" + (f" with {', '.join(map(repr, properties[:12]))}" if properties else "")
        case _:
            return "any value" if "$ref" not in schema else "an object"


def _range(schema: Schema) -> str:
    low, high = schema.get("minimum"), schema.get("maximum")
    parts: list[str] = []
    if low is not None and high is not None:
        parts.append(f"from {low} to {high}")
    elif low is not None:
        parts.append(f"at least {low}")
    elif high is not None:
        parts.append(f"at most {high}")
    if "exclusiveMinimum" in schema:
        parts.append(f"above {schema['exclusiveMinimum']}")
    if "exclusiveMaximum" in schema:
        parts.append(f"below {schema['exclusiveMaximum']}")
    if "multipleOf" in schema:
        parts.append(f"a multiple of {schema['multipleOf']}")
    if low is not None and high is not None:
        return " " + ", ".join(parts)
    return ", " + ", ".join(parts) if parts else ""


def _length(schema: Schema, unit: str) -> str:
    low = schema.get("minLength", schema.get("minItems"))
    high = schema.get("maxLength", schema.get("maxItems"))
    if low is not None and high is not None:
        return f" of {low} {unit}" if low == high else f" of {low} to {high} {unit}"
    if low is not None:
        return f" of at least {low} {unit}"
    return f" of at most {high} {unit}" if high is not None else ""


def _pattern(schema: Schema) -> str:
    return f" matching {schema['pattern']}" if "pattern" in schema else ""
