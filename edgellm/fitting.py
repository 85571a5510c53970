"""The messages that a turn appends, made to fit: older turns give way, and results that are too long are cut."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from edgellm.events import Notice

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from edgellm.conversation import Conversation, Plan
    from edgellm.events import Event
    from edgellm.toolbox.shortening import Shortening
    from edgellm.types import Message
    from edgellm.upkeep import Upkeep
    from edgellm.waiting import Waiting

T = TypeVar("T")

_MOST_CUTS = 6


class Fitting:
    """Fits the turns of one conversation into its context.

    `first` is the index of the open turn's first message: it changes where older ones go.
    """

    def __init__(self, conversation: Conversation, upkeep: Upkeep, shortening: Shortening) -> None:
        self.conversation = conversation
        self.upkeep = upkeep
        self.first = 0
        self._shortening = shortening

    def begin(self, message: Message | None) -> None:
        """A turn begins with this message, or goes on."""
        if message is None or self.conversation.postponed:
            self.first = self.upkeep.turn_of_last()
        else:
            self.first = len(self.conversation.messages)

    def plan(
        self, tail: Sequence[Message], answer: int
    ) -> Generator[Event | Waiting, None, tuple[Plan, list[Message]]]:
        """The new tokens for `tail`, and the messages that they are: the policy has made room for them and an answer of
        at most `answer` tokens, and results are cut where it could not. Raises TemplateError."""
        conversation = self.conversation
        tail = list(tail)
        plan = conversation.plan(tail)
        said = plan.messages
        if half := self._beyond_half(plan, answer):
            # Not all that was said before goes for one result.
            plan, tail = self._cut(plan, tail, half)
        plan = yield from self._with_room(plan, tail, answer)
        for _ in range(_MOST_CUTS):
            excess = self.upkeep.overflow(len(plan.entries), answer)
            before = plan.messages
            if not excess:
                break
            plan, tail = self._cut(plan, tail, excess)
            if plan.messages == before:
                break
        yield from self._told(said, plan.messages)
        if conversation.postponed and tail and self.upkeep.overflow(len(plan.entries), 0):
            # What waits belongs to a turn that was left: it may go with it.
            self.first = len(conversation.messages)
            plan = yield from self._with_room(plan, tail, answer)
        return plan, tail

    def in_answer(self) -> Generator[Event | Waiting, None, int]:
        """Makes room in the middle of an answer; gives by how many tokens the tape is shorter."""
        return self._kept_first(self.upkeep.in_answer(self.first))

    def _with_room(
        self, plan: Plan, tail: Sequence[Message], answer: int
    ) -> Generator[Event | Waiting, None, Plan]:
        """The plan, once older messages have made room for it as the policy says."""
        conversation = self.conversation
        while wanted := self.upkeep.excess(len(plan.entries), answer):
            before = (len(conversation.session.tape), len(plan.entries))
            # What the plan cut off the tape is there again while messages go: their places are those on the whole tape.
            conversation.give_up()
            if conversation.reasoning_policy == "render":
                plan = replace(plan, removed_tokens=0)
            yield from self._kept_first(self.upkeep.make_room(wanted, self.first))
            plan = self._again(plan, tail)
            if sum(before) <= len(conversation.session.tape) + len(plan.entries):
                break
        return plan

    def _again(self, plan: Plan, tail: Sequence[Message]) -> Plan:
        again = self.conversation.plan(tail)
        return replace(
            again,
            removed_tokens=again.removed_tokens + plan.removed_tokens,
            is_shifted=again.is_shifted or plan.is_shifted,
        )

    def _kept_first(self, making: Generator[Event | Waiting, None, T]) -> Generator[Event | Waiting, None, T]:
        """Lets room be made, and keeps in mind where the turn's messages stand afterwards."""
        before = len(self.conversation.messages)
        try:
            return (yield from making)
        finally:
            self.first += len(self.conversation.messages) - before

    # -- results ----------------------------------------------------------------------------------------

    def _beyond_half(self, plan: Plan, answer: int) -> int:
        """By how many tokens results are longer than half of the context, where older turns would give way for them."""
        if not self.upkeep.excess(len(plan.entries), answer):
            return 0
        return max(0, sum(self._shortening.sizes(plan.messages).values()) - self.upkeep.n_ctx // 2)

    def _cut(self, plan: Plan, tail: Sequence[Message], excess: int) -> tuple[Plan, list[Message]]:
        """The plan and its messages with `excess` tokens less of results, where there are so many."""
        waiting = self.conversation.postponed
        messages = self._shortening.shortened([*waiting, *tail], excess)
        self.conversation.wait_with(messages[: len(waiting)])
        tail = messages[len(waiting) :]
        return self._again(plan, tail), tail

    def _told(self, said: Sequence[Message], shown: Sequence[Message]) -> Generator[Event, None, None]:
        size = self._shortening.size
        for before, after in zip(said, shown, strict=True):
            if before.content != after.content:
                yield Notice(
                    f"Of {before.name or 'a tool'}'s result the model is shown {size(after.content):,} tokens "
                    f"instead of {size(before.content):,}: the context has no room for more."
                )
