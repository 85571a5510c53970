"""What the line chat does while it waits at the prompt: under the policy "summarize" old turns are summed up ahead."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING

from edgellm.errors import EdgeError

if TYPE_CHECKING:
    from edgellm.dialogue import Chat
    from edgellm.events import Event

AFTER_S = 3.0


class Idle:
    """Within it nothing else uses the chat. After `after_s` room is made on another thread; leaving ends that at once.

    `events` are what was done; they are there once it is left.
    """

    def __init__(self, chat: Chat, *, after_s: float | None = None) -> None:
        self.events: tuple[Event, ...] = ()
        self._chat = chat
        self._is_over = threading.Event()
        self._timer = threading.Timer(AFTER_S if after_s is None else after_s, self._tidy)
        self._timer.daemon = True

    def __enter__(self) -> Idle:
        if self._chat.context_policy == "summarize":
            self._timer.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._is_over.set()
        self._timer.cancel()
        self._chat.stop_tidy()
        if self._timer.is_alive():
            self._timer.join()

    def _tidy(self) -> None:
        # Nobody has asked for it, and the next turn will say what is wrong.
        with contextlib.suppress(EdgeError):
            self.events = self._chat.tidy(is_wanted=lambda: not self._is_over.is_set())
