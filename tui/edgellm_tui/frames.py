"""When the screen is brought up to date: often enough to look live, seldom enough to leave the cores to the decode."""

from __future__ import annotations

import asyncio
import contextvars
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_SLOWEST_S, _FASTEST_S = 0.5, 0.1
_DEAREST_S = 0.1


class Frames:
    """`wake` asks for a frame, from any thread; `run` is called for it on the screen's side, which calls `begun` first.

    `share` gives the share of a core that frames may take, `owed_s` for how long a slow line is still busy with what
    it was given.
    """

    def __init__(
        self,
        run: Callable[[], None],
        *,
        share: Callable[[], float],
        owed_s: Callable[[], float],
    ) -> None:
        self.is_due = False
        # Set at the end: nothing is asked for any more.
        self.is_over = False
        self._run = run
        self._share = share
        self._owed_s = owed_s
        self._loop: asyncio.AbstractEventLoop | None = None
        self._context = contextvars.copy_context()
        self._last = 0.0
        self._cost = 0.0
        self._thread_s = time.thread_time()

    def start(self) -> None:
        """From here on frames can run; called on the screen's side."""
        self._loop = asyncio.get_running_loop()
        self._context = contextvars.copy_context()

    def wake(self) -> None:
        """Asks for a frame. One call a frame crosses over to the screen's side, however many items come."""
        if not self.is_due and self._loop is not None and not self.is_over:
            self.is_due = True
            try:
                self._loop.call_soon_threadsafe(self._schedule, context=self._context)
            except RuntimeError:  # the loop has ended
                self.is_over = True

    @property
    def interval_s(self) -> float:
        """Seconds between two frames: as many as keep their cost within the share of a core, and a slow line free."""
        of_cost = min(_SLOWEST_S, max(_FASTEST_S, self._cost / max(0.01, self._share())))
        return max(of_cost, self._owed_s())

    def _schedule(self) -> None:
        wait = self._last + self.interval_s - time.perf_counter()
        # Not one of Textual's timers: one that is already late when it starts is skipped, and no frame would follow.
        asyncio.get_running_loop().call_later(max(0.0, wait), self._run, context=self._context)

    def begun(self) -> None:
        """A frame begins: takes down what this thread has done since the one before."""
        # All of it: most of the drawing comes behind a frame's own code.
        # Its CPU time: what a frame costs does not grow because the decode has the cores.
        now = time.thread_time()
        spent = min(_DEAREST_S, now - self._thread_s)
        self._cost, self._thread_s = 0.7 * self._cost + 0.3 * spent, now
        self.is_due = False
        self._last = time.perf_counter()
