"""Keeping what there is of a long answer, every few seconds: so much is lost at most where the machine goes dark."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgellm_tui.kept_chat import KeptChat

_EACH_S = 10.0


class Keeper:
    """`look` is called while answers are being written; the files are written on a thread of their own."""

    def __init__(self, kept: KeptChat, clock: Callable[[], float]) -> None:
        self._kept = kept
        self._clock = clock
        self._last = clock()
        self._tasks: set[asyncio.Task[None]] = set()

    def look(self) -> None:
        """Writes what has grown since the last time, where that is long enough ago."""
        if self._clock() - self._last < _EACH_S:
            return
        self._last = self._clock()
        job = self._kept.keep_growing()
        if job is not None:
            task = asyncio.create_task(asyncio.to_thread(job))
            self._tasks.add(task)
            task.add_done_callback(self._over)

    def _over(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = task.exception()
        if isinstance(error, Exception):
            logging.getLogger("edgellm_tui").error("an answer could not be kept", exc_info=error)
