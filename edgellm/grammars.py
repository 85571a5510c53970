"""The grammars that a leg is kept to: its answer's, and the calls', switched on where one begins."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgellm.errors import ConfigError, ConstraintError
from edgellm.events import Notice, ToolCallReady

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from edgellm.chat.formats.wire import WireFormat
    from edgellm.engine.session import Session
    from edgellm.events import Event
    from edgellm.reading import Reading
    from edgellm.response_format import ResponseFormat
    from edgellm.sampling.constraint import Constraint
    from edgellm.types import ConstraintMode, ToolSpec


class Grammars:
    """Puts a session under the constraint that holds for what its `reading` has come to.

    `make_constraint` turns grammar text into a constraint; None leaves calls unconstrained. `special_ids` are the
    tokens of the marks that are control tokens. `has_many`: a section may hold more than one call.
    """

    def __init__(
        self,
        session: Session,
        reading: Reading,
        wire_format: WireFormat,
        *,
        specs: Sequence[ToolSpec],
        special_ids: Mapping[str, int],
        make_constraint: Callable[[str], Constraint] | None,
        mode: ConstraintMode,
        has_many: bool,
        answer: ResponseFormat | None,
    ) -> None:
        self._session = session
        self._reading = reading
        self._format = wire_format
        self._specs = specs
        self._special_ids = special_ids
        self._make_constraint = make_constraint if specs else None
        self._is_constrained = mode != "off"
        self._is_checked = mode == "check"
        self._has_many = has_many
        self._answer_constraint = make_constraint
        # The format of the answer, until it is switched on.
        self.answer = answer

    @property
    def can_constrain(self) -> bool:
        """Calls can be kept to a grammar."""
        return self._make_constraint is not None

    def of_call(self, lead: str, *, many: bool) -> Constraint:
        """The constraint that a call, begun behind `lead`, is kept to. Raises ConstraintError."""
        if self._make_constraint is None:
            # Refused since: a call that is to be repaired may have come before.
            raise ConstraintError("calls are not kept to a grammar here.")
        return self._make_constraint(
            self._format.call_grammar(self._specs, lead=lead, many=many, special_ids=self._special_ids)
        )

    def begin_answer(self) -> None:
        """From here on the answer is kept to its format; a call may stand in its place. Raises ConstraintError."""
        assert self.answer is not None and self._answer_constraint is not None
        calls = ""
        if self._specs:
            calls = self._format.call_grammar(self._specs, many=True, special_ids=self._special_ids)
        self._session.constraint = self._answer_constraint(self.answer.grammar(calls))
        self.answer = None

    def resume(self, answer_tokens: Sequence[int]) -> None:
        """Goes on behind `answer_tokens` as if they had been drawn under a grammar.

        Raises ConfigError where they do not fit the answer's.
        """
        parser = self._reading.parser
        if self.answer is not None and not parser.in_reasoning:
            self.begin_answer()
            constraint = self._session.constraint
            if constraint is not None and constraint.try_consume(answer_tokens) < len(answer_tokens):
                self._session.constraint = None
                raise ConfigError(
                    "what there is of the answer does not fit the format.",
                    hint="Go on without it, cut the answer earlier, or ask anew.",
                )
        elif parser.in_call and self._is_constrained and self.can_constrain:
            self._begin_call([], may_take_back=False)

    def keep(self, events: list[Event], *, was_in_call: bool) -> list[Event] | None:
        """Switches the constraint on where a call has begun; None where the token is to be drawn again under it."""
        is_free = self._is_constrained and self._session.constraint is None and self.can_constrain
        if is_free and not was_in_call and self._reading.has_begun(events):
            return self._begin_call(events)
        if not self._reading.parser.in_call and any(isinstance(event, ToolCallReady) for event in events):
            # Behind a call the model is free to end: the grammar would make of a mere newline one more call.
            self._session.constraint, self._session.is_checked = None, False
        return events

    def _begin_call(self, events: list[Event], *, may_take_back: bool = True) -> list[Event] | None:
        """Puts the rest of the call under the grammar, from the token that holds the marker's first byte.

        What is refused and may not be taken back (somebody put it there) leaves the call without it.
        """
        assert self._make_constraint is not None
        reading = self._reading
        index, lead = reading.call_tokens()
        try:
            constraint = self.of_call(lead, many=self._has_many)
        except ConstraintError as error:
            self._make_constraint = None
            return [*events, Notice(f"Calls are not constrained: {error.message}")]
        session = self._session
        tokens = [session.tape.tokens[fed.position] for fed in reading.fed[index:]]
        accepted = constraint.try_consume(tokens)
        session.settle()
        session.constraint = constraint
        session.is_checked = self._is_checked
        if accepted == len(tokens):
            return events
        # Part of the call so far cannot be continued to a valid one: it is drawn again under the mask.
        # What was sent to the reader came from tokens that stay, unless the refused one is not the last.
        keep = index + accepted
        if keep < len(reading.fed) - 1 or not may_take_back:
            session.constraint = None
            return events
        reading.unfeed_last()
        return None
