"""A slow line to the terminal: no more bytes a second are sent than it carries, and frames wait for what is owed."""

from __future__ import annotations

import time
from threading import Lock
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from textual.driver import Driver

_SLICES_A_SECOND = 10


class Pacer:
    """Counts what is to be sent and how fast it may be. Safe from any thread."""

    def __init__(
        self,
        bytes_per_second: int,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.bytes_per_second = bytes_per_second
        self._clock = clock
        self._sleep = sleep
        self._lock = Lock()
        self._owed = 0
        self._free_at = 0.0

    @property
    def slice_bytes(self) -> int:
        """How much is sent at a time."""
        return max(1, self.bytes_per_second // _SLICES_A_SECOND)

    @property
    def owed_s(self) -> float:
        """Seconds until all that was handed over is sent."""
        return self._owed / self.bytes_per_second

    def hand_over(self, size: int) -> None:
        """So many bytes are to be sent."""
        with self._lock:
            self._owed += size

    def pass_slice(self, size: int) -> None:
        """Waits until so many bytes may go."""
        wait = self._free_at - self._clock()
        if wait > 0:
            self._sleep(wait)
        self._free_at = max(self._free_at, self._clock()) + size / self.bytes_per_second
        with self._lock:
            self._owed = max(0, self._owed - size)


class PacedFile:
    """Writes to a file in slices, as a Pacer lets them pass. What else is asked of it, the file answers."""

    def __init__(self, file: Any, pacer: Pacer) -> None:
        # Any: a text stream; a TTY's or a test's.
        self._file = file
        self._pacer = pacer

    def write(self, text: str) -> int:
        """Sends all of it, slowly."""
        step = self._pacer.slice_bytes
        at = 0
        while at < len(text):
            part = text[at : at + step]
            # A letter may take up to four bytes: the slice is made shorter until its bytes fit.
            while len(part) > 1 and len(part.encode("utf-8", "replace")) > step:
                part = part[: len(part) // 2]
            self._pacer.pass_slice(len(part.encode("utf-8", "replace")))
            self._file.write(part)
            self._file.flush()
            at += len(part)
        return len(text)

    def __getattr__(self, name: str) -> Any:
        # Any: whatever the file has.
        return getattr(self._file, name)


def paced_driver(kind: type[Driver], pacer: Pacer) -> type[Driver]:
    """The driver `kind`, sending through the pacer. Its writes happen on a thread, so that waiting stops no key."""

    class PacedDriver(kind):
        def __init__(self, *args: Any, **options: Any) -> None:
            # Any: what Textual makes a driver with.
            super().__init__(*args, **options)
            # Textual's drivers for terminals all keep their stream under this name.
            self._file: Any = PacedFile(getattr(self, "_file"), pacer)  # noqa: B009  (pyright: declared per driver)

        def write(self, data: str) -> None:
            pacer.hand_over(len(data.encode("utf-8", "replace")))
            super().write(data)

    return PacedDriver
