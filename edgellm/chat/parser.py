"""Model output as events, while it is being written.

Fed text in pieces of any size, it gives the same events for the same text, once neighbouring deltas are
joined. It holds back no more than may still become a mark, and swallows nothing but the marks and the
white space that belongs to them:

- space around reasoning, newlines directly before a call, and space after a call that no text follows, or with no
  text before it, belong to the marks;
- all other space is text, as the model wrote it.

What began like a call and is none is given out again, where it stood: as text, or as reasoning if it stood
inside reasoning. A call in which the output ends is not, nor one that is whole but has no name, no object of
arguments, or the name of a tool that was not offered to a family that takes no other: it is in the event
ToolCallBroken. (`WireFormat.takes_only_offered` and `broken_is_text` say which families differ.)
A call ends reasoning that was still open.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from edgellm.chat.formats import wire
from edgellm.chat.mark_search import MarkSearch
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

PieceKind = Literal["text", "reasoning", "call", "mark", "broken", "end"]


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of output and what it was taken for.

    "mark" is what is not shown: marks, and space around them. "broken" is a call in which the output ended, or one that
    lacks a name or its arguments; "end" is what closes a section of calls.
    """

    kind: PieceKind
    text: str


class OutputParser:
    """Turns the text of one assistant turn into events.

    `prefix` is the generation prompt the output continues: it may have opened the reasoning already.
    `start_index` is the number of the turn's first call here. Without `expects_calls` call marks are text.
    `control_marks` are the marks that this vocabulary spells as one control token: the same characters written
    as plain text are text.
    """

    def __init__(
        self,
        wire_format: wire.WireFormat,
        *,
        prefix: str = "",
        start_index: int = 0,
        tools: Sequence[ToolSpec] = (),
        expects_calls: bool = True,
        control_marks: Collection[str] = (),
    ) -> None:
        self._format = wire_format
        self._tools = tools
        self._names = frozenset(tool.name for tool in tools)
        self._in_reasoning = wire_format.opens_reasoning(prefix)
        if self._in_reasoning and not wire_format.is_thinking:
            wire_format = replace(wire_format, is_thinking=True)
        marks = [
            mark for mark in wire_format.scan_marks() if expects_calls or mark.does not in ("call", "maybe")
        ]
        # A token that may also begin a longer mark is read as text.
        self._control_marks = {
            mark.text: mark
            for mark in marks
            if mark.text in control_marks
            and not any(other.text.startswith(mark.text) and other.text != mark.text for other in marks)
        }
        self._marks_in = {
            inside: MarkSearch(
                [
                    mark
                    for mark in marks
                    if mark.inside in ("both", inside) and mark.text not in self._control_marks
                ]
            )
            for inside in ("text", "reasoning")
        }
        # Nothing but space so far in this stretch; whether that space belongs to the mark before it.
        self._at_start = True
        self._drops_space = self._in_reasoning
        # Space between a call and more text keeps that apart from the text before the call.
        self._after_call = False
        self._at_line = True
        self._gap: list[str] = []
        self._hold = ""
        self._fed = 0
        self._reader: wire.CallReader | None = None
        self._mark = ""
        self._raw: list[str] = []
        self._raw_start = 0
        self._is_call = False
        self._has_begun = False
        self._is_hiding = False
        self._index = start_index
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._calls: list[ToolCall] = []
        self._events: list[Event] = []
        self._pieces: list[Piece] = []
        if expects_calls and (reader := wire_format.opening_reader(prefix, tools)):
            self._open_reader(reader, "", is_call=False)

    @property
    def in_call(self) -> bool:
        """An opening mark has been read, and the call behind it, or the section of calls, has not ended."""
        return self._reader is not None and (self._is_call or self._has_begun)

    @property
    def is_hiding(self) -> bool:
        """Results that the model made up are being read: neither text nor a call."""
        return self._is_hiding

    @property
    def is_quiet(self) -> bool:
        """Neither reasoning nor a call is open, and none has ended in a call so far: all is text."""
        return self._reader is None and not self._in_reasoning and not self._calls

    @property
    def in_reasoning(self) -> bool:
        """Output goes to the reasoning now."""
        return self._in_reasoning

    @property
    def next_index(self) -> int:
        """The number of the open call, or of the next one."""
        return self._index

    @property
    def call_start(self) -> int | None:
        """Where the open call's first marker character stands in the text fed so far; None outside a call."""
        return self._raw_start if self.in_call else None

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

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """All text that is not held back, as what it was taken for: joined, it is what was fed."""
        return tuple(self._pieces)

    def feed(self, piece: str, *, is_control: bool = False) -> list[Event]:
        """The events that are certain after `piece`. `is_control`: it is the spelling of a control token."""
        self._fed += len(piece)
        if (
            self._reader is None
            and not (is_control or self._hold or self._gap or self._at_start)
            and self._marks_in["reasoning" if self._in_reasoning else "text"].is_plain(piece)
        ):
            # Nearly all text: nothing in it can be, or begin, a mark.
            self._at_line = False
            self._put(piece)
            return self._take_events()
        self._read(piece, is_control)
        return self._take_events()

    def _read(self, piece: str, is_control: bool) -> None:
        rest = piece
        if is_control and self._reader is None:
            rest = self._control(piece)
        elif is_control:
            rest = self._read_call(piece, True)
            if self._reader is None and rest.endswith(piece):
                # The reader has given it back, perhaps with text before it: it is a control token still.
                self._read(rest.removesuffix(piece), False)
                self._read(piece, True)
                return
        while rest:
            rest = self._read_call(rest, False) if self._reader else self._scan(rest)

    def finish(self) -> list[Event]:
        """The output has ended: what was held back is given out, an open call is complete or broken."""
        while self._reader:
            rest = self._handle(self._reader.finish(), "")
            if self._reader:
                rest = self._leave_call("the output ended inside it", is_call=True) + rest
            while rest:
                rest = self._read_call(rest, False) if self._reader else self._scan(rest)
        hold, self._hold = self._hold, ""
        if hold:
            self._give(hold)
        if self._at_start and self._drops_space:
            self._take_gap()
        else:
            self._put("".join(self._gap))
            self._gap.clear()
        return self._take_events()

    def _take_events(self) -> list[Event]:
        events, self._events = self._events, []
        return events

    def _control(self, piece: str) -> str:
        """A control token outside a call: a mark, or else text like any other; gives what is left to read."""
        mark = self._control_marks.get(piece)
        if mark is None or mark.inside not in ("both", "reasoning" if self._in_reasoning else "text"):
            return piece
        if self._hold:
            hold, self._hold = self._hold, ""
            self._give(hold)
        if mark.where == "start" and not self._at_start:
            return piece
        self._act(mark, self._fed - len(piece))
        return ""

    def _scan(self, piece: str) -> str:
        """Read text or reasoning up to the next mark; gives what stands behind it."""
        text = self._hold + piece
        self._hold = ""
        marks = self._marks_in["reasoning" if self._in_reasoning else "text"]
        if self._at_start:
            body = text.lstrip()
            if len(body) < len(text):
                space = text[: len(text) - len(body)]
                self._gap.append(space)
                self._at_line = self._at_line or "\n" in space
            text = body
        at, mark = marks.first(text, is_start=self._at_start, is_line=self._at_line)
        if at:
            self._give(text[:at])
        if mark is None:
            self._hold = text[at:]
            return ""
        rest = text[at + len(mark.text) :]
        # `piece` is the end of what was fed, so the mark's place is counted from there.
        self._act(mark, self._fed - len(rest) - len(mark.text))
        return rest

    def _act(self, mark: wire.Mark, start: int) -> None:
        """Does what a mark says. It begins at `start` of the text fed."""
        if mark.does in ("call", "maybe"):
            self._open_reader(
                self._format.reader(self._tools, mark.text),
                mark.text,
                is_call=mark.does == "call",
                start=start,
            )
        elif mark.does == "drop":
            # Nothing around it belongs to it: what was held back as space goes on being that.
            self._put_gap()
            self._piece("mark", mark.text)
        else:
            self._switch(in_reasoning=mark.does == "reason", mark=mark.text)

    def _open_reader(self, reader: wire.CallReader, mark: str, *, is_call: bool, start: int = 0) -> None:
        self._reader = reader
        self._mark = mark
        self._is_call = is_call
        self._has_begun = False
        self._raw = [mark] if mark else []
        self._raw_start = start

    def _read_call(self, piece: str, is_control: bool) -> str:
        assert self._reader is not None
        consumed, signals = self._reader.feed(piece, is_control=is_control)
        self._raw.append(piece[:consumed])
        return self._handle(signals, piece[consumed:])

    def _handle(self, signals: list[wire.Signal], rest: str) -> str:
        """Turns a reader's signals into events; gives what is to be read by others, `rest` last."""
        for number, signal in enumerate(signals, 1):
            match signal:
                case wire.Begun():
                    self._has_begun = True
                    self._events.append(ToolCallStarted(self._index))
                case wire.Named(name):
                    self._events.append(ToolCallName(self._index, name))
                case wire.Fragment(text):
                    self._put_fragment(text)
                case wire.Complete():
                    is_last = number == len(signals) and not (self._reader and self._reader.is_open)
                    self._end_call(signal, keeps_space=not is_last)
                    if is_last:
                        rest = self._leave() + rest
                case wire.Hidden():
                    self._is_hiding = True
                case wire.Closed(unread):
                    kind = "mark" if self._is_hiding else "end"
                    self._drop_raw(self._unread_space(unread), kind)
                    self._after_call = self._after_call or self._is_hiding
                    rest = self._leave() + rest
                case wire.Enter(what, unread):
                    self._drop_raw(unread)
                    rest = self._leave() + rest
                    self._switch(in_reasoning=what == "reasoning")
                case wire.NotACall(error, unread, is_cut, is_whole):
                    rest = self._leave_call(error, unread, is_call=is_cut or is_whole) + rest
        return rest

    def _cut_raw(self, unread: int) -> str:
        """Takes what was read so far but for its last `unread` characters."""
        raw = "".join(self._raw)
        end = len(raw) - unread
        self._raw = [raw[end:]] if unread else []
        self._raw_start += end
        return raw[:end]

    def _unread_space(self, unread: int) -> int:
        """`unread`, and the space in front of it: whether it belongs to the call depends on what follows."""
        raw = "".join(self._raw)
        return len(raw) - len(raw[: len(raw) - unread].rstrip())

    def _end_call(self, signal: wire.Complete, *, keeps_space: bool) -> None:
        raw = self._cut_raw(signal.unread if keeps_space else self._unread_space(signal.unread))
        if self._format.takes_only_offered and self._tools and signal.name not in self._names:
            listed = ", ".join(sorted(self._names))
            self._break(raw, f"{signal.name!r} is not a tool, there is {listed}", is_call=True)
            return
        self._take_gap()
        call = ToolCall(self._format.call_id(self._index, signal.name), signal.name, signal.arguments, raw)
        self._calls.append(call)
        self._piece("call", raw)
        self._events.append(ToolCallReady(self._index, call))
        self._index += 1
        self._has_begun = False
        self._in_reasoning = False
        self._at_start = self._drops_space = self._after_call = True

    def _drop_raw(self, unread: int, kind: PieceKind = "mark") -> None:
        if raw := self._cut_raw(unread):
            self._take_gap()
            self._piece(kind, raw)
        self._at_start = self._drops_space = True

    def _leave(self) -> str:
        """The reader is finished; what it has not read goes on as anything."""
        left = "".join(self._raw)
        self._reader, self._raw = None, []
        self._is_call = self._has_begun = self._is_hiding = False
        return left

    def _leave_call(self, error: str, unread: int = 0, *, is_call: bool = False) -> str:
        """It gives no call: what was written is text again, unless it `is_call` and nothing else. Gives what is to be
        read again."""
        raw = self._cut_raw(unread)
        if self._has_begun:
            self._break(raw, error, is_call=is_call)
            return self._leave()
        # Never a call: only its mark is certain to be no mark.
        keep = len(self._mark)
        self._raw.insert(0, raw[keep:])
        if keep:
            self._give(raw[:keep])
        return self._leave()

    def _break(self, raw: str, error: str, *, is_call: bool) -> None:
        """The open call is broken. What was written of it is text, unless it `is_call` and nothing else."""
        self._events.append(ToolCallBroken(self._index, raw, error))
        self._index += 1
        self._has_begun = False
        if is_call and not self._format.broken_is_text:
            self._take_gap()
            self._piece("broken", raw)
            # What follows is told apart from what was before, as behind a call.
            self._at_start = self._drops_space = self._after_call = True
        elif raw:
            self._give(raw)

    def _switch(self, *, in_reasoning: bool, mark: str = "") -> None:
        self._take_gap()
        if mark:
            self._piece("mark", mark)
        self._in_reasoning = in_reasoning
        self._at_start = self._drops_space = True
        self._after_call = False

    def _take_gap(self) -> None:
        """The space held back belongs to a mark."""
        self._piece("mark", "".join(self._gap))
        self._gap.clear()

    def _put_gap(self) -> None:
        """The space held back is decided now: in front of a mark that is not shown, nothing may wait."""
        if self._at_start and self._drops_space and not (self._after_call and self._text):
            self._take_gap()
        else:
            self._put("".join(self._gap))
            self._gap.clear()

    def _give(self, text: str) -> None:
        """Give out text that is no mark, except for space at its end that may belong to the next one."""
        if self._at_start and self._drops_space and not (self._after_call and self._text):
            self._take_gap()
        self._after_call = False
        body = text.rstrip() if self._in_reasoning else text.rstrip("\n")
        if body:
            self._put("".join((*self._gap, body)))
            self._gap.clear()
        if len(body) < len(text):
            self._gap.append(text[len(body) :])
        self._at_start = False
        self._at_line = text.endswith("\n")

    def _put(self, text: str) -> None:
        if not text:
            return
        (self._reasoning if self._in_reasoning else self._text).append(text)
        self._piece("reasoning" if self._in_reasoning else "text", text)
        kind = ReasoningDelta if self._in_reasoning else TextDelta
        last = self._events[-1] if self._events else None
        if isinstance(last, kind):
            self._events[-1] = kind(last.text + text)
        else:
            self._events.append(kind(text))

    def _piece(self, kind: PieceKind, text: str) -> None:
        if text:
            self._pieces.append(Piece(kind, text))

    def _put_fragment(self, text: str) -> None:
        last = self._events[-1] if self._events else None
        if isinstance(last, ToolCallDelta) and last.index == self._index:
            self._events[-1] = ToolCallDelta(self._index, last.fragment + text)
        else:
            self._events.append(ToolCallDelta(self._index, text))
