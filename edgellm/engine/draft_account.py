"""What asking a draft model takes, as measured so far: known before it is asked."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgellm.engine.drafter import Drafter

_WINDOWS = (128, 64, 32, 16)
_AVERAGE = 0.2


class DraftAccount:
    """A drafter that costs something, and the seconds that its reading and its guessing take."""

    def __init__(self, drafter: Drafter) -> None:
        self.drafter = drafter
        # By how many tokens were read at once.
        self._reading_s: dict[int, float] = {}
        self._guess_s: float | None = None

    def take(self, other: DraftAccount) -> None:
        """Takes over what another has measured."""
        self._reading_s, self._guess_s = dict(other._reading_s), other._guess_s

    def measurable(self, unread: int) -> int:
        """Of so many unread tokens those whose reading costs at most twice what a reading was measured to cost."""
        return min(unread, 2 * max(self._reading_s, default=0) or 1)

    def reading_s(self, count: int, single_s: float) -> float:
        """Seconds to read so many tokens: at most what more cost, else in proportion to fewer. `single_s`: what a
        token costs the model."""
        if not count:
            return 0.0
        known = min((size for size in self._reading_s if size >= count), default=None)
        if known is not None:
            return self._reading_s[known]
        largest = max(self._reading_s, default=None)
        if largest is None:
            return self.drafter.cost * single_s * count
        return self._reading_s[largest] * count / largest

    def seconds(self, unread: int, guesses: int, single_s: float) -> float:
        """Seconds to read so many tokens and to guess: the first guess comes with the reading."""
        each = self.reading_s(1, single_s) if self._guess_s is None else self._guess_s
        return self.reading_s(unread, single_s) + each * (guesses - 1)

    def window(self, most_s: float, single_s: float) -> int:
        """How many of the tape's last tokens to begin with: as many as are read in so many seconds."""
        return next((size for size in _WINDOWS if self.reading_s(size, single_s) <= most_s), _WINDOWS[-1])

    def read(self, tape: Sequence[int], count: int, window: int) -> float:
        """Has so many tokens read, of no more than the last `window` ones; gives the seconds that it took."""
        started = time.perf_counter()
        self.drafter.read(tape, count, window)
        seconds = time.perf_counter() - started
        if count:
            usual = self._reading_s.get(count, seconds)
            self._reading_s[count] = usual + _AVERAGE * (seconds - usual)
        return seconds

    def guess(self, tape: Sequence[int], count: int, window: int) -> tuple[list[int], float]:
        """(at most `count` tokens, the seconds that reading and guessing took)."""
        reading_s = self.read(tape, min(self.drafter.unread(tape), window), window)
        started = time.perf_counter()
        found, _ = self.drafter.guess(tape, count)
        seconds = time.perf_counter() - started
        if len(found) > 1:
            each = seconds / (len(found) - 1)
            usual = each if self._guess_s is None else self._guess_s
            self._guess_s = usual + _AVERAGE * (each - usual)
        return found, reading_s + seconds
