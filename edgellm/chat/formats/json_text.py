"""One JSON value, validated as it arrives, in pieces of any size."""

from __future__ import annotations

import json
import math
import re
from typing import Any

MAX_DEPTH = 128
MAX_NUMBER_CHARS = 400

_RUN = re.compile(r'[^"\\\x00-\x1f\ud800-\udfff]+')
_SPACE = " \t\r\n"
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_LITERALS = {"t": "true", "f": "false", "n": "null"}

# What may come next.
_VALUE, _FIRST_VALUE, _KEY, _FIRST_KEY, _COLON, _COMMA, _STRING, _ESCAPE, _LITERAL, _NUMBER_STATE = range(10)


class BadJson(ValueError):
    """The text cannot be JSON: `at` is the index, in the piece fed, of the character that shows it."""

    def __init__(self, message: str, at: int) -> None:
        super().__init__(message)
        self.at = at


class JsonText:
    """Validates one value and gives it out as clean JSON text, always a prefix of a valid document.

    Raw control characters in strings become escapes, and a surrogate escape without its partner becomes
    \\ufffd: what comes out can be parsed and encoded. A started escape is held back until it is whole.
    `feed` raises BadJson at the first character that cannot belong to any JSON value.
    """

    __slots__ = ("_escape", "_high", "_is_key", "_out", "_stack", "_state", "_token", "first", "is_done")

    def __init__(self) -> None:
        self._stack: list[str] = []
        self._state = _VALUE
        self._out: list[str] = []
        self._escape = ""
        self._high = ""
        self._token = ""
        self._is_key = False
        self.first = ""
        self.is_done = False

    def feed(self, text: str, at: int = 0) -> int:
        """Read from `text[at:]`; gives the index of the first character not read (the value has ended there)."""
        size = len(text)
        while at < size and not self.is_done:
            if self._state == _STRING:
                at = self._read_string(text, at)
            elif self._state == _NUMBER_STATE:
                at = self._read_number(text, at)
            else:
                try:
                    self._read_char(text[at])
                except ValueError as error:
                    raise BadJson(str(error), at) from None
                at += 1
        return at

    def take(self) -> str:
        """The clean text since the last `take`."""
        taken = "".join(self._out)
        self._out.clear()
        return taken

    def _read_char(self, char: str) -> None:
        if self._state == _ESCAPE:
            self._read_escape(char)
        elif self._state == _LITERAL:
            self._read_literal(char)
        elif char not in _SPACE:
            self._read_structure(char)
        elif self._stack:
            self._out.append(char)

    def _read_structure(self, char: str) -> None:
        state = self._state
        if not self.first:
            self.first = char
        if char in "]}" and self._may_close(char):
            self._stack.pop()
            self._out.append(char)
            self._end_value()
        elif state in (_VALUE, _FIRST_VALUE):
            self._open_value(char)
        elif state in (_KEY, _FIRST_KEY):
            if char != '"':
                raise ValueError(f"a key in double quotes was expected, not {char!r}")
            self._out.append(char)
            self._is_key, self._state = True, _STRING
        elif state == _COLON and char == ":":
            self._out.append(char)
            self._state = _VALUE
        elif state == _COMMA and char == ",":
            self._out.append(char)
            self._state = _KEY if self._stack[-1] == "{" else _VALUE
        else:
            wanted = "':'" if state == _COLON else "',' or a closing bracket"
            raise ValueError(f"{wanted} was expected, not {char!r}")

    def _open_value(self, char: str) -> None:
        if char in "{[":
            if len(self._stack) >= MAX_DEPTH:
                raise ValueError(f"it is nested deeper than {MAX_DEPTH} levels")
            self._stack.append(char)
            self._state = _FIRST_KEY if char == "{" else _FIRST_VALUE
            self._out.append(char)
        elif char == '"':
            self._is_key, self._state = False, _STRING
            self._out.append(char)
        elif char in _LITERALS:
            self._token, self._state = _LITERALS[char][1:], _LITERAL
            self._out.append(char)
        elif char == "-" or "0" <= char <= "9":
            self._token, self._state = char, _NUMBER_STATE
        else:
            raise ValueError(f"a JSON value was expected, not {char!r}")

    def _may_close(self, char: str) -> bool:
        opening, empty = ("[", _FIRST_VALUE) if char == "]" else ("{", _FIRST_KEY)
        return self._stack[-1:] == [opening] and self._state in (empty, _COMMA)

    def _end_value(self) -> None:
        self.is_done = not self._stack
        self._state = _COMMA

    def _read_string(self, text: str, at: int) -> int:
        if run := _RUN.match(text, at):
            self._flush_high()
            self._out.append(run.group())
            return run.end()
        char = text[at]
        if char == "\\":
            self._escape, self._state = char, _ESCAPE
            return at + 1
        self._flush_high()
        if char == '"':
            self._out.append(char)
            if self._is_key:
                self._is_key, self._state = False, _COLON
            else:
                self._end_value()
        elif char < " ":
            self._out.append(json.dumps(char)[1:-1])
        else:
            self._out.append("\\ufffd")
        return at + 1

    def _read_escape(self, char: str) -> None:
        self._escape += char
        if len(self._escape) == 2:
            if char == "u":
                return
            if char not in '"\\/bfnrt':
                raise ValueError(f"'\\{char}' is not an escape of JSON strings")
            self._flush_high()
            self._out.append(self._escape)
        else:
            if char not in "0123456789abcdefABCDEF":
                raise ValueError(f"a hexadecimal digit was expected after '\\u', not {char!r}")
            if len(self._escape) < 6:
                return
            self._end_unicode()
        self._escape, self._state = "", _STRING

    def _end_unicode(self) -> None:
        code = int(self._escape[2:], 16)
        if 0xDC00 <= code < 0xE000:
            self._out.append(self._high + self._escape if self._high else "\\ufffd")
            self._high = ""
            return
        self._flush_high()
        if 0xD800 <= code < 0xDC00:
            self._high = self._escape
        else:
            self._out.append(self._escape)

    def _flush_high(self) -> None:
        if self._high:
            self._out.append("\\ufffd")
            self._high = ""

    def _read_literal(self, char: str) -> None:
        if char != self._token[0]:
            raise ValueError("only true, false and null are words of JSON")
        self._out.append(char)
        self._token = self._token[1:]
        if not self._token:
            self._end_value()

    def _read_number(self, text: str, at: int) -> int:
        end = at
        while end < len(text) and text[end] in "0123456789+-.eE":
            end += 1
        room = MAX_NUMBER_CHARS - len(self._token)
        if end - at > room:
            raise BadJson(f"a number is longer than {MAX_NUMBER_CHARS} characters", at + room)
        self._token += text[at:end]
        if end < len(text):
            if not _NUMBER.fullmatch(self._token):
                raise BadJson(f"{self._token!r} is not a number", end)
            self._out.append(self._token)
            self._end_value()
        return end


def loads(text: str) -> Any:
    """Clean JSON text as a Python value. Raises ValueError, also for what only Python's reader refuses."""
    try:
        return json.loads(text, parse_float=_float)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def whole_characters(text: str) -> str:
    """The text with halves of surrogate pairs, which escapes can spell, joined or replaced by U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        # Valid JSON, but what Python makes of it cannot be written as JSON again.
        raise ValueError(f"{text} is too large for a number")
    return value
