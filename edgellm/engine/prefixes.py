"""Beginnings of prompts kept on disk: system turn and tools are computed once for all chats of a configuration."""

from __future__ import annotations

import hashlib
import os
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from edgellm.atomic import leftovers, replacing, sweep_folder
from edgellm.folders import cache_dir, private_dir

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from edgellm.native.context import State
    from edgellm.native.model import Model
    from edgellm.types import LoadOptions

MIN_TOKENS = 64
"""Shorter beginnings are not worth a file."""

_DIGEST_BYTES = 16


def prefix_limit_bytes(options: LoadOptions) -> int:
    """How many bytes may be kept: `prefix_cache_mb`, and none where EDGELLM_PREFIX_CACHE is "off"."""
    is_off = os.environ.get("EDGELLM_PREFIX_CACHE", "").lower() == "off"
    return 0 if is_off else options.prefix_cache_mb * 1_000_000


class PrefixStore:
    """States by key, below the cache folder, at most `limit_bytes`: those unused for longest go first.

    The files are all there is: their sizes are what the bound counts, their times say when they were used last.
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
            with path.open("rb") as file:
                digest, state = file.read(_DIGEST_BYTES), file.read()
        except OSError:
            return None
        with suppress(OSError):
            if hashlib.blake2b(state, digest_size=_DIGEST_BYTES).digest() != digest:
                path.unlink(missing_ok=True)
                return None
            _use(path)
        return state

    def put(self, key: str, state: State) -> None:
        """Keeps a state, and forgets old ones until all have their place."""
        if len(state) + _DIGEST_BYTES > self.limit_bytes:
            return
        with suppress(OSError):
            private_dir(self.folder)
            with replacing(self._path(key), is_synced=False) as file:
                file.write(hashlib.blake2b(state, digest_size=_DIGEST_BYTES).digest())
                file.write(state)
            _use(self._path(key))
            self._shrink(self._path(key))

    def _shrink(self, newest: Path) -> None:
        """Removes what killed writers have left, and states beyond the bound, but not `newest`."""
        sweep_folder(self.folder)
        sizes = _sizes(self.folder.glob("*.state"))
        # A coarse clock may give several files one time.
        by_use = sorted(sizes, key=lambda file: (file == newest, sizes[file].st_mtime_ns), reverse=True)
        total = sum(stat.st_size for stat in _sizes(leftovers(self.folder)).values())
        for file in by_use:
            total += sizes[file].st_size
            if total > self.limit_bytes and file != newest:
                file.unlink(missing_ok=True)

    def size(self) -> tuple[int, int]:
        """(how many, their bytes); what killed writers have left counts among the bytes."""
        states = _sizes(self.folder.glob("*.state"))
        others = _sizes(leftovers(self.folder))
        return len(states), sum(stat.st_size for stat in (*states.values(), *others.values()))

    def clear(self) -> int:
        """Removes all of them, and what killed writers have left; returns their bytes. Raises OSError."""
        _, size = self.size()
        sweep_folder(self.folder)
        # Earlier versions kept an index beside them.
        for pattern in ("*.state", "index.sqlite3*"):
            for file in self.folder.glob(pattern):
                file.unlink(missing_ok=True)
        return size - self.size()[1]

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.state"


def _use(path: Path) -> None:
    """Notes that a file was used just now. The system's own time goes in steps of milliseconds."""
    now = time.time_ns()
    os.utime(path, ns=(now, now))


def _sizes(files: Iterable[Path]) -> dict[Path, os.stat_result]:
    """What the system says of those files that are still there."""
    found: dict[Path, os.stat_result] = {}
    for file in files:
        with suppress(OSError):
            found[file] = file.stat()
    return found


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

    def put(self, tokens: Sequence[int], adapters: str, state: State) -> None:
        """Keeps the state behind these tokens, computed with these adapters."""
        self._store.put(self._key(tokens, adapters), state)

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
