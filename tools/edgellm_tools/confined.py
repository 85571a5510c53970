"""`run`: a command in its own process tree, under limits, and inside bubblewrap where that works.

With bubblewrap: no network, the file system read-only, homes and /run hidden, /tmp private and small. Without it
there are the limits and the scrubbed environment only, and every result says so.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import selectors
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import edgellm

MAX_OUTPUT_BYTES = 8_000
MAX_DRAINED_BYTES = 64 * 1024 * 1024
MAX_RUN_S = 60.0
MAX_PROCESSES = 64
MAX_MEMORY_BYTES = 512 * 1024 * 1024
MAX_ADDRESS_BYTES = 2 * 1024 * 1024 * 1024
MAX_FILE_BYTES = 64 * 1024 * 1024
MAX_TMP_BYTES = 64 * 1024 * 1024
MAX_OPEN_FILES = 256
# So much earlier than the call's own deadline, that the report still arrives.
REPORT_S = 1.5
_PATH = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin:/opt/homebrew/bin"
_HIDDEN = ("/home", "/root", "/run", "/tmp", "/var/tmp", "/mnt", "/media")


@dataclass(frozen=True, slots=True)
class Sandbox:
    """The bubblewrap command that works here, or the reason why there is none."""

    argv: tuple[str, ...]
    reason: str


@functools.cache
def find_sandbox() -> Sandbox:
    """Looks for bubblewrap and tries it once in the life of the process."""
    if sys.platform != "linux":
        return Sandbox((), "bubblewrap needs Linux")
    path = shutil.which("bwrap", path=_PATH)
    if path is None:
        return Sandbox((), "bubblewrap is not installed")
    try:
        argv = (path, *_mounts(path))
        trial = subprocess.run(
            [*argv, "--chdir", "/", "--", "/bin/sh", "-c", ":"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=10,
            env={"PATH": _PATH},
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Sandbox((), f"bubblewrap does not start: {type(error).__name__}")
    if trial.returncode != 0:
        said = trial.stderr.decode("utf-8", "replace").strip().splitlines()
        return Sandbox((), f"bubblewrap does not work here: {said[-1][:120] if said else trial.returncode}")
    return Sandbox(argv, "")


def _mounts(path: str) -> list[str]:
    told = subprocess.run([path, "--help"], capture_output=True, timeout=10, check=False)
    size = ["--size", str(MAX_TMP_BYTES)] if b"--size" in told.stdout + told.stderr else []
    argv = ["--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL"]
    argv += ["--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc"]
    hidden = [
        folder for folder in (*_HIDDEN, os.path.realpath(os.path.expanduser("~"))) if _is_folder(folder)
    ]
    # Outer folders first: a later mount lies on top of an earlier one.
    hidden = sorted({folder for folder in hidden if folder != "/"})
    for folder in hidden:
        argv += [*size, "--tmpfs", folder]
    # Python itself often lives in a home: shown again, read-only.
    for folder in sorted({sys.prefix, sys.base_prefix}):
        if any(_is_below(folder, outer) for outer in hidden):
            argv += ["--ro-bind", folder, folder]
    # Memory that a tmpfs holds is in nobody's resident size: only two small ones stay writable.
    argv += [*size, "--tmpfs", "/dev/shm", "--remount-ro", "/dev"]
    for folder in hidden:
        if folder != "/tmp":
            argv += ["--remount-ro", folder]
    return argv


def _is_folder(path: str) -> bool:
    return os.path.isdir(path) and not os.path.islink(path)


def _is_below(path: str, outer: str) -> bool:
    return path == outer or path.startswith(outer + "/")


def run(argv: Sequence[str], *, call: edgellm.ToolContext, stdin: bytes = b"") -> str:
    """Output of the command, stdout and stderr in order, its exit code where that is not 0, and the sandbox's state.

    Raises ToolError when it is stopped (time, memory, processes), with the output so far; Cancelled.
    """
    if os.name != "posix":
        raise edgellm.ToolError("Commands are run on Linux and macOS only: here nothing could hold them.")
    sandbox = find_sandbox()
    limit_s = min(MAX_RUN_S, max(0.5, call.remaining_s() - REPORT_S))
    with (
        tempfile.TemporaryDirectory(prefix="edgellm-", ignore_cleanup_errors=True) as private,
        tempfile.TemporaryFile() as source,
    ):
        source.write(stdin)
        source.seek(0)
        inside = "/tmp" if sandbox.argv else private
        command = [*sandbox.argv, "--chdir", "/tmp", "--", *argv] if sandbox.argv else list(argv)
        environment = {"PATH": _PATH, "HOME": inside, "TMPDIR": inside, "LANG": "C.UTF-8", "TERM": "dumb"}
        supervised = _Supervised(
            command, source.fileno(), private, environment, limit_s, is_sandboxed=bool(sandbox.argv)
        )
        try:
            stopped = supervised.collect(call, time.monotonic() + limit_s)
        finally:
            supervised.end()
        output = supervised.output()
    note = f"[not sandboxed, only limited: {sandbox.reason}]" if sandbox.reason else ""
    if call.cancelled():
        call.check()
    if not stopped:
        stopped = {
            "processes": f"it had more than {MAX_PROCESSES} processes",
            "memory": f"it used more than {_memory_limit() >> 20} MiB",
        }.get(supervised.stopped, "")
    if stopped:
        told = "\n".join(part for part in (output, note) if part)
        raise edgellm.ToolError(
            f"The command was killed: {stopped}." + (f" Its output:\n{told}" if told else "")
        )
    ending = ""
    if supervised.signal:
        ending = f"[ended by signal {supervised.signal}]"
    elif supervised.code:
        ending = f"[exit code {supervised.code}]"
    return "\n".join(part for part in (output or "[no output]", ending, note) if part)


def _memory_limit() -> int:
    # Half of a small board's memory at most: the model needs the rest.
    try:
        physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return MAX_MEMORY_BYTES
    return min(MAX_MEMORY_BYTES, physical // 2)


class _Supervised:
    """A running supervisor and what has been read from its command."""

    def __init__(
        self,
        command: list[str],
        stdin: int,
        folder: str,
        environment: dict[str, str],
        limit_s: float,
        *,
        is_sandboxed: bool,
    ) -> None:
        self.code, self.signal, self.stopped = -1, 0, ""
        self._head, self._tail, self._size = bytearray(), bytearray(), 0
        control_read, self._control = os.pipe()
        self._report, report_write = os.pipe()
        options = {
            "argv": command,
            # bubblewrap sets it itself, and where it is setuid it could not start with it.
            "no_new_privileges": not is_sandboxed,
            "control": control_read,
            "report": report_write,
            "cpu_s": int(limit_s) + 2,
            "max_processes": MAX_PROCESSES,
            "max_memory_bytes": _memory_limit(),
            "max_address_bytes": MAX_ADDRESS_BYTES,
            "max_file_bytes": MAX_FILE_BYTES,
            "max_open_files": MAX_OPEN_FILES,
        }
        supervisor = str(Path(__file__).with_name("supervise.py"))
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", supervisor, json.dumps(options)],
                stdin=stdin,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env=environment,
                pass_fds=(control_read, report_write),
                start_new_session=True,
                bufsize=0,
            )
        except OSError as error:
            os.close(self._control)
            os.close(self._report)
            raise edgellm.ToolError(f"The command could not be started: {error.strerror}.") from error
        finally:
            os.close(control_read)
            os.close(report_write)

    def collect(self, call: edgellm.ToolContext, until: float) -> str:
        """Reads until the command ends; the reason why it must be stopped, or ""."""
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        with selectors.DefaultSelector() as selector:
            selector.register(descriptor, selectors.EVENT_READ)
            while True:
                if call.cancelled():
                    return "it was cancelled"
                if time.monotonic() > until:
                    return "the time was up"
                if selector.select(0.05):
                    chunk = os.read(descriptor, 65536)
                    if not chunk:
                        # Closed by all: the command has ended, or has closed its output and works on.
                        return self._wait(call, until)
                    self._keep(chunk)
                    if self._size > MAX_DRAINED_BYTES:
                        return f"it wrote more than {MAX_DRAINED_BYTES >> 20} MiB"

    def _wait(self, call: edgellm.ToolContext, until: float) -> str:
        while self._process.poll() is None:
            if call.cancelled():
                return "it was cancelled"
            if time.monotonic() > until:
                return "the time was up"
            time.sleep(0.01)
        return ""

    def _keep(self, chunk: bytes) -> None:
        self._size += len(chunk)
        room = MAX_OUTPUT_BYTES // 2 - len(self._head)
        self._head += chunk[:room] if room > 0 else b""
        self._tail += chunk[max(room, 0) :]
        del self._tail[: -MAX_OUTPUT_BYTES // 2]

    def output(self) -> str:
        """The beginning and the end of what was written."""
        lost = self._size - len(self._head) - len(self._tail)
        between = f"\n[... {lost} bytes left out ...]\n".encode() if lost else b""
        return (bytes(self._head) + between + bytes(self._tail)).decode("utf-8", "replace").rstrip()

    def end(self) -> None:
        """Kills what is left, reads the report, closes everything. Safe to call at any moment."""
        os.close(self._control)
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            # Only if the supervisor itself was stopped by the command.
            with contextlib.suppress(OSError):
                os.killpg(self._process.pid, 9)
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        with os.fdopen(self._report, "rb") as report:
            os.set_blocking(report.fileno(), False)
            text = report.read() or b""
        if text:
            found = json.loads(text)
            self.code, self.signal, self.stopped = found["code"], found["signal"], found["stopped"]
