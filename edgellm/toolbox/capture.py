"""What a tool prints, kept off the terminal: each tool thread has streams of its own.

While a tool runs, `sys.stdout`, `sys.stderr` and `sys.stdin` are stand-ins that look at a context variable:
in a tool's thread (and in its asyncio tasks and `asyncio.to_thread` calls) they are the call's own, elsewhere
the real ones. Not caught: a stream object fetched before (`from sys import stdout`), file descriptors 1 and 2
written directly (a child process that inherits them), threads the tool starts by itself.
"""

from __future__ import annotations

import contextlib
import io
import sys
import threading
from collections.abc import Generator, Iterator
from contextvars import ContextVar
from typing import Any

_NAMES = ("stdin", "stdout", "stderr")
_MOST_BYTES = 256 * 1024


class _Kept(io.BufferedIOBase):
    """Bytes up to a limit; what comes after is counted and dropped."""

    def __init__(self) -> None:
        super().__init__()
        self.name = "<tool output>"
        self.content = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        size = memoryview(data).nbytes
        self.content += bytes(data)[: max(0, _MOST_BYTES - len(self.content))]
        return size


class Output:
    """The streams of one call: what it printed, and an empty stdin."""

    def __init__(self) -> None:
        self._kept = {name: _Kept() for name in ("stdout", "stderr")}
        self.streams: dict[str, io.TextIOBase] = {
            name: io.TextIOWrapper(kept, encoding="utf-8", errors="replace", newline="\n", write_through=True)
            for name, kept in self._kept.items()
        }
        self.streams["stdin"] = io.StringIO("")

    def text(self, name: str) -> str:
        """What was printed to "stdout" or "stderr", at most 256 KiB of it."""
        return self._kept[name].content.decode("utf-8", "replace")


_current: ContextVar[Output | None] = ContextVar("edgellm_tool_output", default=None)
_lock = threading.Lock()
_users = 0


class _Routed:
    """Stands in for a stream of `sys`: the call's own stream within a tool, else the real one."""

    def __init__(self, name: str, real: Any) -> None:
        self._name = name
        self.real = real

    def _target(self) -> Any:
        output = _current.get()
        return self.real if output is None else output.streams[self._name]

    def write(self, text: str, /) -> int:
        return self._target().write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._target(), name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._target())


@contextlib.contextmanager
def captured() -> Generator[Output]:
    """Within it, this thread's prints go to the Output that it gives."""
    global _users
    output = Output()
    with _lock:
        _users += 1
        for name in _NAMES:
            stream = getattr(sys, name)
            if stream is not None and not isinstance(stream, _Routed):
                setattr(sys, name, _Routed(name, stream))
    token = _current.set(output)
    try:
        yield output
    finally:
        _current.reset(token)
        with _lock:
            _users -= 1
            if _users == 0:
                for name in _NAMES:
                    stream = getattr(sys, name)
                    if isinstance(stream, _Routed):
                        setattr(sys, name, stream.real)
