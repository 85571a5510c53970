"""Model output as events, while it is being written.

Fed text in pieces of any size, it gives the same events for the same text, once neighbouring deltas are
joined. It holds back no more than may still become a mark, and swallows nothing but the marks and the
white space that belongs to them:

- space around reasoning and after a call, and newlines directly before a call, belong to the marks;
- all other space is text, as the model wrote it.

What began like a call and is none is given out again, where it stood: as text, or as reasoning if it stood
inside reasoning. A call ends reasoning that was still open.
"""

from __future__ import annotations

from collections.abc import Sequence

from edgellm.chat.formats import wire
from edgellm.events import (
    Event,
    ReasoningDelta,
    TextDelta,
    ToolCallBroken,
    ToolCallDelta,
    ToolCallName,
    ToolCallReady,
    ToolCallStarted,
)
from edgellm.types import ToolCall, ToolSpec


class OutputParser:
    """Turns the text of one assistant turn into events.

    `prefix` is the generation prompt the output continues: it may have opened the reasoning already.
    `start_index` is the number of the turn's first call here. Without `expects_calls` call marks are text.
    """

    def __init__(
        self,
        wire_format: wire.WireFormat,
        *,
        prefix: str = "",
        start_index: int = 0,
        tools: Sequence[ToolSpec] = (),
        expects_calls: bool = True,
    ) -> None:
        marks = wire_format.marks
        self._format = wire_format
        self._tools = tools
        self._call_marks = marks.call_open if expects_calls else ()
        self._open, self._close = marks.reasoning_open, marks.reasoning_close
        self._in_reasoning = bool(self._open) and prefix.rfind(self._open) > prefix.rfind(self._close)
        self._is_thinking = bool(self._open) and (wire_format.is_thinking or self._in_reasoning)
        # Nothing but space so far in this stretch; whether that space belongs to the mark before it.
        self._at_start = True
        self._drops_space = self._in_reasoning
        self._gap: list[str] = []
        self._hold = ""
        self._fed = 0
        self._reader: wire.CallReader | None = None
        self._raw: list[str] = []
        self._call_start: int | None = None
        self._has_begun = False
        self._index = start_index
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._calls: list[ToolCall] = []
        self._events: list[Event] = []

    @property
    def in_call(self) -> bool:
        """An opening mark has been read, and the call behind it has not ended."""
        return self._reader is not None

    @property
    def in_reasoning(self) -> bool:
        """Output goes to the reasoning now."""
        return self._in_reasoning

    @property
    def call_start(self) -> int | None:
        """Where the open call's first marker character stands in the text fed so far; None outside a call."""
        return self._call_start

    @property
    def held(self) -> str:
        """Text fed and not yet given out: space and a possible mark, or the open call as written."""
        return "".join((*self._gap, *self._raw, self._hold))

    @property
    def text(self) -> str:
        """All text given out."""
        return "".join(self._text)

    @property
    def reasoning(self) -> str:
        """All reasoning given out."""
        return "".join(self._reasoning)

    @property
    def calls(self) -> tuple[ToolCall, ...]:
        """All complete calls."""
        return tuple(self._calls)

    def feed(self, piece: str, *, is_control: bool = False) -> list[Event]:
        """The events that are certain after `piece`. `is_control`: it is the spelling of a control token."""
        self._fed += len(piece)
        rest = piece
        while rest:
            # Only the piece as it came is a control token, not what a reader has given back of it.
            rest = self._read_call(rest, is_control and rest is piece) if self._reader else self._scan(rest)
        return self._take_events()

    def finish(self) -> list[Event]:
        """The output has ended: what was held back is given out, an open call is complete or broken."""
        if self._reader:
            rest = self._handle(self._reader.finish(), "")
            if self._reader:
                self._break_call("the output ended inside it")
            while rest:
                rest = self._scan(rest)
        hold, self._hold = self._hold, ""
        if hold:
            self._give(hold)
        if not (self._at_start and self._drops_space):
            self._put("".join(self._gap))
        self._gap.clear()
        return self._take_events()

    def _take_events(self) -> list[Event]:
        events, self._events = self._events, []
        return events

    def _scan(self, piece: str) -> str:
        """Read text or reasoning up to the next mark; gives what stands behind it."""
        text = self._hold + piece
        self._hold = ""
        if self._at_start:
            body = text.lstrip()
            if len(body) < len(text):
                self._gap.append(text[: len(text) - len(body)])
            text = body
            if self._is_thinking and text:
                if text.startswith(self._open):
                    self._switch(in_reasoning=True)
                    return text[len(self._open) :]
                if self._open.startswith(text):
                    self._hold = text
                    return ""
        marks = (*self._call_marks, self._close) if self._in_reasoning else self._call_marks
        at, mark = min(
            ((found, mark) for mark in marks if (found := text.find(mark)) >= 0), default=(len(text), "")
        )
        if not mark:
            at -= _overlap(text, marks)
            self._hold = text[at:]
        if at:
            self._give(text[:at])
        rest = text[at + len(mark) :] if mark else ""
        if mark and mark in self._call_marks:
            self._reader = self._format.reader(self._tools)
            self._raw = [mark]
            self._has_begun = False
            # `piece` is the end of what was fed, so the mark's place is counted from there.
            self._call_start = self._fed - len(rest) - len(mark)
        elif mark:
            self._switch(in_reasoning=False)
        return rest

    def _read_call(self, piece: str, is_control: bool) -> str:
        assert self._reader is not None
        consumed, signals = self._reader.feed(piece, is_control=is_control)
        self._raw.append(piece[:consumed])
        return self._handle(signals, piece[consumed:])

    def _handle(self, signals: list[wire.Signal], rest: str) -> str:
        for signal in signals:
            match signal:
                case wire.Begun():
                    self._has_begun = True
                    self._events.append(ToolCallStarted(self._index))
                case wire.Named(name):
                    self._events.append(ToolCallName(self._index, name))
                case wire.Fragment(text):
                    self._put_fragment(text)
                case wire.Complete():
                    rest = self._end_call(signal, rest)
                case wire.NotACall(error):
                    self._break_call(error)
        return rest

    def _end_call(self, signal: wire.Complete, rest: str) -> str:
        assert self._reader is not None
        raw = "".join(self._raw)
        end = len(raw) - signal.unread
        call = ToolCall(
            self._format.call_id(self._index, signal.name), signal.name, signal.arguments, raw[:end]
        )
        self._calls.append(call)
        self._events.append(ToolCallReady(self._index, call))
        self._index += 1
        self._has_begun = False
        self._raw = []
        if self._reader.is_open:
            return raw[end:] + rest
        self._reader = None
        self._call_start = None
        self._switch(in_reasoning=False)
        return raw[end:] + rest

    def _break_call(self, error: str) -> None:
        raw = "".join(self._raw)
        if self._has_begun:
            self._events.append(ToolCallBroken(self._index, raw, error))
            self._index += 1
        self._reader, self._raw, self._call_start = None, [], None
        if raw:
            self._give(raw)

    def _switch(self, *, in_reasoning: bool) -> None:
        self._in_reasoning = in_reasoning
        self._gap.clear()
        self._at_start = self._drops_space = True

    def _give(self, text: str) -> None:
        """Give out text that is no mark, except for space at its end that may belong to the next one."""
        if self._at_start and self._drops_space:
            self._gap.clear()
        body = text.rstrip() if self._in_reasoning else text.rstrip("\n")
        if body:
            self._put("".join((*self._gap, body)))
            self._gap.clear()
        if len(body) < len(text):
            self._gap.append(text[len(body) :])
        self._at_start = False

    def _put(self, text: str) -> None:
        if not text:
            return
        (self._reasoning if self._in_reasoning else self._text).append(text)
        kind = ReasoningDelta if self._in_reasoning else TextDelta
        last = self._events[-1] if self._events else None
        if isinstance(last, kind):
            self._events[-1] = kind(last.text + text)
        else:
            self._events.append(kind(text))

    def _put_fragment(self, text: str) -> None:
        last = self._events[-1] if self._events else None
        if isinstance(last, ToolCallDelta) and last.index == self._index:
            self._events[-1] = ToolCallDelta(self._index, last.fragment + text)
        else:
            self._events.append(ToolCallDelta(self._index, text))


def _overlap(text: str, marks: Sequence[str]) -> int:
    """How many characters at the end of `text` may be the beginning of a mark."""
    longest = max((len(mark) for mark in marks), default=1) - 1
    for length in range(min(longest, len(text)), 0, -1):
        ending = text[-length:]
        if any(mark.startswith(ending) for mark in marks):
            return length
    return 0
