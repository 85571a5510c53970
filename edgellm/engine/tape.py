"""The tape: the exact tokens the model has seen, each with its owner."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgellm.types import AdapterSet, Span, SpanKind

if TYPE_CHECKING:
    from collections.abc import Iterable

_PLAIN = AdapterSet()


class Tape:
    """Append-only tokens in labelled spans. It is cut only by its session, which cuts the memory with it.

    `adapters` are those in use: each token keeps the set that was in use when it came.
    """

    __slots__ = ("_changed_from", "_kinds", "_sets", "adapters", "tokens")

    def __init__(
        self,
        tokens: Iterable[int] = (),
        kinds: Iterable[SpanKind] = (),
        sets: Iterable[AdapterSet] | None = None,
        *,
        adapters: AdapterSet = _PLAIN,
    ) -> None:
        self.adapters = adapters
        self.tokens: list[int] = list(tokens)
        self._kinds: list[SpanKind] = list(kinds)
        self._sets = [adapters] * len(self.tokens) if sets is None else list(sets)
        self._changed_from: int | None = None
        if not len(self.tokens) == len(self._kinds) == len(self._sets):
            raise ValueError("a tape needs one kind and one set of adapters for each token")

    def __len__(self) -> int:
        return len(self.tokens)

    def append(self, token: int, kind: SpanKind) -> None:
        """Adds one token."""
        self.tokens.append(token)
        self._kinds.append(kind)
        self._sets.append(self.adapters)

    def extend(self, entries: Iterable[tuple[int, SpanKind]]) -> None:
        """Adds (token, kind) pairs."""
        for token, kind in entries:
            self.append(token, kind)

    def cut(self, length: int) -> None:
        """Keeps the first `length` tokens."""
        self._change(length)
        del self.tokens[length:]
        del self._kinds[length:]
        del self._sets[length:]

    def remove(self, start: int, end: int) -> None:
        """Takes tokens [start, end) out of the middle."""
        self._change(start)
        del self.tokens[start:end]
        del self._kinds[start:end]
        del self._sets[start:end]

    def _change(self, start: int) -> None:
        self._changed_from = start if self._changed_from is None else min(self._changed_from, start)

    def take_change(self) -> int | None:
        """From where on tokens are not what they were at the last call; None: some were added at most."""
        found, self._changed_from = self._changed_from, None
        return found

    def take(self, other: Tape, start: int) -> None:
        """Adds what another tape holds from `start` on, as it is."""
        self.tokens += other.tokens[start:]
        self._kinds += other._kinds[start:]
        self._sets += other._sets[start:]

    def relabel(self, start: int, end: int, kind: SpanKind) -> None:
        """Gives tokens [start, end) another owner: whose a drawn token is shows only once it is parsed."""
        self._kinds[start:end] = [kind] * (end - start)

    @property
    def kinds(self) -> tuple[SpanKind, ...]:
        """The owner of every token."""
        return tuple(self._kinds)

    @property
    def sets(self) -> tuple[AdapterSet, ...]:
        """The adapters of every token."""
        return tuple(self._sets)

    def spans(self) -> list[Span]:
        """Runs of tokens with one owner and one set of adapters, in order."""
        kinds, sets = self._kinds, self._sets
        spans: list[Span] = []
        start = 0
        for end in range(1, len(kinds) + 1):
            # Sets are looked into only where they are not the same object, which is seldom.
            if (
                end == len(kinds)
                or kinds[end] != kinds[start]
                or (sets[end] is not sets[start] and sets[end] != sets[start])
            ):
                spans.append(Span(kinds[start], start, end, sets[start]))
                start = end
        return spans

    def copy(self) -> Tape:
        """An equal tape that shares nothing."""
        return Tape(self.tokens, self._kinds, self._sets, adapters=self.adapters)
