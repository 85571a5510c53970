"""What a wire format is: how a model family writes tool calls, and how their results are fed back.

A format is data (`Marks`) plus a few small functions. The parser knows none of them by name: it looks for
the marks, and hands what stands between them to the format's own reader.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from edgellm.errors import FormatError
from edgellm.types import Message, Segment, ToolCall, ToolResult, ToolSpec


@dataclass(frozen=True, slots=True)
class Marks:
    """Texts that carry meaning on the wire. An empty mark is one the format does not have.

    `call_open` may list several spellings; the first is the one that is written. No mark may be contained in
    another: the parser could not tell them apart without looking ahead.
    """

    call_open: tuple[str, ...]
    call_close: str = ""
    between_calls: str = ""
    reasoning_open: str = ""
    reasoning_close: str = ""
    result_open: str = ""
    result_close: str = ""


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
    """The call is whole. The last `unread` characters consumed so far do not belong to it."""

    name: str
    arguments: dict[str, Any]
    unread: int = 0


@dataclass(frozen=True, slots=True)
class NotACall:
    """It does not parse: as a call that went wrong if `Begun` was given, else it was never one."""

    error: str


Signal = Begun | Named | Fragment | Complete | NotACall


class CallReader(Protocol):
    """Reads what follows an opening mark, in pieces of any size, and never looks back.

    `feed` consumes characters up to the end of its piece, or up to where a call is `Complete` or `NotACall`;
    it gives the number consumed and what they meant. After `Complete`, `is_open` says whether the same
    section may hold another call (formats that write lists); after `NotACall` the reader is finished.
    """

    @property
    def is_open(self) -> bool: ...

    def feed(self, text: str, *, is_control: bool = False) -> tuple[int, list[Signal]]: ...

    def finish(self) -> list[Signal]:
        """The output ends here: `Complete` if the call is, else `NotACall`, or nothing if none is open."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class WireFormat(ABC):
    """One family's way to write calls. `reason` says why it was chosen, for people.

    `is_thinking`: the model may open reasoning by itself. `template_takes_tools`: the template describes the tools,
    and writes calls and results, when it is given them; else `describe_tools` and `to_template` do that here.
    """

    id: ClassVar[str]
    marks: ClassVar[Marks]
    template_takes_tools: ClassVar[bool] = True

    is_thinking: bool = False
    reason: str = ""

    @abstractmethod
    def reader(self, tools: Sequence[ToolSpec] = ()) -> CallReader:
        """A reader for what follows an opening mark. `tools` type the values of formats that do not."""

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

    def describe_tools(self, tools: Sequence[ToolSpec]) -> str | None:
        """Text to add to the system turn, where the template does not describe tools itself."""
        return None

    def call_id(self, index: int, name: str) -> str:
        """The id of the turn's call number `index`."""
        return f"call_{index}"

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

    def parse_call(self, raw: str) -> tuple[str, dict[str, Any]]:
        """(name, arguments) of one call, with or without its marks. Raises FormatError."""
        text = raw.strip()
        opening = next((mark for mark in self.marks.call_open if text.startswith(mark)), "")
        reader = self.reader()
        _, signals = reader.feed(text[len(opening) :])
        for signal in (*signals, *reader.finish()):
            if isinstance(signal, Complete):
                return signal.name, signal.arguments
            if isinstance(signal, NotACall):
                raise FormatError(f"not a call in {self.id!r} syntax: {signal.error}.")
        raise FormatError(f"not a call in {self.id!r} syntax: it is empty.")
