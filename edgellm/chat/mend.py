"""Broken calls read with a forgiving eye: what a model most likely meant, as text in its own format.

The result is only a proposal. Whoever uses it puts it under the strict grammar: what the grammar takes is
written, and from the first token that it refuses the model draws again.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from edgellm.chat.formats.json_text import whole_characters
from edgellm.chat.formats.wire import WireFormat
from edgellm.errors import FormatError
from edgellm.types import ToolSpec

_NAME_KEYS = ("name", "tool_name", "function", "tool", "function_name")
_ARGUMENT_KEYS = ("arguments", "parameters", "args", "params", "input", "kwargs")
_WORDS = {"true": True, "True": True, "false": False, "False": False, "null": None, "None": None}
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f"}
_BARE = re.compile(r"[A-Za-z_][\w.-]*")
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?")
# Where a comma is missing.
_NEXT_KEY = re.compile(r"(?P<quote>[\"'])[A-Za-z_][\w.-]*(?P=quote)\s*[:=]")
_SPACE = " \t\r\n"
_MAX_DEPTH = 64


@dataclass(frozen=True, slots=True)
class Mended:
    """What a broken call most likely says. `text` is the call as its format writes it, or the beginning of it
    where the rest is not known (`is_whole` false)."""

    name: str
    arguments: dict[str, Any]
    text: str
    is_whole: bool


def mend(raw: str, specs: Sequence[ToolSpec], wire_format: WireFormat) -> Mended | None:
    """The call in `raw`, a model's text from the call's beginning on; None where not even a tool is named.

    Forgives missing, doubled and wrong quotes, raw newlines, trailing commas, missing brackets, Python's words,
    other key names, text around the call, and a tool's name that is slightly wrong.
    """
    found = _renamed(raw, specs, wire_format) or _find(_without_marks(raw, wire_format), specs)
    if found is None:
        return None
    name, arguments, is_whole = found
    head = wire_format.render_call_head(name)
    if is_whole:
        text = head + wire_format.render_arguments(arguments) + wire_format.render_call_tail(name)
        return Mended(name, arguments, text, True)
    text = head
    if wire_format.render_arguments({}) == "{}" and arguments:
        # The last value may have been cut off anywhere: it is drawn again.
        known = dict(list(arguments.items())[:-1])
        text += json.dumps(known, ensure_ascii=False)[:-1] if known else "{"
    return Mended(name, arguments, text, False)


def _renamed(
    raw: str, specs: Sequence[ToolSpec], wire_format: WireFormat
) -> tuple[str, dict[str, Any], bool] | None:
    """A call in which nothing but the tool's name is wrong."""
    try:
        written, _ = wire_format.parse_call(raw)
        name = _nearest(written, specs)
        if name is None or name == written:
            return None
        # Read again: the tool's schema types the values.
        return *wire_format.parse_call(raw.replace(written, name, 1), specs), True
    except FormatError:
        return None


def _without_marks(raw: str, wire_format: WireFormat) -> str:
    marks = wire_format.marks
    text = raw
    for mark in (*marks.call_open, marks.call_close):
        if mark:
            text = text.replace(mark, "\n")
    return text


def _find(text: str, specs: Sequence[ToolSpec]) -> tuple[str, dict[str, Any], bool] | None:
    for place in range(len(text)):
        if text[place] not in "{[":
            continue
        value, _, is_whole = _Loose(text).value(place, 0)
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, dict) and item:
                read = _interpret(cast("dict[str, Any]", item), specs)
                if read is not None:
                    return (*read, is_whole)
        named = _name_before(text[:place], specs)
        if named and isinstance(value, dict):
            return named, cast("dict[str, Any]", value), is_whole
    named = _name_before(text, specs)
    return (named, {}, False) if named else None


def _interpret(item: dict[str, Any], specs: Sequence[ToolSpec]) -> tuple[str, dict[str, Any]] | None:
    """(tool, arguments) of one object; None where it is no call."""
    inner = item.get("function")
    if isinstance(inner, dict):
        item = cast("dict[str, Any]", inner)
    written = next((item[key] for key in _NAME_KEYS if isinstance(item.get(key), str)), None)
    arguments: Any = next((item[key] for key in _ARGUMENT_KEYS if key in item), None)
    if isinstance(arguments, str):
        arguments = _Loose(arguments).value(0, 0)[0]
    if written is not None:
        if not isinstance(arguments, dict):
            arguments = {
                key: value for key, value in item.items() if key not in (*_NAME_KEYS, *_ARGUMENT_KEYS)
            }
        name = _nearest(written, specs) or _by_arguments(cast("dict[str, Any]", arguments), specs)
        return (name, cast("dict[str, Any]", arguments)) if name else None
    if len(item) == 1:
        ((key, value),) = item.items()
        name = _nearest(key, specs)
        if name and isinstance(value, dict):
            return name, cast("dict[str, Any]", value)
    if isinstance(arguments, dict):
        name = _by_arguments(cast("dict[str, Any]", arguments), specs)
        return (name, cast("dict[str, Any]", arguments)) if name else None
    return None


def _nearest(written: str, specs: Sequence[ToolSpec]) -> str | None:
    names = {spec.name for spec in specs}
    if written in names:
        return written
    plain = {_plain(name): name for name in names}
    if _plain(written) in plain:
        return plain[_plain(written)]
    last = re.split(r"[.:/]", written)[-1]
    if last in names:
        return last
    near = difflib.get_close_matches(_plain(written), list(plain), n=2, cutoff=0.7)
    return plain[near[0]] if near else None


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _by_arguments(arguments: Mapping[str, Any], specs: Sequence[ToolSpec]) -> str | None:
    """The only tool that has all these properties, and all of whose required ones are here."""
    fits = [
        spec.name
        for spec in specs
        if arguments
        and arguments.keys() <= spec.parameters.get("properties", {}).keys()
        and set(spec.parameters.get("required", ())) <= arguments.keys()
    ]
    return fits[0] if len(fits) == 1 else None


def _name_before(text: str, specs: Sequence[ToolSpec]) -> str | None:
    """The tool whose name stands last in `text`."""
    found = [(text.rfind(spec.name), len(spec.name), spec.name) for spec in specs]
    place, _, name = max(found, default=(-1, 0, ""))
    return name if place >= 0 else None


class _Loose:
    """Reads one value of something like JSON; an end in the middle closes what is open."""

    def __init__(self, text: str) -> None:
        self._text = text

    def value(self, at: int, depth: int) -> tuple[Any, int, bool]:
        """(value, where it ends, whether it ended by itself)."""
        at = self._space(at)
        if at >= len(self._text):
            return None, at, False
        char = self._text[at]
        if char in "{[" and depth < _MAX_DEPTH:
            return self._object(at + 1, depth) if char == "{" else self._array(at + 1, depth)
        if char in "\"'":
            return self._string(at)
        if number := _NUMBER.match(self._text, at):
            return _number(number.group()), number.end(), number.end() < len(self._text)
        if word := _BARE.match(self._text, at):
            return _WORDS.get(word.group(), word.group()), word.end(), word.end() < len(self._text)
        return None, at + 1, True

    def _object(self, at: int, depth: int) -> tuple[dict[str, Any], int, bool]:
        found: dict[str, Any] = {}
        while True:
            at = self._space(at, ",")
            if at >= len(self._text):
                return found, at, False
            if self._text[at] in "}]":
                return found, at + 1, True
            key, at, is_whole = self.value(at, _MAX_DEPTH)
            at = self._space(at)
            if not is_whole or at >= len(self._text):
                return found, at, False
            if self._text[at] not in ":=":
                continue
            item, at, is_whole = self.value(at + 1, depth + 1)
            found[str(key)] = item
            if not is_whole:
                return found, at, False

    def _array(self, at: int, depth: int) -> tuple[list[Any], int, bool]:
        found: list[Any] = []
        while True:
            at = self._space(at, ",")
            if at >= len(self._text):
                return found, at, False
            if self._text[at] in "}]":
                return found, at + 1, True
            item, at, is_whole = self.value(at, depth + 1)
            found.append(item)
            if not is_whole:
                return found, at, False

    def _string(self, at: int) -> tuple[str, int, bool]:
        quote, at = self._text[at], at + 1
        parts: list[str] = []
        while at < len(self._text):
            char = self._text[at]
            if char == "\\" and at + 1 < len(self._text):
                escape = self._text[at + 1]
                code = self._text[at + 2 : at + 6]
                if (
                    escape == "u"
                    and len(code) == 4
                    and all(digit in "0123456789abcdefABCDEF" for digit in code)
                ):
                    parts.append(chr(int(code, 16)))
                    at += 6
                    continue
                parts.append(_ESCAPES.get(escape, escape))
                at += 2
            elif char == quote and self._ends_string(at + 1):
                return whole_characters("".join(parts)), at + 1, True
            else:
                parts.append(char)
                at += 1
        return "".join(parts), at, False

    def _ends_string(self, at: int) -> bool:
        """A quote closes a string only where something that may follow a string does."""
        at = self._space(at)
        if at >= len(self._text) or self._text[at] in ",:}]=)<;":
            return True
        return _NEXT_KEY.match(self._text, at) is not None

    def _space(self, at: int, also: str = "") -> int:
        while at < len(self._text) and (self._text[at] in _SPACE or self._text[at] in also):
            at += 1
        return at


def _number(text: str) -> int | float:
    return float(text) if any(char in text for char in ".eE") else int(text)
