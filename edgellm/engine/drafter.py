"""Who guesses: what may follow a tape, and what it takes to say so."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence


class Drafter(Protocol):
    """Guesses what follows a tape. One that inherits the rest guesses for nothing, and has nothing to read first."""

    @property
    def cost(self) -> float:
        """What a token costs it, as a share of what one costs the model: believed until it is measured.

        0: its guesses cost nothing that counts.
        """
        return 0.0

    def guess(self, tape: Sequence[int], count: int) -> tuple[list[int], int]:
        """At most `count` tokens, and how sure they are (a small whole number; 0 for no guess)."""
        ...

    def unread(self, tape: Sequence[int]) -> int:
        """How many tokens of the tape it would have to read before it can guess."""
        return 0

    def read(self, tape: Sequence[int], most: int, window: int = 0) -> bool:
        """Reads at most `most` of them; true where none is left.

        With a `window`, where more than that is unread, what stands before the last so many tokens is left out.
        """
        return True

    def abort(self) -> None:
        """Makes a reading or guessing that is under way stop soon. Safe from any thread."""

    def listen(self) -> None:
        """Reads and guesses again: an `abort` before this one is over."""
