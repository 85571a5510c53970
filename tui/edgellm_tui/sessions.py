"""Chats that outlive the app: a file each with its KV memory, and an index to list and search."""

from __future__ import annotations

import sqlite3
import time
import uuid
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgellm import private_dir, state_dir

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from edgellm import Message

_SCHEMA = """
CREATE TABLE IF NOT EXISTS chats (
    id TEXT PRIMARY KEY, title TEXT NOT NULL, model TEXT NOT NULL, created REAL NOT NULL,
    updated REAL NOT NULL, messages INTEGER NOT NULL, tokens INTEGER NOT NULL, body TEXT NOT NULL
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


class Sessions:
    """The chats below `folder`, by default the user's state folder. Methods raise sqlite3.Error and OSError."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or state_dir() / "chats"

    def _connect(self) -> sqlite3.Connection:
        private_dir(self.folder)
        connection = sqlite3.connect(self.folder / "index.sqlite3", timeout=5)
        connection.execute(_SCHEMA)
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

    def new_id(self) -> str:
        """An id for a chat that has not been saved yet."""
        return uuid.uuid4().hex[:12]

    def path(self, id: str) -> Path:
        """The file of a chat."""
        return self.folder / f"{id}.chat"

    def record(self, id: str, *, title: str, model: str, messages: Sequence[Message], tokens: int) -> None:
        """Writes a chat's row; its title stays once it has one."""
        now = time.time()
        body = "\n".join(message.content for message in messages)
        with closing(self._connect()) as connection, connection:
            connection.execute(
                "INSERT INTO chats VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET "
                "model = excluded.model, updated = excluded.updated, messages = excluded.messages, "
                "tokens = excluded.tokens, body = excluded.body, "
                "title = CASE title WHEN '' THEN excluded.title ELSE title END",
                (id, title, model, now, now, len(messages), tokens, body),
            )

    def rename(self, id: str, title: str) -> None:
        """Gives a chat another title."""
        with closing(self._connect()) as connection, connection:
            connection.execute("UPDATE chats SET title = ? WHERE id = ?", (title, id))

    def delete(self, id: str) -> None:
        """Removes a chat, file and row."""
        self.path(id).unlink(missing_ok=True)
        with closing(self._connect()) as connection, connection:
            connection.execute("DELETE FROM chats WHERE id = ?", (id,))


def when(stamp: float, now: float | None = None) -> str:
    """A time in few characters: 12:04 today, the day of the month before that."""
    moment, today = time.localtime(stamp), time.localtime(now)
    if moment[:3] == today[:3]:
        return time.strftime("%H:%M", moment)
    return time.strftime("%d %b" if moment.tm_year == today.tm_year else "%Y-%m-%d", moment)
