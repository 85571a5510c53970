"""The reading of a leg: what its tokens turn out to be, on the tape too, and how they are taken back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgellm.chat.parser import OutputParser
from edgellm.chat.utf8 import TextDecoder
from edgellm.events import (
    ReasoningDelta,
    TextDelta,
    ToolCallBroken,
    ToolCallDelta,
    ToolCallName,
    ToolCallReady,
    ToolCallStarted,
)
from edgellm.types import SpanKind

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from edgellm.chat.formats.wire import WireFormat
    from edgellm.distribution import Step
    from edgellm.engine.session import Session
    from edgellm.events import Event
    from edgellm.types import ToolCall, ToolSpec

CALL_EVENTS = (ToolCallStarted, ToolCallName, ToolCallDelta, ToolCallReady, ToolCallBroken)


@dataclass(slots=True)
class Fed:
    """A token that the parser has seen: its place on the tape, and the byte offset of its text in the leg."""

    position: int
    start: int
    piece: bytes
    text: str
    is_control: bool


class Reading:
    """Reads one leg token by token, labels the tape by it, and can take tokens back from both.

    `prefix` and `start_index` as for OutputParser. Its `parser` is another one once tokens were taken back.
    """

    def __init__(
        self,
        session: Session,
        wire_format: WireFormat,
        *,
        specs: Sequence[ToolSpec],
        prefix: str,
        start_index: int,
        control_marks: Collection[str],
    ) -> None:
        self._session = session
        self._format = wire_format
        self._new_parser = lambda: OutputParser(
            wire_format,
            prefix=prefix,
            start_index=start_index,
            tools=specs,
            expects_calls=bool(specs),
            control_marks=control_marks,
        )
        self.parser = self._new_parser()
        self._decoder = TextDecoder()
        self.fed: list[Fed] = []
        self._length = 0
        # (index into the fed tokens of the one in which the open section of calls begins, its text before that)
        self.section = (0, "")
        # How many calls there were in front of the section.
        self.section_calls = 0

    @property
    def calls(self) -> Sequence[ToolCall]:
        """Complete calls, in order."""
        return self.parser.calls

    @property
    def has_section_call(self) -> bool:
        """The open section of calls has a complete one."""
        return len(self.parser.calls) != self.section_calls

    def take(self, step: Step) -> list[Event]:
        """Parses one token and labels it; where it shows that a call has begun, the mark's tokens too."""
        was_in_call, was_thinking = self.parser.in_call, self.parser.in_reasoning
        events = self.parse(step)
        return self.noted(step, events, was_in_call=was_in_call, was_thinking=was_thinking)

    def parse(self, step: Step) -> list[Event]:
        """The first half of `take`: the events of one token, which is not labelled."""
        text = self._decoder.feed(step.piece)
        self.fed.append(Fed(step.position, self._length, step.piece, text, step.is_control))
        self._length += len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
        return self.parser.feed(text, is_control=step.is_control) if text else []

    def noted(self, step: Step, events: list[Event], *, was_in_call: bool, was_thinking: bool) -> list[Event]:
        """The second half of `take`: labels what the token turned out to be; gives the events."""
        self._label(step.position, events, was_thinking=was_thinking)
        if self.parser.in_reasoning and not was_thinking:
            self._label_reasoning_start()
        if not was_in_call and self.has_begun(events):
            self.section = self.call_tokens()
            self.section_calls = len(self.calls) - sum(isinstance(e, ToolCallReady) for e in events)
            self._label_call_start()
        return events

    def finish(self) -> list[Event]:
        """What decoder and parser still hold."""
        rest = self._decoder.finish()
        events: list[Event] = self.parser.feed(rest) if rest else []
        return events + self.parser.finish()

    # -- calls -------------------------------------------------------------------------------------------

    def has_begun(self, events: Sequence[Event]) -> bool:
        """A call is open, or one has begun and ended with these events."""
        return self.parser.in_call or any(isinstance(event, ToolCallReady) for event in events)

    def call_tokens(self) -> tuple[int, str]:
        """(index into the fed tokens of the one that holds the call's first byte, its text before that byte)."""
        start = self.parser.call_start
        if start is None:
            return len(self.fed) - 1, ""
        return self._token_at("".join(fed.text for fed in self.fed), start)

    def in_section(self) -> str:
        """The text of the open section of calls, and of what is behind it."""
        index, before = self.section
        return "".join(fed.text for fed in self.fed[index:])[len(before) :]

    def is_past_calls(self, events: Sequence[Event]) -> bool:
        """After a call: does this token begin something that is not another call?"""
        if not self.calls or self.parser.in_call:
            return False
        if self.parser.is_hiding:
            return True
        is_text = any(
            isinstance(event, (TextDelta, ReasoningDelta)) and event.text.strip() for event in events
        )
        return is_text and not any(isinstance(event, ToolCallReady) for event in events)

    # -- labels ------------------------------------------------------------------------------------------

    def _label(self, position: int, events: Sequence[Event], *, was_thinking: bool) -> None:
        if self.parser.in_call or any(isinstance(event, CALL_EVENTS) for event in events):
            kind = SpanKind.TOOL_CALL
        elif (
            was_thinking
            or self.parser.in_reasoning
            or any(isinstance(event, ReasoningDelta) for event in events)
        ):
            # The closing mark too.
            kind = SpanKind.REASONING
        else:
            kind = SpanKind.TEXT
        self._session.tape.relabel(position, position + 1, kind)

    def _label_reasoning_start(self) -> None:
        """The tokens of the opening mark belong to the reasoning too."""
        joined = "".join(fed.text for fed in self.fed)
        start = joined.rfind(self._format.marks.reasoning_open)
        if start >= 0:
            index, _ = self._token_at(joined, start)
            tape = self._session.tape
            tape.relabel(self.fed[index].position, len(tape), SpanKind.REASONING)

    def _label_call_start(self) -> None:
        index, _ = self.call_tokens()
        tape = self._session.tape
        tape.relabel(self.fed[index].position, len(tape), SpanKind.TOOL_CALL)

    def _token_at(self, joined: str, start: int) -> tuple[int, str]:
        """(index of the fed token that holds character `start` of all text fed, its text before that)."""
        offset = len(joined[:start].encode("utf-8", "surrogatepass"))
        index = max(i for i, fed in enumerate(self.fed) if fed.start <= offset and fed.text)
        before = self.fed[index].text.encode("utf-8", "surrogatepass")[: offset - self.fed[index].start]
        return index, before.decode("utf-8", "surrogatepass")

    # -- taking back -------------------------------------------------------------------------------------

    def moved(self, count: int) -> None:
        """The tape in front of the leg became shorter by `count` tokens."""
        for fed in self.fed:
            fed.position -= count

    def unfeed_last(self) -> None:
        """Takes the last token back from tape and parser; its events were not sent."""
        fed = self.fed.pop()
        self._session.rewind(fed.position)
        self._length = fed.start
        self._refeed()

    def unfeed_to(self, index: int) -> None:
        """Takes all tokens from the fed one `index` on back from tape and parser."""
        session = self._session
        session.settle()
        session.rewind(self.fed[index].position)
        self._length = self.fed[index].start
        del self.fed[index:]
        self._refeed()

    def unfeed_behind_calls(self) -> None:
        """Takes back all tokens behind the last call: space, the beginning of what might have been one more, text."""
        end = at = 0
        for piece in self.parser.pieces:
            at += len(piece.text.encode("utf-8", "surrogatepass"))
            is_mark = piece.kind == "mark" and bool(piece.text.strip())
            if piece.kind in ("call", "end") or (is_mark and end):
                end = at
        last = len(self.fed) - 1
        self.unfeed_to(next((i for i, fed in enumerate(self.fed) if fed.start >= end and fed.text), last))

    def _refeed(self) -> None:
        """A parser that has read what is left of the leg."""
        self.parser = self._new_parser()
        self._decoder = TextDecoder()
        for earlier in self.fed:
            text = self._decoder.feed(earlier.piece)
            if text:
                self.parser.feed(text, is_control=earlier.is_control)
