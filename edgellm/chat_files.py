"""The files of saved chats in a folder: which of them belongs to which chat, and what else of a chat lies there."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgellm.atomic import sweep

if TYPE_CHECKING:
    from collections.abc import Set
    from pathlib import Path

_CHAT = ".chat"
_BRANCH = re.compile(r"[1-9][0-9]*")
# The app keeps answers that are being written as ID.3.growing, written as ID.3.new first.
_GROWING = re.compile(r"(?P<id>.+)\.(?:0|[1-9][0-9]*)\.(?:growing|new)", re.DOTALL)
# What a killed writer leaves of ID.chat: see `replacing`.
_LEFTOVER = re.compile(r"\.(?P<name>.+\.chat)\.[^.]+\.part", re.DOTALL)


@dataclass(frozen=True, slots=True)
class ChatFile:
    """A file with a branch of a chat; branch 0 is the chat itself."""

    path: Path
    branch: int


def chat_files(folder: Path, known: Set[str]) -> dict[str, list[ChatFile]]:
    """All saved chats of a folder by id, each with its files. Raises OSError.

    ID.3.chat is a branch of ID where ID is `known` or ID.chat lies beside it; else it is a chat of its own, and so it
    is where its own id is known.
    """
    paths = folder.iterdir() if folder.is_dir() else ()
    chats = {
        path.name.removesuffix(_CHAT): path for path in paths if path.name.endswith(_CHAT) and path.is_file()
    }
    chats.pop("", None)

    def place(id: str) -> tuple[str, int]:
        head, _, number = id.rpartition(".")
        if not head or id in known or not _BRANCH.fullmatch(number):
            return id, 0
        is_branch = head in known or (head in chats and place(head)[1] == 0)
        return (head, int(number)) if is_branch else (id, 0)

    found: dict[str, list[ChatFile]] = {}
    for name, path in chats.items():
        id, branch = place(name)
        found.setdefault(id, []).append(ChatFile(path, branch))
    return found


def growing_files(folder: Path) -> dict[str, list[Path]]:
    """The files with answers that were being written, by the chat's id. Raises OSError."""
    found: dict[str, list[Path]] = {}
    for path in folder.iterdir() if folder.is_dir() else ():
        name = _GROWING.fullmatch(path.name)
        if name is not None and path.is_file():
            found.setdefault(name["id"], []).append(path)
    return found


def remove_chat(folder: Path, id: str, known: Set[str]) -> None:
    """Removes a chat's files and what was left in writing them, and nothing that lies beside them. Raises OSError."""
    own = [file.path for file in chat_files(folder, known).get(id, ())]
    names = {f"{id}{_CHAT}", *(path.name for path in own)}
    for path in (*own, *growing_files(folder).get(id, ())):
        path.unlink(missing_ok=True)
    leftovers = [_LEFTOVER.fullmatch(path.name) for path in folder.iterdir()] if folder.is_dir() else []
    for name in {found["name"] for found in leftovers if found is not None} & names:
        sweep(folder / name)
