"""Ctrl-C that waits until llama.cpp is left."""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from types import FrameType


@contextmanager
def held_interrupt() -> Generator[Callable[[], bool]]:
    """Within the block SIGINT only counts as having come, which the function it gives tells; its handler is called at
    the end. Outside the main thread, where no handler runs, the block does nothing.

    llama.cpp calls back into Python for its log and its progress: what a handler raises there is printed and lost.
    """
    previous = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(previous):
        yield lambda: False
        return
    came: list[FrameType | None] = []
    signal.signal(signal.SIGINT, lambda _number, frame: came.append(frame))
    try:
        yield lambda: bool(came)
    finally:
        signal.signal(signal.SIGINT, previous)
        if came:
            previous(signal.SIGINT, came[0])
