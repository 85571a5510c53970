"""The tables of the index of saved chats, and how an index of an earlier version comes to have them."""

from __future__ import annotations

import json
import sqlite3
import time
from typing import Any, cast

from edgellm.errors import ConfigError
from edgellm.search_text import searchable

_PATIENCE_S = 5.0

# Each entry brings an index one version further: user_version counts those that have run.
MIGRATIONS = (
    """
    CREATE TABLE chats (
        number INTEGER PRIMARY KEY, id TEXT UNIQUE NOT NULL, title TEXT NOT NULL, model TEXT NOT NULL,
        created REAL NOT NULL, updated REAL NOT NULL, used REAL NOT NULL, messages INTEGER NOT NULL,
        tokens INTEGER NOT NULL, is_pinned INTEGER NOT NULL DEFAULT 0
    );
    CREATE VIRTUAL TABLE texts USING fts5 (title, body, tokenize = 'unicode61 remove_diacritics 2');
    """,
    "ALTER TABLE chats ADD COLUMN extra TEXT NOT NULL DEFAULT '{}'",
    "UPDATE texts SET title = searchable(title), body = searchable(body)",
)


def migrate(index: sqlite3.Connection) -> None:
    """Brings an index to this version's tables. Raises ConfigError for one of a later version, sqlite3.Error."""
    (version,) = index.execute("PRAGMA user_version").fetchone()
    if version > len(MIGRATIONS):
        raise ConfigError("it is of a later version", hint="Update edgellm.")
    if version == len(MIGRATIONS):
        return
    index.create_function("searchable", 1, searchable, deterministic=True)
    _use_wal(index)
    index.execute("BEGIN IMMEDIATE")
    # Another process may have been quicker.
    (version,) = index.execute("PRAGMA user_version").fetchone()
    has_old = version == 0 and _has_table(index, "chats")
    if has_old:
        index.execute("ALTER TABLE chats RENAME TO old_chats")
    for script in MIGRATIONS[version:]:
        for statement in filter(str.strip, script.split(";")):
            index.execute(statement)
    if has_old:
        _take_over(index)
    index.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
    index.execute("COMMIT")


def _use_wal(index: sqlite3.Connection) -> None:
    """Lets readers and a writer work side by side. SQLite's own timeout does not wait for others here."""
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            index.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return


def _has_table(index: sqlite3.Connection, name: str) -> bool:
    return index.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (name,)).fetchone() is not None


def _take_over(index: sqlite3.Connection) -> None:
    """Rows of the index that the app kept by itself before it used this one."""
    columns = {row[1] for row in index.execute("PRAGMA table_info(old_chats)")}
    branches = "branches" if "branches" in columns else "'[]'"
    # Any: values of SQLite.
    rows: list[Any] = index.execute(
        f"SELECT id, title, model, created, updated, messages, tokens, body, {branches} FROM old_chats ORDER BY created"
    ).fetchall()
    for id, title, model, created, updated, messages, tokens, body, written in rows:
        extra = json.dumps({"branches": _old_branches(written)}, ensure_ascii=False)
        number = index.execute(
            "INSERT INTO chats (id, title, model, created, updated, used, messages, tokens, extra) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (id, title, model, created, updated, updated, messages, tokens, extra),
        ).lastrowid
        index.execute(
            "INSERT INTO texts (rowid, title, body) VALUES (?, searchable(?), searchable(?))",
            (number, title, body),
        )
    index.execute("DROP TABLE old_chats")


def _old_branches(written: Any) -> list[Any]:
    # Any: a value of SQLite, and JSON values.
    try:
        found = json.loads(written)
    except (TypeError, ValueError):
        # One damaged row must not keep all others from being taken over.
        return []
    return cast("list[Any]", found) if isinstance(found, list) else []
