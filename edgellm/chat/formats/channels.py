"""Formats of messages: each has a header that says to whom it goes, or in which channel."""

from __future__ import annotations

import json
import re
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgellm.chat.formats import lark
from edgellm.chat.formats.arguments import Arguments
from edgellm.chat.formats.interpreter import NAMES, read_code
from edgellm.chat.formats.json_calls import JsonCalls
from edgellm.chat.formats.json_text import loads
from edgellm.chat.formats.script import Fault, Scripted, Source
from edgellm.chat.formats.tagged import TaggedCalls
from edgellm.chat.formats.wire import (
    Begun,
    CallReader,
    Closed,
    Complete,
    Enter,
    Mark,
    Marks,
    Named,
    WireFormat,
)
from edgellm.types import ToolCall, ToolSpec

Reading = Generator[None, None, None]
_HEADER_CHARS = 400
_RECIPIENT = re.compile(r"to=([^\s<]+)")
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)")


_HARMONY = Marks(
    call_close="<|call|>",
    between_calls="<|start|>assistant",
    reasoning_open="<|channel|>analysis<|message|>",
    reasoning_close="<|end|>",
    more=(
        Mark("<|channel|>", "maybe"),
        Mark("<|start|>", "maybe"),
        Mark("<|end|>", "answer"),
        Mark("<|return|>", "drop"),
        Mark("<|call|>", "drop"),
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Harmony(WireFormat):
    """gpt-oss: `<|channel|>NAME<|message|>...<|end|>`; a message to `functions.NAME` is a call.

    Source: the harmony response format of OpenAI's open models.
    """

    id: str = "harmony"
    marks: Marks = _HARMONY
    signs: tuple[tuple[str, ...], ...] = (("<|channel|>",),)
    vocabulary_sign: str = "<|constrain|>"

    def scan_marks(self) -> tuple[Mark, ...]:
        return self.marks.more

    def opening_reader(self, prefix: str, tools: Sequence[ToolSpec] = ()) -> CallReader | None:
        # Where the prompt is not known, the output may begin as it does behind the usual one.
        if prefix and not prefix.rstrip().endswith("<|start|>assistant"):
            return None
        return Scripted(lambda source: self._opening(source, tools))

    def _opening(self, source: Source, tools: Sequence[ToolSpec]) -> Reading:
        space = yield from source.skip_space()
        if not (yield from source.comes((" to=", "to="))) or not source.rest:
            # A channel follows; its own mark says so.
            source.put_back(space)
            source.tell(Closed(source.rest))
            return
        yield from self._header(source, tools, "")

    def reader(self, tools: Sequence[ToolSpec] = (), mark: str = "") -> CallReader:
        return Scripted(lambda source: self._header(source, tools, mark))

    def _header(self, source: Source, tools: Sequence[ToolSpec], mark: str) -> Reading:
        text, _ = yield from source.until(("<|message|>",), limit=_HEADER_CHARS)
        header = mark + text
        recipient = _RECIPIENT.search(header)
        # Of two channels the last one counts.
        channel = next(reversed(_CHANNEL.findall(header)), "")
        name = recipient.group(1) if recipient else ""
        if name in ("", "assistant", "user", "all"):
            source.tell(Enter("reasoning" if channel == "analysis" else "text", source.rest))
            return
        name = name.removeprefix("functions.")
        yield from source.skip_space()
        following = yield from source.peek(1)
        if following and following != "{" and name in NAMES:
            yield from read_code(source, name, tools, ("<|call|>", "<|end|>"))
            return
        source.tell(Begun())
        source.tell(Named(name))
        arguments = Arguments(source)
        if following != "{":
            raise Fault(f"'{{' was expected, not {following!r}")
        yield from source.json(arguments.give)
        yield from source.skip_space()
        yield from source.one_of(("<|call|>", "<|end|>"))
        source.tell(Complete(name, loads("".join(arguments.parts)), source.rest))

    def call_grammar(
        self,
        tools: Sequence[ToolSpec],
        *,
        lead: str = "",
        many: bool = False,
        special_ids: Mapping[str, int] | None = None,
    ) -> str:
        # One call a message; the next one is a message of its own.
        ids = special_ids or {}

        def marks(*texts: str) -> str:
            return lark.terms(texts, ids)

        constrain = marks("<|constrain|>", "json")
        bodies: list[str] = []
        for number, tool in enumerate(tools):
            to = lark.literal(f"to=functions.{tool.name}")
            before = f'" " {to} {marks("<|channel|>")} ("commentary" | "analysis")'
            behind = f'{marks("<|channel|>")} ("commentary" | "analysis") " " {to}'
            start = f"({marks('<|start|>', 'assistant')})?"
            bodies.append(
                f'({start} {before} | {start} {behind}) (" "? {constrain} | " json")? {marks("<|message|>")} '
                f"args_{number} {marks('<|call|>')}"
            )
        rules = [f"args_{number}: {lark.object_rule(tool)}" for number, tool in enumerate(tools)]
        return lark.calls(tools, bodies, lead=lead, many=False, rules=rules)

    def render_call_head(self, name: str) -> str:
        return f"<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>"

    def render_arguments(self, arguments: Mapping[str, Any]) -> str:
        return json.dumps(arguments, ensure_ascii=False)

    def render_call_tail(self, name: str) -> str:
        return "<|call|>"


_MUSE_START = "<|start|>assistant"
_MUSE_GLIMMER = Marks(
    call_close="</atem:function_calls>",
    more=(
        Mark("<|eom|>", "maybe"),
        Mark("<|eot|>", "answer"),
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class MuseGlimmer(TaggedCalls):
    """Muse: `to=RECIPIENT<|message|>...<|eom|>`; a message to a tool holds tags."""

    id: str = "muse-glimmer"
    marks: Marks = _MUSE_GLIMMER
    signs: tuple[tuple[str, ...], ...] = (("<atem:function_calls>", "<|eom|>"),)
    before: str = "<atem:function_calls>\n"
    head: str = '<atem:invoke name="'
    name_end: str = '">\n'
    argument: str = '<atem:parameter name="'
    key_end: str = '">'
    value_end: str = "</atem:parameter>\n"
    call_end: str = "</atem:invoke>"
    between: str = "\n"
    after: str = "\n"
    sections: bool = True
    guesses: bool = True

    def scan_marks(self) -> tuple[Mark, ...]:
        return self.marks.more

    def opening_reader(self, prefix: str, tools: Sequence[ToolSpec] = ()) -> CallReader | None:
        return Scripted(lambda source: self._opening(source, tools))

    def _opening(self, source: Source, tools: Sequence[ToolSpec]) -> Reading:
        yield from source.one_of((_MUSE_START,))
        yield from self._header(source, tools)

    def reader(self, tools: Sequence[ToolSpec] = (), mark: str = "") -> CallReader:
        return Scripted(lambda source: self._next(source, tools))

    def _next(self, source: Source, tools: Sequence[ToolSpec]) -> Reading:
        """Behind the end of a message: the header of another, or text."""
        yield from source.skip_space()
        if not (yield from source.one_of((_MUSE_START,))):
            source.tell(Enter("text", source.rest))
            return
        yield from self._header(source, tools)

    def opens_reasoning(self, prefix: str) -> bool:
        return prefix.rstrip().endswith("to=self<|message|>")

    def _header(self, source: Source, tools: Sequence[ToolSpec]) -> Reading:
        space = yield from source.skip_space()
        if not (yield from source.one_of(("to=",))):
            raise Fault("a recipient was expected", len(space))
        taken = space + "to="
        name = ""
        while not (yield from source.one_of(("<|message|>",))):
            char = yield from source.peek(1)
            if not char or char.isspace() or char == "<" or len(name) > 200:
                raise Fault("it is no header", len(taken + name))
            name += yield from source.take()
        if name in ("self", "user"):
            source.tell(Enter("reasoning" if name == "self" else "text", source.rest))
            return
        yield from source.skip_space()
        yield from source.expect("<atem:function_calls>")
        yield from self.section(source, tools)

    def call_name(self, name: str, tools: Sequence[ToolSpec]) -> str:
        first, _, second = name.partition(".")
        return first if first == second and name not in {tool.name for tool in tools} else name

    def call_grammar(
        self,
        tools: Sequence[ToolSpec],
        *,
        lead: str = "",
        many: bool = False,
        special_ids: Mapping[str, int] | None = None,
    ) -> str:
        # One call a message, whose header names the tool too.
        ids = special_ids or {}
        bodies, rules = self.bodies(tools, ids)
        start = lark.terms(["<|start|>", "assistant"], ids)
        opening, closing = lark.literal(self.before), lark.terms([self.after, self.marks.call_close], ids)
        bodies = [
            f"({start})? {lark.terms([f' to={tool.name}', '<|message|>'], ids)} {opening} {body} {closing}"
            for tool, body in zip(tools, bodies, strict=True)
        ]
        return lark.calls(tools, bodies, lead=lead, many=False, rules=rules)

    def render_call_head(self, name: str) -> str:
        return f" to={name}<|message|>" + TaggedCalls.render_call_head(self, name)

    def render_calls(self, calls: Sequence[ToolCall]) -> str:
        return f"<|eom|>{_MUSE_START}".join(map(self.render_call, calls))

    def _open(self) -> str:
        return ""


_INKLING_START, _INKLING_RAW = "<|message_model|>", "<|content_invoke_tool_text|>"
_INKLING = Marks(
    call_open=("<|content_invoke_tool_json|>",),
    call_close="<|end_message|>",
    more=(
        Mark(_INKLING_START, "maybe"),
        Mark(_INKLING_RAW, "call"),
        Mark("<|content_thinking|>", "reason"),
        Mark("<|content_text|>", "answer"),
        Mark("<|message_user|>", "drop"),
        Mark("<|content_audio_input|>", "drop"),
        Mark("<|audio_end|>", "drop"),
        Mark("<|end_message|>", "answer"),
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Inkling(WireFormat):
    """Inkling: `<|message_model|>NAME<|content_invoke_tool_json|>{"name": ..., "args": {...}}<|end_message|>`."""

    id: str = "inkling"
    marks: Marks = _INKLING
    signs: tuple[tuple[str, ...], ...] = (("<|content_invoke_tool_json|>",),)

    def reader(self, tools: Sequence[ToolSpec] = (), mark: str = "") -> CallReader:
        return Scripted(lambda source: self._message(source, mark))

    def _message(self, source: Source, mark: str) -> Reading:
        header = ""
        if mark == _INKLING_START:
            stops = {"reasoning": "<|content_thinking|>", "text": "<|content_text|>"}
            invocations = (self.marks.call_open[0], _INKLING_RAW)
            header, stop = yield from source.until((*stops.values(), *invocations), limit=_HEADER_CHARS)
            if stop in stops.values():
                source.tell(Enter("reasoning" if stop == stops["reasoning"] else "text", source.rest))
                return
            mark, header = stop, header + stop
        if mark == _INKLING_RAW:
            yield from self._raw_text(source, header.removesuffix(mark).strip())
            return
        if not (yield from self._object_comes(source)):
            source.put_back(header)
            source.tell(Enter("text", source.rest))
            return
        twin = JsonCalls(id=self.id, marks=self.marks)
        yield from source.take()
        yield from twin.objects(source, frozenset(), True)

    def _object_comes(self, source: Source) -> Generator[None, None, bool]:
        """Does an object begin here? What stands before the last opening mark does not count."""
        size = 1
        while True:
            ahead = yield from source.peek(size)
            body = ahead.lstrip()
            if re.match(r'\{\s*["}]', body):
                yield from source.skip_space()
                return True
            if not re.fullmatch(r"(\{\s*)?", body):
                return (yield from self._skip_junk(source)) and (yield from self._object_comes(source))
            if len(ahead) < size:
                return False
            size += 1

    def _skip_junk(self, source: Source) -> Generator[None, None, bool]:
        """Goes behind the next opening mark of the same message, if there is one."""
        size = 1
        while True:
            ahead = yield from source.peek(size)
            if self.marks.call_close in ahead or len(ahead) < size or size > _HEADER_CHARS:
                return False
            if ahead.endswith(self.marks.call_open):
                yield from source.take(size)
                return True
            size += 1

    def _raw_text(self, source: Source, name: str) -> Reading:
        """A call that is given text and no object."""
        source.tell(Begun())
        source.tell(Named(name))
        arguments = Arguments(source)
        arguments.key("text")
        arguments.give('"')
        yield from source.until((self.marks.call_close,), arguments.text)
        arguments.give('"')
        source.tell(Complete(name, arguments.end(), source.rest))

    def call_grammar(
        self,
        tools: Sequence[ToolSpec],
        *,
        lead: str = "",
        many: bool = False,
        special_ids: Mapping[str, int] | None = None,
    ) -> str:
        ids = special_ids or {}
        bodies = [
            f"({lark.terms([_INKLING_START, tool.name], ids)})? {lark.terms([self.marks.call_open[0]], ids)} "
            f"{lark.literal(self._head(tool.name))} args_{number} "
            + lark.terms(["}", self.marks.call_close], ids)
            for number, tool in enumerate(tools)
        ]
        rules = [f"args_{number}: {lark.object_rule(tool)}" for number, tool in enumerate(tools)]
        return lark.calls(tools, bodies, lead=lead, many=many, rules=rules)

    @staticmethod
    def _head(name: str) -> str:
        return f'{{"name": {json.dumps(name, ensure_ascii=False)}, "args": '

    def render_call_head(self, name: str) -> str:
        return f"{self.marks.call_open[0]}{self._head(name)}"

    def render_arguments(self, arguments: Mapping[str, Any]) -> str:
        return json.dumps(arguments, ensure_ascii=False)

    def render_call_tail(self, name: str) -> str:
        return "}" + self.marks.call_close


ALL = (Harmony(), MuseGlimmer(), Inkling())
