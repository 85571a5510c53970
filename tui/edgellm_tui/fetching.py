"""Fetching a model while the app goes on: on a thread of its own, with progress, and an end at any time."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import edgellm

if TYPE_CHECKING:
    from collections.abc import Callable

_TELL_EACH_S = 0.25


class Fetching:
    """One download. `changed` is called on its thread, a few times a second and at the end."""

    def __init__(self, name: str, changed: Callable[[], None], *, accept_licence: bool = False) -> None:
        self.name = name
        self.done = 0
        self.total = 0
        self.what = "starting"
        self.error: Exception | None = None
        self.is_over = False
        self.is_cancelled = False
        self._changed = changed
        self._accept = accept_licence
        self._told = 0.0
        self._thread = threading.Thread(target=self._run, name=f"edgellm-fetch-{name}", daemon=True)

    def start(self) -> None:
        """Begins."""
        self._thread.start()

    def cancel(self) -> None:
        """Ends it; what has come stays, and the next fetch goes on from there."""
        self.is_cancelled = True

    def join(self, timeout_s: float) -> None:
        """Waits for its end."""
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    @property
    def words(self) -> str:
        """How far it is."""
        share = f"{100 * self.done // self.total} %" if self.total else f"{self.done / 1e6:.0f} MB"
        return f"{share}  {self.what}"

    def _run(self) -> None:
        try:
            edgellm.pull(self.name, accept_licence=self._accept, progress=self._progress)
        except Exception as error:
            self.error = error
        self.is_over = True
        self._changed()

    def _progress(self, done: int, total: int, what: str) -> None:
        if self.is_cancelled:
            raise edgellm.Cancelled(
                f"Fetching {self.name} was stopped.", hint="What has come is kept: fetch it again to go on."
            )
        self.done, self.total, self.what = done, total, what
        now = time.monotonic()
        if now - self._told >= _TELL_EACH_S:
            self._told = now
            self._changed()
