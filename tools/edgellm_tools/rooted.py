"""`Root`: one folder that nothing leads out of.

A path is taken apart and opened component by component, each relative to the descriptor of the one before
and never through a symbolic link: there is no moment at which a swapped folder could lead elsewhere.
edgellm's own folders (`.edgellm`, configuration, data, state, cache) stay closed: what is written there may become
code, and what is read there are other chats.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import unicodedata
from collections.abc import Generator
from typing import BinaryIO

import edgellm

MAX_PARTS = 40
MAX_SHOWN = 80

# Missing on systems where `Root` refuses to work; importing must not fail there.
_GUARDED = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0)
FOLDER_FLAGS = os.O_RDONLY | _GUARDED | getattr(os, "O_DIRECTORY", 0)
# O_NONBLOCK: a FIFO that took the file's place must not hold us.
FILE_FLAGS = os.O_RDONLY | _GUARDED | getattr(os, "O_NONBLOCK", 0)
NEW_FILE_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _GUARDED
_OWN_FOLDER = ".edgellm"

Identity = tuple[int, int]  # device, inode


class Root:
    """A folder the user named. Raises ToolError: not a folder, or one of edgellm's own."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        if os.open not in os.supports_dir_fd or not hasattr(os, "O_NOFOLLOW"):
            raise edgellm.ToolError(
                "This system cannot open files relative to a folder: the file tools are off."
            )
        self.path = os.path.realpath(os.path.expanduser(os.fspath(folder)))
        own = _own_paths()
        self._own_names = [_plain_parts(path) for path in own]
        self._own_identities = _identities(own)
        self._names = _plain_parts(self.path)
        if not os.path.isdir(self.path):
            raise edgellm.ToolError(
                f"The folder {self.path} of the file tools is not there.", hint="The user sets it."
            )
        if self.is_own(()):
            raise edgellm.ToolError(
                f"{self.path} belongs to edgellm itself.", hint="The user names another folder."
            )

    def split(self, path: str, *, is_file: bool = False) -> tuple[str, ...]:
        """The components of a relative path. Raises ToolError for whatever could lead out of the root."""
        if "\0" in path:
            raise edgellm.ToolError("A path cannot hold a NUL character.")
        try:
            os.fsencode(path)
        except UnicodeEncodeError as error:
            raise edgellm.ToolError("A path holds characters that no file name can have.") from error
        if path.startswith(("/", "~")):
            raise edgellm.ToolError(
                f"{shown(path)} is not a relative path.",
                hint='Start at the folder itself, as in "notes/todo.txt".',
            )
        parts = tuple(part for part in path.split("/") if part not in ("", "."))
        if ".." in parts:
            raise edgellm.ToolError(
                f"{shown(path)} holds '..'.", hint="Nothing outside the folder can be opened."
            )
        if len(parts) > MAX_PARTS:
            raise edgellm.ToolError(f"The path has {len(parts)} parts; at most {MAX_PARTS}.")
        if is_file and (not parts or path.endswith("/")):
            raise edgellm.ToolError(
                f"{shown(path)} names a folder, not a file.", hint="list_files lists a folder."
            )
        if self.is_own(parts):
            raise edgellm.ToolError(f"{shown(path)} belongs to edgellm itself and stays closed.")
        return parts

    def is_own(self, parts: tuple[str, ...]) -> bool:
        """True at and below edgellm's folders, by name: below the root no component is ever a link."""
        whole = (*self._names, *map(plain, parts))
        return _OWN_FOLDER in whole or any(whole[: len(own)] == own for own in self._own_names)

    @contextlib.contextmanager
    def open_folder(self, parts: tuple[str, ...], *, make: bool = False) -> Generator[int]:
        """A descriptor of the folder, reached one component at a time; `make` makes those that are missing."""
        at, folder = ".", -1
        try:
            try:
                folder = os.open(self.path, FOLDER_FLAGS)
                self._check_identity(folder, folder, at)
                for index, part in enumerate(parts):
                    at = "/".join(parts[: index + 1])
                    if make:
                        with contextlib.suppress(FileExistsError):
                            os.mkdir(part, dir_fd=folder)
                    inner = self.enter(folder, part, at)
                    os.close(folder)
                    folder = inner
            except OSError as error:
                raise as_tool_error(error, at) from error
            yield folder
        finally:
            if folder >= 0:
                os.close(folder)

    def enter(self, folder: int, name: str, at: str) -> int:
        """A descriptor of the folder `name` inside an open one; the caller closes it. Raises OSError, ToolError."""
        inner = os.open(name, FOLDER_FLAGS, dir_fd=folder)
        try:
            self._check_identity(folder, inner, at)
        except BaseException:
            os.close(inner)
            raise
        return inner

    @contextlib.contextmanager
    def open_file(self, parts: tuple[str, ...]) -> Generator[BinaryIO]:
        """The regular file, open for reading."""
        with self.open_folder(parts[:-1]) as folder:
            file = open_at(folder, parts[-1], "/".join(parts))
        with file:
            yield file

    def _check_identity(self, outer: int, inner: int, at: str) -> None:
        # By device and inode: a bind mount, or a file system with its own idea of equal names, hides nothing.
        status = os.fstat(inner)
        own = set(self._own_identities)
        with contextlib.suppress(OSError):
            here = os.stat(_OWN_FOLDER, dir_fd=outer, follow_symlinks=False)
            own.add((here.st_dev, here.st_ino))
        if (status.st_dev, status.st_ino) in own:
            raise edgellm.ToolError(f"{shown(at)} belongs to edgellm itself and stays closed.")


def plain(name: str) -> str:
    """What a file system that ignores case and invisible characters takes for the same name."""
    visible = "".join(character for character in name if unicodedata.category(character) != "Cf")
    return unicodedata.normalize("NFKC", visible).casefold()


def _plain_parts(path: str) -> tuple[str, ...]:
    return tuple(plain(part) for part in path.split("/") if part)


def _own_paths() -> list[str]:
    import platformdirs

    folders = [
        *map(
            os.environ.get, ("EDGELLM_CONFIG_DIR", "EDGELLM_HOME", "EDGELLM_STATE_DIR", "EDGELLM_CACHE_DIR")
        ),
        "~/.config/edgellm",
        platformdirs.user_config_dir("edgellm", appauthor=False),
        platformdirs.user_data_dir("edgellm", appauthor=False),
        platformdirs.user_state_dir("edgellm", appauthor=False),
        platformdirs.user_cache_dir("edgellm", appauthor=False),
    ]
    return [os.path.realpath(os.path.expanduser(folder)) for folder in folders if folder]


def _identities(paths: list[str]) -> frozenset[Identity]:
    found: set[Identity] = set()
    for path in paths:
        with contextlib.suppress(OSError):
            status = os.stat(path)
            found.add((status.st_dev, status.st_ino))
    return frozenset(found)


def open_at(folder: int, name: str, at: str) -> BinaryIO:
    """The regular file `name` of an open folder. Raises ToolError."""
    try:
        # Looked at first, since opening a device can do something; looked at again once it is open.
        check_regular(os.stat(name, dir_fd=folder, follow_symlinks=False), at)
        descriptor = os.open(name, FILE_FLAGS, dir_fd=folder)
    except OSError as error:
        raise as_tool_error(error, at) from error
    try:
        check_regular(os.fstat(descriptor), at)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def check_regular(status: os.stat_result, at: str) -> None:
    """Raises ToolError for a folder, a link, a device."""
    if stat.S_ISREG(status.st_mode):
        return
    if stat.S_ISDIR(status.st_mode):
        raise edgellm.ToolError(f"{shown(at)} is a folder.", hint="list_files lists a folder.")
    if stat.S_ISLNK(status.st_mode):
        raise edgellm.ToolError(f"{shown(at)} is a symbolic link: links are not followed.")
    raise edgellm.ToolError(f"{shown(at)} is not a regular file.")


def as_tool_error(error: OSError, at: str) -> edgellm.ToolError:
    """What the system refused, in words for the model."""
    match error.errno:
        case errno.ENOENT:
            return edgellm.ToolError(f"There is no {shown(at)}.", hint="list_files shows what is there.")
        case errno.ELOOP:
            return edgellm.ToolError(f"{shown(at)} is a symbolic link: links are not followed.")
        case errno.ENOTDIR:
            return edgellm.ToolError(f"{shown(at)} is no folder (a file, or a link: links are not followed).")
        case _:
            return edgellm.ToolError(f"{shown(at)}: {error.strerror or type(error).__name__}.")


def escaped(name: str) -> str:
    """A name for people: it may hold line breaks, or bytes that are no UTF-8, and must not forge a line of ours."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in name)


def shown(path: str) -> str:
    """A path as an error quotes it: escaped and not too long."""
    return repr(escaped(path if len(path) <= MAX_SHOWN else path[: MAX_SHOWN - 3] + "..."))
