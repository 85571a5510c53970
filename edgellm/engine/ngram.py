"""What followed the last time: guesses of the next tokens from what the tape, and texts beside it, have said before."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgellm.engine.drafter import Drafter

if TYPE_CHECKING:
    from collections.abc import Sequence

_LONGEST, _SHORTEST = 5, 2


class NgramIndex(Drafter):
    """Finds what followed the longest, and then the most recent, earlier occurrence of a tape's last tokens.

    Texts that were added count as older than the tape. Built as the tape grows: a few dictionary entries a token.
    """

    def __init__(self) -> None:
        self._texts: list[Sequence[int]] = []
        # Of each run of tokens the place behind its last occurrence: (number of the text, index), -1 for the tape.
        self._texts_ends: dict[tuple[int, ...], tuple[int, int]] = {}
        self._tape_ends: dict[tuple[int, ...], int] = {}
        # Where a run stood more than once: the places before, in the order in which they were read.
        self._older_ends: dict[tuple[int, ...], list[int]] = {}
        self._known = 0

    def add_text(self, tokens: Sequence[int]) -> None:
        """Guesses may come from these tokens, too: a file that is quoted, a long result."""
        number = len(self._texts)
        self._texts.append(tuple(tokens))
        for end in range(_SHORTEST, len(tokens)):
            for size in range(_SHORTEST, min(_LONGEST, end) + 1):
                self._texts_ends[tuple(tokens[end - size : end])] = (number, end)

    def fork(self) -> NgramIndex:
        """An index of the same texts, which learns its own tape."""
        other = NgramIndex()
        other._texts, other._texts_ends = self._texts, self._texts_ends
        return other

    def guess(self, tape: Sequence[int], count: int) -> tuple[list[int], int]:
        """At most `count` tokens that may follow, and how many tokens of the tape's end were found again.

        ([], 0) where nothing was.
        """
        self._learn(tape)
        for size in range(min(_LONGEST, len(tape)), _SHORTEST - 1, -1):
            key = tuple(tape[len(tape) - size :])
            end = self._true_end(tape, key)
            if end is not None:
                return list(tape[end : end + count]), size
            place = self._texts_ends.get(key)
            if place is not None:
                number, at = place
                return list(self._texts[number][at : at + count]), size
        return [], 0

    def changed(self, start: int) -> None:
        """From `start` on the tape is not what it was: what stands there now is read again."""
        self._known = min(self._known, start)

    def _true_end(self, tape: Sequence[int], key: tuple[int, ...]) -> int | None:
        """The last place behind this run: a tape that was changed leaves some that are not true any more."""
        end = self._tape_ends.get(key)
        while end is not None and (end >= len(tape) or tuple(tape[end - len(key) : end]) != key):
            older = self._older_ends.get(key)
            end = older.pop() if older else None
            if end is None:
                del self._tape_ends[key]
            else:
                self._tape_ends[key] = end
        return end

    def _learn(self, tape: Sequence[int]) -> None:
        """Runs that end before the tape's last token: what follows them is known."""
        for end in range(max(_SHORTEST, self._known), len(tape)):
            for size in range(_SHORTEST, min(_LONGEST, end) + 1):
                key = tuple(tape[end - size : end])
                before = self._tape_ends.get(key)
                if before is not None and before != end:
                    self._older_ends.setdefault(key, []).append(before)
                self._tape_ends[key] = end
        self._known = len(tape)
