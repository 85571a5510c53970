"""Reader and grammar of calls written as one JSON object with a name and arguments."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from edgellm.chat.formats.json_text import BadJson, JsonText, loads
from edgellm.chat.formats.wire import Begun, Complete, Fragment, Named, NotACall, Signal
from edgellm.errors import FormatError
from edgellm.types import ToolSpec

NAME_KEYS = ("name",)
ARGUMENTS_KEYS = ("arguments", "parameters")

_SPACE = " \t\r\n"
_OPEN, _KEY, _COLON, _VALUE, _COMMA, _CLOSE, _END = range(7)


class JsonCallReader:
    """Reads `{"name": ..., "arguments": {...}}` and, if it follows, the closing mark.

    The call ends by bracket depth and string state, so a closing mark inside a string is only text. Keys may
    come in any order: fragments wait for the name. Arguments written as a JSON string are read again. A
    missing closing mark is forgiven, since the object is whole without it.
    """

    def __init__(self, close: str) -> None:
        self._close = close
        self._state = _OPEN
        self._has_key_before = False
        self._value = JsonText()
        self._key = ""
        self._name = ""
        self._arguments: list[str] = []
        self._has_arguments = False
        self._given = 0
        self._after = ""
        self._at = 0

    @property
    def is_open(self) -> bool:
        return False

    def feed(self, text: str, *, is_control: bool = False) -> tuple[int, list[Signal]]:
        signals: list[Signal] = []
        if is_control and self._state not in (_OPEN, _CLOSE) and text:
            self._state = _END
            return 0, [NotACall(f"the control token {text!r} stands inside it")]
        self._at = 0
        try:
            while self._at < len(text) and self._state != _END:
                if self._state == _CLOSE:
                    self._read_close(text, signals)
                elif self._state in (_KEY, _VALUE):
                    self._read_value(text, signals)
                else:
                    if text[self._at] not in _SPACE:
                        self._read_structure(text[self._at], signals)
                    self._at += 1
        except ValueError as error:
            # The character at fault stays unread: whatever it begins may have a meaning of its own.
            self._state = _END
            signals.append(NotACall(str(error)))
        return self._at, signals

    def finish(self) -> list[Signal]:
        if self._state == _CLOSE:
            return [self._complete(len(self._after))]
        if self._state == _END:
            return []
        self._state = _END
        return [NotACall("the output ended inside it")]

    def _read_structure(self, char: str, signals: list[Signal]) -> None:
        if self._state == _OPEN and char == "{":
            signals.append(Begun())
            self._state = _KEY
        elif self._state == _COLON and char == ":":
            self._value = JsonText()
            self._state = _VALUE
        elif self._state == _COMMA and char == ",":
            self._has_key_before = True
            self._value = JsonText()
            self._state = _KEY
        elif self._state == _COMMA and char == "}":
            self._end_object(signals)
        else:
            wanted = {_OPEN: "'{'", _COLON: "':'", _COMMA: "',' or '}'"}[self._state]
            raise ValueError(f"{wanted} was expected, not {char!r}")

    def _read_value(self, text: str, signals: list[Signal]) -> None:
        if self._state == _KEY and not self._value.first:
            char = text[self._at]
            if char in _SPACE:
                self._at += 1
                return
            if char == "}" and not self._has_key_before:
                raise ValueError("it has no name")
            if char != '"':
                raise ValueError(f"a key in double quotes was expected, not {char!r}")
        try:
            self._at = self._value.feed(text, self._at)
        except BadJson as error:
            self._at = error.at
            self._take_arguments(signals)
            raise
        self._take_arguments(signals)
        if self._value.is_done:
            self._end_value(signals)

    def _take_arguments(self, signals: list[Signal]) -> None:
        if self._state == _VALUE and self._is_arguments():
            self._arguments.append(self._value.take())
            self._give(signals)

    def _is_arguments(self) -> bool:
        return self._key in ARGUMENTS_KEYS and not self._has_arguments

    def _end_value(self, signals: list[Signal]) -> None:
        if self._state == _KEY:
            self._key = loads(self._value.take())
            self._state = _COLON
            return
        self._state = _COMMA
        if self._is_arguments():
            self._end_arguments()
            self._give(signals)
        elif self._key in NAME_KEYS and not self._name:
            name = loads(self._value.take())
            if not isinstance(name, str) or not name:
                raise ValueError("its name is not a string")
            self._name = name
            signals.append(Named(name))
            self._give(signals)

    def _end_arguments(self) -> None:
        self._has_arguments = True
        if self._value.first == "{":
            return
        value = loads("".join(self._arguments))
        if isinstance(value, str):
            inner = JsonText()
            end = inner.feed(value)
            if not inner.is_done or value[end:].strip() or inner.first != "{":
                raise ValueError("its arguments are a string that holds no JSON object")
            self._arguments = [inner.take()]
        elif value is None:
            self._arguments = ["{}"]
        else:
            raise ValueError("its arguments are not a JSON object")

    def _give(self, signals: list[Signal]) -> None:
        """Give out the fragments that are certain: the name is known, and they are an object's."""
        if not self._name or not (self._has_arguments or self._value.first == "{"):
            return
        if text := "".join(self._arguments[self._given :]):
            signals.append(Fragment(text))
        self._given = len(self._arguments)

    def _end_object(self, signals: list[Signal]) -> None:
        if not self._name:
            raise ValueError("it has no name")
        if not self._has_arguments:
            self._has_arguments = True
            self._arguments = ["{}"]
            self._give(signals)
        self._state = _CLOSE
        if not self._close:
            signals.append(self._complete(0))

    def _read_close(self, text: str, signals: list[Signal]) -> None:
        """Space and the closing mark; at the first other character the call was complete before them."""
        while self._at < len(text):
            char = text[self._at]
            seen = self._after.lstrip(_SPACE)
            if not (self._close.startswith(seen + char) or (not seen and char in _SPACE)):
                signals.append(self._complete(len(self._after)))
                return
            self._after += char
            self._at += 1
            if seen + char == self._close:
                signals.append(self._complete(0))
                return

    def _complete(self, unread: int) -> Complete:
        self._state = _END
        return Complete(self._name, loads("".join(self._arguments)), unread)


def grammar(
    tools: Sequence[ToolSpec],
    *,
    before: Sequence[str],
    head_of: Mapping[str, str],
    after: Sequence[str],
    between: str,
    lead: str,
    many: bool,
    special_ids: Mapping[str, int],
) -> str:
    """Lark text: `lead`, then calls of `before head arguments after`, `between` them where there are many.

    `before` and `after` are texts in order, of which those in `special_ids` become that token. Raises
    FormatError without tools.
    """
    if not tools:
        raise FormatError("a call grammar needs at least one tool.", hint="Register a tool, or ask for none.")
    names = [f"call_{index}" for index in range(len(tools))]
    first = [json.dumps(lead, ensure_ascii=False)] if lead else []
    rest = f" ({_terms([between], special_ids)} call)*" if many and between else " call*" if many else ""
    lines = [f"start: {' '.join([*first, 'call'])}{rest}", f"call: {' | '.join(names)}"]
    for index, tool in enumerate(tools):
        opening = _terms([*before, head_of[tool.name]], special_ids)
        lines.append(f"call_{index}: {opening} args_{index} {_terms(after, special_ids)}")
        lines.append(f"args_{index}: %json {json.dumps(_schema(tool), ensure_ascii=False)}")
    return "\n".join(lines) + "\n"


def _schema(tool: ToolSpec) -> dict[str, Any]:
    # One spelling for all calls: the one in the training data, and fewer tokens than free white space.
    style = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
    return {"type": "object", "x-guidance": style, **tool.parameters}


def _terms(texts: Sequence[str], special_ids: Mapping[str, int]) -> str:
    terms: list[str] = []
    literal = ""
    for text in texts:
        if text in special_ids:
            if literal:
                terms.append(json.dumps(literal, ensure_ascii=False))
            terms.append(f"<[{special_ids[text]}]>")
            literal = ""
        else:
            literal += text
    if literal:
        terms.append(json.dumps(literal, ensure_ascii=False))
    return " ".join(terms)
