"""Calls as tags: the name in one, each argument in another, the values plain text between them."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgellm.chat.formats import lark
from edgellm.chat.formats.arguments import Arguments
from edgellm.chat.formats.json_calls import JsonCalls
from edgellm.chat.formats.json_text import loads
from edgellm.chat.formats.script import SPACE, Ended, Fault, Scripted, Source
from edgellm.chat.formats.typed_value import closed_parameters, guessed, is_text, properties, typed, types_of
from edgellm.chat.formats.wire import Begun, CallReader, Complete, Mark, Named, WireFormat
from edgellm.types import ToolCall, ToolSpec

Reading = Generator[None, None, None]
_NAME_CHARS = 256
_KEY_CHARS = 1024
_JUNK_CHARS = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class TaggedCalls(WireFormat):
    """Tags around name and arguments, with the white space that is written between them.

    On the wire: opening mark, `before`, then for each call `head` name `name_end`, its arguments, `call_end`; behind
    the last one `after` and the closing mark. An argument is `argument` key `key_end` value `value_end`.
    Read with any white space between tags. `sections`: several calls may stand in one section (else the marks belong
    to one call). `text_key_end`: what ends the key of a string, where that is said there. `pads`: one newline
    on each side of a value belongs to the syntax. `is_lenient`: a missing closing tag of a value is forgiven.
    `guesses`: what no schema types is read as JSON if it is that. `unquotes`: quotes around a string are taken off.
    `kind_marks`: tags in which an argument may say its type, between key and value. `skips_junk`: other text in a
    section is not shown. `core`: the part of `head` that is always there, where what stands before it varies.
    `is_strict`: a parameter that is written twice, or that the tool does not have, makes it no call.
    `joins_repeats`: the next call's opening mark ends one that is not closed; written once more to the letter, both
    are one call.
    """

    before: str = ""
    head: str = ""
    name_end: str = ""
    argument: str = ""
    key_end: str = ""
    text_key_end: str = ""
    value_end: str = ""
    call_end: str = ""
    between: str = ""
    after: str = ""
    sections: bool = False
    pads: bool = False
    is_lenient: bool = False
    guesses: bool = False
    unquotes: bool = False
    cdata: bool = False
    may_hold_json: bool = False
    self_close: str = ""
    kind_marks: tuple[str, str] = ("", "")
    skips_junk: bool = False
    core: str = ""
    is_strict: bool = False
    joins_repeats: bool = False
    # Marks that some outputs have instead of the call's own; a call only with the name of a known tool.
    alias: tuple[str, str] = ("", "")

    # -- reading ----------------------------------------------------------------------------------------

    def scan_marks(self) -> tuple[Mark, ...]:
        found = list(WireFormat.scan_marks(self))
        if self.may_hold_json:
            found.append(Mark("{", "maybe", "line", "text"))
        if self.alias[0]:
            found.append(Mark(self.alias[0], "maybe", "anywhere", "text"))
        return tuple(found)

    def reader(self, tools: Sequence[ToolSpec] = (), mark: str = "") -> CallReader:
        if mark == "{" or (mark == self.alias[0] and mark):
            return Scripted(lambda source: self._uncertain(source, tools, mark))
        return Scripted(lambda source: self.section(source, tools, mark))

    def _closes(self) -> tuple[str, ...]:
        return tuple(text for text in (self.marks.call_close, self.alias[1]) if text)

    def _uncertain(self, source: Source, tools: Sequence[ToolSpec], mark: str) -> Reading:
        """What is a call only if it names a known tool."""
        known = frozenset(tool.name for tool in tools)
        twin = JsonCalls(id=self.id, marks=self.marks, closes=self._closes())
        if mark == "{":
            yield from twin.objects(source, known, False)
            return
        yield from source.skip_space()
        if (yield from source.one_of(("{",))):
            yield from twin.objects(source, known, False)
            return
        longest = max(map(len, known), default=0)
        text = yield from source.peek(longest + 1)
        name = next((text[:end] for end in range(len(text), 0, -1) if text[:end] in known), "")
        if not name:
            raise Fault("it names no tool")
        yield from self._call(source, tools)

    def _head(self, mark: str) -> str:
        """What begins a call behind `mark`: nothing where the mark itself does."""
        return "" if mark.endswith(self.head) else self.core or self.head

    def section(self, source: Source, tools: Sequence[ToolSpec], mark: str = "") -> Reading:
        """All of what follows an opening mark."""
        count = 0
        head = self._head(mark)
        while True:
            yield from source.skip_space()
            if self.may_hold_json and not count and (yield from source.peek(1)) == "{":
                yield from source.take()
                twin = JsonCalls(id=self.id, marks=self.marks)
                yield from twin.objects(source, frozenset(), True)
                return
            if head:
                found = yield from source.one_of((head, *self._closes()))
                if not found and ((count and self.skips_junk) or self.core):
                    found = yield from source.skip_to((head, *self._closes()), _JUNK_CHARS)
                if found != head:
                    if found or count:
                        return
                    following = yield from source.peek(1)
                    raise Fault(f"{head!r} was expected, not {following!r}")
            elif count:
                return
            if self.may_hold_json and self.call_end and (yield from self._is_json(source)):
                yield from source.take()
                twin = JsonCalls(id=self.id, marks=self.marks, closes=(self.call_end,))
                yield from twin.objects(source, frozenset(), True)
            else:
                yield from self._call(source, tools)
            count += 1
            head = self.core or self.head
            if not self.sections:
                return

    def _name_stops(self) -> tuple[str, ...]:
        ends = [self.name_end.strip(SPACE) or "\n"]
        if self.self_close:
            ends.append(self.self_close)
        if not self.name_end.strip(SPACE):
            ends += ["\n", "\\n", self.argument, self.call_end.strip(SPACE), *self._closes(), "{"]
        return tuple(dict.fromkeys(end for end in ends if end))

    def _call(self, source: Source, tools: Sequence[ToolSpec]) -> Reading:
        source.tell(Begun())
        if self.joins_repeats:
            source.record()
        name, stop = yield from source.until(self._name_stops(), limit=_NAME_CHARS)
        name = self.call_name(name.strip(), tools)
        if not name:
            ends = tuple(filter(None, (self.call_end.strip(SPACE),))) or self._closes()
            yield from source.until(ends)
            raise Fault("it has no name", is_whole=True)
        source.tell(Named(name))
        arguments = Arguments(source)
        if stop == self.self_close and stop:
            source.tell(Complete(name, arguments.end(), source.rest))
            return
        if stop in (*self._closes(), self.call_end.strip(SPACE)) and stop:
            source.tell(Complete(name, arguments.end(), source.rest))
            return
        schemas = properties(tools, name)
        end = ""
        if stop == "{" or (yield from self._is_json(source)):
            whole = yield from self._json_body(source, arguments, "{" if stop == "{" else "")
        else:
            arguments.allowed = closed_parameters(tools, name) if self.is_strict else None
            end = yield from self._arguments(source, arguments, schemas, is_open=stop == self.argument)
            whole = arguments.end()
        space = ""
        # Behind its closing mark a call is whole: waiting for what follows would keep it from who runs it.
        if not self.sections and self._closes() and end not in self._closes():
            written = source.recorded().strip(SPACE) if self.joins_repeats else ""
            space = yield from source.skip_space()
            while written and (yield from source.one_of((self.marks.call_open[0] + written,))):
                space = yield from source.skip_space()
            if (yield from source.one_of(self._closes())):
                space = ""
        source.tell(Complete(name, whole, source.rest + len(space)))

    def call_name(self, name: str, tools: Sequence[ToolSpec]) -> str:
        """The tool that a written name stands for."""
        return name

    def _is_json(self, source: Source) -> Generator[None, None, bool]:
        yield from source.skip_space()
        return (yield from source.peek(1)) == "{" and not self.argument.startswith("{")

    def _json_body(
        self, source: Source, arguments: Arguments, taken: str
    ) -> Generator[None, None, dict[str, Any]]:
        """Some models write the arguments as one JSON object all the same."""
        if taken:
            source.put_back(taken)
        yield from source.json(arguments.give)
        whole = loads("".join(arguments.parts))
        yield from source.skip_space()
        yield from source.one_of(tuple(filter(None, (self.call_end.strip(SPACE),))))
        return whole

    def _arguments(
        self, source: Source, arguments: Arguments, schemas: Mapping[str, Any] | None, *, is_open: bool
    ) -> Generator[None, None, str]:
        """All arguments, and the mark that ends them, which it gives."""
        ends = tuple(filter(None, (self.call_end.strip(SPACE),)))
        closes = self._closes() if not self.sections or not ends else ()
        while True:
            if not is_open:
                yield from source.skip_space()
                if not self.head.strip():
                    # A newline that was written as if it stood in a string.
                    while (yield from source.one_of(("\\n",))):
                        yield from source.skip_space()
                found = yield from source.one_of((self.argument, *ends, *closes))
                if found != self.argument:
                    if found:
                        return found
                    if source.is_ended and not source.rest:
                        raise Ended
                    if self.joins_repeats and (yield from source.comes(self.marks.call_open)):
                        return ""
                    following = yield from source.peek(1)
                    raise Fault(f"{self.argument!r} was expected, not {following!r}")
            is_open = yield from self._argument(source, arguments, schemas, (*ends, *closes))

    def _argument(
        self, source: Source, arguments: Arguments, schemas: Mapping[str, Any] | None, ends: Sequence[str]
    ) -> Generator[None, None, bool]:
        """One argument; true where the next one's opening tag was taken too."""
        key_end, _, value_open = self._key_parts()
        stops = [key_end]
        if self.text_key_end:
            stops.append(self.text_key_end.strip(SPACE))
        key, stop = yield from source.until(tuple(stops), limit=_KEY_CHARS)
        kind = ""
        if self.kind_marks[0]:
            yield from source.skip_space()
            if (yield from source.one_of(self.kind_marks[:1])):
                kind, _ = yield from source.until(self.kind_marks[1:], limit=_KEY_CHARS)
        if value_open:
            yield from source.skip_space()
            while (yield from source.one_of(("\\n",))):
                yield from source.skip_space()
            if not (yield from source.one_of((value_open,))):
                following = yield from source.one_of((self.argument,))
                if following:
                    return True
                if (yield from source.comes(ends)):
                    return False
        is_said_text = bool(self.text_key_end) and stop == self.text_key_end.strip(SPACE)
        if self.is_strict:
            arguments.check(key)
        schema = (schemas or {}).get(key, {"type": kind.strip()} if kind else None)
        if self.text_key_end:
            read: Callable[[str], Any] | None = None if is_said_text else guessed
        elif self.guesses and not types_of(schema):
            read = guessed
        elif is_text(schema) and not self.unquotes:
            read = None
        else:
            read = lambda text: self._typed(text, schema)  # noqa: E731
        arguments.key(key)
        return (yield from self._value(source, arguments, read, ends))

    def _typed(self, text: str, schema: Any) -> Any:
        value = typed(text, schema)
        if self.unquotes and isinstance(value, str) and len(value) > 1 and value[0] == value[-1] == '"':
            return value[1:-1]
        return value

    def _key_parts(self) -> tuple[str, str, str]:
        """(what ends the key, the space behind it, what opens the value)."""
        first, newline, rest = self.key_end.partition("\n")
        if rest:
            return first, newline, rest
        close = self.key_end.find("><")
        if close >= 0:
            return self.key_end[: close + 1], "", self.key_end[close + 1 :]
        return self.key_end.strip(SPACE), "", ""

    def _value(
        self, source: Source, arguments: Arguments, read: Callable[[str], Any] | None, ends: Sequence[str]
    ) -> Generator[None, None, bool]:
        """A value up to its closing tag; true where it was ended by the next argument's opening tag."""
        close = self.value_end.strip(SPACE)
        stops = [close, *(("\n" + close,) if self.pads else ())]
        if self.is_lenient:
            stops += [self.argument, *ends]
        if self.pads:
            yield from source.one_of(("\n",))
        parts: list[str] = []
        if read is None:
            arguments.give('"')
        give = arguments.text if read is None else parts.append
        if self.cdata and (yield from source.one_of(("<![CDATA[",))):
            yield from source.until(("]]>",), give)
        while True:
            _, stop = yield from source.until(stops, give)
            if stop in (self.argument, *ends):
                if stop != self.argument:
                    source.put_back(stop)
                break
            space = yield from source.skip_space()
            if (yield from self._may_follow(source, ends)):
                break
            # Only the spelling of a closing tag, inside the value.
            give(stop + space)
        if read is None:
            arguments.give('"')
        else:
            arguments.give(json.dumps(read("".join(parts)), ensure_ascii=False))
        return self.is_lenient and stop == self.argument

    def _may_follow(self, source: Source, ends: Sequence[str]) -> Generator[None, None, bool]:
        """Does what comes next look like what follows a value?"""
        following = [self.argument, *ends, "\\n"]
        if self.is_lenient:
            return True
        return (yield from source.comes(tuple(following)))

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
        bodies, rules = self.bodies(tools, ids)
        opening = lark.terms([self._open(), self.before], ids)
        closing = lark.terms([self.after, self.marks.call_close], ids)
        if self.sections:
            between = lark.terms([self.between], ids)
            return lark.calls(
                tools, bodies, lead=lead, many=many, section=(opening, closing), between=between, rules=rules
            )
        bodies = [" ".join(part for part in (opening, body, closing) if part) for body in bodies]
        between = lark.terms([self.marks.between_calls], ids)
        return lark.calls(tools, bodies, lead=lead, many=many, between=between, rules=rules)

    def bodies(self, tools: Sequence[ToolSpec], ids: Mapping[str, int]) -> tuple[list[str], list[str]]:
        """(the terms of a call of each tool, further rules)."""
        bodies: list[str] = []
        rules: list[str] = []
        for number, tool in enumerate(tools):
            body = [self._head_terms(tool.name, ids)]
            required = tool.parameters.get("required", ())
            for at, (key, schema) in enumerate((tool.parameters.get("properties") or {}).items()):
                rule = f"value_{number}_{at}"
                opening, closing = self._argument_terms(key, schema)
                value, extra, is_closed = self._value_rule(rule, schema, closing)
                rules += extra
                end = "" if is_closed else lark.literal(closing)
                item = f"{lark.terms([opening], ids)} {value} {end}".strip()
                body.append(item if key in required else f"({item})?")
            body.append(lark.terms([self.call_end], ids))
            bodies.append(" ".join(part for part in body if part))
        return bodies, rules

    def _head_terms(self, name: str, ids: Mapping[str, int]) -> str:
        """A call up to its first argument."""
        return lark.terms([self.head, name, self.name_end], ids)

    def _argument_terms(self, key: str, schema: Any) -> tuple[str, str]:
        """What stands around the value of an argument."""
        return f"{self.argument}{key}{self._key_end_for(schema)}", self.value_end

    def _value_rule(self, rule: str, schema: Any, closing: str) -> tuple[str, list[str], bool]:
        """(the terms of a value, further rules, whether they hold its end too)."""
        if isinstance(schema, Mapping) and isinstance(schema.get("enum"), list):
            options = " | ".join(lark.literal(self.plain(value)) for value in schema["enum"])
            return f"({options})", [], False
        if is_text(schema):
            return rule, [f"{rule}[suffix={lark.literal(closing)}]: /(?s:.*)/"], True
        return rule, [f"{rule}: {lark.json_rule(schema)}"], False

    def plain(self, value: Any) -> str:
        """A value as the text between its tags."""
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)

    def _key_end_for(self, schema: Any) -> str:
        return self.text_key_end if self.text_key_end and is_text(schema) else self.key_end

    def key_end_of(self, value: Any) -> str:
        """What is written between an argument's key and this value."""
        return self.text_key_end if self.text_key_end and isinstance(value, str) else self.key_end

    def _open(self) -> str:
        opening = self.marks.call_open[0] if self.marks.call_open else ""
        return opening.removesuffix(self.head) if self.head and opening.endswith(self.head) else opening

    def render_call_head(self, name: str) -> str:
        return self._open() + self.before + self.head + name + self.name_end

    def render_arguments(self, arguments: Mapping[str, Any]) -> str:
        parts: list[str] = []
        for key, value in arguments.items():
            key_end = self.key_end_of(value)
            text = self.plain(value)
            if self.cdata and isinstance(value, str) and ("\n" in text or "<" in text):
                text = f"<![CDATA[{text}]]>"
            parts.append(f"{self.argument}{key}{key_end}{text}{self.value_end}")
        return "".join(parts)

    def render_call_tail(self, name: str) -> str:
        return self.call_end + self.after + self.marks.call_close

    def render_calls(self, calls: Sequence[ToolCall]) -> str:
        if not self.sections:
            return WireFormat.render_calls(self, calls)
        bodies = [
            self.head + call.name + self.name_end + self.render_arguments(call.arguments) + self.call_end
            for call in calls
        ]
        return self._open() + self.before + self.between.join(bodies) + self.after + self.marks.call_close
