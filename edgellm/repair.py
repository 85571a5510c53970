"""The repair of a broken call: seeing that it is broken, and having it written again under the grammar."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgellm.chat.mend import mend
from edgellm.errors import ConstraintError
from edgellm.events import CallRepaired, ToolCallBroken, ToolCallReady
from edgellm.types import SpanKind, ToolCall
from edgellm.waiting import Waiting

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from edgellm.chat.formats.wire import WireFormat
    from edgellm.chat.mend import Mended
    from edgellm.decoding import Decoding
    from edgellm.distribution import Step
    from edgellm.engine.session import Session
    from edgellm.events import Event
    from edgellm.grammars import Grammars
    from edgellm.reading import Reading
    from edgellm.types import ToolSpec

MAX_REPAIRS = 2
_SALVAGE_CHARS = 2000


class Repair:
    """Repairs the calls of one leg, `max_repairs` times at most. `find_fault` gives what is wrong with a call.

    A broken call is written on until enough of it is there to see what it was to be, then once more: what of it can
    be read as it stands, the rest drawn under the grammar.
    """

    def __init__(
        self,
        session: Session,
        reading: Reading,
        grammars: Grammars,
        wire_format: WireFormat,
        *,
        specs: Sequence[ToolSpec],
        find_fault: Callable[[ToolCall], str] | None,
        max_repairs: int,
    ) -> None:
        self._session = session
        self._reading = reading
        self._grammars = grammars
        self._format = wire_format
        self._specs = specs
        self._find_fault = find_fault
        self._repairs_left = max_repairs if specs else 0
        # What is wrong with the call that is being written; it is repaired once enough of it is there.
        self.fault: str | None = None
        # What a broken call gave out as text: sent only where nothing comes of its repair.
        self.withheld: list[Event] = []
        self.repaired_calls = 0
        # What is wrong with a call that could not be repaired, and with the last one that nobody tried to.
        self.final_fault = ""
        self._broken = ""

    # -- is it broken? -----------------------------------------------------------------------------------

    def fault_in(self, step: Step, events: Sequence[Event], was_in_call: bool) -> str | None:
        """What is wrong with the call that ended with this token; None where all is well."""
        if not self._can_repair():
            self._note_broken(events)
            return None
        for event in events:
            if isinstance(event, ToolCallBroken):
                # Not behind a call of its section that was given out: repair would take that back as well.
                return None if self._reading.has_section_call else event.error
            if isinstance(event, ToolCallReady):
                # Where the grammar was on, drawing once more would give the same again.
                return None if step.is_constrained else (self._fault_of(event.call) or None)
        if was_in_call and not self._reading.parser.in_call and not self._reading.has_section_call:
            return "it holds no call"
        return None

    def ends_broken(self) -> bool:
        """The output ends. True where that leaves a call broken which is to be repaired."""
        if self.fault is None and self._reading.parser.in_call and self._can_repair():
            self.fault = "the output ended inside it"
        return self.fault is not None

    def give_up(self, events: Sequence[Event]) -> None:
        """The leg ends without a call. What is wrong with the last one that was begun is its `final_fault`."""
        # Whoever wrote it is told: nothing else would say that no call came of it.
        self._note_broken(events)
        self.final_fault = self.final_fault or self._broken

    def is_salvaged(self, is_over: bool) -> bool:
        """Enough of a broken call has been written to see what it was to be. The model is let go on until then."""
        if is_over or self._reading.has_section_call:
            return True
        raw = self._reading.in_section()
        closing = self._format.marks.call_close
        if (closing and raw.rstrip().endswith(closing)) or len(raw) > _SALVAGE_CHARS:
            return True
        mended = mend(raw, self._specs, self._format)
        return mended is not None and mended.is_whole

    def _can_repair(self) -> bool:
        # Calls of this section that were given out already stay as they are.
        is_first = len(self._reading.calls) <= self._reading.section_calls + 1
        return self._repairs_left > 0 and self._grammars.can_constrain and is_first

    def _note_broken(self, events: Sequence[Event]) -> None:
        for event in events:
            if isinstance(event, ToolCallBroken):
                self._broken = event.error

    def _fault_of(self, call: ToolCall) -> str:
        reading = self._reading
        if len(reading.calls) == reading.section_calls + 1 and self._format.marks.call_open:
            written = reading.in_section()
            if written.startswith(("{", "[", "```")) and not written.startswith(self._format.marks.call_open):
                return "its opening mark is missing"
        return self._find_fault(call) if self._find_fault else ""

    # -- written again -----------------------------------------------------------------------------------

    def redo(self, decoding: Decoding, events: Sequence[Event]) -> Iterator[Event | Waiting]:
        """Has `decoding` write the broken call again; `events` are those of its last token.

        Gives no events where a limit comes first.
        """
        error, self.fault = self.fault or "", None
        session, reading = self._session, self._reading
        index, lead = reading.section
        before = reading.in_section()
        is_second = self._repairs_left == 1
        self._repairs_left -= 1
        try:
            constraint = self._grammars.of_call(lead, many=False)
        except ConstraintError:
            self._repairs_left = 0
            self.final_fault = error
            self.withheld += events
            return
        session.constraint = None
        self.withheld.clear()
        reading.unfeed_to(index)
        number = reading.parser.next_index
        mended = None if is_second else self._mended(before)
        redone: list[Event] = []
        if lead or mended is not None:
            text = lead + (mended.text if mended is not None else "")
            tokens = session.engine.vocabulary.tokenize(text, parse_special=True)
            if tokens := tokens[: constraint.try_consume(tokens)]:
                redone += decoding.write_tokens(tokens, SpanKind.TOOL_CALL)
        if not reading.has_section_call:
            session.constraint = constraint
            for item in decoding.draw_call():
                if isinstance(item, Waiting):
                    yield item
                else:
                    redone.append(item)
            session.constraint = None
        if not reading.has_section_call:
            # A limit came first: nothing of the call is given out.
            self.final_fault = error
            return
        call = reading.calls[-1]
        after_fault = self._fault_of(call)
        if after_fault and self._repairs_left:
            self.fault = after_fault
            yield from self.redo(decoding, redone)
            return
        self.repaired_calls += 1
        yield CallRepaired(number, before, call.raw, error)
        yield from redone

    def _mended(self, written: str) -> Mended | None:
        """What can be read of a broken call. What does not fit the tool is drawn again, all but its name."""
        mended = mend(written, self._specs, self._format)
        if mended is not None and mended.is_whole and self._find_fault is not None:
            call = ToolCall("", mended.name, mended.arguments)
            if self._find_fault(call):
                return mend(self._format.render_call_head(mended.name), self._specs, self._format)
        return mended
