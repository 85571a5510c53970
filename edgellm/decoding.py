"""One leg: tokens in, events out, with the constraint switched on where a call begins."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from edgellm.chat.parser import OutputParser
from edgellm.chat.utf8 import TextDecoder
from edgellm.errors import Cancelled, ConstraintError, ContextFull
from edgellm.events import (
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
from edgellm.types import SpanKind, Step

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from edgellm.chat.formats.wire import WireFormat
    from edgellm.engine.session import Session
    from edgellm.events import Event
    from edgellm.sampling.chain import Chain
    from edgellm.sampling.constraint import Constraint
    from edgellm.types import FinishReason, Leg, ToolCall, ToolSpec

_CALL_EVENTS = (ToolCallStarted, ToolCallName, ToolCallDelta, ToolCallReady, ToolCallBroken)


@dataclass(frozen=True, slots=True)
class Waiting:
    """Not an event: a turn cannot go on before `wait(timeout_s)` is true.

    Whoever drives one turn just waits; whoever drives many turns on one engine lets the others go first, so
    that their tokens share one batch.
    """

    wait: Callable[[float], bool]


NEXT_TOKEN = Waiting(lambda _timeout_s: True)


@dataclass(frozen=True, slots=True)
class _Fed:
    """A token that the parser has seen: its place on the tape, and the byte offset of its text in the leg."""

    position: int
    start: int
    piece: bytes
    text: str
    is_control: bool


class Decoding:
    """Runs one leg on a session and keeps what came of it.

    `make_constraint` turns grammar text into a constraint; None leaves calls unconstrained.
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
    ) -> None:
        self._session = session
        self._format = wire_format
        self._specs = specs
        self._max_tokens = max_tokens
        self._max_calls = max_calls
        self._make_constraint = make_constraint if specs else None
        self._new_parser = lambda: OutputParser(
            wire_format, prefix=prefix, start_index=start_index, tools=specs, expects_calls=bool(specs)
        )
        self._parser = self._new_parser()
        self._decoder = TextDecoder()
        self._fed: list[_Fed] = []
        self._length = 0
        self.finish_reason: FinishReason = "eog"
        self.decode_tokens = 0
        self.forced_tokens = 0
        self.guided_tokens = 0
        self.decode_s = 0.0

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
            decode_s=self.decode_s,
            finish_reason=self.finish_reason,
        )

    def run(self) -> Iterator[Event | Waiting]:
        """Decodes until the end of generation, a limit, a cancel, or the end of the calls.

        Raises SamplerError, ConstraintError, DecodeError; tape and memory then stand before the failed step.
        """
        session = self._session
        try:
            while True:
                if self.decode_tokens >= self._max_tokens:
                    self.finish_reason = "length"
                    break
                session.request()
                yield NEXT_TOKEN
                started = time.perf_counter()
                try:
                    step = session.step()
                except Cancelled:
                    self.finish_reason = "cancelled"
                    break
                except ContextFull:
                    self.finish_reason = "context_full"
                    break
                self.decode_s += time.perf_counter() - started
                self.decode_tokens += 1
                self.forced_tokens += step.is_forced
                if step.is_eog:
                    session.tape.relabel(step.position, step.position + 1, SpanKind.GLUE)
                    events, is_over = [], True
                else:
                    events = self._feed(step, self._decoder.feed(step.piece))
                    is_over = events is not None and self._is_past_calls(events)
                    if is_over:
                        self._unfeed_last()
                        events = []
                # Not before the token is parsed: the reader may leave here, and its text is on the tape.
                if session.trace:
                    yield TokenDrawn(step)
                yield from events or ()
                if is_over or (len(self.calls) >= self._max_calls and not self._parser.in_call):
                    break
        finally:
            session.constraint = None
            session.settle()
            # Also for a reader who left: what the parser still holds is part of the message.
            rest = self._finish()
        yield from rest

    def write(self, text: str) -> Iterator[Event]:
        """Writes text that the model has no say in, as part of its answer: computed in one batch, not drawn."""
        session = self._session
        tokens = session.engine.vocabulary.tokenize(text)
        start = len(session.tape)
        started = time.perf_counter()
        session.extend([(token, SpanKind.TOOL_CALL) for token in tokens])
        self.decode_s += time.perf_counter() - started
        for position, token in enumerate(tokens, start):
            yield from self._forced(token, position)

    def end_turn(self) -> None:
        """Writes the token that ends a turn. It is computed with what follows, as if it had been drawn."""
        end = self._session.engine.vocabulary.eos
        if end is not None and self._session.engine.vocabulary.is_eog(end):
            self._session.write_pending(end, SpanKind.GLUE)
            self.decode_tokens += 1
            self.forced_tokens += 1
            self.guided_tokens += 1

    def _forced(self, token: int, position: int) -> Iterator[Event]:
        vocabulary = self._session.engine.vocabulary
        piece = vocabulary.piece(token)
        self.decode_tokens += 1
        self.forced_tokens += 1
        self.guided_tokens += 1
        step = Step(token, piece, position, is_forced=True, is_guided=True)
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
        was_in_call = self._parser.in_call
        self._fed.append(_Fed(step.position, self._length, step.piece, text, step.is_control))
        self._length += len(text.encode("utf-8", "surrogatepass"))
        events: list[Event] = self._parser.feed(text, is_control=step.is_control) if text else []
        self._label(step.position, events)
        if not was_in_call and self._has_begun(events):
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
        return events

    def _feed(self, step: Step, text: str) -> list[Event] | None:
        """Parses one token; None where it was taken back to be drawn again under the grammar."""
        was_in_call = self._parser.in_call
        events = self._take(step, text)
        is_free = self._session.constraint is None and self._make_constraint is not None
        if is_free and not was_in_call and self._has_begun(events):
            return self._constrain(events)
        return events

    def _label(self, position: int, events: Sequence[Event]) -> None:
        if self._parser.in_call or any(isinstance(event, _CALL_EVENTS) for event in events):
            kind = SpanKind.TOOL_CALL
        elif self._parser.in_reasoning or any(isinstance(event, ReasoningDelta) for event in events):
            kind = SpanKind.REASONING
        else:
            kind = SpanKind.TEXT
        self._session.tape.relabel(position, position + 1, kind)

    def _call_tokens(self) -> tuple[int, str]:
        """(index into the fed tokens of the one that holds the call's first byte, its text before that byte)."""
        start = self._parser.call_start
        if start is None:
            return len(self._fed) - 1, ""
        joined = "".join(fed.text for fed in self._fed)
        offset = len(joined[:start].encode("utf-8", "surrogatepass"))
        index = max(i for i, fed in enumerate(self._fed) if fed.start <= offset and fed.text)
        before = self._fed[index].text.encode("utf-8", "surrogatepass")[: offset - self._fed[index].start]
        return index, before.decode("utf-8", "surrogatepass")

    def _label_call_start(self) -> None:
        index, _ = self._call_tokens()
        tape = self._session.tape
        tape.relabel(self._fed[index].position, len(tape), SpanKind.TOOL_CALL)

    def _constrain(self, events: list[Event]) -> list[Event] | None:
        """Puts the rest of the call under the grammar, from the token that holds the marker's first byte."""
        assert self._make_constraint is not None
        index, lead = self._call_tokens()
        try:
            grammar = self._format.call_grammar(self._specs, lead=lead, many=self._max_calls > 1)
            constraint = self._make_constraint(grammar)
        except ConstraintError as error:
            self._make_constraint = None
            return [*events, Notice(f"Calls are not constrained: {error.message}")]
        session = self._session
        tokens = [session.tape.tokens[fed.position] for fed in self._fed[index:]]
        accepted = constraint.try_consume(tokens)
        session.settle()
        session.constraint = constraint
        if accepted == len(tokens):
            return events
        # Part of the call so far cannot be continued to a valid one: it is drawn again under the mask.
        # What was sent to the reader came from tokens that stay, unless the refused one is not the last.
        keep = index + accepted
        if keep < len(self._fed) - 1:
            session.constraint = None
            return events
        self._unfeed_last()
        return None

    def _unfeed_last(self) -> None:
        """Takes the last token back from tape and parser; its events were not sent."""
        fed = self._fed.pop()
        self._session.rewind(fed.position)
        self._length = fed.start
        self._parser = self._new_parser()
        self._decoder = TextDecoder()
        for earlier in self._fed:
            text = self._decoder.feed(earlier.piece)
            if text:
                self._parser.feed(text, is_control=earlier.is_control)

    def _is_past_calls(self, events: Sequence[Event]) -> bool:
        """After a call: does this token begin something that is not another call?"""
        if not self.calls or self._parser.in_call:
            return False
        is_text = any(
            isinstance(event, (TextDelta, ReasoningDelta)) and event.text.strip() for event in events
        )
        return is_text and not any(isinstance(event, ToolCallReady) for event in events)
