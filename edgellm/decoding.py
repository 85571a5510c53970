"""One leg: tokens in, events out, with the constraint switched on where a call begins."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from edgellm.chat.mend import mend
from edgellm.chat.parser import OutputParser
from edgellm.chat.utf8 import TextDecoder
from edgellm.errors import Cancelled, ConfigError, ConstraintError, ContextFull, EdgeError
from edgellm.events import (
    CallRepaired,
    Notice,
    ReasoningDelta,
    TextDelta,
    TokenDrawn,
    ToolCallBroken,
    ToolCallDelta,
    ToolCallName,
    ToolCallReady,
    ToolCallStarted,
)
from edgellm.types import SpanKind, Step, ToolCall

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
    from edgellm.types import ConstraintMode, FinishReason, Leg, ToolSpec

MAX_REPAIRS = 2
_SALVAGE_CHARS = 2000
BUDGET_SENTENCE = "\n\nI have thought long enough and will answer now.\n"

_CALL_EVENTS = (ToolCallStarted, ToolCallName, ToolCallDelta, ToolCallReady, ToolCallBroken)


@dataclass(frozen=True, slots=True)
class Waiting:
    """Not an event: a turn cannot go on before `wait(timeout_s)` is true.

    Whoever drives one turn just waits; whoever drives many turns on one engine lets the others go first, so
    that their tokens share one batch.
    """

    wait: Callable[[float], bool]


NEXT_TOKEN = Waiting(lambda _timeout_s: True)


@dataclass(slots=True)
class _Fed:
    """A token that the parser has seen: its place on the tape, and the byte offset of its text in the leg."""

    position: int
    start: int
    piece: bytes
    text: str
    is_control: bool


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
        self._specs = specs
        self._max_tokens = max_tokens
        self._max_calls = max_calls
        self._make_constraint = make_constraint if specs else None
        self._is_constrained = constraint_mode != "off"
        self._is_checked = constraint_mode == "check"
        self._find_fault = find_fault
        self._repairs_left = max_repairs if specs else 0
        self._answer = answer
        self._answer_constraint = make_constraint
        self._reasoning_left = reasoning_budget
        self._is_shared = is_shared
        self._resumed = resumed
        texts = wire_format.texts()
        special = session.engine.vocabulary.special_tokens
        self._special_ids = {text: token for text, token in special.items() if text and text in texts}
        self._new_parser = lambda: OutputParser(
            wire_format,
            prefix=resumed.prefix if resumed is not None else prefix,
            start_index=start_index,
            tools=specs,
            expects_calls=bool(specs),
            control_marks=self._special_ids.keys(),
        )
        self._parser = self._new_parser()
        self._decoder = TextDecoder()
        self._fed: list[_Fed] = []
        # (index into the fed tokens of the one in which the open section of calls begins, its text before that)
        self._section = (0, "")
        self._section_calls = 0
        # What is wrong with the call that is being written; it is repaired once enough of it is there.
        self._fault: str | None = None
        # What a broken call gave out as text: sent only where nothing comes of its repair.
        self._withheld: list[Event] = []
        # Of an answer that goes on: the beginning of its open call, and text its reader has been given already.
        self._begun: list[Event] = []
        self._given = {TextDelta: "", ReasoningDelta: ""}
        self._length = 0
        self.finish_reason: FinishReason = "eog"
        self.decode_tokens = 0
        self.forced_tokens = 0
        self.guided_tokens = 0
        self.repaired_calls = 0
        self.decode_s = 0.0
        self._free_before = session.free_tokens
        # What is wrong with a call that could not be repaired, and with the last one that nobody tried to.
        self.fault = ""
        self._broken = ""
        if resumed is not None:
            self._resume(resumed)

    @property
    def overlay(self) -> Overlay:
        """The adapters of the chat that is answering."""
        return self._session.overlay

    @property
    def calls(self) -> Sequence[ToolCall]:
        """Complete calls, in order."""
        return self._parser.calls

    @property
    def text(self) -> str:
        """The leg's answer text."""
        return self._parser.text

    @property
    def reasoning(self) -> str:
        """The leg's reasoning."""
        return self._parser.reasoning

    def leg(self, prefill: Leg) -> Leg:
        """What the leg cost, together with its prefill."""
        return replace(
            prefill,
            decode_tokens=self.decode_tokens,
            forced_tokens=self.forced_tokens,
            guided_tokens=self.guided_tokens,
            repaired_calls=self.repaired_calls,
            free_tokens=self._session.free_tokens - self._free_before,
            decode_s=self.decode_s,
            finish_reason=self.finish_reason,
        )

    def run(self) -> Iterator[Event | Waiting]:
        """Decodes until the end of generation, a limit, a cancel, or the end of the calls.

        Raises SamplerError, ConstraintError, DecodeError; tape and memory then stand before the failed step.
        """
        session = self._session
        try:
            yield from self._begun
            while True:
                if self.decode_tokens >= self._max_tokens:
                    self.finish_reason = "length"
                    break
                if self._answer is not None and not self._parser.in_reasoning:
                    self._constrain_answer()
                if self._reasoning_left is not None and self._parser.in_reasoning:
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
                if self._resumed is not None:
                    events = self._not_given(events)
                # Not before the token is parsed: the reader may leave here, and its text is on the tape.
                if session.trace:
                    yield TokenDrawn(step)
                if self._fault is None:
                    yield from events
                elif self._is_salvaged(is_over):
                    # What the broken call gave out is taken back with it.
                    yield from self._repair(events)
                    is_over = self.finish_reason in ("length", "cancelled", "context_full")
                else:
                    self._withheld += events
                    continue
                if is_over or self._has_enough():
                    break
        finally:
            session.constraint, session.is_checked = None, False
            session.settle()
            # Also for a reader who left: what the parser still holds is part of the message.
            rest = self._finish()
        if not self.calls and self.finish_reason == "eog":
            # Whoever wrote it is told: nothing else would say that no call came of it.
            self._note_broken(rest)
            self.fault = self.fault or self._broken
        yield from self._withheld
        yield from self._not_given(rest)

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
        for fed in self._fed:
            fed.position -= moved
        return True

    def _has_enough(self) -> bool:
        parser = self._parser
        return not parser.is_quiet and len(parser.calls) >= self._max_calls and not parser.in_call

    def _constrain_answer(self) -> None:
        """From here on the answer is kept to its format; a call may stand in its place."""
        assert self._answer is not None and self._answer_constraint is not None
        calls = ""
        if self._specs:
            calls = self._format.call_grammar(self._specs, many=True, special_ids=self._special_ids)
        self._session.constraint = self._answer_constraint(self._answer.grammar(calls))
        self._answer = None

    def _end_reasoning(self) -> Iterator[Event]:
        """The budget is spent: the runtime closes the reasoning with a sentence of its own."""
        self._reasoning_left = None
        closing = self._format.marks.reasoning_close
        yield from self.write(f"{BUDGET_SENTENCE}{closing}\n\n", SpanKind.REASONING)

    def _resume(self, resumed: OpenAnswer) -> None:
        """Reads what there is of an answer that goes on. Its events were given out before, but for the call that
        was being written: that one begins anew. Raises ConfigError where the answer does not fit its format so far.
        """
        vocabulary = self._session.engine.vocabulary
        formatted: list[int] = []
        for position, token in enumerate(resumed.tokens, resumed.start):
            if self._parser.in_reasoning:
                formatted.clear()
                if self._reasoning_left is not None:
                    self._reasoning_left -= 1
            else:
                formatted.append(token)
            piece = vocabulary.piece(token)
            step = Step(token, piece, position, is_control=vocabulary.is_control(token))
            for event in self._take(step, self._decoder.feed(piece)):
                if isinstance(event, ToolCallStarted):
                    self._begun.clear()
                if isinstance(event, _CALL_EVENTS):
                    self._begun.append(event)
        if not self._parser.in_call:
            self._begun.clear()
        for kind, given, known in (
            (TextDelta, resumed.message.content, self._parser.text),
            (ReasoningDelta, resumed.message.reasoning, self._parser.reasoning),
        ):
            # What might have become a mark, or a character, was given out when the answer stopped.
            self._given[kind] = given.removeprefix(known) if given.startswith(known) else ""
        if self._answer is not None and not self._parser.in_reasoning:
            self._constrain_answer()
            constraint = self._session.constraint
            if constraint is not None and constraint.try_consume(formatted) < len(formatted):
                self._session.constraint = None
                raise ConfigError(
                    "what there is of the answer does not fit the format.",
                    hint="Go on without it, cut the answer earlier, or ask anew.",
                )
        elif self._parser.in_call and self._is_constrained and self._make_constraint is not None:
            self._constrain([], may_take_back=False)

    def _not_given(self, events: list[Event]) -> list[Event]:
        """The events without text that the reader of an answer that goes on has already."""
        if not any(self._given.values()):
            return events
        left: list[Event] = []
        for event in events:
            if not isinstance(event, TextDelta | ReasoningDelta):
                left.append(event)
                continue
            kind, given = type(event), self._given[type(event)]
            if given.startswith(event.text):
                self._given[kind] = given.removeprefix(event.text)
                continue
            self._given[kind] = ""
            left.append(kind(event.text.removeprefix(given)))
        return left

    def required(self) -> Constraint:
        """The constraint under which the very first token begins a call. Raises ConstraintError."""
        return self._grammar("", many=False)

    def write(self, text: str, kind: SpanKind = SpanKind.TOOL_CALL) -> Iterator[Event]:
        """Writes text that the model has no say in, as part of its answer: computed in one batch, not drawn."""
        session = self._session
        tokens = session.engine.vocabulary.tokenize(text, parse_special=kind == SpanKind.REASONING)
        start = len(session.tape)
        started = time.perf_counter()
        session.extend([(token, kind) for token in tokens])
        self.decode_s += time.perf_counter() - started
        for position, token in enumerate(tokens, start):
            yield from self._forced(token, position, is_guided=kind == SpanKind.TOOL_CALL)

    def end_turn(self) -> None:
        """Writes the token that ends a turn. It is computed with what follows, as if it had been drawn."""
        end = self._session.engine.vocabulary.eos
        if end is not None and self._session.engine.vocabulary.is_eog(end):
            self._session.write_pending(end, SpanKind.GLUE)
            self.decode_tokens += 1
            self.forced_tokens += 1
            self.guided_tokens += 1

    def _forced(self, token: int, position: int, *, is_guided: bool) -> Iterator[Event]:
        vocabulary = self._session.engine.vocabulary
        piece = vocabulary.piece(token)
        self.decode_tokens += 1
        self.forced_tokens += 1
        self.guided_tokens += is_guided
        is_control = vocabulary.is_control(token)
        step = Step(token, piece, position, is_control=is_control, is_forced=True, is_guided=is_guided)
        if self._session.trace:
            yield TokenDrawn(step)
        yield from self._take(step, self._decoder.feed(piece))

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
                started = time.perf_counter()
                step = replace(session.step(), is_guided=True)
                self.decode_s += time.perf_counter() - started
                self.decode_tokens += 1
                self.forced_tokens += step.is_forced
                self.guided_tokens += 1
                if session.trace:
                    yield TokenDrawn(step)
                if step.is_eog:
                    return
                yield from self._take(step, self._decoder.feed(step.piece))
        except Cancelled:
            self.finish_reason = "cancelled"
        except ContextFull:
            self.finish_reason = "context_full"
        finally:
            session.constraint = None
            session.settle()
            session.chain = own
            own.replay(session.tape.tokens[start:])

    def _take(self, step: Step, text: str) -> list[Event]:
        """Parses one token and labels it; where it shows that a call has begun, the mark's tokens too."""
        was_in_call, was_thinking = self._parser.in_call, self._parser.in_reasoning
        events = self._parse(step, text)
        return self._noted(step, events, was_in_call=was_in_call, was_thinking=was_thinking)

    def _parse(self, step: Step, text: str) -> list[Event]:
        self._fed.append(_Fed(step.position, self._length, step.piece, text, step.is_control))
        self._length += len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
        return self._parser.feed(text, is_control=step.is_control) if text else []

    def _noted(
        self, step: Step, events: list[Event], *, was_in_call: bool, was_thinking: bool
    ) -> list[Event]:
        """Labels what the token turned out to be."""
        self._label(step.position, events, was_thinking=was_thinking)
        if self._parser.in_reasoning and not was_thinking:
            self._label_reasoning_start()
        if not was_in_call and self._has_begun(events):
            self._section = self._call_tokens()
            self._section_calls = len(self.calls) - sum(isinstance(e, ToolCallReady) for e in events)
            self._label_call_start()
        return events

    def _has_begun(self, events: Sequence[Event]) -> bool:
        return self._parser.in_call or any(isinstance(event, ToolCallReady) for event in events)

    def end(self) -> Iterator[Event]:
        """Gives out what the parser still holds, and names the reason the leg ended for."""
        yield from self._finish()

    def _finish(self) -> list[Event]:
        rest = self._decoder.finish()
        events: list[Event] = self._parser.feed(rest) if rest else []
        events += self._parser.finish()
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
        written = self._written_since(self._section)
        tail = self._format.render_call_tail(self.calls[-1].name)
        at = tail.rfind(mark)
        if at < 0 or written.rstrip().endswith(mark) or len(self.calls) == self._section_calls:
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
        if step.is_eog:
            if self._fault is None and self._parser.in_call and self._can_repair():
                self._fault = "the output ended inside it"
            if self._fault is not None:
                # The call has to be whole first: the end is drawn, or written, again behind it.
                self._session.rewind(step.position)
            else:
                self._session.tape.relabel(step.position, step.position + 1, SpanKind.GLUE)
            return [], True
        text = self._decoder.feed(step.piece)
        is_quiet, was_in_call = self._parser.is_quiet and self._fault is None, self._parser.in_call
        events: list[Event] | None
        if is_quiet:
            events = self._parse(step, text)
            if self._parser.is_quiet:
                # A token of text behind text, and labelled so when it was drawn.
                return events, False
            events = self._noted(step, events, was_in_call=False, was_thinking=False)
            events = self._kept_to_grammar(events, was_in_call=False)
        else:
            events = self._kept_to_grammar(self._take(step, text), was_in_call=was_in_call)
        if events is None:
            return [], False
        if self._fault is None:
            self._fault = self._fault_in(step, events, was_in_call)
        if self._fault is not None or not self._is_past_calls(events):
            return events, False
        self._unfeed_behind_calls()
        return [], True

    def _kept_to_grammar(self, events: list[Event], *, was_in_call: bool) -> list[Event] | None:
        """Switches the constraint on where a call has begun; None where the token is to be drawn again under it."""
        is_free = (
            self._is_constrained and self._session.constraint is None and self._make_constraint is not None
        )
        if is_free and not was_in_call and self._has_begun(events):
            return self._constrain(events)
        if not self._parser.in_call and any(isinstance(event, ToolCallReady) for event in events):
            # Behind a call the model is free to end: the grammar would make of a mere newline one more call.
            self._session.constraint, self._session.is_checked = None, False
        return events

    def _label(self, position: int, events: Sequence[Event], *, was_thinking: bool) -> None:
        if self._parser.in_call or any(isinstance(event, _CALL_EVENTS) for event in events):
            kind = SpanKind.TOOL_CALL
        elif (
            was_thinking
            or self._parser.in_reasoning
            or any(isinstance(event, ReasoningDelta) for event in events)
        ):
            # The closing mark too.
            kind = SpanKind.REASONING
        else:
            kind = SpanKind.TEXT
        self._session.tape.relabel(position, position + 1, kind)

    def _label_reasoning_start(self) -> None:
        """The tokens of the opening mark belong to the reasoning too."""
        joined = "".join(fed.text for fed in self._fed)
        start = joined.rfind(self._format.marks.reasoning_open)
        if start >= 0:
            index, _ = self._token_at(joined, start)
            tape = self._session.tape
            tape.relabel(self._fed[index].position, len(tape), SpanKind.REASONING)

    def _call_tokens(self) -> tuple[int, str]:
        """(index into the fed tokens of the one that holds the call's first byte, its text before that byte)."""
        start = self._parser.call_start
        if start is None:
            return len(self._fed) - 1, ""
        return self._token_at("".join(fed.text for fed in self._fed), start)

    def _token_at(self, joined: str, start: int) -> tuple[int, str]:
        """(index of the fed token that holds character `start` of all text fed, its text before that)."""
        offset = len(joined[:start].encode("utf-8", "surrogatepass"))
        index = max(i for i, fed in enumerate(self._fed) if fed.start <= offset and fed.text)
        before = self._fed[index].text.encode("utf-8", "surrogatepass")[: offset - self._fed[index].start]
        return index, before.decode("utf-8", "surrogatepass")

    def _label_call_start(self) -> None:
        index, _ = self._call_tokens()
        tape = self._session.tape
        tape.relabel(self._fed[index].position, len(tape), SpanKind.TOOL_CALL)

    def _grammar(self, lead: str, *, many: bool) -> Constraint:
        """The constraint that a call, begun behind `lead`, is kept to. Raises ConstraintError."""
        assert self._make_constraint is not None
        return self._make_constraint(
            self._format.call_grammar(self._specs, lead=lead, many=many, special_ids=self._special_ids)
        )

    def _constrain(self, events: list[Event], *, may_take_back: bool = True) -> list[Event] | None:
        """Puts the rest of the call under the grammar, from the token that holds the marker's first byte.

        What is refused and may not be taken back (somebody put it there) leaves the call without it.
        """
        assert self._make_constraint is not None
        index, lead = self._call_tokens()
        try:
            constraint = self._grammar(lead, many=self._max_calls > 1)
        except ConstraintError as error:
            self._make_constraint = None
            return [*events, Notice(f"Calls are not constrained: {error.message}")]
        session = self._session
        tokens = [session.tape.tokens[fed.position] for fed in self._fed[index:]]
        accepted = constraint.try_consume(tokens)
        session.settle()
        session.constraint = constraint
        session.is_checked = self._is_checked
        if accepted == len(tokens):
            return events
        # Part of the call so far cannot be continued to a valid one: it is drawn again under the mask.
        # What was sent to the reader came from tokens that stay, unless the refused one is not the last.
        keep = index + accepted
        if keep < len(self._fed) - 1 or not may_take_back:
            session.constraint = None
            return events
        self._unfeed_last()
        return None

    def _unfeed_last(self) -> None:
        """Takes the last token back from tape and parser; its events were not sent."""
        fed = self._fed.pop()
        self._session.rewind(fed.position)
        self._length = fed.start
        self._refeed()

    def _unfeed_behind_calls(self) -> None:
        """Takes back all tokens behind the last call: space, the beginning of what might have been one more, text."""
        end = at = 0
        for piece in self._parser.pieces:
            at += len(piece.text.encode("utf-8", "surrogatepass"))
            is_mark = piece.kind == "mark" and bool(piece.text.strip())
            if piece.kind in ("call", "end") or (is_mark and end):
                end = at
        last = len(self._fed) - 1
        self._unfeed_to(next((i for i, fed in enumerate(self._fed) if fed.start >= end and fed.text), last))

    def _refeed(self) -> None:
        """A parser that has read what is left of the leg."""
        self._parser = self._new_parser()
        self._decoder = TextDecoder()
        for earlier in self._fed:
            text = self._decoder.feed(earlier.piece)
            if text:
                self._parser.feed(text, is_control=earlier.is_control)

    # -- repair ------------------------------------------------------------------------------------------

    def _can_repair(self) -> bool:
        # Calls of this section that were given out already stay as they are.
        is_first = len(self.calls) <= self._section_calls + 1
        return self._repairs_left > 0 and self._make_constraint is not None and is_first

    def _note_broken(self, events: Sequence[Event]) -> None:
        for event in events:
            if isinstance(event, ToolCallBroken):
                self._broken = event.error

    def _fault_in(self, step: Step, events: Sequence[Event], was_in_call: bool) -> str | None:
        """What is wrong with the call that ended with this token; None where all is well."""
        if not self._can_repair():
            self._note_broken(events)
            return None
        for event in events:
            if isinstance(event, ToolCallBroken):
                # Not behind a call of its section that was given out: repair would take that back as well.
                return event.error if len(self.calls) == self._section_calls else None
            if isinstance(event, ToolCallReady):
                # Where the grammar was on, drawing once more would give the same again.
                return None if step.is_constrained else (self._fault_of(event.call) or None)
        if was_in_call and not self._parser.in_call and len(self.calls) == self._section_calls:
            return "it holds no call"
        return None

    def _is_salvaged(self, is_over: bool) -> bool:
        """Enough of a broken call has been written to see what it was to be. The model is let go on until then."""
        if is_over or len(self.calls) > self._section_calls:
            return True
        raw = self._written_since(self._section)
        closing = self._format.marks.call_close
        if (closing and raw.rstrip().endswith(closing)) or len(raw) > _SALVAGE_CHARS:
            return True
        mended = mend(raw, self._specs, self._format)
        return mended is not None and mended.is_whole

    def _fault_of(self, call: ToolCall) -> str:
        if len(self.calls) == self._section_calls + 1 and self._format.marks.call_open:
            written = self._written_since(self._section)
            if written.startswith(("{", "[", "```")) and not written.startswith(self._format.marks.call_open):
                return "its opening mark is missing"
        return self._find_fault(call) if self._find_fault else ""

    def _written_since(self, place: tuple[int, str]) -> str:
        index, before = place
        return "".join(fed.text for fed in self._fed[index:])[len(before) :]

    def _repair(self, events: Sequence[Event]) -> Iterator[Event | Waiting]:
        """Writes the broken call again: what of it can be read, the rest drawn under the grammar."""
        assert self._make_constraint is not None
        error, self._fault = self._fault or "", None
        session = self._session
        index, lead = self._section
        before = self._written_since(self._section)
        is_second = self._repairs_left == 1
        self._repairs_left -= 1
        try:
            constraint = self._grammar(lead, many=False)
        except ConstraintError:
            self._repairs_left = 0
            self.fault = error
            self._withheld += events
            return
        session.constraint = None
        self._withheld.clear()
        self._unfeed_to(index)
        number = self._parser.next_index
        mended = None if is_second else mend(before, self._specs, self._format)
        if mended is not None and mended.is_whole and self._find_fault is not None:
            call = ToolCall("", mended.name, mended.arguments)
            # What does not fit the tool is drawn again, all but its name.
            if self._find_fault(call):
                mended = mend(self._format.render_call_head(mended.name), self._specs, self._format)
        redone: list[Event] = []
        tokens: list[int] = []
        if lead or mended is not None:
            text = lead + (mended.text if mended is not None else "")
            tokens = session.engine.vocabulary.tokenize(text, parse_special=True)
            tokens = tokens[: constraint.try_consume(tokens)]
        redone += self._write_tokens(tokens)
        known = len(self.calls)
        if len(self.calls) == self._section_calls:
            session.constraint = constraint
            for item in self._draw_call():
                if isinstance(item, Waiting):
                    yield item
                else:
                    redone.append(item)
            session.constraint = None
        if len(self.calls) == self._section_calls and known == self._section_calls:
            # A limit came first: nothing of the call is given out.
            self.fault = error
            return
        call = self.calls[-1]
        after_fault = self._fault_of(call)
        if after_fault and self._repairs_left:
            self._fault = after_fault
            yield from self._repair(redone)
            return
        self.repaired_calls += 1
        yield CallRepaired(number, before, call.raw, error)
        yield from redone

    def _write_tokens(self, tokens: Sequence[int]) -> list[Event]:
        """Writes tokens of a call that nobody draws, in one batch."""
        session = self._session
        if not tokens:
            return []
        start = len(session.tape)
        started = time.perf_counter()
        session.extend([(token, SpanKind.TOOL_CALL) for token in tokens])
        self.decode_s += time.perf_counter() - started
        events: list[Event] = []
        for position, token in enumerate(tokens, start):
            vocabulary = session.engine.vocabulary
            piece = vocabulary.piece(token)
            step = Step(token, piece, position, is_control=vocabulary.is_control(token), is_forced=True)
            self.decode_tokens += 1
            self.forced_tokens += 1
            if session.trace:
                events.append(TokenDrawn(step))
            events += self._take(step, self._decoder.feed(piece))
        return events

    def _draw_call(self) -> Iterator[Event | Waiting]:
        """Draws under the session's constraint until a call is whole or a limit is met."""
        session = self._session
        try:
            while len(self.calls) == self._section_calls or self._parser.in_call:
                if self.decode_tokens >= self._max_tokens:
                    self.finish_reason = "length"
                    return
                session.request()
                yield NEXT_TOKEN
                started = time.perf_counter()
                try:
                    step = session.step()
                except ContextFull:
                    if (yield from self._made_room()):
                        continue
                    return
                self.decode_s += time.perf_counter() - started
                self.decode_tokens += 1
                self.forced_tokens += step.is_forced
                if session.trace:
                    yield TokenDrawn(step)
                if step.is_eog:
                    session.rewind(step.position)
                    return
                yield from self._take(step, self._decoder.feed(step.piece))
        except Cancelled:
            self.finish_reason = "cancelled"
        finally:
            session.settle()

    def _unfeed_to(self, index: int) -> None:
        """Takes all tokens from the fed one `index` on back from tape and parser."""
        session = self._session
        session.settle()
        session.rewind(self._fed[index].position)
        self._length = self._fed[index].start
        del self._fed[index:]
        self._refeed()

    def _is_past_calls(self, events: Sequence[Event]) -> bool:
        """After a call: does this token begin something that is not another call?"""
        if not self.calls or self._parser.in_call:
            return False
        if self._parser.is_hiding:
            return True
        is_text = any(
            isinstance(event, (TextDelta, ReasoningDelta)) and event.text.strip() for event in events
        )
        return is_text and not any(isinstance(event, ToolCallReady) for event in events)
