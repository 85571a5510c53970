"""Calls as a name between marks, followed by its arguments as one JSON object."""

from __future__ import annotations

import json
import re
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgellm.chat.formats import lark
from edgellm.chat.formats.arguments import Arguments
from edgellm.chat.formats.interpreter import NAMES, PYTHON_TAG, interpreter_of, read_code
from edgellm.chat.formats.json_calls import JsonCalls
from edgellm.chat.formats.json_text import loads
from edgellm.chat.formats.script import SPACE, Ended, Fault, Scripted, Source
from edgellm.chat.formats.wire import (
    Begun,
    CallReader,
    Closed,
    Complete,
    Enter,
    Fragment,
    Hidden,
    Mark,
    Named,
    WireFormat,
)
from edgellm.types import ToolCall, ToolSpec

Reading = Generator[None, None, None]
_NAME_CHARS = 256
_ID = re.compile(r"[\w.:/-]+")
_ID_CHARS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.:/-"
_COUNTED = re.compile(r"(?:functions\.)?(\S+):[0-9]+")
_JUNK_CHARS = 400
_FENCES = ("```json", "```")
_BROKEN_CHARS = 4000


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedCalls(WireFormat):
    """On the wire: opening mark, `before`, then for each call `head` name `name_end` JSON `call_end`, then `after` and
    the closing mark.

    `heads`, `name_ends` and `call_ends` are further spellings that are read, or parts of those, and `argument_marks`
    what may stand between name and arguments. `sections`: several calls may stand in one section. `id_end` ends an id
    that stands in front of the name, `id_after` one that stands behind it. `kind`: a word that may stand for the name,
    which then follows (`function`). `prefix`: written in front of the name. `counts`: names are ids that end in a
    count, or even nothing but a count. `skips_junk`: other text in a section is not shown; what stands between name
    and end of a call, and cannot be read, neither.
    """

    before: str = ""
    head: str = ""
    heads: tuple[str, ...] = ()
    name_end: str = ""
    name_ends: tuple[str, ...] = ()
    id_end: str = ""
    id_after: str = ""
    kind: str = ""
    prefix: str = ""
    argument_marks: tuple[str, ...] = ()
    call_end: str = ""
    call_ends: tuple[str, ...] = ()
    between: str = ""
    after: str = ""
    sections: bool = False
    skips_junk: bool = False
    has_arrays: bool = False
    counts: bool = False

    # -- reading ----------------------------------------------------------------------------------------

    def reader(self, tools: Sequence[ToolSpec] = (), mark: str = "") -> CallReader:
        return Scripted(lambda source: self._section(source, tools, mark))

    def _section(self, source: Source, tools: Sequence[ToolSpec], mark: str) -> Reading:
        closes = tuple(filter(None, (self.marks.call_close,)))
        heads = tuple(filter(None, (self.head.strip(SPACE), *self.heads)))
        is_open = bool(heads) and mark.endswith(heads)
        count = 0
        while True:
            yield from source.skip_space()
            if self.has_arrays and not count and (yield from source.peek(1)) in ("[", "{"):
                twin = JsonCalls(id=self.id, marks=self.marks)
                yield from twin.section(source, frozenset(), True)
                return
            if heads and not is_open:
                found = yield from source.one_of((*heads, *closes))
                if not found and self.skips_junk and not mark.endswith(heads):
                    found = yield from source.skip_to((*heads, *closes), _JUNK_CHARS)
                if not found or found in closes:
                    if found or count:
                        return
                    following = yield from source.peek(1)
                    raise Fault(f"{heads[0]!r} was expected, not {following!r}")
            elif count:
                return
            while heads:
                yield from source.skip_space()
                if not (yield from source.one_of(heads)):
                    break
            is_open = False
            yield from self._call(source, tools, closes)
            count += 1
            if not self.sections:
                return

    def _call(self, source: Source, tools: Sequence[ToolSpec], closes: Sequence[str]) -> Reading:
        source.tell(Begun())
        if self.id_end:
            yield from source.until((self.id_end,), limit=_NAME_CHARS)
        ends = tuple(filter(None, (self.name_end.strip(SPACE), *self.name_ends)))
        stops = (*ends, "{") if not self.counts else ends
        name, stop = yield from source.until(stops or ("\n", "{"), limit=_NAME_CHARS)
        if self.kind and name.strip() == self.kind:
            name, stop = yield from source.until(("\n", "```", "{"), limit=_NAME_CHARS)
        if self.id_after and stop == self.id_after:
            _, stop = yield from source.until((self.name_ends[-1], "{"), limit=_NAME_CHARS)
        if stop in ("{", "```"):
            source.put_back(stop)
        name = name.strip().removeprefix(self.prefix)
        arguments = Arguments(source)
        if self.counts:
            name = name.rpartition(":")[0] if name.rpartition(":")[2].isdigit() and ":" in name else name
        is_known = bool(name) and not (self.counts and name.isdigit())
        if is_known and self.counts and not _ID.fullmatch(name):
            # No id of a call has such characters.
            yield from source.until(tuple(filter(None, (self.call_end, *self.call_ends, *closes))))
            raise Fault(f"{name!r} is no name of a call", is_whole=True)
        if is_known:
            source.tell(Named(name))
        elif not self.counts:
            raise Fault("it has no name")
        yield from source.skip_space()
        is_fenced = False
        while found := (yield from source.one_of((*self.argument_marks, *_FENCES))):
            is_fenced = is_fenced or found in _FENCES
            yield from source.skip_space()
        try:
            following = yield from source.peek(1)
            if following != "{":
                raise Fault(f"'{{' was expected, not {following!r}")
            if is_known:
                yield from source.json(arguments.give)
            else:
                arguments.parts.append((yield from source.json()))
        except Fault as fault:
            if self.skips_junk and (yield from self._skip_broken(source, closes)):
                raise Fault(str(fault), is_whole=True) from fault
            raise
        whole: dict[str, Any] = loads("".join(arguments.parts))
        if not is_known:
            name = _by_arguments(whole, tools)
        if name and not is_known:
            source.tell(Named(name))
            source.tell(Fragment("".join(arguments.parts)))
        call_end = self.call_end.strip(SPACE + "`")
        call_ends = tuple(filter(None, (call_end, *self.call_ends)))
        if name and not (is_fenced or call_ends or closes):
            # Nothing closes it: it is whole, and waiting for what follows would keep it from who runs it.
            source.tell(Complete(name, whole, source.rest))
            return
        space = yield from source.skip_space()
        if (yield from source.one_of(("```",))):
            space = yield from source.skip_space()
        while found := (yield from source.one_of(call_ends)):
            space = ""
            if found == call_end or not call_end.startswith(found):
                break
            space = yield from source.skip_space()
        if not self.sections and closes:
            yield from source.skip_space()
            yield from source.one_of(closes)
            space = ""
        if not name:
            raise Fault("it has no name", is_whole=True)
        source.tell(Complete(name, whole, source.rest + len(space)))

    def _skip_broken(self, source: Source, closes: Sequence[str]) -> Generator[None, None, bool]:
        """Takes what cannot be read, up to the end of the call; False (and nothing is taken) where that is not near."""
        call_end = self.call_end.strip(SPACE + "`")
        ends = tuple(filter(None, (call_end, *self.call_ends)))
        # Of an end in several marks the first will do; it is told apart from its whole by what follows.
        stops = tuple(
            end for end in ends if not any(end != other and end.startswith(other) for other in ends)
        )
        stop = yield from source.skip_to((*stops, *closes), _BROKEN_CHARS)
        if stop in stops and stop != call_end:
            while (yield from source.one_of(ends)):
                pass
        return bool(stop)

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
        opening = lark.terms([self._open(), self.before], ids)
        closing = lark.terms([self.after, self.marks.call_close], ids)
        bodies: list[str] = []
        for number, tool in enumerate(tools):
            head = self._head_terms(tool.name, ids)
            tail = lark.terms([self.call_end], ids)
            bodies.append(f"{head} args_{number} {tail}".strip())
        rules = [f"args_{number}: {lark.object_rule(tool)}" for number, tool in enumerate(tools)]
        if self.sections:
            between = lark.terms([self.between], ids)
            section = (opening, closing)
            return lark.calls(
                tools, bodies, lead=lead, many=many, section=section, between=between, rules=rules
            )
        bodies = [" ".join(part for part in (opening, body, closing) if part) for body in bodies]
        between = lark.terms([self.marks.between_calls], ids)
        return lark.calls(tools, bodies, lead=lead, many=many, between=between, rules=rules)

    def _head_terms(self, name: str, ids: Mapping[str, int]) -> str:
        """What stands in front of the arguments, with any id where one stands there."""
        call_id = self.call_id(0, name)
        before, found, behind = self._item_head(name, 0).partition(call_id)
        pieces = [lark.terms([before], ids)]
        if found:
            pieces += [f"/{self.id_pattern(name)}/", lark.terms([behind], ids)]
        return " ".join(piece for piece in pieces if piece)

    def _open(self) -> str:
        opening = self.marks.call_open[0] if self.marks.call_open else ""
        return opening.removesuffix(self.head) if self.head else opening

    def _item_head(self, name: str, index: int) -> str:
        call_id = self.call_id(index, name)
        before = f"{call_id}{self.id_end}" if self.id_end else ""
        behind = f"{self.id_after}{call_id}" if self.id_after else ""
        written = call_id if self.counts else f"{self.prefix}{name}"
        kind = f"{self.kind}{self.name_end}" if self.kind else ""
        if kind:
            return f"{self.head}{kind}{written}\n```json\n"
        return f"{self.head}{before}{written}{behind}{self.name_end}"

    def render_call_head(self, name: str) -> str:
        return self._open() + self.before + self._item_head(name, 0)

    def render_arguments(self, arguments: Mapping[str, Any]) -> str:
        return json.dumps(arguments, ensure_ascii=False)

    def render_call_tail(self, name: str) -> str:
        return self.call_end + self.after + self.marks.call_close

    def render_calls(self, calls: Sequence[ToolCall]) -> str:
        bodies = [
            self._item_head(call.name, index) + self.render_arguments(call.arguments) + self.call_end
            for index, call in enumerate(calls)
        ]
        opening, closing = self._open() + self.before, self.after + self.marks.call_close
        if self.sections:
            return opening + self.between.join(bodies) + closing
        return self.marks.between_calls.join(opening + body + closing for body in bodies)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeepSeekCalls(NamedCalls):
    """DeepSeek's models sometimes go on with results that no tool gave: those are not shown."""

    results: tuple[str, str] = ("", "")

    def scan_marks(self) -> tuple[Mark, ...]:
        # Where no calls are expected the first is none, and the second drops the mark alone.
        opening = self.results[0]
        return (*NamedCalls.scan_marks(self), Mark(opening, "maybe"), Mark(opening, "drop"))

    def reader(self, tools: Sequence[ToolSpec] = (), mark: str = "") -> CallReader:
        if mark != self.results[0]:
            return NamedCalls.reader(self, tools, mark)
        return Scripted(self._made_up)

    def _made_up(self, source: Source) -> Reading:
        source.tell(Hidden())
        try:
            yield from source.until(self.results[1:])
        except Ended:
            # The output ends inside them; nobody wants to read half of them either.
            source.tell(Closed(0))


def _by_arguments(arguments: Mapping[str, Any], tools: Sequence[ToolSpec]) -> str:
    """The only tool that has all these parameters; "" where no tool, or more than one, does."""
    fits = [tool for tool in tools if arguments.keys() <= (tool.parameters.get("properties") or {}).keys()]
    if len(tools) == 1:
        return tools[0].name
    return fits[0].name if len(fits) == 1 else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class KimiCalls(NamedCalls):
    """Kimi K2 knows a call by its id alone: functions.NAME:INDEX."""

    def opening_reader(self, prefix: str, tools: Sequence[ToolSpec] = ()) -> CallReader | None:
        if not tools or self.opens_reasoning(prefix):
            return None
        return Scripted(lambda source: self._bare(source, tools))

    def _bare(self, source: Source, tools: Sequence[ToolSpec]) -> Reading:
        """A call at the very beginning, its opening marks missing. Of an unknown tool it is text, with its marks."""
        closes = (self.marks.call_close,)
        head = ""
        while (char := (yield from source.peek(1))) in _ID_CHARS and char and len(head) < _NAME_CHARS:
            head += yield from source.take()
        counted = _COUNTED.fullmatch(head)
        source.put_back(head)
        if not counted or not (yield from source.comes((head + self.name_end,))):
            raise Fault("it is no call")
        if counted.group(1) in {tool.name for tool in tools}:
            yield from self._call(source, tools, closes)
            return
        source.tell(Begun())
        if (yield from source.skip_to((self.call_end,), _BROKEN_CHARS)):
            space = yield from source.skip_space()
            if not (yield from source.one_of(closes)):
                source.put_back(space)
        listed = ", ".join(sorted(tool.name for tool in tools))
        raise Fault(f"{counted.group(1)!r} is not a tool, there is {listed}")

    def call_id(self, index: int, name: str) -> str:
        return f"functions.{name}:{index}"

    def id_pattern(self, name: str) -> str:
        return re.escape(f"functions.{name}:") + "[0-9]{1,4}"


@dataclass(frozen=True, slots=True, kw_only=True)
class MistralCalls(NamedCalls):
    """Mistral's ids are nine letters and digits: its templates refuse others."""

    def call_id(self, index: int, name: str) -> str:
        return f"call{index:05d}"

    def id_pattern(self, name: str) -> str:
        return "[a-zA-Z0-9]{9}"


@dataclass(frozen=True, slots=True, kw_only=True)
class FunctionTags(NamedCalls):
    """Functionary v3.1: `<function=NAME>JSON</function>`; source code for the interpreter stands behind a tag."""

    def reader(self, tools: Sequence[ToolSpec] = (), mark: str = "") -> CallReader:
        if mark != PYTHON_TAG:
            return NamedCalls.reader(self, tools, mark)
        return Scripted(lambda source: self._behind_tag(source, tools))

    @staticmethod
    def _behind_tag(source: Source, tools: Sequence[ToolSpec]) -> Reading:
        yield from source.skip_space()
        name = interpreter_of(tools, "python")
        if not name or not (yield from source.peek(1)):
            raise Fault("no call follows")
        yield from read_code(source, name, tools)


@dataclass(frozen=True, slots=True, kw_only=True)
class RecipientCalls(NamedCalls):
    """Functionary v3.2: every message says whom it is for; `all` is everybody, and its text is the answer."""

    def scan_marks(self) -> tuple[Mark, ...]:
        return (*WireFormat.scan_marks(self), Mark(self.head, "maybe"))

    def opening_reader(self, prefix: str, tools: Sequence[ToolSpec] = ()) -> CallReader | None:
        # Where the prompt is not known, the output may begin as it does behind the usual one.
        if prefix and not prefix.endswith(self.head):
            return None
        return Scripted(lambda source: self._messages(source, tools, is_certain=bool(prefix)))

    def reader(self, tools: Sequence[ToolSpec] = (), mark: str = "") -> CallReader:
        return Scripted(lambda source: self._messages(source, tools))

    def _messages(self, source: Source, tools: Sequence[ToolSpec], *, is_certain: bool = False) -> Reading:
        known = {tool.name for tool in tools} if not is_certain else set[str]()
        count = 0
        while True:
            name = yield from self._recipient(source)
            if name == "all":
                source.tell(Enter("text", source.rest))
                return
            yield from source.skip_space()
            following = yield from source.peek(1)
            if following == "{" and (count or not known or name in known):
                source.tell(Begun())
                source.tell(Named(name))
                arguments = Arguments(source)
                yield from source.json(arguments.give)
                source.tell(Complete(name, loads("".join(arguments.parts)), source.rest))
                yield from source.skip_space()
                stop = yield from source.one_of((self.head,))
            elif following and name in NAMES and (not known or name in known):
                stop = yield from read_code(source, name, tools, ("\n" + self.head,))
            else:
                raise Fault(f"{name!r} is no recipient")
            count += 1
            if not stop:
                return

    def _recipient(self, source: Source) -> Generator[None, None, str]:
        """The name that fills the line."""
        name = ""
        while (char := (yield from source.peek(1))) and (char.isalnum() or char in "_-."):
            name += yield from source.take()
            if len(name) > _NAME_CHARS:
                raise Fault("its name is too long")
        if not name or not (yield from source.one_of((self.name_end,))):
            raise Fault(f"a recipient was expected, not {char!r}")
        return name
