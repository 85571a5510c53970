"""Whether an answer goes round in circles, as those of small models do until the context is full."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgellm.events import Notice

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

LOOK_EACH = 32
"""Tokens from one look to the next."""

_MOST_PERIOD = 256
_LEAST_TOKENS = 160
_LEAST_TIMES = 5


def period(tokens: Sequence[int]) -> int:
    """The length of what the last tokens are repetitions of: five at least, and 160 tokens; 0 where they are none."""
    newest = tokens[-1] if tokens else None
    for size in range(1, min(_MOST_PERIOD, len(tokens) - 1) + 1):
        if tokens[-1 - size] != newest:
            continue
        count = max(_LEAST_TOKENS, _LEAST_TIMES * size) - size
        if count + size <= len(tokens) and tokens[-count:] == tokens[-count - size : -size]:
            return size
    return 0


class Circling:
    """Says once of an answer that it goes round in circles; it is to look every LOOK_EACH tokens."""

    def __init__(self) -> None:
        self._is_told = False

    def look(self, tape: Sequence[int], count: int) -> Iterator[Notice]:
        """`count` tokens at the end of the tape are the answer so far."""
        if self._is_told or count < _LEAST_TOKENS:
            return
        size = period(tape[-min(count, _LEAST_TIMES * _MOST_PERIOD) :])
        if size:
            self._is_told = True
            yield Notice(
                f"The answer goes round in circles: it repeats the same {size} token{'s' * (size > 1)}. "
                "Stop it, or give the chain a stage against that, such as penalties or dry."
            )
