"""Runs one command under limits and leaves nothing of it behind. A script of its own: no imports from edgellm.

`python -I -S supervise.py '{"argv": [...], ...}'`. It becomes the subreaper of whatever the command starts, so
that a process which leaves the group, or whose parent ends, is still found and killed: when the command ends,
when `control` (a pipe) is closed, which also happens if edgellm dies, or when the tree grows too large.
What happened is written to `report` as JSON: {"code": 0, "signal": 0, "stopped": ""}.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import select
import signal
import sys
import time
from typing import Any

_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NO_NEW_PRIVS = 38
_TICK_S = 0.05
_IS_LINUX = sys.platform == "linux"


def main(options: dict[str, Any]) -> None:
    """Starts, watches, kills, reports."""
    control, report = int(options["control"]), int(options["report"])
    for descriptor in (control, report):
        os.set_inheritable(descriptor, False)
    if _IS_LINUX:
        libc = ctypes.CDLL(None)
        libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        if options["no_new_privileges"]:
            libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    limits = _limits(options)
    child = os.fork()
    if child == 0:
        _become(options["argv"], limits)
    # The pipes of the command must end with the command, not with us.
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    status, stopped = _watch(child, control, int(options["max_processes"]), int(options["max_memory_bytes"]))
    _kill_all(child)
    code = os.WEXITSTATUS(status) if status is not None and os.WIFEXITED(status) else -1
    by_signal = os.WTERMSIG(status) if status is not None and os.WIFSIGNALED(status) else 0
    os.write(report, json.dumps({"code": code, "signal": by_signal, "stopped": stopped}).encode())


def _limits(options: dict[str, Any]) -> list[tuple[int, int]]:
    limits = [
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_CPU, int(options["cpu_s"])),
        (resource.RLIMIT_FSIZE, int(options["max_file_bytes"])),
        (resource.RLIMIT_NOFILE, int(options["max_open_files"])),
    ]
    if _IS_LINUX:
        limits.append((resource.RLIMIT_AS, min(int(options["max_address_bytes"]), sys.maxsize)))
        if os.getuid() != 0:
            # The kernel counts all processes of the user, so those that run already come on top.
            limits.append((resource.RLIMIT_NPROC, _count_own_threads() + int(options["max_processes"])))
    return limits


def _become(argv: list[str], limits: list[tuple[int, int]]) -> None:
    try:
        os.setsid()
        for which, wanted in limits:
            hard = resource.getrlimit(which)[1]
            limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
            resource.setrlimit(which, (limit, limit))
        os.umask(0o077)
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        os.execvp(argv[0], argv)
    except BaseException as error:
        os.write(2, f"{argv[0]}: {error}\n".encode())
    finally:
        os._exit(127)


def _watch(child: int, control: int, max_processes: int, max_memory_bytes: int) -> tuple[int | None, str]:
    while True:
        status = _reap(child)
        if status is not None:
            return status, ""
        if select.select([control], [], [], _TICK_S)[0]:
            return None, "cancelled"
        tree = _quick_descendants()
        if len(tree) > max_processes:
            return None, "processes"
        if sum(map(_resident_bytes, tree)) > max_memory_bytes:
            return None, "memory"


def _reap(child: int) -> int | None:
    """Collects whatever ended; the status of the command if it is among them."""
    found = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return found
        if pid == 0:
            return found
        if pid == child:
            found = status


def _kill_all(child: int) -> None:
    until = time.monotonic() + 3
    while time.monotonic() < until:
        _signal_group(child)
        tree = _descendants()
        # Stopped first: what is stopped cannot fork while the rest is being killed.
        for wanted in (signal.SIGSTOP, signal.SIGKILL):
            for pid in tree:
                try:
                    os.kill(pid, wanted)
                except OSError:
                    continue
        _reap(child)
        if not tree and not _has_children():
            return
        time.sleep(0.005)


def _signal_group(child: int) -> None:
    try:
        os.killpg(child, signal.SIGKILL)
    except OSError:
        return


def _has_children() -> bool:
    try:
        os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return False
    return True


def _quick_descendants() -> list[int]:
    """Process ids below this one, from the kernel's own lists: cheap, and good enough to count."""
    found: list[int] = []
    waiting = [os.getpid()]
    try:
        while waiting:
            pid = waiting.pop()
            try:
                threads = os.listdir(f"/proc/{pid}/task")
            except OSError:
                continue
            for thread in threads:
                with open(f"/proc/{pid}/task/{thread}/children", "rb") as file:
                    below = [int(child) for child in file.read().split()]
                found += below
                waiting += below
    except FileNotFoundError:
        # A process that just ended, or a kernel without these lists.
        return _descendants()
    except OSError:
        return found
    return found


def _descendants() -> list[int]:
    """Process ids below this one; empty where there is no /proc."""
    if not _IS_LINUX:
        return []
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat", "rb") as file:
                    # The name is in parentheses and may hold any character: look behind the last one.
                    fields = file.read().rpartition(b")")[2].split()
            except OSError:
                continue
            children.setdefault(int(fields[1]), []).append(int(entry))
    found: list[int] = []
    waiting = [os.getpid()]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


def _resident_bytes(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            resident, shared = file.read().split()[1:3]
    except (OSError, ValueError):
        return 0
    return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")


def _count_own_threads() -> int:
    count = 0
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                if os.stat(f"/proc/{entry}").st_uid == os.getuid():
                    count += len(os.listdir(f"/proc/{entry}/task"))
            except OSError:
                continue
    return count


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
