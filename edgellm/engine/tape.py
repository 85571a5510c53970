"""The tape: the exact tokens the model has seen, each with its owner."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgellm.types import Span, SpanKind

if TYPE_CHECKING:
    from collections.abc import Iterable


class Tape:
    """Append-only tokens in labelled spans. It is cut only by its session, which cuts the memory with it."""

    __slots__ = ("_kinds", "tokens")

    def __init__(self, tokens: Iterable[int] = (), kinds: Iterable[SpanKind] = ()) -> None:
        self.tokens: list[int] = list(tokens)
        self._kinds: list[SpanKind] = list(kinds)
        if len(self.tokens) != len(self._kinds):
            raise ValueError("a tape needs one kind for each token")

    def __len__(self) -> int:
        return len(self.tokens)

    def append(self, token: int, kind: SpanKind) -> None:
        """Adds one token."""
        self.tokens.append(token)
        self._kinds.append(kind)

    def extend(self, entries: Iterable[tuple[int, SpanKind]]) -> None:
        """Adds (token, kind) pairs."""
        for token, kind in entries:
            self.append(token, kind)

    def cut(self, length: int) -> None:
        """Keeps the first `length` tokens."""
        del self.tokens[length:]
        del self._kinds[length:]

    def remove(self, start: int, end: int) -> None:
        """Takes tokens [start, end) out of the middle."""
        del self.tokens[start:end]
        del self._kinds[start:end]

    def relabel(self, start: int, end: int, kind: SpanKind) -> None:
        """Gives tokens [start, end) another owner: whose a drawn token is shows only once it is parsed."""
        self._kinds[start:end] = [kind] * (end - start)

    @property
    def kinds(self) -> tuple[SpanKind, ...]:
        """The owner of every token."""
        return tuple(self._kinds)

    def spans(self) -> list[Span]:
        """Runs of tokens with one owner, in order."""
        spans: list[Span] = []
        start = 0
        for position in range(1, len(self._kinds) + 1):
            if position == len(self._kinds) or self._kinds[position] != self._kinds[start]:
                spans.append(Span(self._kinds[start], start, position))
                start = position
        return spans

    def copy(self) -> Tape:
        """An equal tape that shares nothing."""
        return Tape(self.tokens, self._kinds)
