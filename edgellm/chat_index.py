"""Saved chats in a folder: files, and an index to list them, to search their text and to bound their size."""

from __future__ import annotations

import json
import sqlite3
import time
import uuid
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from edgellm.chat_files import ChatFile, chat_files, growing_files, remove_chat
from edgellm.chat_index_schema import migrate
from edgellm.errors import ConfigError, SessionError
from edgellm.folders import private_dir, state_dir
from edgellm.search_text import readable, searchable, storable, terms
from edgellm.types import Message

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Mapping, Sequence, Set
    from pathlib import Path

_COLUMNS = "id, title, model, created, updated, messages, tokens, is_pinned"
_INDEX = "index.sqlite3"
_MARK = "\x02"
_TITLE_CHARS = 60


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

    def path(self, id: str, branch: int = 0) -> Path:
        """The file of a chat, or of a branch of it that has one of its own: where to save it, and to open it from."""
        return self.folder / (f"{id}.{branch}.chat" if branch else f"{id}.chat")

    # -- looking ------------------------------------------------------------------------------------------

    def list(self, words: str = "") -> list[IndexedChat]:
        """Chats, the newest first; with `words` those that hold all of them, by beginnings of words, the best first."""
        wanted = terms(words)
        with self._reading() as index:
            if wanted:
                found = index.execute(
                    f"SELECT {_COLUMNS} FROM chats JOIN (SELECT rowid, rank FROM texts WHERE texts MATCH ?) AS hits "
                    "ON hits.rowid = chats.number ORDER BY hits.rank, updated DESC",
                    (" ".join(wanted),),
                ).fetchall()
            else:
                found = index.execute(f"SELECT {_COLUMNS} FROM chats ORDER BY updated DESC").fetchall()
        return [_chat(row) for row in found]

    def find(self, id: str) -> IndexedChat | None:
        """What the index knows of a chat."""
        with self._reading() as index:
            row = index.execute(f"SELECT {_COLUMNS} FROM chats WHERE id = ?", (id,)).fetchone()
        return _chat(row) if row else None

    def lines(self, id: str, words: str = "") -> list[str]:
        """What was said in a chat; with `words` only the lines that hold one of them."""
        wanted = terms(words)
        query = "SELECT body FROM texts WHERE rowid = (SELECT number FROM chats WHERE id = ?)"
        values = [id]
        if wanted:
            query = query.replace("body", f"highlight(texts, 1, '{_MARK}', '')", 1) + " AND texts MATCH ?"
            values.append(f"body : ({' OR '.join(wanted)})")
        with self._reading() as index:
            row = index.execute(query, values).fetchone()
        lines = [line for line in readable(row[0]).splitlines() if line.strip()] if row else []
        return [line.replace(_MARK, "") for line in lines if not wanted or _MARK in line]

    def extra(self, id: str) -> dict[str, Any]:
        """The JSON object that the caller of `record` keeps with a chat. Raises SessionError where it is damaged."""
        # Any: JSON values.
        with self._reading() as index:
            row = index.execute("SELECT extra FROM chats WHERE id = ?", (id,)).fetchone()
        try:
            found: Any = json.loads(row[0]) if row else {}
        except (TypeError, ValueError):
            found = None
        if not isinstance(found, dict):
            raise SessionError(
                f"what the index in {self.folder} keeps with the chat {id} is damaged.",
                hint="Move index.sqlite3 away: it is made anew from the files.",
            )
        return cast("dict[str, Any]", found)

    def branches(self, id: str) -> list[int]:
        """The numbers of a chat's branches that have a file."""
        return sorted(file.branch for file in self._files(id))

    # -- writing ------------------------------------------------------------------------------------------

    def record(
        self,
        id: str,
        *,
        title: str,
        model: str,
        messages: Sequence[Message],
        tokens: int,
        others: Sequence[Message] = (),
        extra: Mapping[str, Any] | None = None,
    ) -> list[str]:
        """Writes a saved chat's row; its title stays once it has one. Returns the ids of chats that had to go.

        `others` are messages of its other branches: they are found too, but not counted. `extra` is a JSON object
        to be kept with it; None leaves what there is. Where all files together exceed `limit_bytes`, those unused for
        longest go, but for this one and pinned ones.
        """
        now = time.time()
        with self._changing() as index:
            self._write(index, id, title, model, messages, tokens, others, now)
            if extra is not None:
                written = storable(json.dumps(extra, ensure_ascii=False))
                index.execute("UPDATE chats SET extra = ? WHERE id = ?", (written, id))
            return list(self._shrink(index, id))

    def _write(
        self,
        index: sqlite3.Connection,
        id: str,
        title: str,
        model: str,
        messages: Sequence[Message],
        tokens: int,
        others: Sequence[Message],
        now: float,
    ) -> None:
        index.execute(
            "INSERT INTO chats (id, title, model, created, updated, used, messages, tokens) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET model = excluded.model, "
            "updated = excluded.updated, used = excluded.used, messages = excluded.messages, "
            "tokens = excluded.tokens, title = CASE title WHEN '' THEN excluded.title ELSE title END",
            (id, storable(title), storable(model), now, now, now, len(messages), tokens),
        )
        number, kept = index.execute("SELECT number, title FROM chats WHERE id = ?", (id,)).fetchone()
        # Branches share most of their messages.
        body = "\n".join(dict.fromkeys(message.content for message in (*messages, *others)))
        index.execute("DELETE FROM texts WHERE rowid = ?", (number,))
        index.execute(
            "INSERT INTO texts (rowid, title, body) VALUES (?, ?, ?)",
            (number, searchable(kept), searchable(body)),
        )

    def _shrink(self, index: sqlite3.Connection, id: str) -> Iterator[str]:
        if not self.limit_bytes:
            return
        rows = index.execute("SELECT id, is_pinned FROM chats ORDER BY used DESC").fetchall()
        all_sizes = self._sizes({key for key, _ in rows})
        sizes = {key: all_sizes.get(key, 0) for key, _ in rows}
        total = sum(sizes.values())
        for key, is_pinned in reversed(rows):
            if total <= self.limit_bytes:
                return
            if key != id and not is_pinned:
                self._remove(index, key)
                total -= sizes[key]
                yield key

    def make_room(self, limit_bytes: int, keep: str = "") -> list[IndexedChat]:
        """Removes files of chats, unused for longest first, until all take at most `limit_bytes`; gives these chats.

        Row, text and `extra` of each stay. `keep` and pinned chats keep their files, and so do chats without `extra`:
        what was said in them is nowhere else.
        """
        made: list[IndexedChat] = []
        with self._changing() as index:
            rows = index.execute(f"SELECT extra, {_COLUMNS} FROM chats ORDER BY used").fetchall()
            chats = {row[1]: (_chat(row[1:]), row[0] != "{}") for row in rows}
            files = chat_files(self.folder, chats.keys())
            total = sum(self._sizes(chats.keys()).values())
            for id, (chat, has_extra) in chats.items():
                if total <= limit_bytes:
                    break
                if has_extra and id in files and id != keep and not chat.is_pinned:
                    for file in files[id]:
                        total -= file.path.stat().st_size
                        file.path.unlink()
                    made.append(chat)
        return made

    def _sizes(self, known: Set[str]) -> dict[str, int]:
        """Bytes on disk by id."""
        paths = [(id, file.path) for id, files in chat_files(self.folder, known).items() for file in files]
        paths += [(id, path) for id, found in growing_files(self.folder).items() for path in found]
        sizes: dict[str, int] = {}
        for id, path in paths:
            with suppress(FileNotFoundError):  # one that was being written beside its place
                sizes[id] = sizes.get(id, 0) + path.stat().st_size
        return sizes

    def adopt(self) -> tuple[list[str], list[SessionError]]:
        """Takes up files that the index does not know: copied here, or left by an index that was lost.

        Returns the new ids, and what is wrong with files that cannot be read; those stay where they are. The `model`
        of such a chat is the name of the model's file.
        """
        with self._reading() as index:
            known = _known(index)
            found = chat_files(self.folder, known)
        adopted: list[str] = []
        failures: list[SessionError] = []
        for id in sorted(found.keys() - known):
            if storable(id) != id:
                failures.append(
                    SessionError(
                        f"the name of the chat {id!r} in {self.folder} is not UTF-8.", hint="Rename its file."
                    )
                )
                continue
            try:
                self._adopt(id, found[id])
            except SessionError as error:
                failures.append(error)
            except OSError as error:
                failures.append(
                    SessionError(
                        f"the chat {id} in {self.folder} cannot be read: {error}.",
                        hint="Check the file's permissions.",
                    )
                )
            else:
                adopted.append(id)
        return adopted, failures

    def _adopt(self, id: str, files: Sequence[ChatFile]) -> None:
        import msgspec

        from edgellm.engine.session_file import read_record

        # The newest file is the branch that was talked in last.
        dated = sorted(((file.path.stat().st_mtime, -file.branch, file.path) for file in files), reverse=True)
        paths, updated = [path for *_, path in dated], dated[0][0]
        records = [read_record(path) for path in paths]
        try:
            messages, *others = [
                msgspec.convert(branch.extra.get("messages", []), list[Message])
                for record in records
                for branch in record.branches
            ]
        except msgspec.ValidationError as error:
            raise SessionError(
                f"the messages in {paths[0]} cannot be read: {error}.",
                hint="It was written by another version.",
            ) from error
        title = next((" ".join(m.content.split()) for m in messages if m.role == "user"), "")
        with self._changing() as index:
            self._write(
                index,
                id,
                title[:_TITLE_CHARS] or id,
                records[0].model_name,
                messages,
                len(records[0].branches[0].tokens),
                [message for said in others for message in said],
                updated,
            )

    def touch(self, id: str) -> None:
        """Notes that a chat was opened."""
        with self._changing() as index:
            index.execute("UPDATE chats SET used = ? WHERE id = ?", (time.time(), id))

    def pin(self, id: str, is_pinned: bool = True) -> None:
        """A pinned chat never goes to make room."""
        with self._changing() as index:
            index.execute("UPDATE chats SET is_pinned = ? WHERE id = ?", (int(is_pinned), id))

    def rename(self, id: str, title: str) -> None:
        """Gives a chat another title."""
        with self._changing() as index:
            index.execute("UPDATE chats SET title = ? WHERE id = ?", (storable(title), id))
            index.execute(
                "UPDATE texts SET title = ? WHERE rowid = (SELECT number FROM chats WHERE id = ?)",
                (searchable(title), id),
            )

    def delete(self, id: str) -> None:
        """Removes a chat: its row, its file and those of its branches. Other files of that name stay."""
        with self._changing() as index:
            self._remove(index, id)

    def _remove(self, index: sqlite3.Connection, id: str) -> None:
        known = _known(index)
        index.execute("DELETE FROM texts WHERE rowid = (SELECT number FROM chats WHERE id = ?)", (id,))
        index.execute("DELETE FROM chats WHERE id = ?", (id,))
        remove_chat(self.folder, id, known)

    def keep_branches(self, id: str, numbers: Sequence[int]) -> None:
        """Removes the files of branches that are no longer there."""
        for file in self._files(id):
            if file.branch not in numbers:
                file.path.unlink(missing_ok=True)

    def remove_growing(self, id: str) -> None:
        """Removes what there is of answers of a chat that were being written. Raises OSError."""
        for path in growing_files(self.folder).get(id, ()):
            path.unlink(missing_ok=True)

    def _files(self, id: str) -> Sequence[ChatFile]:
        with self._reading() as index:
            return chat_files(self.folder, _known(index)).get(id, ())

    # -- the database -------------------------------------------------------------------------------------

    @contextmanager
    def _changing(self) -> Generator[sqlite3.Connection]:
        """All of the block, or nothing of it."""
        with self._reading() as index:
            index.execute("BEGIN IMMEDIATE")
            try:
                yield index
            except BaseException:
                index.execute("ROLLBACK")
                raise
            index.execute("COMMIT")

    @contextmanager
    def _reading(self) -> Generator[sqlite3.Connection]:
        try:
            with closing(self._open()) as index:
                yield index
        except UnicodeEncodeError as error:
            raise ConfigError(
                f"{error.object!r} cannot be in the index of saved chats: it is no text.",
                hint="Give the chat a name in UTF-8.",
            ) from error
        except (sqlite3.Error, OSError) as error:
            raise ConfigError(
                f"the index of saved chats in {self.folder} cannot be used: {error}.",
                hint="Check the folder's permissions, or move index.sqlite3 away: it is made anew from the files.",
            ) from error

    def _open(self) -> sqlite3.Connection:
        private_dir(self.folder)
        index = sqlite3.connect(self.folder / _INDEX, timeout=5, isolation_level=None)
        try:
            migrate(index)
        except ConfigError as error:
            index.close()
            raise ConfigError(
                f"the index of saved chats in {self.folder} cannot be used: {error.message}.", hint=error.hint
            ) from None
        except BaseException:
            index.close()
            raise
        return index


def _known(index: sqlite3.Connection) -> set[str]:
    """The ids of all rows."""
    return {id for (id,) in index.execute("SELECT id FROM chats")}


def _chat(row: Any) -> IndexedChat:
    # Any: values of SQLite, in the order of _COLUMNS.
    return IndexedChat(*row[:-1], is_pinned=bool(row[-1]))
