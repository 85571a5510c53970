"""Files inside one folder that the user named: list, read, search and, asked each time, write.

The folder is the setting `files.root`, the environment variable EDGELLM_FILES_ROOT, or `Files(root)`. How it is
kept inside that folder is in `rooted.py`.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
import time
from collections.abc import Iterator
from typing import BinaryIO

import edgellm
from edgellm_tools.rooted import (
    MAX_PARTS,
    NEW_FILE_FLAGS,
    Root,
    as_tool_error,
    check_regular,
    escaped,
    open_at,
    plain,
    shown,
)

MAX_LISTED = 200
MAX_READ_CHARACTERS = 6_000
MAX_READ_BYTES = 64 * 1024 * 1024
MAX_WRITE_BYTES = 1024 * 1024
MAX_SEARCHED_FILE_BYTES = 1024 * 1024
MAX_SEARCHED_FILES = 5_000
MAX_MATCHES = 50
MAX_MATCH_CHARACTERS = 160
MAX_SEARCH_S = 8.0

_NOT_SEARCHED = {".git", ".hg", ".svn"}
# A file written there is a command that runs at the next commit.
_NOT_WRITTEN = {".git", ".hg"}


class Files:
    """Tools over one folder: `runtime.chat(tools=[Files("~/notes")])`. No root: the user's setting."""

    def __init__(self, root: str | os.PathLike[str] | None = None) -> None:
        self._root = None if root is None else os.fspath(root)

    @edgellm.tool(permission="auto", timeout_s=10)
    def list_files(self, path: str = ".", *, call: edgellm.ToolContext) -> str:
        """Lists a folder.

        Args:
            path: Relative path.
        """
        root = self._open_root(call)
        parts = root.split(path)
        with root.open_folder(parts) as folder:
            names = [name for name in _names(folder) if not root.is_own((*parts, name))]
            lines = [_entry(folder, name) for name in names[:MAX_LISTED]]
        if len(names) > MAX_LISTED:
            lines.append(f"[{len(names) - MAX_LISTED} more not shown]")
        return "\n".join(lines) or "[empty folder]"

    @edgellm.tool(permission="auto", timeout_s=10, max_result_tokens=2048)
    def read_file(self, path: str, start_line: int = 1, *, call: edgellm.ToolContext) -> str:
        """Reads a text file.

        Args:
            path: Relative path.
            start_line: First line.
        """
        root = self._open_root(call)
        with root.open_file(root.split(path, is_file=True)) as file:
            size = os.fstat(file.fileno()).st_size
            if size > MAX_READ_BYTES:
                raise edgellm.ToolError(f"{shown(path)} has {size} bytes; at most {MAX_READ_BYTES} are read.")
            if _is_binary(file):
                raise edgellm.ToolError(f"{shown(path)} is a binary file ({size} bytes), not text.")
            return _page(file, max(1, start_line), path)

    @edgellm.tool(permission="auto", timeout_s=20)
    def search_files(self, text: str, path: str = ".", *, call: edgellm.ToolContext) -> str:
        """Finds text in files and file names, ignoring case.

        Args:
            text: Literal text.
            path: Folder.
        """
        if not text.strip():
            raise edgellm.ToolError("The text to search for is empty.")
        root = self._open_root(call)
        return _Search(root, text, call).run(root.split(path))

    @edgellm.tool(permission="ask", timeout_s=20)
    def write_file(self, path: str, content: str, *, call: edgellm.ToolContext) -> str:
        """Writes a text file, replacing what it held.

        Args:
            path: Relative path.
            content: The whole new text.
        """
        root = self._open_root(call)
        parts = root.split(path, is_file=True)
        if any(plain(part) in _NOT_WRITTEN for part in parts):
            raise edgellm.ToolError(f"{shown(path)} is inside a version control folder: not written.")
        # Lone surrogates can be spelled in JSON, but not be written as UTF-8.
        data = content.encode("utf-8", "replace")
        if len(data) > MAX_WRITE_BYTES:
            raise edgellm.ToolError(
                f"The text has {len(data)} bytes; at most {MAX_WRITE_BYTES} are written.", hint="Write less."
            )
        with root.open_folder(parts[:-1], make=True) as folder:
            replaced = _replace(folder, parts[-1], data, path)
        return f"Wrote {len(data)} bytes to {shown('/'.join(parts))}{replaced}."

    def _open_root(self, call: edgellm.ToolContext) -> Root:
        folder = self._root or call.setting("files.root") or os.environ.get("EDGELLM_FILES_ROOT")
        if not folder:
            raise edgellm.ToolError(
                "No folder is open to the file tools.",
                hint="The user sets one: EDGELLM_FILES_ROOT=/path, or files.root in the configuration.",
            )
        return Root(str(folder))


def _names(folder: int) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError as error:
        raise as_tool_error(error, ".") from error


def _entry(folder: int, name: str) -> str:
    try:
        status = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except OSError:
        return f"{escaped(name)}  (unreadable)"
    if stat.S_ISDIR(status.st_mode):
        return escaped(name) + "/"
    if stat.S_ISLNK(status.st_mode):
        return f"{escaped(name)}  (link, not followed)"
    if not stat.S_ISREG(status.st_mode):
        return f"{escaped(name)}  (special)"
    return f"{escaped(name)}  {status.st_size} bytes"


def _is_binary(file: BinaryIO) -> bool:
    head = file.read(8192)
    file.seek(0)
    return b"\0" in head


def _page(file: BinaryIO, start: int, path: str) -> str:
    """Lines from `start` on, up to the cap, and how to go on."""
    number, taken, left = 0, list[str](), MAX_READ_CHARACTERS
    last = start - 1
    is_cut = False
    for number, line in enumerate(_lines(file), 1):
        if number < start:
            continue
        if len(line) > left:
            is_cut = not taken
            if is_cut:
                taken.append(line[:left] + "\n")
                last = number
            break
        taken.append(line)
        left -= len(line)
        last = number
    else:
        if start > max(number, 1):
            raise edgellm.ToolError(f"{shown(path)} has {number} lines only.")
        return "".join(taken) or "[empty file]"
    note = f"line {last} is longer than shown; " if is_cut else ""
    return "".join(taken) + f"[{note}next: start_line={last + 1}]"


def _lines(file: BinaryIO) -> Iterator[str]:
    """Lines as text; of one that is longer than a page only the beginning, and the rest is skipped."""
    limit = MAX_READ_CHARACTERS * 4 + 8
    while line := file.readline(limit):
        if len(line) == limit and not line.endswith(b"\n"):
            while (rest := file.readline(limit)) and not rest.endswith(b"\n"):
                pass
        yield line.decode("utf-8", "replace")


def _replace(folder: int, name: str, data: bytes, path: str) -> str:
    """Writes beside and renames; a link or a folder in the way is refused, never followed."""
    mode, replaced = None, ""
    temporary = f".{secrets.token_hex(8)}.part"
    try:
        with contextlib.suppress(FileNotFoundError):
            status = os.stat(name, dir_fd=folder, follow_symlinks=False)
            check_regular(status, path)
            # A rename asks the folder alone, and root may write everything: the mark is looked at here.
            if not status.st_mode & 0o222 or not os.access(name, os.W_OK, dir_fd=folder):
                raise edgellm.ToolError(f"{shown(path)} is read-only: not written.")
            mode, replaced = stat.S_IMODE(status.st_mode) & 0o777, f", replacing {status.st_size} bytes"
        descriptor = os.open(temporary, NEW_FILE_FLAGS, 0o666, dir_fd=folder)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                if mode is not None:
                    os.fchmod(file.fileno(), mode)
                os.fsync(file.fileno())
            os.replace(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary, dir_fd=folder)
            raise
    except OSError as error:
        raise as_tool_error(error, path) from error
    return replaced


class _Stopped(Exception):
    """The walk reached a cap."""


class _Search:
    """One walk: sorted, links and edgellm's folders left out, and honest about where it stopped."""

    def __init__(self, root: Root, text: str, call: edgellm.ToolContext) -> None:
        self._root = root
        self._text = text.casefold()
        self._call = call
        self._until = time.monotonic() + min(MAX_SEARCH_S, call.remaining_s())
        self._files = 0
        self._matches: list[str] = []
        self._skipped = 0

    def run(self, parts: tuple[str, ...]) -> str:
        stopped = ""
        with self._root.open_folder(parts) as folder:
            try:
                self._walk(folder, parts)
            except _Stopped as stop:
                stopped = str(stop)
        lines = list(self._matches) or ["[no match]"]
        if stopped:
            lines.append(f"[search stopped: {stopped}]")
        if self._skipped:
            lines.append(f"[{self._skipped} large or unreadable files not searched]")
        return "\n".join(lines)

    def _walk(self, folder: int, parts: tuple[str, ...]) -> None:
        for name in _names(folder):
            self._call.check()
            if time.monotonic() > self._until:
                self._stop("time is up")
            inner_parts = (*parts, name)
            if name in _NOT_SEARCHED or len(inner_parts) > MAX_PARTS or self._root.is_own(inner_parts):
                continue
            try:
                status = os.stat(name, dir_fd=folder, follow_symlinks=False)
            except OSError:
                continue
            if stat.S_ISDIR(status.st_mode):
                self._enter(folder, inner_parts)
            elif stat.S_ISREG(status.st_mode):
                self._look(folder, name, escaped("/".join(inner_parts)))

    def _enter(self, folder: int, parts: tuple[str, ...]) -> None:
        try:
            inner = self._root.enter(folder, parts[-1], "/".join(parts))
        except (edgellm.ToolError, OSError):
            self._skipped += 1
            return
        try:
            self._walk(inner, parts)
        except edgellm.ToolError:
            # Unreadable: the walk goes on beside it.
            self._skipped += 1
        finally:
            os.close(inner)

    def _look(self, folder: int, name: str, shown: str) -> None:
        if self._files >= MAX_SEARCHED_FILES:
            self._stop(f"{MAX_SEARCHED_FILES} files searched")
        self._files += 1
        if self._text in name.casefold():
            self._add(shown)
        try:
            with open_at(folder, name, shown) as file:
                data = file.read(MAX_SEARCHED_FILE_BYTES + 1)
        except (edgellm.ToolError, OSError):
            self._skipped += 1
            return
        if len(data) > MAX_SEARCHED_FILE_BYTES:
            self._skipped += 1
            return
        if b"\0" in data[:8192]:
            return
        for number, line in enumerate(data.decode("utf-8", "replace").splitlines(), 1):
            at = line.casefold().find(self._text)
            if at >= 0:
                start = max(0, at - MAX_MATCH_CHARACTERS // 2)
                self._add(f"{shown}:{number}: {line[start : start + MAX_MATCH_CHARACTERS].strip()}")

    def _add(self, line: str) -> None:
        if len(self._matches) >= MAX_MATCHES:
            self._stop(f"{MAX_MATCHES} matches")
        self._matches.append(line)

    def _stop(self, reason: str) -> None:
        raise _Stopped(reason)


_files = Files()
list_files = _files.list_files
read_file = _files.read_file
search_files = _files.search_files
write_file = _files.write_file
