"""Which app has a chat open: two would each write down what was said in theirs, and the last one would win."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_FOLDER = "open"
_held: dict[Path, int] = {}


def hold(folder: Path, id: str) -> bool:
    """Marks a chat as open in this process, until it ends or lets go. False: another one has it open.

    Where nothing can be marked, on a file system without locks, say, it is True.
    """
    path = folder / _FOLDER / id
    if path in _held:
        return True
    try:
        import fcntl
    except ImportError:
        return True
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return False
    except OSError:
        os.close(handle)
        return True
    _held[path] = handle
    return True


def let_go(folder: Path, id: str) -> None:
    """The chat is not open here any more."""
    path = folder / _FOLDER / id
    handle = _held.pop(path, None)
    if handle is not None:
        path.unlink(missing_ok=True)
        os.close(handle)
