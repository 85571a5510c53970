"""Ctrl-C while a model works: a wish to stop that is heard at once, also while llama.cpp computes."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from types import FrameType

_MOST_PRESSES = 3


class Interrupt:
    """Within its block Ctrl-C calls `stop` instead of raising KeyboardInterrupt.

    Python runs signal handlers in the main thread, between two of its own instructions: not while a prefill
    computes for seconds. So the signal wakes a thread, and that one calls `stop` (which must be safe there, and
    more than once). The third Ctrl-C raises KeyboardInterrupt all the same; so does the first within `asking`,
    where the main thread waits for a key. Outside the main thread the block does nothing.
    """

    def __init__(self, stop: Callable[[], None]) -> None:
        self._stop = stop
        self._presses = 0
        self._is_asking = False
        self._previous: Any = None  # a handler, or one of the signal module's numbers
        self._previous_wakeup = -1
        self._ends: tuple[socket.socket, socket.socket] | None = None
        self._thread: threading.Thread | None = None

    @property
    def is_pressed(self) -> bool:
        """Whether Ctrl-C came."""
        return self._presses > 0

    def press(self) -> None:
        """As if Ctrl-C had come: asks for the stop, raises nothing."""
        self._presses += 1
        self._stop()

    @contextlib.contextmanager
    def asking(self) -> Generator[None]:
        """Within it Ctrl-C raises KeyboardInterrupt."""
        self._is_asking = True
        try:
            yield
        finally:
            self._is_asking = False

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is not threading.main_thread():
            return self
        reader, writer = socket.socketpair()
        writer.setblocking(False)
        self._ends = (reader, writer)
        self._thread = threading.Thread(
            target=self._listen, args=(reader,), name="edgellm-ctrl-c", daemon=True
        )
        self._thread.start()
        self._previous = signal.signal(signal.SIGINT, self._on_signal)
        self._previous_wakeup = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        return self

    def __exit__(self, *_exc: object) -> None:
        if self._ends is None:
            return
        signal.set_wakeup_fd(self._previous_wakeup)
        signal.signal(signal.SIGINT, self._previous)
        reader, writer = self._ends
        writer.close()
        assert self._thread is not None
        self._thread.join(1.0)
        reader.close()
        self._ends = None

    def _listen(self, reader: socket.socket) -> None:
        while data := reader.recv(64):
            if signal.SIGINT in data:
                self._stop()

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._presses += 1
        if self._is_asking or self._presses >= _MOST_PRESSES:
            raise KeyboardInterrupt


@contextlib.contextmanager
def raising() -> Generator[None]:
    """Within it Ctrl-C raises KeyboardInterrupt, for commands that have something to tidy up."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.getsignal(signal.SIGINT)
    if previous is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
