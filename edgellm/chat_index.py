"""Saved chats in a folder: a file each, and an index to list them, to search their text and to bound their size."""

from __future__ import annotations

import sqlite3
import time
import uuid
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgellm.errors import ConfigError
from edgellm.folders import private_dir, state_dir

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence
    from pathlib import Path

    from edgellm.types import Message

# Each entry brings an index one version further: user_version counts those that have run.
_MIGRATIONS = (
    """
    CREATE TABLE chats (
        number INTEGER PRIMARY KEY, id TEXT UNIQUE NOT NULL, title TEXT NOT NULL, model TEXT NOT NULL,
        created REAL NOT NULL, updated REAL NOT NULL, used REAL NOT NULL, messages INTEGER NOT NULL,
        tokens INTEGER NOT NULL, is_pinned INTEGER NOT NULL DEFAULT 0
    );
    CREATE VIRTUAL TABLE texts USING fts5 (title, body, tokenize = 'unicode61 remove_diacritics 2');
    """,
)
_COLUMNS = "id, title, model, created, updated, messages, tokens, is_pinned"


@dataclass(frozen=True, slots=True)
class IndexedChat:
    """A saved chat as the index knows it. `model` is what to load for it; times are seconds since 1970."""

    id: str
    title: str
    model: str
    created: float
    updated: float
    messages: int
    tokens: int
    is_pinned: bool = False


class ChatIndex:
    """The chats below `folder`, by default the user's state folder; `limit_bytes` 0 keeps all of them.

    Several processes may use it at once. Methods raise ConfigError where the folder cannot be used.
    """

    def __init__(self, folder: Path | None = None, *, limit_bytes: int = 0) -> None:
        self.folder = folder or state_dir() / "saved"
        self.limit_bytes = limit_bytes

    def new_id(self) -> str:
        """An id for a chat that has not been saved yet."""
        return uuid.uuid4().hex[:12]

    def path(self, id: str) -> Path:
        """The file of a chat: where to save it, and to open it from."""
        return self.folder / f"{id}.chat"

    def list(self, words: str = "") -> list[IndexedChat]:
        """Chats, the newest first; with `words` those that hold all of them, by beginnings of words, the best first."""
        terms = [f'"{word.replace(chr(34), chr(34) * 2)}"*' for word in words.split()]
        with closing(self._open()) as index:
            if terms:
                found = index.execute(
                    f"SELECT {_COLUMNS} FROM chats JOIN (SELECT rowid, rank FROM texts WHERE texts MATCH ?) AS hits "
                    "ON hits.rowid = chats.number ORDER BY hits.rank, updated DESC",
                    (" ".join(terms),),
                ).fetchall()
            else:
                found = index.execute(f"SELECT {_COLUMNS} FROM chats ORDER BY updated DESC").fetchall()
        return [IndexedChat(*row[:-1], is_pinned=bool(row[-1])) for row in found]

    def record(
        self, id: str, *, title: str, model: str, messages: Sequence[Message], tokens: int
    ) -> list[str]:
        """Writes a saved chat's row; its title stays once it has one. Returns the ids of chats that had to go.

        Where all files together exceed `limit_bytes`, those unused for longest go, but for this one and pinned ones.
        """
        now = time.time()
        body = "\n".join(message.content for message in messages)
        with closing(self._open()) as index, self._change(index):
            index.execute(
                "INSERT INTO chats (id, title, model, created, updated, used, messages, tokens) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET model = excluded.model, "
                "updated = excluded.updated, used = excluded.used, messages = excluded.messages, "
                "tokens = excluded.tokens, title = CASE title WHEN '' THEN excluded.title ELSE title END",
                (id, title, model, now, now, now, len(messages), tokens),
            )
            number, kept = index.execute("SELECT number, title FROM chats WHERE id = ?", (id,)).fetchone()
            index.execute("DELETE FROM texts WHERE rowid = ?", (number,))
            index.execute("INSERT INTO texts (rowid, title, body) VALUES (?, ?, ?)", (number, kept, body))
            return list(self._shrink(index, id))

    def _shrink(self, index: sqlite3.Connection, id: str) -> Iterator[str]:
        rows = index.execute("SELECT id, is_pinned FROM chats ORDER BY used DESC").fetchall()
        sizes = {key: self._size(key) for key, _ in rows}
        total = sum(sizes.values())
        for key, is_pinned in reversed(rows):
            if not self.limit_bytes or total <= self.limit_bytes:
                return
            if key != id and not is_pinned:
                self._remove(index, key)
                total -= sizes[key]
                yield key

    def _size(self, id: str) -> int:
        try:
            return self.path(id).stat().st_size
        except OSError:
            return 0

    def touch(self, id: str) -> None:
        """Notes that a chat was opened."""
        with closing(self._open()) as index, self._change(index):
            index.execute("UPDATE chats SET used = ? WHERE id = ?", (time.time(), id))

    def pin(self, id: str, is_pinned: bool = True) -> None:
        """A pinned chat never goes to make room."""
        with closing(self._open()) as index, self._change(index):
            index.execute("UPDATE chats SET is_pinned = ? WHERE id = ?", (int(is_pinned), id))

    def rename(self, id: str, title: str) -> None:
        """Gives a chat another title."""
        with closing(self._open()) as index, self._change(index):
            index.execute("UPDATE chats SET title = ? WHERE id = ?", (title, id))
            index.execute(
                "UPDATE texts SET title = ? WHERE rowid = (SELECT number FROM chats WHERE id = ?)",
                (title, id),
            )

    def delete(self, id: str) -> None:
        """Removes a chat, file and row."""
        with closing(self._open()) as index, self._change(index):
            self._remove(index, id)

    def _remove(self, index: sqlite3.Connection, id: str) -> None:
        index.execute("DELETE FROM texts WHERE rowid = (SELECT number FROM chats WHERE id = ?)", (id,))
        index.execute("DELETE FROM chats WHERE id = ?", (id,))
        self.path(id).unlink(missing_ok=True)

    @contextmanager
    def _change(self, index: sqlite3.Connection) -> Generator[None]:
        """All of the block, or nothing of it."""
        try:
            index.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                index.execute("ROLLBACK")
                raise
            index.execute("COMMIT")
        except (sqlite3.Error, OSError) as error:
            raise self._error(error) from error

    def _open(self) -> sqlite3.Connection:
        try:
            private_dir(self.folder)
            index = sqlite3.connect(self.folder / "index.sqlite3", timeout=5, isolation_level=None)
            try:
                self._migrate(index)
            except BaseException:
                index.close()
                raise
        except (sqlite3.Error, OSError) as error:
            raise self._error(error) from error
        return index

    def _migrate(self, index: sqlite3.Connection) -> None:
        (version,) = index.execute("PRAGMA user_version").fetchone()
        if version > len(_MIGRATIONS):
            raise ConfigError(
                f"the index of saved chats in {self.folder} is of a later version.", hint="Update edgellm."
            )
        if version == len(_MIGRATIONS):
            return
        index.execute("PRAGMA journal_mode = WAL")
        index.execute("BEGIN IMMEDIATE")
        # Another process may have been quicker.
        (version,) = index.execute("PRAGMA user_version").fetchone()
        for script in _MIGRATIONS[version:]:
            for statement in filter(str.strip, script.split(";")):
                index.execute(statement)
        index.execute(f"PRAGMA user_version = {len(_MIGRATIONS)}")
        index.execute("COMMIT")

    def _error(self, error: Exception) -> ConfigError:
        return ConfigError(
            f"the index of saved chats in {self.folder} cannot be used: {error}.",
            hint="Check the folder's permissions, or move it away.",
        )
