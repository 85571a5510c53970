"""All that was said in a branch: the messages of its chat, and those that had to make room in the context."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from edgellm import Message


class Transcript:
    """Follows one chat; for the engine's thread alone.

    `messages` are those of the chat, with those that are no longer in its context where they stood. `gone` has the
    places of these.
    """

    def __init__(self, messages: Sequence[Message] = (), gone: Collection[int] = ()) -> None:
        self.messages = tuple(messages)
        self.gone = frozenset(gone)
        # Results of the open turn that were shortened: the transcript has not come that far yet.
        self._early: list[Message] = []

    def let_go(self, messages: Sequence[Message]) -> None:
        """Notes that these are no longer in the context, in their order."""
        gone = set(self.gone)
        start = 0
        for message in messages:
            for place in range(start, len(self.messages)):
                if place not in gone and _is_same(self.messages[place], message):
                    gone.add(place)
                    start = place + 1
                    break
            else:
                self._early.append(message)
        self.gone = frozenset(gone)

    def follow(self, messages: Sequence[Message]) -> None:
        """Takes up what the chat's messages are now: new ones, an answer that went on, a summary."""
        told: list[Message] = []
        gone: set[int] = set()
        done = 0

        def take(end: int) -> None:
            nonlocal done
            for message in messages[done:end]:
                for early in [one for one in self._early if _is_result_of(one, message)]:
                    self._early.remove(early)
                    gone.add(len(told))
                    told.append(early)
                told.append(message)
            done = end

        for place, message in enumerate(self.messages):
            if place in self.gone:
                gone.add(len(told))
                told.append(message)
                continue
            for index in range(done, len(messages)):
                if _is_same(messages[index], message):
                    take(index + 1)
                    break
        take(len(messages))
        self.messages, self.gone = tuple(told), frozenset(gone)

    def fork(self, messages: Sequence[Message]) -> Transcript:
        """That of a fork with these messages: up to the first that the fork has not, and then what it has."""
        end, shared = len(self.messages), 0
        for place, message in enumerate(self.messages):
            if place in self.gone:
                continue
            if shared == len(messages) or not _is_same(messages[shared], message):
                end = place
                break
            shared += 1
        other = Transcript(self.messages[:end], [place for place in self.gone if place < end])
        other.follow(messages)
        return other


def _is_same(one: Message, other: Message) -> bool:
    """Reasoning aside: it may be taken off the tape of a message that stays."""
    return (one.role, one.content, one.tool_call_id, one.tool_calls) == (
        other.role,
        other.content,
        other.tool_call_id,
        other.tool_calls,
    )


def _is_result_of(one: Message, other: Message) -> bool:
    return one.role == other.role == "tool" and one.tool_call_id == other.tool_call_id
