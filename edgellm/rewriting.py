"""Old messages leave a conversation, or change: the edits of its tape that make it so.

What stays on the tape stays token by token: history is not rendered again. Only the first prompt is, up to the first
answer that stays; it is laid over the tape, and where it agrees with it in front and behind, what lies between is
cut out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgellm.engine.surgery import splice
from edgellm.errors import TemplateError
from edgellm.types import Message, SpanKind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgellm.conversation import Conversation
    from edgellm.engine.session import Session

Kept = tuple[Message, "int | None"]
"""A message and its index before; None for one that is new."""


@dataclass(frozen=True, slots=True)
class Rewritten:
    """What an edit of the tape came to.

    `recomputed_tokens` have to be computed by the next decode: what was put in, and what stands behind it where the
    memory could not be moved. `is_approximate`: it was moved, and what stands behind the cut was computed with what
    is gone in view.
    """

    removed_tokens: int = 0
    added_tokens: int = 0
    recomputed_tokens: int = 0
    is_approximate: bool = False


@dataclass(frozen=True, slots=True)
class _Edit:
    """Tokens [start, end) of the tape are replaced by `entries`."""

    start: int
    end: int
    entries: tuple[tuple[int, SpanKind], ...] = ()

    @property
    def growth(self) -> int:
        return len(self.entries) - (self.end - self.start)


def rewrite(conversation: Conversation, kept: Sequence[Kept]) -> Rewritten:
    """Makes `kept` the conversation's messages, and the tape theirs.

    `kept` are messages of the conversation in their order; whole turns are missing, contents of tool results may
    differ; new messages, a question and its answer, stand in the place of a turn that is missing. Nothing is computed.
    Raises TemplateError, and all is as before.
    """
    return _Rewriting(conversation, kept).run()


class _Rewriting:
    def __init__(self, conversation: Conversation, kept: Sequence[Kept]) -> None:
        self._conversation = conversation
        self._session: Session = conversation.session
        self._old = conversation.messages
        self._starts = conversation.starts
        self._kept = list(kept)
        self._indices = [old for _, old in kept if old is not None]
        # Messages of the first prompt begin at 0; those behind it stand where the tape says.
        self._first = next((i for i, start in enumerate(self._starts) if start > 0), len(self._starts))
        self._edits: list[_Edit] = []
        # Where messages will begin: a position on the tape as it is, and how far behind what is put in there.
        self._new_starts: list[tuple[int, int]] = []

    def run(self) -> Rewritten:
        conversation = self._conversation
        if not conversation.is_begun:
            # Nothing is on the tape yet: the first prompt will be the shorter one.
            conversation.replace(
                self._kept, [0] * len(self._kept), answer_start=conversation.answer_start, is_begun=False
            )
            return Rewritten()
        is_begun_anew = not self._keeps_open_prompt() or self._kept[-1][1] is None
        if is_begun_anew and not any(old >= self._first for old in self._indices):
            return self._begin_anew()
        head_end = self._head()
        self._later(head_end)
        return self._apply()

    def _keeps_open_prompt(self) -> bool:
        """The first prompt's last turn stays: its answer stands behind it, or is being written."""
        return self._first > 0 and self._first - 1 in self._indices

    def _begin_anew(self) -> Rewritten:
        """No answer of the tape stays: the next prompt is rendered from the beginning, and shares what it can."""
        session, before = self._session, len(self._session.tape)
        kinds = session.tape.kinds
        end = kinds.index(SpanKind.USER) if SpanKind.USER in kinds else 0
        session.rewind(end)
        self._conversation.replace(self._kept, [0] * len(self._kept), answer_start=end, is_begun=False)
        return Rewritten(before - end)

    def _head(self) -> int:
        """The edit of the first prompt, up to the first answer that stays; gives how many of `kept` it covers."""
        tape = self._session.tape
        count = next(
            (i for i, (_, old) in enumerate(self._kept) if old is not None and old >= self._first),
            len(self._kept),
        )
        end = self._end_of(self._first - 1) if self._first else 0
        is_joined = not self._keeps_open_prompt() or self._kept[count - 1][1] is None
        if is_joined:
            # The first turn that stays becomes part of the first prompt.
            start = self._starts[self._index_at(count)]
            while count < len(self._kept) and self._starts[self._index_at(count)] == start:
                end = self._end_of(self._index_at(count))
                count += 1
        messages = [message for message, _ in self._kept[:count]]
        before = [self._old[old] for old in range(self._first)]
        # Equal messages are not the same ones: another "Go on" may be answered behind them.
        if is_joined or messages != before:
            target = self._conversation.first_prompt(messages)
            self._add(_difference(tape.tokens, target, 0, end))
        self._new_starts = [(0, 0)] * count
        return count

    def _later(self, count: int) -> None:
        """The edits behind the first prompt: turns that are gone, and groups whose contents differ."""
        expected = self._index_at(count - 1) + 1 if count else self._first
        while count < len(self._kept):
            if self._kept[count][1] is None:
                count, expected = self._put_in(count, expected)
                continue
            index = self._index_at(count)
            start = self._starts[index]
            if index > expected:
                # What ends the answer in front of a turn belongs to the turn, unless the model wrote it.
                gone = self._starts[expected]
                self._add(_Edit(gone + self._lead(expected), start + self._lead(index)))
                start = gone
            size = 1
            if self._old[index].role != "assistant":
                while (
                    count + size < len(self._kept)
                    and self._starts[self._index_at(count + size)] == self._starts[index]
                ):
                    size += 1
                self._change(index, [message for message, _ in self._kept[count : count + size]])
            self._new_starts += [(start, 0)] * size
            count += size
            expected = self._index_at(count - 1) + 1
        if expected < len(self._old):
            gone = self._starts[expected]
            self._add(_Edit(gone + self._lead(expected), len(self._session.tape)))

    def _put_in(self, place: int, gone: int) -> tuple[int, int]:
        """The edit that puts the question and answer at `place` where message `gone` stood, and appends what comes
        next anew; gives the place behind that, and the index of the message that is expected there."""
        tape, start = self._session.tape, self._starts[gone]
        behind = following = place + 2
        index, end = len(self._old), len(tape)
        while following < len(self._kept):
            index = self._index_at(following)
            if self._starts[index] != self._starts[self._index_at(behind)]:
                break
            following += 1
        if following > behind:
            index = self._index_at(following - 1) + 1
            end = self._end_of(index - 1)
        target = self._conversation.group_entries(
            gone, [message for message, _ in self._kept[place:following]]
        )
        texts = [position for position, (_, kind) in enumerate(target) if kind == SpanKind.TEXT]
        if not texts:
            raise TemplateError(
                "the chat template gives no place to an answer that is put in.", hint="Try another template."
            )
        answer, answered = texts[0], texts[-1] + 1
        if answered < len(target) and self._session.engine.vocabulary.is_eog(target[answered][0]):
            answered += 1
        if following == behind:
            # Nothing follows: no answer is to be written here yet.
            del target[answered:]
        self._add(_difference(tape.tokens, target, start, end))
        self._new_starts += [(start, 0), (start, answer), *[(start, answered)] * (following - behind)]
        return following, index

    def _change(self, index: int, messages: Sequence[Message]) -> None:
        if list(messages) == self._old[index : index + len(messages)]:
            return
        target = self._conversation.group_entries(index, messages)
        end = self._end_of(index + len(messages) - 1)
        self._add(_difference(self._session.tape.tokens, target, self._starts[index], end))

    def _apply(self) -> Rewritten:
        session = self._session
        before, pending = len(session.tape), len(session.tape) - session.kv_length
        edits = sorted(self._edits, key=lambda edit: edit.start)
        computed_from = before
        moved = before
        for edit in reversed(edits):
            if splice(session, edit.start, edit.end, edit.entries):
                moved = edit.start if edit.end < before else moved
            else:
                computed_from = edit.start
        starts = [_moved(start, edits) + behind for start, behind in self._new_starts]
        self._conversation.replace(
            self._kept,
            starts,
            answer_start=_moved(self._conversation.answer_start, edits),
            is_begun=True,
        )
        return Rewritten(
            removed_tokens=sum(edit.end - edit.start for edit in edits),
            added_tokens=sum(len(edit.entries) for edit in edits),
            recomputed_tokens=max(0, len(session.tape) - session.kv_length - pending),
            is_approximate=moved < computed_from,
        )

    def _add(self, edit: _Edit) -> None:
        if edit.start < edit.end or edit.entries:
            self._edits.append(edit)

    def _index_at(self, place: int) -> int:
        old = self._kept[place][1]
        assert old is not None
        return old

    def _end_of(self, index: int) -> int:
        """The tape length at which the message, or the group it was appended with, ends."""
        start = self._starts[index]
        for later in self._starts[index + 1 :]:
            if later > start:
                return later
        answer_start = self._conversation.answer_start
        return answer_start if answer_start > start else len(self._session.tape)

    def _lead(self, index: int) -> int:
        """1 where the turn begins with the end of the answer before it, which the model did not write."""
        start = self._starts[index]
        return int(self._session.engine.vocabulary.is_eog(self._session.tape.tokens[start]))


def _difference(tape: Sequence[int], target: Sequence[tuple[int, SpanKind]], start: int, end: int) -> _Edit:
    """The smallest edit of tape[start:end] that gives `target`. What agrees in front is kept first: the memory of
    the first tokens is what attention rests on."""
    front = 0
    while front < min(len(target), end - start) and tape[start + front] == target[front][0]:
        front += 1
    back = 0
    most = min(len(target), end - start) - front
    while back < most and tape[end - 1 - back] == target[len(target) - 1 - back][0]:
        back += 1
    return _Edit(start + front, end - back, tuple(target[front : len(target) - back]))


def _moved(position: int, edits: Sequence[_Edit]) -> int:
    return position + sum(edit.growth for edit in edits if edit.end <= position)
