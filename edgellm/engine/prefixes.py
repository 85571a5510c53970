"""Beginnings of prompts kept on disk: system turn and tools are computed once for all chats of a configuration."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from edgellm.atomic import replacing
from edgellm.folders import cache_dir, private_dir

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgellm.native.model import Model
    from edgellm.types import LoadOptions

MIN_TOKENS = 64
"""Shorter beginnings are not worth a file."""

_SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS prefixes (
    key TEXT PRIMARY KEY, model TEXT NOT NULL, tokens INTEGER NOT NULL, bytes INTEGER NOT NULL, used REAL NOT NULL
)
"""
_DIGEST_BYTES = 16


def prefix_limit_bytes(options: LoadOptions) -> int:
    """How many bytes may be kept: `prefix_cache_mb`, and none where EDGELLM_PREFIX_CACHE is "off"."""
    is_off = os.environ.get("EDGELLM_PREFIX_CACHE", "").lower() == "off"
    return 0 if is_off else options.prefix_cache_mb * 1_000_000


class PrefixStore:
    """States by key, below the cache folder, at most `limit_bytes`: those unused for longest go first.

    Several processes may use it at once. It is a cache: where the folder cannot be read or written, nothing is found
    and nothing kept, which costs time alone; `edgellm doctor` says so.
    """

    def __init__(self, limit_bytes: int = 0, folder: Path | None = None) -> None:
        self.folder = folder or cache_dir() / "prefixes"
        self.limit_bytes = limit_bytes

    def get(self, key: str) -> bytes | None:
        """The state of a key; None where there is none, or its file is damaged."""
        path = self._path(key)
        try:
            data = path.read_bytes()
        except OSError:
            return None
        digest, state = data[:_DIGEST_BYTES], data[_DIGEST_BYTES:]
        if hashlib.blake2b(state, digest_size=_DIGEST_BYTES).digest() != digest:
            path.unlink(missing_ok=True)
            return None
        with suppress(sqlite3.Error, OSError), closing(self._connect()) as index, index:
            index.execute("UPDATE prefixes SET used = ? WHERE key = ?", (time.time(), key))
        return state

    def put(self, key: str, state: bytes, *, model: str, tokens: int) -> None:
        """Keeps a state, and forgets old ones until all have their place."""
        if len(state) > self.limit_bytes:
            return
        with suppress(sqlite3.Error, OSError), closing(self._connect()) as index:
            with replacing(self._path(key), is_synced=False) as file:
                file.write(hashlib.blake2b(state, digest_size=_DIGEST_BYTES).digest())
                file.write(state)
            with index:
                index.execute("BEGIN IMMEDIATE")
                index.execute(
                    "INSERT OR REPLACE INTO prefixes VALUES (?, ?, ?, ?, ?)",
                    (key, model, tokens, len(state), time.time()),
                )
                self._shrink(index)

    def _shrink(self, index: sqlite3.Connection) -> None:
        rows: list[tuple[str, int]] = index.execute(
            "SELECT key, bytes FROM prefixes ORDER BY used DESC"
        ).fetchall()
        total = 0
        for key, size in rows:
            total += size
            if total > self.limit_bytes:
                index.execute("DELETE FROM prefixes WHERE key = ?", (key,))
                self._path(key).unlink(missing_ok=True)

    def size(self) -> tuple[int, int]:
        """(how many, their bytes)."""
        files = list(self.folder.glob("*.state")) if self.folder.is_dir() else []
        return len(files), sum(file.stat().st_size for file in files)

    def clear(self) -> int:
        """Removes all of them; returns their bytes. Raises OSError, sqlite3.Error."""
        _, size = self.size()
        if self.folder.is_dir():
            for file in self.folder.glob("*.state"):
                file.unlink(missing_ok=True)
            with closing(self._connect()) as index, index:
                index.execute("DELETE FROM prefixes")
        return size

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.state"

    def _connect(self) -> sqlite3.Connection:
        private_dir(self.folder)
        index = sqlite3.connect(self.folder / "index.sqlite3", timeout=2, isolation_level=None)
        try:
            (version,) = index.execute("PRAGMA user_version").fetchone()
            if version != _SCHEMA_VERSION:
                index.execute("PRAGMA journal_mode = WAL")
                # Another version's rows may mean something else, and are only a cache.
                index.execute("DROP TABLE IF EXISTS prefixes")
                index.execute(_SCHEMA)
                index.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")
        except BaseException:
            index.close()
            raise
        return index


class Prefixes:
    """The store as one engine sees it: keys are made from model, options, build, adapters (`key_of`) and tokens."""

    def __init__(self, store: PrefixStore, model: Model, options: LoadOptions) -> None:
        self._store = store
        self._model = model
        self._options = options
        self._seed = b""

    def get(self, tokens: Sequence[int], adapters: str) -> bytes | None:
        """The state behind these tokens, as it is under these adapters."""
        return self._store.get(self._key(tokens, adapters))

    def put(self, tokens: Sequence[int], adapters: str, state: bytes) -> None:
        """Keeps the state behind these tokens, computed with these adapters."""
        key = self._key(tokens, adapters)
        self._store.put(key, state, model=self._model.path.name, tokens=len(tokens))

    def _key(self, tokens: Sequence[int], adapters: str) -> str:
        if not self._seed:
            self._seed = self._configuration().encode()
        digest = hashlib.blake2b(self._seed + adapters.encode(), digest_size=_DIGEST_BYTES)
        digest.update(b"".join(token.to_bytes(4, "little") for token in tokens))
        return digest.hexdigest()

    def _configuration(self) -> str:
        """All that the values depend on. The file's time too: its middle is in no fingerprint."""
        from edgellm.engine.prefill import chunk_size
        from edgellm.engine.session_file import computed_with, model_fingerprint
        from edgellm.native.library import build_info

        options, path = self._options, self._model.path
        return repr(
            (
                model_fingerprint(self._model),
                path.stat().st_mtime_ns,
                computed_with(options),
                (options.kv_type_k, options.kv_type_v, options.flash_attention, options.swa_full),
                build_info(),
                # Batches of other sizes: other last bits.
                chunk_size(self._model.n_params, options.n_batch),
            )
        )
