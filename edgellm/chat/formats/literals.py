"""Literals as source code writes them, read as they come and given out as JSON text."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from edgellm.chat.formats import lark
from edgellm.chat.formats.script import Fault, Source
from edgellm.chat.formats.typed_value import types_of

Give = Callable[[str], None]
Reading = Generator[None, None, None]

MAX_DEPTH = 64
_WORD_ENDS = ",()[]{}:= \t\r\n"
_WORDS = {"True": "true", "False": "false", "None": "null", "true": "true", "false": "false", "null": "null"}
_SIMPLE = {
    **{"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "a": "\a", "v": "\v", "0": "\0"},
    **{"\\": "\\", "'": "'", '"': '"', "/": "/", "\n": ""},
}
_HEX = {"x": 2, "u": 4, "U": 8}
_NUMBER = re.compile(r"[+-]?(?:\d+(?:_\d+)*\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")


@dataclass(frozen=True, slots=True)
class Style:
    """How literals are written. `delimiter` is what stands around a string ("" for quotes with escapes);
    `bare_keys`: keys of objects have no quotes; `words`: how true, false and null are written."""

    delimiter: str = ""
    bare_keys: bool = False
    words: tuple[str, str, str] = ("True", "False", "None")


PYTHON = Style()
PYTHON_JSON = Style(words=("true", "false", "null"))


class Literals:
    """Reads values of one style from a source. `closes` end a value that was never closed itself."""

    def __init__(self, source: Source, style: Style, closes: Sequence[str] = ()) -> None:
        self._source = source
        self._style = style
        self._closes = tuple(closes)

    def value(self, give: Give, depth: int = 0) -> Reading:
        """One value. Raises Ended, and Fault for what is none."""
        source = self._source
        if depth > MAX_DEPTH:
            raise Fault(f"it is nested deeper than {MAX_DEPTH} levels")
        space = yield from source.skip_space()
        delimiter = self._style.delimiter
        if delimiter and (yield from source.one_of((delimiter,))):
            yield from self._delimited(give)
            return
        char = yield from source.peek(1)
        if char in ("'", '"') and char:
            yield from self._strings(give)
        elif char in ("[", "("):
            yield from source.take()
            yield from self._items("]" if char == "[" else ")", give, depth)
        elif char == "{":
            yield from source.take()
            yield from self._pairs(give, depth)
        elif delimiter:
            source.put_back(space)
            yield from self._raw(give)
        else:
            yield from self._word(give)

    def word(self) -> Generator[None, None, str]:
        """Characters up to a bracket, comma, colon, equals sign or space."""
        source = self._source
        taken = ""
        while True:
            char = yield from source.peek(1)
            if not char or char in _WORD_ENDS:
                return taken
            taken += yield from source.take()
            if len(taken) > 512:
                raise Fault("a word is too long")

    # -- parts --------------------------------------------------------------------------------------------

    def _word(self, give: Give) -> Reading:
        word = yield from self.word()
        if not word:
            char = yield from self._source.peek(1)
            raise Fault(f"a value was expected, not {char!r}")
        give(word_json(word))

    def _raw(self, give: Give) -> Reading:
        """A value without quotes or delimiter: up to the comma before another key, or the bracket that closes it."""
        source = self._source
        text = ""
        while True:
            piece, stop = yield from source.until((",", "}", "]", *self._closes))
            text += piece
            if stop == ",":
                if (yield from self._is_key_next()) or word_json(text.strip())[:1] != '"':
                    source.put_back(stop)
                    break
                text += stop
                continue
            source.put_back(stop)
            break
        stripped = text.strip()
        known = word_json(stripped)
        give(
            known if known[:1] != '"' else json.dumps(text if "\n" in text else stripped, ensure_ascii=False)
        )

    def _is_key_next(self) -> Generator[None, None, bool]:
        ahead = yield from self._source.peek(48)
        return re.match(r"\s*[\w.-]+\s*:", ahead) is not None

    def _delimited(self, give: Give) -> Reading:
        """A string up to its delimiter. Where that is missing, it ends with the call."""
        source = self._source
        ends = tuple(bracket + close for close in self._closes for bracket in ("}", "]", ""))
        give('"')
        _, stop = yield from source.until((self._style.delimiter, *ends), lambda piece: give(_inner(piece)))
        give('"')
        if stop != self._style.delimiter:
            source.put_back(stop)

    def _strings(self, give: Give) -> Reading:
        """A string in quotes, or several next to each other, which are one."""
        source = self._source
        give('"')
        while True:
            quote = yield from source.expect("'", '"')
            if (yield from source.one_of((quote * 2,))):
                # Empty, or in triple quotes.
                if not (yield from source.one_of((quote,))):
                    break
                yield from self._string(quote * 3, give)
            else:
                yield from self._string(quote, give)
            space = yield from source.skip_space()
            following = yield from source.peek(1)
            if following not in ("'", '"') or not following:
                if space:
                    source.put_back(space)
                break
        give('"')

    def _string(self, quote: str, give: Give) -> Reading:
        source = self._source
        high = 0

        def give_text(piece: str) -> None:
            nonlocal high
            if piece:
                # The first half of a pair without its second is no character.
                give(_inner("\ufffd" * bool(high) + piece))
                high = 0

        while True:
            _, stop = yield from source.until((quote, "\\"), give_text)
            if stop == quote:
                if high:
                    give("\ufffd")
                return
            char = yield from source.take()
            if char in _HEX:
                digits = ""
                while len(digits) < _HEX[char]:
                    digits += yield from source.take()
                try:
                    code = int(digits, 16)
                except ValueError:
                    give_text("\\" + char + digits)
                    continue
                if 0xD800 <= code < 0xDC00:
                    if high:
                        give("\ufffd")
                    high = code
                    continue
                if 0xDC00 <= code < 0xE000:
                    code = 0x10000 + ((high - 0xD800) << 10) + (code - 0xDC00) if high else 0xFFFD
                    high = 0
                give_text(chr(code) if code <= 0x10FFFF else "\ufffd")
            else:
                give_text(_SIMPLE.get(char, "\\" + char))

    def _items(self, close: str, give: Give, depth: int) -> Reading:
        source = self._source
        give("[")
        is_first = True
        while True:
            yield from source.skip_space()
            if (yield from source.one_of((close,))):
                break
            if not is_first:
                yield from source.expect(",")
                yield from source.skip_space()
                if (yield from source.one_of((close,))):
                    break
                give(", ")
            is_first = False
            yield from self.value(give, depth + 1)
        give("]")

    def _pairs(self, give: Give, depth: int) -> Reading:
        source = self._source
        give("{")
        is_first = True
        while True:
            yield from source.skip_space()
            if (yield from self._is_closed()):
                break
            if not is_first:
                yield from source.expect(",")
                yield from source.skip_space()
                if (yield from self._is_closed()):
                    break
                give(", ")
            is_first = False
            yield from self.key(give)
            give(": ")
            yield from self.value(give, depth + 1)
        give("}")

    def _is_closed(self) -> Generator[None, None, bool]:
        if (yield from self._source.one_of(("}",))):
            return True
        # A bracket may be missing at the end of the call.
        return bool(self._closes) and (yield from self._source.comes(self._closes))

    def key(self, give: Give) -> Reading:
        """An object's key and its colon."""
        source = self._source
        delimiter = self._style.delimiter
        if delimiter and (yield from source.one_of((delimiter,))):
            yield from self._delimited(give)
        elif (yield from source.peek(1)) in ("'", '"'):
            yield from self._strings(give)
        else:
            word = yield from self.word()
            if not word:
                char = yield from source.peek(1)
                raise Fault(f"a key was expected, not {char!r}")
            give(json.dumps(word, ensure_ascii=False))
        yield from source.skip_space()
        yield from source.expect(":")


def word_json(word: str) -> str:
    """A word as JSON: a number, true, false, null, or else a string."""
    if word in _WORDS:
        return _WORDS[word]
    if _NUMBER.fullmatch(word) and len(word) < 400:
        digits = word.replace("_", "").lstrip("+")
        try:
            value: Any = int(digits)
        except ValueError:
            value = float(digits)
        text = json.dumps(value)
        if text[-1].isdigit():
            return text
    return json.dumps(word, ensure_ascii=False)


def _inner(piece: str) -> str:
    return json.dumps(piece, ensure_ascii=False)[1:-1]


# -- writing ------------------------------------------------------------------------------------------------


def render(value: Any, style: Style) -> str:
    """A JSON value as a literal."""
    if value is None or isinstance(value, bool):
        return style.words[2 if value is None else 0 if value else 1]
    if isinstance(value, str):
        if style.delimiter:
            return style.delimiter + value + style.delimiter
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, Mapping):
        items = cast("Mapping[str, Any]", value).items()
        if style.bare_keys:
            return "{" + ",".join(f"{key}:{render(item, style)}" for key, item in items) + "}"
        return "{" + ", ".join(f"{render(key, style)}: {render(item, style)}" for key, item in items) + "}"
    if isinstance(value, (list, tuple)):
        separator = "," if style.bare_keys else ", "
        return "[" + separator.join(render(item, style) for item in cast("Sequence[Any]", value)) + "]"
    return json.dumps(value)


class LiteralGrammar:
    """Lark rules for values of one style, from their schemas. Collect `rules` at the end."""

    def __init__(self, style: Style, special_ids: Mapping[str, int]) -> None:
        self._style = style
        self._ids = special_ids
        self.rules: list[str] = []
        if style.delimiter:
            end = f"<[{special_ids[style.delimiter]}]>" if style.delimiter in special_ids else ""
            # As a token the delimiter cannot be part of the text; as text, the text ends at its first.
            opening = lark.terms([style.delimiter], special_ids)
            if end:
                self.rules += [f"delimited: {opening} plain {end}", "plain: /(?s:.*)/"]
            else:
                closing = lark.literal(style.delimiter)
                self.rules += [f"delimited: {opening} to_end", f"to_end[suffix={closing}]: /(?s:.*)/"]

    def value(self, schema: Any, name: str) -> str:
        """The terms of a value of this schema; further rules are named after `name`."""
        if isinstance(schema, Mapping) and isinstance(schema.get("enum"), list):
            options = " | ".join(
                lark.terms([render(value, self._style)], self._ids) for value in schema["enum"]
            )
            return f"({options})"
        types = types_of(schema)
        options = [self._typed(kind, schema, f"{name}_{kind}") for kind in types]
        if not options or (isinstance(schema, Mapping) and "$ref" in schema):
            return self._any()
        return options[0] if len(options) == 1 else f"({' | '.join(dict.fromkeys(options))})"

    def _typed(self, kind: str, schema: Any, name: str) -> str:
        true, false, null = map(lark.literal, self._style.words)
        if kind == "string":
            return self._string(schema, name)
        if kind == "boolean":
            return f"({true} | {false})"
        if kind == "null":
            return null
        if kind in ("integer", "number"):
            kept = {
                key: schema[key]
                for key in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
                if key in schema
            }
            return self._rule(name, lark.json_rule({"type": kind, **kept}))
        if kind == "array":
            items = schema.get("items")
            inner = self.value(items, f"{name}_i")
            item = self._rule(f"{name}_item", inner)
            separator = lark.literal("," if self._style.bare_keys else ", ")
            return self._rule(name, f'"[" ({item} ({separator} {item})*)? "]"')
        if kind == "object" and schema.get("properties"):
            return self._rule(name, '"{" ' + self.members(schema, name, self._pair) + ' "}"')
        return self._any()

    def _pair(self, key: str, value: str) -> str:
        if self._style.bare_keys:
            return f"{lark.literal(key + ':')} {value}"
        return f"{lark.literal(json.dumps(key, ensure_ascii=False) + ': ')} {value}"

    def members(self, schema: Mapping[str, Any], name: str, pair: Callable[[str, str], str]) -> str:
        """Properties in schema order: required ones all there, others where wanted; separated by commas."""
        required = schema.get("required", ())
        separator = lark.literal("," if self._style.bare_keys else ", ")
        items = [
            (pair(key, self.value(item, f"{name}_{at}")), key in required)
            for at, (key, item) in enumerate((schema.get("properties") or {}).items())
        ]
        # rest_k: what may follow when something has been written before property k.
        rest = '""'
        tail: list[str] = []
        for at in range(len(items) - 1, -1, -1):
            text, is_required = items[at]
            body = f"{separator} {text}" if is_required else f"({separator} {text})?"
            rest = f"{body} {tail[0]}" if tail else body
            tail.insert(0, self._rule(f"{name}_rest_{at}", rest))
        options: list[str] = []
        for at, (text, is_required) in enumerate(items):
            following = tail[at + 1] if at + 1 < len(items) else ""
            options.append(f"{text} {following}".strip())
            if is_required:
                break
        else:
            options.append('""')
        return self._rule(f"{name}_members", " | ".join(options)) if options else '""'

    def _string(self, schema: Any, name: str) -> str:
        if self._style.delimiter:
            return "delimited"
        kept = {key: schema[key] for key in ("minLength", "maxLength", "pattern") if key in schema}
        return self._rule(name, lark.json_rule({"type": "string", **kept}))

    def _any(self) -> str:
        if not any(rule.startswith("any:") for rule in self.rules):
            true, false, null = map(lark.literal, self._style.words)
            separator = lark.literal("," if self._style.bare_keys else ", ")
            text = "delimited" if self._style.delimiter else "any_text"
            key = '/[A-Za-z_][A-Za-z0-9_]*/ ":"' if self._style.bare_keys else 'any_text ": "'
            self.rules += [
                f"any: {text} | any_number | {true} | {false} | {null} | any_list | any_object",
                f"any_number: {lark.json_rule({'type': 'number'})}",
                f'any_list: "[" (any ({separator} any)*)? "]"',
                f'any_object: "{{" ({key} any ({separator} {key} any)*)? "}}"',
            ]
            if not self._style.delimiter:
                self.rules.append(f"any_text: {lark.json_rule({'type': 'string'})}")
        return "any"

    def _rule(self, name: str, body: str) -> str:
        rule = f"{name}: {body}"
        if rule not in self.rules:
            self.rules.append(rule)
        return name
