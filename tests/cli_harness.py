"""Running the command line in tests: in this process with streams of its own, or as a child."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgellm.cli.main import main

MAIN = [sys.executable, "-m", "edgellm.cli.main"]


@dataclass(frozen=True)
class Outcome:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def events(self) -> list[dict[str, Any]]:
        """stdout as JSON lines; fails where a line is none."""
        return [json.loads(line) for line in self.out.splitlines()]

    def of(self, kind: str) -> list[dict[str, Any]]:
        """Events of one type."""
        return [event for event in self.events if event["type"] == kind]


@contextlib.contextmanager
def streams(stdin: bytes, encoding: str = "utf-8") -> Iterator[tuple[io.BytesIO, io.BytesIO]]:
    """sys.stdin, stdout and stderr replaced by bytes in memory."""
    out, err = io.BytesIO(), io.BytesIO()
    kept = sys.stdin, sys.stdout, sys.stderr
    sys.stdin = io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8")
    sys.stdout = io.TextIOWrapper(out, encoding=encoding, write_through=True)
    sys.stderr = io.TextIOWrapper(err, encoding=encoding, write_through=True)
    try:
        yield out, err
    finally:
        sys.stdin, sys.stdout, sys.stderr = kept


def cli(*words: object, stdin: bytes | str = b"", encoding: str = "utf-8") -> Outcome:
    """Runs `edgellm WORDS` in this process. Streams are read before they are dropped, which would close them."""
    data = stdin.encode() if isinstance(stdin, str) else stdin
    with streams(data, encoding) as (out, err):
        code = main([str(word) for word in words])
        return Outcome(code, out.getvalue().decode(encoding), err.getvalue().decode(encoding))


@contextlib.contextmanager
def child(*words: object, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """`edgellm WORDS` as a child with pipes; it is ended with the block."""
    options.setdefault("stdin", subprocess.DEVNULL)
    with subprocess.Popen(
        [*MAIN, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # Python ignores SIGINT where its parent did, as a shell's background jobs do.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        **options,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


class Terminal:
    """A child whose stdin, stdout and stderr are a terminal."""

    def __init__(self, *words: object, env: dict[str, str] | None = None) -> None:
        self._main, inner = pty.openpty()
        self.process = subprocess.Popen(
            [*MAIN, *map(str, words)],
            stdin=inner,
            stdout=inner,
            stderr=inner,
            start_new_session=True,
            env={**os.environ, "TERM": "xterm", **(env or {})},
            preexec_fn=_take_terminal,
        )
        os.close(inner)
        self.text = self._unread = ""

    def wait_for(self, text: str, timeout_s: float = 20.0) -> str:
        """Reads until the text has come since the last call; gives what came."""
        deadline = time.monotonic() + timeout_s
        while text not in self._unread:
            if time.monotonic() > deadline:
                raise AssertionError(f"{text!r} did not come; there was {self.text!r}")
            if not select.select([self._main], [], [], 0.1)[0]:
                continue
            try:
                data = os.read(self._main, 65536)
            except OSError:  # Linux says so when the child's side is closed
                data = b""
            if not data:
                raise AssertionError(f"it ended before {text!r} came; there was {self.text!r}")
            self._unread += data.decode("utf-8", "replace")
            self.text += data.decode("utf-8", "replace")
        before, found, self._unread = self._unread.partition(text)
        return before + found

    def type(self, text: str) -> None:
        """Types on its keyboard; "\\x03" is Ctrl-C, "\\x04" Ctrl-D."""
        os.write(self._main, text.encode())

    def ctrl_c_at_prompt(self) -> None:
        """Ctrl-C a moment after the prompt: Python overlooks one that comes just before it waits for a key."""
        time.sleep(0.2)
        self.type("\x03")

    def code(self, timeout_s: float = 20.0) -> int:
        """Waits for its end; gives the exit code."""
        deadline = time.monotonic() + timeout_s
        while self.process.poll() is None:
            assert time.monotonic() < deadline, f"it does not end; there was {self.text!r}"
            if select.select([self._main], [], [], 0.05)[0]:
                with contextlib.suppress(OSError):
                    self.text += os.read(self._main, 65536).decode("utf-8", "replace")
        return self.process.returncode

    def close(self) -> None:
        """Ends the child, if it has not ended."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._main)


def _take_terminal() -> None:
    import fcntl
    import termios

    signal.signal(signal.SIGINT, signal.default_int_handler)
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@contextlib.contextmanager
def terminal(*words: object, env: dict[str, str] | None = None) -> Iterator[Terminal]:
    """A Terminal that is closed at the end."""
    opened = Terminal(*words, env=env)
    try:
        yield opened
    finally:
        opened.close()


def own_catalogue(config: Path, text: str) -> Path:
    """Writes the user's models.toml."""
    config.mkdir(parents=True, exist_ok=True)
    file = config / "models.toml"
    file.write_text(text, encoding="utf-8")
    return file
