"""One leg: tokens drawn or written, events out, until it ends."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from edgellm.circling import LOOK_EACH, Circling
from edgellm.distribution import Step
from edgellm.errors import Cancelled, ContextFull, EdgeError
from edgellm.events import TokenDrawn
from edgellm.grammars import Grammars
from edgellm.reading import Reading
from edgellm.repair import MAX_REPAIRS, Repair
from edgellm.resuming import Resumption
from edgellm.types import SpanKind
from edgellm.waiting import NEXT_TOKEN, Waiting

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence

    from edgellm.chat.formats.wire import WireFormat
    from edgellm.conversation import OpenAnswer
    from edgellm.engine.session import Session
    from edgellm.events import Event
    from edgellm.native.overlay import Overlay
    from edgellm.response_format import ResponseFormat
    from edgellm.sampling.chain import Chain
    from edgellm.sampling.constraint import Constraint
    from edgellm.types import ConstraintMode, FinishReason, ToolCall, ToolSpec
    from edgellm.usage import Leg

BUDGET_SENTENCE = "\n\nI have thought long enough and will answer now.\n"


class Decoding:
    """Runs one leg on a session and keeps what came of it.

    `make_constraint` turns grammar text into a constraint; None leaves calls unconstrained. `make_room` is asked when
    the context is full: it gives by how many tokens the tape in front of the leg became shorter.
    """

    def __init__(
        self,
        session: Session,
        wire_format: WireFormat,
        *,
        specs: Sequence[ToolSpec],
        prefix: str,
        start_index: int,
        max_tokens: int,
        max_calls: int,
        make_constraint: Callable[[str], Constraint] | None,
        constraint_mode: ConstraintMode = "force",
        find_fault: Callable[[ToolCall], str] | None = None,
        max_repairs: int = MAX_REPAIRS,
        answer: ResponseFormat | None = None,
        reasoning_budget: int | None = None,
        is_shared: bool = False,
        resumed: OpenAnswer | None = None,
        make_room: Callable[[], Generator[Event | Waiting, None, int]] | None = None,
    ) -> None:
        self._session = session
        self._room = make_room
        self._format = wire_format
        self._max_tokens = max_tokens
        self._max_calls = max_calls
        self._reasoning_left = reasoning_budget
        self._is_shared = is_shared
        texts = wire_format.texts()
        special = session.engine.vocabulary.special_tokens
        special_ids = {text: token for text, token in special.items() if text and text in texts}
        self._reading = Reading(
            session,
            wire_format,
            specs=specs,
            prefix=resumed.prefix if resumed is not None else prefix,
            start_index=start_index,
            control_marks=special_ids.keys(),
        )
        self._grammars = Grammars(
            session,
            self._reading,
            wire_format,
            specs=specs,
            special_ids=special_ids,
            make_constraint=make_constraint,
            mode=constraint_mode,
            has_many=max_calls > 1,
            answer=answer,
        )
        self._repair = Repair(
            session,
            self._reading,
            self._grammars,
            wire_format,
            specs=specs,
            find_fault=find_fault,
            max_repairs=max_repairs,
        )
        self._circling = Circling()
        self.finish_reason: FinishReason = "eog"
        self.decode_tokens = 0
        self.forced_tokens = 0
        self.guided_tokens = 0
        self.decode_s = 0.0
        self._free_before = session.free_tokens
        self._resumption: Resumption | None = None
        if resumed is not None:
            self._resumption = Resumption(resumed, self._reading, session.engine.vocabulary)
            if self._reasoning_left is not None:
                self._reasoning_left -= self._resumption.reasoning_tokens
            self._grammars.resume(self._resumption.answer_tokens)

    @property
    def overlay(self) -> Overlay:
        """The adapters of the chat that is answering."""
        return self._session.overlay

    @property
    def calls(self) -> Sequence[ToolCall]:
        """Complete calls, in order."""
        return self._reading.parser.calls

    @property
    def text(self) -> str:
        """The leg's answer text."""
        return self._reading.parser.text

    @property
    def reasoning(self) -> str:
        """The leg's reasoning."""
        return self._reading.parser.reasoning

    @property
    def fault(self) -> str:
        """What was wrong with a call of which nothing came; "" where there was none."""
        return self._repair.final_fault

    def leg(self, prefill: Leg) -> Leg:
        """What the leg cost, together with its prefill."""
        return replace(
            prefill,
            decode_tokens=self.decode_tokens,
            forced_tokens=self.forced_tokens,
            guided_tokens=self.guided_tokens,
            repaired_calls=self._repair.repaired_calls,
            free_tokens=self._session.free_tokens - self._free_before,
            decode_s=self.decode_s,
            finish_reason=self.finish_reason,
        )

    def run(self) -> Iterator[Event | Waiting]:
        """Decodes until the end of generation, a limit, a cancel, or the end of the calls.

        Raises SamplerError, ConstraintError, DecodeError; tape and memory then stand before the failed step.
        """
        session, reading, resumption = self._session, self._reading, self._resumption
        grammars, repair = self._grammars, self._repair
        try:
            if resumption is not None:
                yield from resumption.begun
            while True:
                if self.decode_tokens >= self._max_tokens:
                    self.finish_reason = "length"
                    break
                if grammars.answer is not None and not reading.parser.in_reasoning:
                    grammars.begin_answer()
                if self._reasoning_left is not None and reading.parser.in_reasoning:
                    if self._reasoning_left <= 0:
                        yield from self._end_reasoning()
                        continue
                    self._reasoning_left -= 1
                if self._is_shared:
                    # Others join the batch of the next step.
                    session.request()
                    yield NEXT_TOKEN
                started = time.perf_counter()
                try:
                    step = session.step()
                except Cancelled:
                    self.finish_reason = "cancelled"
                    break
                except ContextFull:
                    if (yield from self._made_room()):
                        continue
                    break
                self.decode_s += time.perf_counter() - started
                self.decode_tokens += 1
                self.forced_tokens += step.is_forced
                events, is_over = self._read(step)
                if resumption is not None:
                    events = resumption.not_given(events)
                # Not before the token is parsed: the reader may leave here, and its text is on the tape.
                if session.trace:
                    yield TokenDrawn(step)
                if repair.fault is None:
                    yield from events
                elif repair.is_salvaged(is_over):
                    # What the broken call gave out is taken back with it.
                    yield from repair.redo(self, events)
                    is_over = self.finish_reason in ("length", "cancelled", "context_full")
                else:
                    repair.withheld += events
                    continue
                if is_over or self._has_enough():
                    break
                if not self.decode_tokens % LOOK_EACH and not reading.parser.in_call:
                    yield from self._circling.look(session.tape.tokens, self.decode_tokens)
        finally:
            session.constraint, session.is_checked = None, False
            session.settle()
            # Also for a reader who left: what the parser still holds is part of the message.
            rest = self._finish()
        if not self.calls and self.finish_reason == "eog":
            repair.give_up(rest)
        yield from repair.withheld
        yield from resumption.not_given(rest) if resumption is not None else rest

    def _made_room(self) -> Generator[Event | Waiting, None, bool]:
        """The context is full: true where there is room again, else the leg is over."""
        try:
            moved = (yield from self._room()) if self._room is not None else 0
        except Cancelled:
            self.finish_reason = "cancelled"
            return False
        if not moved:
            self.finish_reason = "context_full"
            return False
        self._reading.moved(moved)
        return True

    def _has_enough(self) -> bool:
        parser = self._reading.parser
        return not parser.is_quiet and len(parser.calls) >= self._max_calls and not parser.in_call

    def _end_reasoning(self) -> Iterator[Event]:
        """The budget is spent: the runtime closes the reasoning with a sentence of its own."""
        self._reasoning_left = None
        closing = self._format.marks.reasoning_close
        yield from self.write(f"{BUDGET_SENTENCE}{closing}\n\n", SpanKind.REASONING)

    def required(self) -> Constraint:
        """The constraint under which the very first token begins a call. Raises ConstraintError."""
        return self._grammars.of_call("", many=False)

    def write(self, text: str, kind: SpanKind = SpanKind.TOOL_CALL) -> Iterator[Event]:
        """Writes text that the model has no say in, as part of its answer: computed in one batch, not drawn."""
        tokens = self._session.engine.vocabulary.tokenize(text, parse_special=kind == SpanKind.REASONING)
        yield from self.write_tokens(tokens, kind, is_guided=kind == SpanKind.TOOL_CALL)

    def write_tokens(
        self, tokens: Sequence[int], kind: SpanKind, *, is_guided: bool = False
    ) -> Iterator[Event]:
        """`write` for tokens."""
        session = self._session
        start = len(session.tape)
        started = time.perf_counter()
        session.extend([(token, kind) for token in tokens])
        self.decode_s += time.perf_counter() - started
        vocabulary = session.engine.vocabulary
        for position, token in enumerate(tokens, start):
            self.decode_tokens += 1
            self.forced_tokens += 1
            self.guided_tokens += is_guided
            piece, is_control = vocabulary.piece(token), vocabulary.is_control(token)
            step = Step(token, piece, position, is_control=is_control, is_forced=True, is_guided=is_guided)
            if session.trace:
                yield TokenDrawn(step)
            yield from self._reading.take(step)

    def end_turn(self) -> None:
        """Writes the token that ends a turn. It is computed with what follows, as if it had been drawn."""
        end = self._session.engine.vocabulary.eos
        if end is not None and self._session.engine.vocabulary.is_eog(end):
            self._session.write_pending(end, SpanKind.GLUE)
            self.decode_tokens += 1
            self.forced_tokens += 1
            self.guided_tokens += 1

    def draw_under(self, constraint: Constraint, chain: Chain) -> Iterator[Event | Waiting]:
        """Draws with another chain under a constraint until the constraint is complete or a limit is met."""
        session = self._session
        start, own = len(session.tape), session.chain
        session.chain, session.constraint = chain, constraint
        try:
            while not constraint.is_stopped:
                if self.decode_tokens >= self._max_tokens:
                    self.finish_reason = "length"
                    return
                session.request()
                yield NEXT_TOKEN
                step = replace(self._drawn(), is_guided=True)
                self.guided_tokens += 1
                if session.trace:
                    yield TokenDrawn(step)
                if step.is_eog:
                    return
                yield from self._reading.take(step)
        except Cancelled:
            self.finish_reason = "cancelled"
        except ContextFull:
            self.finish_reason = "context_full"
        finally:
            session.constraint = None
            session.settle()
            session.chain = own
            own.replay(session.tape.tokens[start:])

    def draw_call(self) -> Iterator[Event | Waiting]:
        """Draws under the session's constraint until a call is whole or a limit is met."""
        session, reading = self._session, self._reading
        try:
            while not reading.has_section_call or reading.parser.in_call:
                if self.decode_tokens >= self._max_tokens:
                    self.finish_reason = "length"
                    return
                session.request()
                yield NEXT_TOKEN
                try:
                    step = self._drawn()
                except ContextFull:
                    if (yield from self._made_room()):
                        continue
                    return
                if session.trace:
                    yield TokenDrawn(step)
                if step.is_eog:
                    session.rewind(step.position)
                    return
                yield from reading.take(step)
        except Cancelled:
            self.finish_reason = "cancelled"
        finally:
            session.settle()

    def _drawn(self) -> Step:
        """One token, counted. Raises as `Session.step`."""
        started = time.perf_counter()
        step = self._session.step()
        self.decode_s += time.perf_counter() - started
        self.decode_tokens += 1
        self.forced_tokens += step.is_forced
        return step

    def end(self) -> Iterator[Event]:
        """Gives out what the parser still holds, and names the reason the leg ended for."""
        yield from self._finish()

    def _finish(self) -> list[Event]:
        events = self._reading.finish()
        if self.calls and self.finish_reason == "eog":
            self.finish_reason = "tool_call"
        if self.calls:
            self._close_calls()
        return events

    def _close_calls(self) -> None:
        """Writes what is missing of the mark behind the last call, where a limit, a cancel or a reader who left came
        in front of it: a result may not stand inside a call. It is computed with what follows."""
        session, mark = self._session, self._format.marks.call_close.strip()
        vocabulary = session.engine.vocabulary
        if not mark or not session.tape.tokens or vocabulary.is_eog(session.tape.tokens[-1]):
            return
        written = self._reading.in_section()
        tail = self._format.render_call_tail(self.calls[-1].name)
        at = tail.rfind(mark)
        if at < 0 or written.rstrip().endswith(mark) or not self._reading.has_section_call:
            return
        closing = tail[len(tail[:at].rstrip()) : at + len(mark)]
        there = next(size for size in range(len(closing), -1, -1) if written.endswith(closing[:size]))
        with suppress(EdgeError):  # no room for it: nothing can follow either
            for token in vocabulary.tokenize(closing[there:], parse_special=True):
                session.write_pending(token, SpanKind.TOOL_CALL)
                self.decode_tokens += 1
                self.forced_tokens += 1

    def _read(self, step: Step) -> tuple[list[Event], bool]:
        """(events of one drawn token, whether the leg is over)."""
        reading, repair = self._reading, self._repair
        parser = reading.parser
        if step.is_eog:
            if repair.ends_broken():
                # The call has to be whole first: the end is drawn, or written, again behind it.
                self._session.rewind(step.position)
            else:
                self._session.tape.relabel(step.position, step.position + 1, SpanKind.GLUE)
            return [], True
        is_quiet, was_in_call = parser.is_quiet and repair.fault is None, parser.in_call
        was_thinking = not is_quiet and parser.in_reasoning
        read = reading.parse(step)
        if is_quiet and parser.is_quiet:
            # A token of text behind text, and labelled so when it was drawn.
            return read, False
        read = reading.noted(step, read, was_in_call=was_in_call, was_thinking=was_thinking)
        events = self._grammars.keep(read, was_in_call=was_in_call)
        if events is None:
            return [], False
        if repair.fault is None:
            repair.fault = repair.fault_in(step, events, was_in_call)
        if repair.fault is not None or not reading.is_past_calls(events):
            return events, False
        reading.unfeed_behind_calls()
        return [], True
