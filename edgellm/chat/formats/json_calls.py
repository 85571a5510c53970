"""Calls as JSON: an object that holds the name and the arguments, alone, one after the other, or in a list."""

from __future__ import annotations

import json
import re
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from edgellm.chat.formats import lark
from edgellm.chat.formats.json_text import loads
from edgellm.chat.formats.script import Fault, Scripted, Source
from edgellm.chat.formats.wire import (
    Begun,
    CallReader,
    Closed,
    Complete,
    Fragment,
    Mark,
    Named,
    WireFormat,
)
from edgellm.types import ToolCall, ToolSpec

NAME_KEYS = ("name", "tool_name", "function_name", "tool")
ARGUMENT_KEYS = ("arguments", "parameters", "args", "input")
FENCES = ("```json", "```JSON", "```")

Reading = Generator[None, None, None]
_LIST_KEY = re.compile(r'\s*"tool_calls"\s*:\s*\[')
_AHEAD_CHARS = 100


@dataclass(slots=True)
class _Call:
    """What is known of the call that is being read."""

    is_certain: bool
    known: frozenset[str]
    name: str = ""
    parts: list[str] = field(default_factory=list[str])
    has_arguments: bool = False
    is_object: bool = False
    given: int = 0
    has_begun: bool = False
    # What it lacks; the rest of it is read all the same.
    fault: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class JsonCalls(WireFormat):
    """JSON between marks, or without any.

    Written: the opening mark, `before`, the call (`is_list`: in a list between `brackets`), `after`, the closing mark.
    `name_key` and `arguments_key` are the keys that are written; others are read too. `name_is_key`: the object's
    one key is the name, its value the arguments. `id_key`: the call's id is written under it. `closes` are further
    spellings of the closing mark. `is_bare`: without marks; a call is what begins like one of a known tool.
    `needs_arguments`: no arguments are written as an empty object; without any it is no call.
    """

    before: str = ""
    after: str = ""
    name_key: str = "name"
    arguments_key: str = "arguments"
    name_is_key: bool = False
    id_key: str = ""
    is_id_first: bool = False
    is_list: bool = False
    item_separator: str = ", "
    brackets: tuple[str, str] = ("[", "]")
    closes: tuple[str, ...] = ()
    is_bare: bool = False
    needs_arguments: bool = False

    # -- reading ----------------------------------------------------------------------------------------

    def scan_marks(self) -> tuple[Mark, ...]:
        # Without its opening mark too, a call at the beginning of a line can be nothing else.
        bare = [Mark(text, "maybe", "line", "text") for text in ("{", "[")]
        return (*WireFormat.scan_marks(self), *bare)

    def reader(self, tools: Sequence[ToolSpec] = (), mark: str = "") -> CallReader:
        names = frozenset(tool.name for tool in tools)
        is_certain = any(known.text == mark and known.does == "call" for known in WireFormat.scan_marks(self))
        return Scripted(lambda source: self.section(source, names, is_certain, mark))

    def section(self, source: Source, known: frozenset[str], is_certain: bool, mark: str = "") -> Reading:
        """All of what follows an opening mark; `mark` is the bracket where that was one."""
        start = mark if mark in ("{", "[") else ""
        if not start:
            yield from source.skip_space()
            yield from source.one_of(FENCES)
            yield from source.skip_space()
            start = yield from source.expect("{", "[")
        if start == "{" and (yield from _opens_list(source)):
            yield from self._list(source, known, is_certain)
        elif start == "{":
            yield from self.objects(source, known, is_certain)
        else:
            yield from self._list(source, known, is_certain)

    def _closes(self) -> tuple[str, ...]:
        return tuple(text for text in (self.marks.call_close, *self.closes) if text)

    def objects(self, source: Source, known: frozenset[str], is_certain: bool) -> Reading:
        """One object, or several one after the other; the first brace was taken."""
        while True:
            call = yield from self._object(source, known, is_certain)
            closes = self._closes()
            if call.fault:
                yield from source.skip_space()
                yield from source.one_of(closes)
                raise Fault(call.fault, is_whole=True)
            if not closes:
                self._complete(source, call, source.rest)
            left = yield from source.skip_space()
            left += yield from source.one_of(("```",))
            while extra := (yield from source.one_of(("}", "]"))):
                left += extra
            left += yield from source.skip_space()
            if closes and (yield from source.one_of(closes)):
                self._complete(source, call, source.rest)
                return
            separator = ""
            if not closes:
                separator = yield from source.one_of((";", ","))
                left += separator + (yield from source.skip_space())
            following = yield from source.peek(1)
            goes_on = following == "{" and (not closes or "\n" in self.item_separator)
            if closes:
                self._complete(source, call, source.rest + len(left))
            if not goes_on:
                if not closes:
                    source.tell(Closed(source.rest + (len(left) if left.strip("}]` \n") else 0)))
                return
            # What stood between belongs to the next call's text.
            yield from source.take()

    def _list(self, source: Source, known: frozenset[str], is_certain: bool) -> Reading:
        """A list of objects; its bracket was taken."""
        count = 0
        while True:
            yield from source.skip_space()
            if (yield from source.one_of((",",))):
                continue
            if (yield from source.one_of(("]",))):
                break
            if count and source.is_ended and not source.rest:
                # Its end is missing; the calls are whole.
                return
            yield from source.expect("{")
            call = yield from self._object(source, known, is_certain or count > 0)
            if call.fault:
                raise Fault(call.fault)
            self._complete(source, call, source.rest)
            count += 1
        if not count and not is_certain:
            raise Fault("an empty list is no call")
        while (yield from source.one_of(("]", "}"))):
            pass
        yield from source.skip_space()
        yield from source.one_of(("```",))
        yield from source.skip_space()
        yield from source.one_of(self._closes())

    def _object(
        self, source: Source, known: frozenset[str], is_certain: bool
    ) -> Generator[None, None, _Call]:
        """One object; its brace was taken."""
        call = _Call(is_certain, known)
        if is_certain:
            self._begin(source, call)
        yield from self._fields(source, call)
        if not call.name:
            call.fault = call.fault or "it has no name"
        elif not call.has_arguments:
            if not is_certain:
                raise Fault("it has no arguments")
            if self.needs_arguments:
                call.fault = call.fault or "it has no arguments"
            else:
                call.parts, call.has_arguments, call.is_object = ["{}"], True, True
        if call.fault and not is_certain:
            raise Fault(call.fault)
        self._give(source, call)
        return call

    def _fields(self, source: Source, call: _Call) -> Reading:
        is_first = True
        while True:
            yield from source.skip_space()
            if (yield from source.one_of(("}",))):
                return
            if not is_first:
                yield from source.expect(",")
                yield from source.skip_space()
                # A comma too many.
                if (yield from source.one_of(("}",))):
                    return
            is_first = False
            following = yield from source.peek(1)
            if following and following != '"':
                raise Fault(f"a key in double quotes was expected, not {following!r}")
            key = loads((yield from source.json()))
            yield from source.skip_space()
            yield from source.expect(":")
            yield from source.skip_space()
            yield from self._value(source, call, key)

    def _value(self, source: Source, call: _Call, key: str) -> Reading:
        following = yield from source.peek(1)
        if self.name_is_key and not call.name and following == "{":
            self._name(source, call, key)
            yield from self._arguments(source, call)
        elif key in ARGUMENT_KEYS and not call.has_arguments:
            yield from self._arguments(source, call)
        elif key == "function" and following == "{" and not call.name:
            yield from source.take()
            yield from self._fields(source, call)
        elif (key in NAME_KEYS or key == "function") and not call.name:
            value = loads((yield from source.json()))
            if isinstance(value, str) and value:
                self._name(source, call, value)
            elif call.is_certain:
                call.fault = "its name is not a string" if value else "it has no name"
        else:
            yield from source.json()

    def _name(self, source: Source, call: _Call, name: str) -> None:
        if not call.is_certain and call.known and name not in call.known:
            raise Fault(f"{name!r} is not a tool")
        call.name = name
        if call.has_begun:
            source.tell(Named(name))
        self._give(source, call)

    def _begin(self, source: Source, call: _Call) -> None:
        call.has_begun = True
        source.tell(Begun())
        if call.name:
            source.tell(Named(call.name))

    def _arguments(self, source: Source, call: _Call) -> Reading:
        following = yield from source.peek(1)
        call.is_object = following == "{"
        call.has_arguments = True

        def take(text: str) -> None:
            call.parts.append(text)
            self._give(source, call)

        if call.is_object:
            if not call.is_certain and call.name and not call.has_begun:
                self._begin(source, call)
            yield from source.json(take)
            return
        value = loads((yield from source.json()))
        if isinstance(value, str):
            value = _inner(value)
        if value is None:
            value = {}
        if not isinstance(value, dict):
            call.fault = "its arguments are not a JSON object"
            return
        call.is_object = True
        take(json.dumps(value, ensure_ascii=False))

    def _give(self, source: Source, call: _Call) -> None:
        """Give out the fragments that are certain: the name is known, and they are an object's."""
        if not call.name or not call.has_arguments or not call.is_object:
            return
        if not call.has_begun:
            self._begin(source, call)
        if text := "".join(call.parts[call.given :]):
            source.tell(Fragment(text))
        call.given = len(call.parts)

    @staticmethod
    def _complete(source: Source, call: _Call, unread: int) -> None:
        source.tell(Complete(call.name, loads("".join(call.parts)), unread))

    # -- writing ----------------------------------------------------------------------------------------

    def call_grammar(
        self,
        tools: Sequence[ToolSpec],
        *,
        lead: str = "",
        many: bool = False,
        special_ids: Mapping[str, int] | None = None,
    ) -> str:
        ids = special_ids or {}
        opening = lark.terms([self._open(), self.before, self.brackets[0] if self.is_list else ""], ids)
        closing = lark.terms(
            [self.brackets[1] if self.is_list else "", self.after, self.marks.call_close], ids
        )
        bodies: list[str] = []
        for index, tool in enumerate(tools):
            head, tail = self._item_head(tool.name, 0), self._item_tail(tool.name, 0)
            bodies.append(f"{self._with_id(head, tool.name)} args_{index} {self._with_id(tail, tool.name)}")
        rules = [f"args_{index}: {lark.object_rule(tool)}" for index, tool in enumerate(tools)]
        if self.is_list:
            between, section = lark.literal(self.item_separator), (opening, closing)
            return lark.calls(
                tools, bodies, lead=lead, many=many, section=section, between=between, rules=rules
            )
        bodies = [f"{opening} {body} {closing}" for body in bodies]
        between = lark.terms([self.marks.between_calls], ids)
        return lark.calls(tools, bodies, lead=lead, many=many, between=between, rules=rules)

    def _with_id(self, text: str, name: str) -> str:
        """The text as grammar terms, with any id where one stands in it."""
        call_id = self.call_id(0, name)
        before, found, behind = text.partition(call_id) if self.id_key else (text, "", "")
        if not found:
            return lark.literal(text)
        return f"{lark.literal(before)} /{self.id_pattern(name)}/ {lark.literal(behind)}"

    def _open(self) -> str:
        return self.marks.call_open[0] if self.marks.call_open else ""

    def _item_head(self, name: str, index: int) -> str:
        written = json.dumps(name, ensure_ascii=False)
        if self.name_is_key:
            return f"{{{written}: "
        first = f'"{self.id_key}": {json.dumps(self.call_id(index, name))}, ' if self.is_id_first else ""
        return f'{{{first}"{self.name_key}": {written}, "{self.arguments_key}": '

    def _item_tail(self, name: str, index: int) -> str:
        if self.id_key and not self.is_id_first:
            return f', "{self.id_key}": {json.dumps(self.call_id(index, name))}}}'
        return "}"

    def render_call_head(self, name: str) -> str:
        return (
            self._open() + self.before + (self.brackets[0] if self.is_list else "") + self._item_head(name, 0)
        )

    def render_arguments(self, arguments: Mapping[str, Any]) -> str:
        return json.dumps(arguments, ensure_ascii=False)

    def render_call_tail(self, name: str) -> str:
        return (
            self._item_tail(name, 0)
            + (self.brackets[1] if self.is_list else "")
            + self.after
            + self.marks.call_close
        )

    def render_calls(self, calls: Sequence[ToolCall]) -> str:
        if not self.is_list:
            return WireFormat.render_calls(self, calls)
        items = [
            self._item_head(call.name, index)
            + self.render_arguments(call.arguments)
            + self._item_tail(call.name, index)
            for index, call in enumerate(calls)
        ]
        listed = self.brackets[0] + self.item_separator.join(items) + self.brackets[1]
        return self._open() + self.before + listed + self.after + self.marks.call_close


def _opens_list(source: Source) -> Generator[None, None, bool]:
    """Is what follows the brace the one key `tool_calls`, with a list? Then it is taken, up to the bracket."""
    size = 1
    while True:
        ahead = yield from source.peek(size)
        if _LIST_KEY.fullmatch(ahead):
            yield from source.take(size)
            return True
        bare = "".join(ahead.split())
        if len(ahead) < size or not '"tool_calls":['.startswith(bare) or size > _AHEAD_CHARS:
            return False
        size += 1


def _inner(text: str) -> Any:
    """The object that a string holds; the string where it holds none."""
    try:
        value = loads(text)
    except ValueError:
        return text
    return cast("dict[str, Any]", value) if isinstance(value, dict) else text
