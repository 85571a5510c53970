"""What a turn gives between its events where it cannot go on at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

WAIT_S = 0.05
"""How long one wait lasts at most: whoever waits looks up so often."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """Not an event: a turn cannot go on before `wait(timeout_s)` is true.

    Whoever drives one turn just waits; whoever drives many turns on one engine lets the others go first, so
    that their tokens share one batch.
    """

    wait: Callable[[float], bool]

    def sit_out(self) -> None:
        """Waits for it, however long that takes, and stays open to Ctrl-C."""
        while not self.wait(WAIT_S):
            pass


NEXT_TOKEN = Waiting(lambda _timeout_s: True)
