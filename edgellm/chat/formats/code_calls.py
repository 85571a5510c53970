"""Calls as source code: `name(key=value)` in Python's way, or `call:name{key:value}` in Gemma's."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgellm.chat.formats import lark
from edgellm.chat.formats.arguments import Arguments
from edgellm.chat.formats.json_calls import JsonCalls
from edgellm.chat.formats.json_text import loads
from edgellm.chat.formats.literals import PYTHON, LiteralGrammar, Literals, Style, render
from edgellm.chat.formats.script import Ended, Fault, Scripted, Source
from edgellm.chat.formats.typed_value import properties
from edgellm.chat.formats.wire import Begun, CallReader, Complete, Mark, Named, WireFormat
from edgellm.types import ToolCall, ToolSpec

Reading = Generator[None, None, None]
_MAX_NAME = 256
_NAME_CHARS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-")


def _is_name(char: str) -> bool:
    return char in _NAME_CHARS or ord(char) > 127


@dataclass(frozen=True, slots=True, kw_only=True)
class PythonCalls(WireFormat):
    """Python calls with keyword arguments, in a list (`is_list`) or one a line.

    `is_bare`: without marks; a list that begins with a call of a known tool is one. `style` is how values are
    written; both Python's and JSON's words are read. `before` and `after` stand inside the marks. `name_suffix` is
    written behind every name. `unwraps`: a function that a call may stand in, which is none itself.
    """

    is_list: bool = True
    is_bare: bool = False
    style: Style = PYTHON
    item_separator: str = ", "
    before: str = ""
    after: str = ""
    name_suffix: str = ""
    unwraps: str = ""
    takes_only_offered: bool = True

    # -- reading ----------------------------------------------------------------------------------------

    def scan_marks(self) -> tuple[Mark, ...]:
        bare = (Mark("[", "maybe", "anywhere", "text"),) if self.is_bare else ()
        return (*WireFormat.scan_marks(self), *bare)

    def reader(self, tools: Sequence[ToolSpec] = (), mark: str = "") -> CallReader:
        is_certain = mark in self.marks.call_open
        return Scripted(lambda source: self._section(source, tools, mark, is_certain))

    def _section(self, source: Source, tools: Sequence[ToolSpec], mark: str, is_certain: bool) -> Reading:
        closes = tuple(filter(None, (self.marks.call_close,)))
        is_listed = mark == "["
        if is_certain:
            yield from source.skip_space()
            while (yield from source.one_of(self.marks.call_open)):
                yield from source.skip_space()
            if closes and (yield from source.one_of(closes)):
                return
            start = yield from source.peek(2)
            if start[:1] == "{" or (start[:1] == "[" and (yield from self._holds_json(source))):
                twin = JsonCalls(id=self.id, marks=self.marks)
                yield from twin.section(source, frozenset(), True)
                return
            is_listed = bool((yield from source.one_of(("[",))))
        yield from self.statements(source, tools, is_listed=is_listed, is_certain=is_certain)

    def statements(
        self, source: Source, tools: Sequence[ToolSpec], *, is_listed: bool = False, is_certain: bool = True
    ) -> Reading:
        """Calls one after the other, up to the closing mark or bracket."""
        closes = tuple(filter(None, (self.marks.call_close,)))
        count = 0
        while True:
            yield from source.skip_space()
            while (yield from source.one_of((",", ";"))):
                yield from source.skip_space()
            if is_listed and (yield from source.one_of(("]",))):
                break
            if (closes and (yield from source.one_of(closes))) or (count and source.is_begun):
                return
            following = yield from source.peek(1)
            if count and not (following and (is_listed or (yield from self.goes_on(source)))):
                return
            if count and not is_listed and not is_certain:
                return
            try:
                yield from self._call(source, tools, is_certain or count > 0)
            except Ended:
                if not count and not is_certain:
                    raise Fault("it is no call") from None
                raise
            count += 1
        if not count and not is_certain:
            raise Fault("an empty list is no call")
        if is_certain:
            yield from source.skip_space()
            yield from source.one_of(closes)

    def goes_on(self, source: Source) -> Generator[None, None, bool]:
        """Is what follows a call one more? Asked where no list says so; nothing is taken."""
        return bool((yield from source.peek(1)))

    def _holds_json(self, source: Source) -> Generator[None, None, bool]:
        size = 2
        while True:
            ahead = yield from source.peek(size)
            body = ahead[1:].lstrip()
            if body or len(ahead) < size:
                return body.startswith("{")
            size += 1

    def _call(self, source: Source, tools: Sequence[ToolSpec], is_certain: bool) -> Reading:
        name = yield from self._name(source)
        known = {tool.name for tool in tools}
        is_wrapped = bool(self.unwraps) and name == self.unwraps and name not in known
        if is_wrapped:
            yield from source.skip_space()
            yield from source.expect("(")
            yield from source.skip_space()
            name = yield from self._name(source)
        if not is_certain and known and name not in known:
            raise Fault(f"{name!r} is not a tool")
        yield from source.skip_space()
        yield from source.expect("(")
        if not is_certain and not known:
            yield from self._looks_like_arguments(source)
        source.tell(Begun())
        source.tell(Named(name))
        order = list(properties(tools, name) or {})
        arguments = Arguments(source)
        yield from self._arguments(source, arguments, order)
        whole = arguments.end()
        if is_wrapped:
            yield from source.skip_space()
            yield from source.one_of((")",))
        source.tell(Complete(name, whole, source.rest))

    def _name(self, source: Source) -> Generator[None, None, str]:
        name = ""
        while (char := (yield from source.peek(1))) and _is_name(char):
            name += yield from source.take()
            if len(name) > _MAX_NAME:
                raise Fault("its name is too long")
        if not name:
            raise Fault(f"the name of a call was expected, not {char!r}")
        return name.removesuffix(self.name_suffix) or name

    def _looks_like_arguments(self, source: Source) -> Reading:
        """Without tools to compare with: `)` or `key=` has to follow."""
        size = 1
        while True:
            ahead = yield from source.peek(size)
            body = ahead.strip()
            if body[:1] == ")":
                return
            stem = body.rstrip("= \t")
            if len(ahead) < size or (stem and not all(map(_is_name, stem))) or size > 64:
                raise Fault("it is no call")
            if "=" in body:
                return
            size += 1

    def _arguments(self, source: Source, arguments: Arguments, order: Sequence[str]) -> Reading:
        literals = Literals(source, self.style, tuple(filter(None, (self.marks.call_close,))))
        place = 0
        is_first = True
        while True:
            yield from source.skip_space()
            if (yield from source.one_of((")",))):
                return
            if not is_first:
                # Some templates forget the comma.
                yield from source.one_of((",",))
                yield from source.skip_space()
                if (yield from source.one_of((")",))):
                    return
            is_first = False
            following = yield from source.peek(1)
            word = ""
            if following and (following.isalpha() or following == "_"):
                word = yield from literals.word()
                space = yield from source.skip_space()
                if (yield from source.one_of(("=",))):
                    arguments.key(word)
                    yield from literals.value(arguments.give)
                    continue
                source.put_back(word + space)
            if place >= len(order):
                raise Fault("an argument has no name")
            arguments.key(order[place])
            place += 1
            yield from literals.value(arguments.give)

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
        literals = LiteralGrammar(self.style, ids)
        bodies = [
            f"{lark.literal(tool.name + self.name_suffix + '(')} "
            + literals.members(
                tool.parameters, f"v{number}", lambda key, value: f"{lark.literal(key + '=')} {value}"
            )
            + ' ")"'
            for number, tool in enumerate(tools)
        ]
        bracket = "[" if self.is_list else ""
        opening = lark.terms([self._open(), self.before + bracket], ids)
        closing = lark.terms(["]" if self.is_list else "", self.after, self.marks.call_close], ids)
        between = lark.literal(self.item_separator)
        return lark.calls(
            tools,
            bodies,
            lead=lead,
            many=many,
            section=(opening, closing),
            between=between,
            rules=literals.rules,
        )

    def _open(self) -> str:
        return self.marks.call_open[0] if self.marks.call_open else ""

    def render_call_head(self, name: str) -> str:
        return f"{self._open()}{self.before}{'[' if self.is_list else ''}{name}{self.name_suffix}("

    def render_arguments(self, arguments: Mapping[str, Any]) -> str:
        return ", ".join(f"{key}={render(value, self.style)}" for key, value in arguments.items())

    def render_call_tail(self, name: str) -> str:
        return ")" + ("]" if self.is_list else "") + self.after + self.marks.call_close

    def render_calls(self, calls: Sequence[ToolCall]) -> str:
        bodies = [f"{call.name}{self.name_suffix}({self.render_arguments(call.arguments)})" for call in calls]
        listed = self.item_separator.join(bodies)
        if self.is_list:
            listed = f"[{listed}]"
        return self._open() + self.before + listed + self.after + self.marks.call_close


@dataclass(frozen=True, slots=True, kw_only=True)
class BraceCalls(WireFormat):
    """`call:name{key:value}` between marks; strings stand between delimiters that are tokens of their own."""

    style: Style
    head: str = "call:"

    # -- reading ----------------------------------------------------------------------------------------

    def reader(self, tools: Sequence[ToolSpec] = (), mark: str = "") -> CallReader:
        return Scripted(self._call)

    def _call(self, source: Source) -> Reading:
        close = self.marks.call_close
        yield from source.skip_space()
        yield from source.expect(self.head)
        source.tell(Begun())
        name, _ = yield from source.until(("{",), limit=256)
        name = name.strip()
        if not name:
            raise Fault("it has no name")
        source.tell(Named(name))
        arguments = Arguments(source)
        literals = Literals(source, self.style, (close,))
        while True:
            yield from source.skip_space()
            if (yield from source.one_of((",",))):
                continue
            # A delimiter that was opened or closed once too often behind a value.
            if arguments.count and (yield from source.one_of((self.style.delimiter,))):
                continue
            if (yield from source.one_of(("}",))):
                break
            if (yield from source.comes((close,))) and source.rest:
                break
            parts: list[str] = []
            yield from literals.key(parts.append)
            key: str = loads("".join(parts))
            arguments.key(key)
            yield from literals.value(arguments.give)
        whole = arguments.end()
        space = yield from source.skip_space()
        while (yield from source.one_of(("}",))):
            pass
        if not (yield from source.one_of((close,))) and space:
            source.put_back(space)
        source.tell(Complete(name, whole, source.rest))

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
        literals = LiteralGrammar(self.style, ids)
        opening, closing = (
            lark.terms([self.marks.call_open[0]], ids),
            lark.terms([self.marks.call_close], ids),
        )
        bodies = [
            f"{opening} {lark.literal(self.head + tool.name + '{')} "
            + literals.members(
                tool.parameters, f"v{number}", lambda key, value: f"{lark.literal(key + ':')} {value}"
            )
            + f' "}}" {closing}'
            for number, tool in enumerate(tools)
        ]
        between = lark.terms([self.marks.between_calls], ids)
        return lark.calls(tools, bodies, lead=lead, many=many, between=between, rules=literals.rules)

    def render_call_head(self, name: str) -> str:
        return f"{self.marks.call_open[0]}{self.head}{name}"

    def render_arguments(self, arguments: Mapping[str, Any]) -> str:
        return render(arguments, self.style)

    def render_call_tail(self, name: str) -> str:
        return self.marks.call_close
