"""Random tools, from a seed: schemas as people write them, and as nobody would.

Objects of one to six properties, up to three deep: bounded strings and numbers, patterns, formats, enums short and
long, constants, arrays, anyOf and oneOf, references (also to themselves), names with quotes, spaces and emoji; and now
and then a keyword that no grammar can enforce (uniqueItems, not, if/then, look-around). Every schema has valid values.
"""

from __future__ import annotations

import random
from typing import Any

Schema = dict[str, Any]

MAX_DEPTH = 3

PLAIN_NAMES = (
    "city", "query", "path", "limit", "user_id", "is_open", "start", "end", "unit", "tags", "options", "filter",
    "max_results", "lang", "when", "amount", "currency", "zip-code", "camelCase", "x", "a.b", "name",
    "arguments", "type",
)  # fmt: skip
AWKWARD_NAMES = (
    'say "hi"', "two words", " ", "", "back\\slash", "new\nline", "tab\there", "🌡️", "größe", "東京", "имя", "e\u0301",
    "</tool_call>", "<|im_end|>", "$ref", "properties", "required", "__proto__", "self", "{x}", "a/b~c", "%json {}",
    "n" * 80,
)  # fmt: skip
PATTERNS = (
    "^[a-z]{2,8}$", "^[A-Z]{3}-[0-9]{4}$", "^\\d{4}-\\d{2}$", "^(red|green|blue)+$", "[0-9]+", "^\\+?[1-9][0-9]{1,14}$",
    "^#[0-9a-fA-F]{6}$", "^[^\\s@]{1,10}@[^\\s@]{1,10}$", "^\\w{1,12}$", "^$|^x", "end$", "^[\\u0430-\\u044f]{1,6}$",
    '^"[^"]{0,8}"$', "^[^\\\\/:*?\"<>|]{1,20}$", "^\\W\\D?$", "^(\\\\|/)[a-z]{0,9}$", "^.{3}$", "a.c",
    "^[^a-z]{2,6}$", "^\\S+$",
)  # fmt: skip
UNENFORCEABLE_PATTERNS = ("^(?=.*[0-9]).{4,12}$", "^(?!admin)[a-z]{3,10}$", "(?<=a)b", "^([a-z])\\1$")
FORMATS = ("date", "time", "date-time", "email", "uuid", "ipv4", "ipv6", "uri", "hostname", "duration")
UNKNOWN_FORMATS = ("color", "phone", "iban", "regex")
WORDS = (
    "celsius", "fahrenheit", "red", "green", "blue", "asc", "desc", "yes", "no", "", "a b", 'quo"te', "naïve", "日本",
    "🙂", "-1", "null", "true", "line\nbreak", "</tool_call>", "back\\slash", "A",
)  # fmt: skip
CONSTANTS = ("v1", 'q"', "ü", 0, -7, 2.5, True, False, None, [1, "a"], {"k": [True, None]}, "", [], {})
MIXED = (1, "1", None, True, 2.5, [0], {"a": 1}, "x", -3, 10**12)


def random_tool(seed: int, index: int) -> Schema:
    """Tool number `index` of a seed: an OpenAI-style description, JSON Schema Draft 2020-12 inside."""
    return _Maker(random.Random(f"{seed}/{index}"), index).tool()


class _Maker:
    """Makes one tool. All choices come from one random generator."""

    def __init__(self, rng: random.Random, index: int) -> None:
        self._rng = rng
        self._index = index
        self._definitions: dict[str, Schema] = {}

    def tool(self) -> Schema:
        rng = self._rng
        verb = rng.choice(("get", "set", "find", "send", "book", "convert", "list"))
        parameters = self._object(MAX_DEPTH)
        if self._definitions:
            parameters["$defs"] = self._definitions
        return {
            "type": "function",
            "function": {
                "name": f"{verb}_{rng.choice(('thing', 'item', 'room', 'note'))}_{self._index}",
                "description": f"{verb.capitalize()} something.",
                "parameters": parameters,
            },
        }

    def _is(self, chance: float) -> bool:
        return self._rng.random() < chance

    # -- objects and arrays ------------------------------------------------------------------------------------

    def _object(self, depth: int) -> Schema:
        rng = self._rng
        names: list[str] = []
        for _ in range(rng.randint(1, 6 if depth == MAX_DEPTH else 3)):
            name = rng.choice(AWKWARD_NAMES if self._is(0.2) else PLAIN_NAMES)
            if name not in names:
                names.append(name)
        schema: Schema = {"type": "object", "properties": {name: self._value(depth - 1) for name in names}}
        required = [name for name in names if self._is(0.7)]
        if required or self._is(0.5):
            schema["required"] = required
        if self._is(0.7):
            schema["additionalProperties"] = False
        elif self._is(0.5):
            schema["additionalProperties"] = rng.choice(
                (True, {"type": "integer"}, {"type": "string", "maxLength": 6})
            )
        if "additionalProperties" not in schema and self._is(0.15):
            schema["patternProperties"] = {"^x-[a-z]{1,4}$": {"type": "boolean"}}
        if self._is(0.08):
            self._add_unenforceable(schema, names, required)
        return schema

    def _add_unenforceable(self, schema: Schema, names: list[str], required: list[str]) -> None:
        """One keyword that says something about the object as a whole."""
        first, last = names[0], names[-1]
        match self._rng.randrange(6):
            case 0:
                schema["not"] = {"required": ["forbidden", first]}
            case 1:
                schema["if"] = {"required": [first]}
                schema["then"] = {"required": [last]}
            case 2:
                schema["minProperties"] = self._rng.randint(1, len(names))
            case 3:
                schema["maxProperties"] = max(1, len(required), self._rng.randint(1, len(names)))
            case 4:
                schema["dependentRequired"] = {first: [last]}
            case _:
                schema["propertyNames"] = {"maxLength": 90}

    def _array(self, depth: int) -> Schema:
        rng = self._rng
        schema: Schema = {"type": "array", "items": self._value(depth - 1)}
        least = rng.choice((0, 0, 1, 2))
        if least:
            schema["minItems"] = least
        if self._is(0.8):
            schema["maxItems"] = least + rng.randint(0, 3)
        if self._is(0.1):
            schema["prefixItems"] = [self._value(depth - 1) for _ in range(rng.randint(1, 2))]
            schema["items"] = rng.choice((False, True, {"type": "integer"}))
            schema.pop("maxItems", None)
            schema.pop("minItems", None)
        elif self._is(0.12):
            # Strings without end: there is always another one that is not in the list yet.
            schema["items"] = {"type": "string", "maxLength": 12}
            schema["uniqueItems"] = True
        return schema

    # -- values ------------------------------------------------------------------------------------------------

    def _value(self, depth: int) -> Any:
        """A schema of any kind; without objects and arrays where `depth` is used up. Any: `true` is one too."""
        rng = self._rng
        leaves = [self._string] * 5 + [self._integer] * 3 + [self._number] * 2
        leaves += [self._boolean, self._constant, self._enumeration, self._enumeration, self._nullable]
        if depth > 0:
            branch = rng.choice(
                (self._array, self._array, self._object, self._choice, self._reference, self._all)
            )
            if self._is(0.35):
                return self._described(branch(depth))
        if self._is(0.01):
            return True
        return self._described(rng.choice(leaves)())

    def _described(self, schema: Schema) -> Schema:
        if self._is(0.3):
            schema["description"] = self._rng.choice(
                ("The thing.", 'In "quotes".', "Größe in °C.", "Line\nbreak")
            )
        if self._is(0.05):
            schema["title"] = "Title"
        if self._is(0.05):
            schema["x-internal"] = 1
        return schema

    def _string(self) -> Schema:
        rng = self._rng
        schema: Schema = {"type": "string"}
        match rng.randrange(12):
            case 0 | 1 | 2 | 3 | 4:
                least = rng.choice((0, 0, 0, 1, 3))
                schema["maxLength"] = least + rng.choice((0, 1, 5, 12, 30))
                if least:
                    schema["minLength"] = least
            case 5 | 6:
                schema["pattern"] = rng.choice(PATTERNS)
            case 7:
                schema |= {"pattern": "^[a-z ]*$", "minLength": 2, "maxLength": 9}
            case 8:
                schema["format"] = rng.choice(FORMATS)
            case 9:
                if self._is(0.5):
                    schema["pattern"] = rng.choice(UNENFORCEABLE_PATTERNS)
                else:
                    schema["format"] = rng.choice(UNKNOWN_FORMATS)
            case 10:
                schema["minLength"] = rng.randint(0, 8)
            case _:
                pass
        return schema

    def _integer(self) -> Schema:
        rng = self._rng
        schema: Schema = {"type": "integer"}
        low = rng.choice((0, 1, -5, -273, 10, -1000, 99, 2**31, -(2**40)))
        match rng.randrange(6):
            case 0:
                schema |= {"minimum": low, "maximum": low + rng.choice((0, 1, 7, 100, 99999))}
            case 1:
                schema |= {"exclusiveMinimum": low, "exclusiveMaximum": low + rng.choice((2, 3, 50))}
            case 2:
                schema["minimum"] = low
            case 3:
                schema["maximum"] = low
            case 4:
                schema |= {"multipleOf": rng.choice((2, 5, 7, 100)), "minimum": 0, "maximum": 5000}
            case _:
                pass
        return schema

    def _number(self) -> Schema:
        rng = self._rng
        schema: Schema = {"type": "number"}
        low = rng.choice((0, -1.5, 0.25, -180, 36.6, 1e-6, -1e9, 100))
        match rng.randrange(6):
            case 0:
                schema |= {"minimum": low, "maximum": low + rng.choice((0.5, 1, 90, 1e6))}
            case 1:
                schema |= {"exclusiveMinimum": low, "exclusiveMaximum": low + rng.choice((0.5, 1, 1e3))}
            case 2:
                schema["minimum"] = low
            case 3:
                schema["maximum"] = low
            case 4:
                schema |= {"multipleOf": rng.choice((0.5, 0.25, 3)), "minimum": -20, "maximum": 20}
            case _:
                pass
        return schema

    def _boolean(self) -> Schema:
        return {"type": "boolean"}

    def _constant(self) -> Schema:
        return {"const": self._rng.choice(CONSTANTS)}

    def _enumeration(self) -> Schema:
        rng = self._rng
        match rng.randrange(8):
            case 0:
                return {"enum": [f"{rng.choice(WORDS)}-{number}" for number in range(rng.choice((60, 250)))]}
            case 1:
                return {"enum": rng.sample(MIXED, rng.randint(1, 6))}
            case 2:
                return {"type": "integer", "enum": rng.sample(range(-50, 50), rng.randint(1, 6))}
            case _:
                return {"type": "string", "enum": rng.sample(WORDS, rng.randint(1, 6))}

    def _nullable(self) -> Schema:
        inner = self._rng.choice((self._string, self._integer, self._number, self._enumeration))()
        match self._rng.randrange(3):
            case 0 if "type" in inner and "enum" not in inner:
                return {**inner, "type": [inner["type"], "null"]}
            case 1:
                return {"oneOf": [inner, {"type": "null"}]}
            case _:
                return {"anyOf": [inner, {"type": "null"}]}

    def _choice(self, depth: int) -> Schema:
        rng = self._rng
        match rng.randrange(4):
            case 0:
                kinds = rng.sample(("circle", "square", "line", "dot"), rng.randint(2, 3))
                return {rng.choice(("oneOf", "anyOf")): [self._variant(kind, depth) for kind in kinds]}
            case 1:
                # The two overlap: which of them a value fits, and how many, no grammar can count.
                return {"oneOf": [{"type": "integer", "minimum": 0}, {"type": "number", "maximum": 100}]}
            case 2:
                return {
                    "oneOf": [{"type": "string", "maxLength": 9}, {"type": "integer"}, {"type": "boolean"}]
                }
            case _:
                return {"anyOf": [self._value(depth - 1) for _ in range(rng.randint(2, 3))]}

    def _variant(self, kind: str, depth: int) -> Schema:
        """One of several objects, told apart by a constant."""
        properties = {"kind": {"const": kind}, self._rng.choice(PLAIN_NAMES[:10]): self._value(depth - 1)}
        return {
            "type": "object",
            "properties": properties,
            "required": ["kind"],
            "additionalProperties": False,
        }

    def _reference(self, depth: int) -> Schema:
        if self._is(0.5):
            self._definitions["tree"] = {
                "type": "object",
                "properties": {
                    "label": {"type": "string", "maxLength": 5},
                    "children": {"type": "array", "items": {"$ref": "#/$defs/tree"}, "maxItems": 2},
                },
                "required": ["label"],
                "additionalProperties": False,
            }
            return {"$ref": "#/$defs/tree"}
        name = f"part{len(self._definitions)}"
        self._definitions[name] = {}  # before the parts inside it take their names
        self._definitions[name] = self._value(depth - 1)
        return {"$ref": f"#/$defs/{name}"}

    def _all(self, depth: int) -> Schema:
        if depth > 1 and self._is(0.5):
            least = {"type": "object", "properties": {"id": self._integer()}, "required": ["id"]}
            return {"allOf": [least, {"properties": {"note": self._string()}}]}
        return {"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 30}]}
