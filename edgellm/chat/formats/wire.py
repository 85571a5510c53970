"""What a wire format is: how a model family writes tool calls, and how their results are fed back.

A format is data plus a few small functions. The parser knows none of them by name: it looks for the format's
marks, and hands what stands behind one to the format's own reader.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from edgellm.errors import FormatError
from edgellm.types import Message, Segment, ToolCall, ToolResult, ToolSpec


@dataclass(frozen=True, slots=True)
class Mark:
    """A text that carries meaning on the wire.

    `does`: "call" (a call follows; the format's reader takes over), "maybe" (the same, but it is no call before
    the reader says `Begun`: headers of messages, bare JSON), "reason" or "answer" (what follows is reasoning, or
    text), "drop" (nothing: it is not shown). `where`: "anywhere", "start" (nothing but space has come before it
    in this stretch of text or reasoning), "line" (it begins a line). `inside`: where it counts. Of two marks that
    begin at one place the longer wins.
    """

    text: str
    does: Literal["call", "maybe", "reason", "answer", "drop"]
    where: Literal["anywhere", "start", "line"] = "anywhere"
    inside: Literal["text", "reasoning", "both"] = "both"


@dataclass(frozen=True, slots=True)
class Marks:
    """The texts that most formats have. An empty one is one the format does not have.

    `call_open` may list several spellings; the first is the one that is written. `reasoning_open` counts at the
    start of a stretch only, and only where the model thinks; `reasoning_close` inside reasoning only. `more`
    are marks beyond these.
    """

    call_open: tuple[str, ...] = ()
    call_close: str = ""
    between_calls: str = ""
    reasoning_open: str = ""
    reasoning_close: str = ""
    result_open: str = ""
    result_close: str = ""
    more: tuple[Mark, ...] = ()


@dataclass(frozen=True, slots=True)
class Begun:
    """What follows the opening mark looks like a call."""


@dataclass(frozen=True, slots=True)
class Named:
    """The name of the call."""

    name: str


@dataclass(frozen=True, slots=True)
class Fragment:
    """More of the arguments, as JSON text."""

    text: str


@dataclass(frozen=True, slots=True)
class Complete:
    """The call is whole. The last `unread` characters fed so far do not belong to it."""

    name: str
    arguments: dict[str, Any]
    unread: int = 0


@dataclass(frozen=True, slots=True)
class NotACall:
    """It does not parse: as a call that went wrong if `Begun` was given, else it was never one.

    `is_cut`: the output ended inside it. `is_whole`: it was written to its end, and lacks what makes a call, such as
    a name. Neither is text to show.
    """

    error: str
    unread: int = 0
    is_cut: bool = False
    is_whole: bool = False


@dataclass(frozen=True, slots=True)
class Closed:
    """The section of calls is over, or there was none in it: its marks are not shown."""

    unread: int = 0


@dataclass(frozen=True, slots=True)
class Hidden:
    """All that this reader reads is no call, and is not shown: results that no tool gave."""


@dataclass(frozen=True, slots=True)
class Enter:
    """It was the header of a message: it is not shown, and what follows it is text or reasoning."""

    what: Literal["text", "reasoning"]
    unread: int = 0


Signal = Begun | Named | Fragment | Complete | NotACall | Closed | Hidden | Enter


class CallReader(Protocol):
    """Reads what follows an opening mark, in pieces of any size, and never looks back.

    `feed` consumes characters up to the end of its piece, or up to a `Complete`, `NotACall`, `Closed` or `Enter`;
    it gives the number consumed and what they meant. `unread` characters of all consumed ones are given back:
    they are read again, by this reader if `is_open` after `Complete` (formats that write several calls into one
    section), else by the parser. After the other three the reader is finished.
    """

    @property
    def is_open(self) -> bool: ...

    def feed(self, text: str, *, is_control: bool = False) -> tuple[int, list[Signal]]: ...

    def finish(self) -> list[Signal]:
        """The output ends here: `Complete` if the call is, else `NotACall` or `Closed`, or nothing."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class WireFormat(ABC):
    """One family's way to write calls. `reason` says why it was chosen, for people.

    `signs` recognise a template: each is a tuple of texts that must all stand in its source, "!" before one that
    must not. `vocabulary_sign` is a special token that tells as much. `is_thinking`: the model may open reasoning
    by itself. `template_takes_tools`: the template describes the tools, and writes calls and results, when it is
    given them; else `describe_tools` and `to_template` do that here. `takes_only_offered`: where tools are offered, a
    call of another one is broken; for families whose calls are a bare name in tags or code, which is easily no call
    at all. `broken_is_text`: what is written of a broken call is shown all the same.
    """

    id: str
    marks: Marks = Marks()
    signs: tuple[tuple[str, ...], ...] = ()
    vocabulary_sign: str = ""
    template_takes_tools: bool = True
    is_thinking: bool = False
    takes_only_offered: bool = False
    broken_is_text: bool = False
    reason: str = ""

    # -- reading ----------------------------------------------------------------------------------------

    @abstractmethod
    def reader(self, tools: Sequence[ToolSpec] = (), mark: str = "") -> CallReader:
        """A reader for what follows the opening mark `mark`. `tools` type the values of formats that do not."""

    def scan_marks(self) -> tuple[Mark, ...]:
        """All marks to look for in text and reasoning."""
        marks = self.marks
        found = [Mark(text, "call") for text in marks.call_open]
        if marks.reasoning_open and self.is_thinking:
            found.append(Mark(marks.reasoning_open, "reason", "start", "text"))
            # Where the prompt has opened it already, some models open it once more.
            found.append(Mark(marks.reasoning_open, "drop", "start", "reasoning"))
        if marks.reasoning_close:
            found.append(Mark(marks.reasoning_close, "answer", "anywhere", "reasoning"))
        return (*found, *marks.more)

    def opens_reasoning(self, prefix: str) -> bool:
        """Whether the generation prompt `prefix` has left reasoning open, so that the output starts inside it."""
        marks = self.marks
        return bool(marks.reasoning_open) and prefix.rfind(marks.reasoning_open) > prefix.rfind(
            marks.reasoning_close
        )

    def opening_reader(self, prefix: str, tools: Sequence[ToolSpec] = ()) -> CallReader | None:
        """A reader for the very first characters of the output, where the format begins in a header."""
        return None

    def texts(self) -> str:
        """All texts of this format that may hold special tokens, one after the other: to look for those in."""
        call = ToolCall(self.call_id(0, "x"), "x", {"x": "x"})
        marks = self.marks
        named = (*marks.call_open, marks.call_close, marks.reasoning_open, marks.reasoning_close)
        return "\0".join((*named, *(mark.text for mark in marks.more), self.render_call(call)))

    # -- writing ----------------------------------------------------------------------------------------

    @abstractmethod
    def call_grammar(
        self,
        tools: Sequence[ToolSpec],
        *,
        lead: str = "",
        many: bool = False,
        special_ids: Mapping[str, int] | None = None,
    ) -> str:
        """A Lark grammar for llguidance: the literal `lead`, then one call or, with `many`, one or more.

        Names are those of `tools`, arguments valid against each tool's own schema. Marks found in
        `special_ids` are written as that token, not as text.
        """

    @abstractmethod
    def render_call_head(self, name: str) -> str:
        """A call up to where its arguments begin."""

    @abstractmethod
    def render_arguments(self, arguments: Mapping[str, Any]) -> str:
        """The arguments as the model writes them."""

    @abstractmethod
    def render_call_tail(self, name: str) -> str:
        """What follows the arguments, closing mark included."""

    def render_call(self, call: ToolCall) -> str:
        """A whole call as the model writes it: for history and worked examples."""
        return (
            self.render_call_head(call.name)
            + self.render_arguments(call.arguments)
            + self.render_call_tail(call.name)
        )

    def render_calls(self, calls: Sequence[ToolCall]) -> str:
        """All calls of one turn, as the model writes them."""
        return self.marks.between_calls.join(map(self.render_call, calls))

    def describe_tools(self, tools: Sequence[ToolSpec]) -> str | None:
        """Text to add to the system turn, where the template does not describe tools itself."""
        return None

    def template_inputs(self, tools: Sequence[ToolSpec]) -> Mapping[str, Any]:
        """Variables by other names than `tools` that the template wants the tools in; also asked without tools."""
        return {}

    def call_id(self, index: int, name: str) -> str:
        """The id of the turn's call number `index`."""
        return f"call_{index}"

    def id_pattern(self, name: str) -> str:
        """A regular expression for the ids of calls of this tool, where ids stand on the wire."""
        return "call_[0-9]{1,4}"

    def result_messages(
        self, calls: Sequence[ToolCall], results: Sequence[ToolResult]
    ) -> tuple[Message, ...]:
        """What the template is given for the results, in the order of the calls."""
        return tuple(
            Message("tool", result.text, tool_call_id=call.id, name=call.name)
            for call, result in zip(calls, results, strict=True)
        )

    def to_template(self, messages: Sequence[Message]) -> tuple[Message, ...]:
        """The messages as the template can take them; calls and results become text where it knows neither."""
        return tuple(messages)

    def suffix(self, template_source: str, tail: Sequence[Message]) -> tuple[Segment, ...] | None:
        """What stands between an assistant's text and the next generation prompt, where the template won't say.

        None if this format does not know either.
        """
        return None

    def parse_call(self, raw: str, tools: Sequence[ToolSpec] = ()) -> tuple[str, dict[str, Any]]:
        """(name, arguments) of one call, with or without its marks; `tools` type its values. Raises FormatError."""
        text = raw.strip()
        marks = (*self.marks.call_open, *(m.text for m in self.scan_marks() if m.does in ("call", "maybe")))
        opening = next((mark for mark in marks if text.startswith(mark)), self.marks.call_open[:1] or "")
        if not isinstance(opening, str):
            text, opening = opening[0] + text, opening[0]
        reader = self.reader(tools, opening)
        _, signals = reader.feed(text[len(opening) :])
        for signal in (*signals, *reader.finish()):
            if isinstance(signal, Complete):
                return signal.name, signal.arguments
            if isinstance(signal, NotACall):
                raise FormatError(f"not a call in {self.id!r} syntax: {signal.error}.")
        raise FormatError(f"not a call in {self.id!r} syntax: it is empty.")
