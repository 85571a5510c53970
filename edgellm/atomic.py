"""Files that are written beside their place and renamed there, and folders for work under way, whatever kills the
writer."""

from __future__ import annotations

import errno
import glob
import os
import shutil
import stat
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator

_SUFFIX = ".part"
_OWNED = ".owned"
_NEW_S = 1.0
_IS_POSIX = os.name == "posix"  # elsewhere a file that is open can be neither renamed nor removed


@contextmanager
def replacing(path: Path, *, is_synced: bool = True) -> Generator[IO[bytes]]:
    """A file to write to that takes the place of `path` when the block ends well: readers see the old one or the new.

    Where `path` is a link, that is the file that it points to. What killed writers have left beside it is removed
    first. `is_synced` False leaves it to the system when it gets to the disk: a power cut may lose or damage it.
    Raises OSError.
    """
    path = _place(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=_SUFFIX, dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            # Held until the writer is done or dead: whoever gets it has found a leftover.
            _lock(file.fileno())
            yield file
            file.flush()
            if is_synced:
                os.fsync(file.fileno())
            if _IS_POSIX:
                os.replace(temporary, path)
        if not _IS_POSIX:
            os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    if is_synced:
        _sync_folder(path.parent)


def _place(path: Path) -> Path:
    """Where a file is to be put: the end of links. Folders, devices and the like are never put away for it."""
    place = Path(os.path.realpath(path)) if path.is_symlink() else path
    try:
        mode = place.stat().st_mode
    except FileNotFoundError:
        return place
    except ValueError as error:
        raise OSError(errno.EINVAL, f"it is no path ({error})") from None
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    return place


@contextmanager
def temporary_folder(parent: Path) -> Generator[Path]:
    """A new folder below `parent` that goes with the block; those of killed owners go first. Raises OSError."""
    parent.mkdir(parents=True, exist_ok=True)
    for mark in _abandoned(parent.glob(f".*{_OWNED}")):
        with suppress(OSError):
            mark.unlink()  # which fails where there are no locks and the owner has it open
            shutil.rmtree(mark.with_suffix(""), ignore_errors=True)
    handle, name = tempfile.mkstemp(prefix=".", suffix=_OWNED, dir=parent)
    mark = Path(name)
    folder = mark.with_suffix("")
    try:
        with os.fdopen(handle, "wb") as file:
            _lock(file.fileno())  # as above
            folder.mkdir()
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        mark.unlink(missing_ok=True)


def sweep(path: Path) -> None:
    """Removes what killed writers of `path` have left beside it."""
    _sweep(leftovers(path.parent, path.name))


def sweep_folder(folder: Path) -> None:
    """Removes what killed writers of any file in a folder have left."""
    _sweep(leftovers(folder))


def leftovers(folder: Path, name: str = "") -> Iterator[Path]:
    """Files that are being written in a folder, or were when their writer was killed; with `name`, those of one."""
    return folder.glob(f".{glob.escape(name) or '*'}.*{_SUFFIX}")


def _sweep(found: Iterable[Path]) -> None:
    for leftover in _abandoned(found):
        with suppress(OSError):
            leftover.unlink()


def _abandoned(found: Iterable[Path]) -> Iterator[Path]:
    """Those whose owners are gone."""
    for leftover in found:
        with suppress(OSError), leftover.open("rb") as file:
            # One that was made this very moment may not be locked yet.
            is_old = time.time() - os.fstat(file.fileno()).st_mtime > _NEW_S
            if is_old and _lock(file.fileno()):
                if not _IS_POSIX:  # not by us either
                    file.close()
                yield leftover


def _lock(handle: int) -> bool:
    """Takes the lock of an open file; false where another holds it. Where there are no such locks, the system itself
    refuses to remove a file that is open."""
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _sync_folder(folder: Path) -> None:
    """The new name survives a power cut, where the system can be told so."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
