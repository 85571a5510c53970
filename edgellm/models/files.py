"""Files on the disk: progress, hashes, free space, whole writes, and errors that say what to do."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from edgellm.errors import DownloadError, ModelCorrupt

Progress = Callable[[int, int, str], None]
"""Called with bytes done, bytes in all (0 where unknown) and what is going on."""

_HASH_BLOCK = 1 << 20
# Left free on the disk beside the model: an edge device with a full root file system stops working.
_SPARE_BYTES = 32 << 20
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a finished file must be; size 0 and hash "" are unknown."""

    size_bytes: int = 0
    sha256: str = ""


def silent(_done: int, _total: int, _what: str) -> None:
    """A Progress that shows nothing."""


def throttled(progress: Progress, seconds: float = 0.1) -> Progress:
    """The same progress, told at most once in `seconds`, and always of a start and an end."""
    last = -seconds

    def tell(done: int, total: int, what: str) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= seconds or done in (0, total):
            last = now
            progress(done, total, what)

    return tell


def write_block(file: IO[bytes], block: bytes) -> None:
    """Writes all of `block`, also where the system takes only some of it at once."""
    view = memoryview(block)
    while view:
        view = view[file.write(view) :]


def write_text(path: Path, text: str) -> None:
    """Writes beside and renames: the old file or the new one, never half of it. A link stays one."""
    path = Path(os.path.realpath(path))
    beside = path.with_name(path.name + ".new")
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, path)


def free_bytes(folder: Path) -> int:
    """Bytes that can still be written at `folder`."""
    return shutil.disk_usage(folder).free


def check_space(folder: Path, needed: int, name: str) -> None:
    """Raises DownloadError where `needed` more bytes do not fit."""
    free = free_bytes(folder)
    if needed > 0 and needed + _SPARE_BYTES > free:
        raise DownloadError(
            f"{name} needs {needed / 1e6:,.0f} MB more; {folder} has {free / 1e6:,.0f} MB free.",
            hint="Free some space, or set EDGELLM_HOME to a folder on another disk.",
        )


@contextmanager
def disk_errors(folder: Path) -> Generator[None]:
    """Turns errors of writing to `folder` into DownloadErrors that say what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in DISK_FULL:
            raise DownloadError(
                f"The disk is full: {folder} took no more bytes.",
                hint="Free some space and try again: the download goes on where it stopped.",
            ) from None
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            raise DownloadError(
                f"{error.filename or folder} cannot be written: {error.strerror}.",
                hint="Correct its permissions, or set EDGELLM_HOME to a folder you may write to.",
            ) from None
        raise


def sha256_of(path: Path, progress: Progress = silent) -> str:
    """Hash of a file, in lower-case hex."""
    total, done, digest = path.stat().st_size, 0, hashlib.sha256()
    tell = throttled(progress)
    with path.open("rb") as file:
        while block := file.read(_HASH_BLOCK):
            digest.update(block)
            done += len(block)
            tell(done, total, f"checking {path.name.removesuffix('.part')}")
    return digest.hexdigest()


def check_file(path: Path, wanted: Wanted, progress: Progress = silent, *, label: str = "") -> str:
    """Hash of the file; raises ModelCorrupt where its size or hash is not the wanted one."""
    size = path.stat().st_size
    name = label or path.name
    again = "Pull it again; if it is so then too, it has changed there: the catalogue needs its new size and hash."
    if wanted.size_bytes and size != wanted.size_bytes:
        raise ModelCorrupt(f"{name} has {size:,} bytes instead of {wanted.size_bytes:,}.", hint=again)
    actual = sha256_of(path, progress)
    if wanted.sha256 and actual != wanted.sha256:
        raise ModelCorrupt(
            f"{name} has the hash {actual[:12]}… instead of {wanted.sha256[:12]}….", hint=again
        )
    return actual


def is_done(target: Path, wanted: Wanted, progress: Progress) -> bool:
    """Whether an earlier attempt left the wanted file, verified again; anything else is removed."""
    if target.exists() and wanted.sha256:
        with suppress(ModelCorrupt):
            check_file(target, wanted, progress)
            return True
    target.unlink(missing_ok=True)
    return False
