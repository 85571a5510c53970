"""An answer that goes on: reading what there is of it, and giving nothing of it twice."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgellm.distribution import Step
from edgellm.events import ReasoningDelta, TextDelta, ToolCallStarted
from edgellm.reading import CALL_EVENTS

if TYPE_CHECKING:
    from edgellm.conversation import OpenAnswer
    from edgellm.events import Event
    from edgellm.native.vocabulary import Vocabulary
    from edgellm.reading import Reading


class Resumption:
    """Reads an open answer into the `reading` of the leg that goes on with it.

    Its events were given out before, but for those in `begun`: the call that was being written begins anew.
    `reasoning_tokens` are so many of its tokens, `answer_tokens` those behind the reasoning.
    """

    def __init__(self, answer: OpenAnswer, reading: Reading, vocabulary: Vocabulary) -> None:
        self.begun: list[Event] = []
        self.answer_tokens: list[int] = []
        self.reasoning_tokens = 0
        for position, token in enumerate(answer.tokens, answer.start):
            if reading.parser.in_reasoning:
                self.answer_tokens.clear()
                self.reasoning_tokens += 1
            else:
                self.answer_tokens.append(token)
            step = Step(token, vocabulary.piece(token), position, is_control=vocabulary.is_control(token))
            for event in reading.take(step):
                if isinstance(event, ToolCallStarted):
                    self.begun.clear()
                if isinstance(event, CALL_EVENTS):
                    self.begun.append(event)
        if not reading.parser.in_call:
            self.begun.clear()
        # What might have become a mark, or a character, was given out when the answer stopped.
        self._given = {
            TextDelta: _beyond(answer.message.content, reading.parser.text),
            ReasoningDelta: _beyond(answer.message.reasoning, reading.parser.reasoning),
        }

    def not_given(self, events: list[Event]) -> list[Event]:
        """The events without text that the answer's reader has already."""
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


def _beyond(given: str, known: str) -> str:
    return given.removeprefix(known) if given.startswith(known) else ""
