"""Chats that outlive the app: files with their KV memory, and an index to list, search and restore them from."""

from __future__ import annotations

import dataclasses
import json
import sqlite3
import time
import uuid
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from edgellm import Message, ToolCall, private_dir, state_dir

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_SCHEMA = """
CREATE TABLE IF NOT EXISTS chats (
    id TEXT PRIMARY KEY, title TEXT NOT NULL, model TEXT NOT NULL, created REAL NOT NULL,
    updated REAL NOT NULL, messages INTEGER NOT NULL, tokens INTEGER NOT NULL, body TEXT NOT NULL,
    branches TEXT NOT NULL DEFAULT '[]'
)
"""


@dataclass(frozen=True, slots=True)
class SavedChat:
    """One row of the index. `model` is what the app loads for it: a catalogue name or a path."""

    id: str
    title: str
    model: str
    created: float
    updated: float
    messages: int
    tokens: int


@dataclass(frozen=True, slots=True)
class SavedBranch:
    """One branch of a chat: its messages as they were last seen, and the file that may hold its memory.

    `parent` is its place in the list of branches, None for the first; `position`, `token` and `why` say where it
    began. `length` is the length of its tape when the file was written, 0 where there is none.
    """

    number: int
    name: str
    messages: tuple[Message, ...]
    is_current: bool = False
    parent: int | None = None
    position: int | None = None
    token: str = ""
    why: str = ""


class Sessions:
    """The chats below `folder`, by default the user's state folder. Methods raise sqlite3.Error and OSError."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or state_dir() / "chats"

    def _connect(self) -> sqlite3.Connection:
        private_dir(self.folder)
        connection = sqlite3.connect(self.folder / "index.sqlite3", timeout=5)
        connection.execute(_SCHEMA)
        if "branches" not in {row[1] for row in connection.execute("PRAGMA table_info(chats)")}:
            connection.execute("ALTER TABLE chats ADD COLUMN branches TEXT NOT NULL DEFAULT '[]'")
        return connection

    def list(self, words: str = "") -> list[SavedChat]:
        """Chats, the newest first; with `words` only those that hold all of them, in title or text."""
        query = "SELECT id, title, model, created, updated, messages, tokens FROM chats"
        parts = words.lower().split()
        if parts:
            query += " WHERE " + " AND ".join(["instr(lower(title || ' ' || body), ?) > 0"] * len(parts))
        with closing(self._connect()) as connection:
            rows: list[Any] = connection.execute(f"{query} ORDER BY updated DESC", parts).fetchall()
        return [SavedChat(*row) for row in rows]

    def find(self, id: str) -> SavedChat | None:
        """A chat's row."""
        return next((saved for saved in self.list() if saved.id == id), None)

    def text(self, id: str) -> str:
        """All that was said in a chat."""
        with closing(self._connect()) as connection:
            row: Any = connection.execute("SELECT body FROM chats WHERE id = ?", (id,)).fetchone()
        return str(row[0]) if row else ""

    def branches(self, id: str) -> list[SavedBranch]:
        """The branches of a chat, in the order they began."""
        with closing(self._connect()) as connection:
            row: Any = connection.execute("SELECT branches FROM chats WHERE id = ?", (id,)).fetchone()
        return [_read_branch(record) for record in json.loads(row[0])] if row else []

    def new_id(self) -> str:
        """An id for a chat that has not been saved yet."""
        return uuid.uuid4().hex[:12]

    def path(self, id: str, number: int = 0) -> Path:
        """The file of a chat's branch."""
        return self.folder / (f"{id}.{number}.chat" if number else f"{id}.chat")

    def record(
        self, id: str, *, title: str, model: str, branches: Sequence[SavedBranch], tokens: int
    ) -> None:
        """Writes what was said; a title stays once there is one."""
        now = time.time()
        current = next((branch for branch in branches if branch.is_current), branches[0])
        # What was said in other branches is found by a search too.
        texts = dict.fromkeys(message.content for branch in branches for message in branch.messages)
        written = json.dumps([dataclasses.asdict(branch) for branch in branches], ensure_ascii=False)
        with closing(self._connect()) as connection, connection:
            connection.execute(
                "INSERT INTO chats VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET "
                "model = excluded.model, updated = excluded.updated, messages = excluded.messages, "
                "tokens = excluded.tokens, body = excluded.body, branches = excluded.branches, "
                "title = CASE title WHEN '' THEN excluded.title ELSE title END",
                (id, title, model, now, now, len(current.messages), tokens, "\n".join(texts), written),
            )
        for path in self.folder.glob(f"{id}.*.growing"):
            path.unlink(missing_ok=True)

    def write_growing(self, id: str, number: int, text: str) -> None:
        """Keeps what there is of an answer that is still being written."""
        path = self._growing_path(id, number)
        beside = path.with_suffix(".new")
        private_dir(self.folder)
        beside.write_text(text, encoding="utf-8")
        beside.replace(path)

    def growing(self, id: str, number: int) -> str:
        """An answer that was being written when the app died, "" where there is none."""
        try:
            return self._growing_path(id, number).read_text(encoding="utf-8")
        except (OSError, ValueError):
            return ""

    def _growing_path(self, id: str, number: int) -> Path:
        return self.folder / f"{id}.{number}.growing"

    def rename(self, id: str, title: str) -> None:
        """Gives a chat another title."""
        with closing(self._connect()) as connection, connection:
            connection.execute("UPDATE chats SET title = ? WHERE id = ?", (title, id))

    def delete(self, id: str) -> None:
        """Removes a chat, files and row."""
        for path in (self.path(id), *self.folder.glob(f"{id}.*")):
            path.unlink(missing_ok=True)
        with closing(self._connect()) as connection, connection:
            connection.execute("DELETE FROM chats WHERE id = ?", (id,))

    def forget_branches(self, id: str, numbers: Sequence[int]) -> None:
        """Removes the files of branches that are no longer there."""
        kept = {self.path(id, number) for number in numbers}
        for path in (self.path(id), *self.folder.glob(f"{id}.*.chat")):
            if path not in kept:
                path.unlink(missing_ok=True)


def _read_branch(record: dict[str, Any]) -> SavedBranch:
    # Any: JSON that `record` wrote.
    messages = cast("list[dict[str, Any]]", record.pop("messages"))
    return SavedBranch(messages=tuple(_read_message(message) for message in messages), **record)


def _read_message(record: dict[str, Any]) -> Message:
    calls = tuple(ToolCall(**call) for call in record.pop("tool_calls", ()))
    return Message(tool_calls=calls, **record)


def when(stamp: float, now: float | None = None) -> str:
    """A time in few characters: 12:04 today, the day of the month before that."""
    moment, today = time.localtime(stamp), time.localtime(now)
    if moment[:3] == today[:3]:
        return time.strftime("%H:%M", moment)
    return time.strftime("%d %b" if moment.tm_year == today.tm_year else "%Y-%m-%d", moment)
