"""Sessions on disk: tapes, their KV memory, and enough to tell whether they fit the model that opens them."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

import msgspec

from edgellm.atomic import replacing
from edgellm.errors import ConfigError, SessionError
from edgellm.native.overlay import AdapterPart
from edgellm.types import AdapterSet

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from edgellm.native.context import State
    from edgellm.native.model import Model
    from edgellm.types import LoadOptions

# The last byte is the version. Version 1 held one session, and nothing to compare its memory with.
_MAGIC = b"EDGELLM\x02"
_FIRST_MAGIC = b"EDGELLM\x01"
_LENGTH = struct.Struct("<Q")
_DIGEST_BYTES = 16
_CHUNK_BYTES = 1 << 18
_SAVE_REMEDIES = {
    errno.EISDIR: "Name a file, not a folder.",
    errno.ENAMETOOLONG: "Choose a shorter name.",
    errno.ENOSPC: "Make room there, or choose another folder.",
    errno.EDQUOT: "Make room there, or choose another folder.",
    errno.EINVAL: "Choose another name.",
}

RecordT = TypeVar("RecordT", bound=msgspec.Struct)


class Probe(msgspec.Struct, frozen=True):
    """The highest logits after `token` was decoded behind the memory: what a reader decodes again and compares."""

    token: int
    ids: list[int]
    logits: list[float]


class BranchRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One session: `kinds` are span kinds by name, one a token; `extra` belongs to the caller.

    `kv_length` tokens of the tape are in its memory. `checkpoints` are the lengths of its partial states. `blobs` are
    the sizes in bytes of memory, logits and partial states, as they follow in the file. `adapters` are the files that
    the memory was computed with; None where an older version wrote it. `adapter_runs` say how many tokens in a row came
    with which set; where they are empty, all came with those.
    """

    branch: int
    tokens: list[int]
    kinds: list[str]
    kv_length: int
    sampler: str
    seed: int | None
    extra: dict[str, Any] = {}
    checkpoints: list[int] = []
    blobs: list[int] = []
    probe: Probe | None = None
    adapters: tuple[AdapterPart, ...] | None = None
    adapter_runs: list[tuple[int, AdapterSet]] = []

    def sets(self, own: AdapterSet) -> list[AdapterSet]:
        """The set of every token; `own` is that of the memory."""
        runs = self.adapter_runs or [(len(self.tokens), own)]
        return [adapters for count, adapters in runs for _ in range(count)]


class SessionRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What all sessions of a file share: the model, `setup` (the options the memory was computed with), and
    `made_by`, the build and threads that computed it: results may differ in their last bits elsewhere."""

    model: str
    model_name: str
    n_ctx: int
    kv_types: tuple[str, str]
    setup: str
    made_by: dict[str, str]
    branches: list[BranchRecord]


class _FirstRecord(BranchRecord, frozen=True, kw_only=True):
    """What version 1 wrote."""

    model: str
    model_name: str
    n_ctx: int
    kv_types: tuple[str, str]
    setup: str = ""


@dataclass(frozen=True, slots=True)
class SavedBranch:
    """A session as it was saved: its record, its memory, and its partial states as (length, bytes).

    `logits` are those after the tape's last token as float32, where they were at hand.
    """

    record: BranchRecord
    memory: State
    logits: bytes = b""
    checkpoints: tuple[tuple[int, State], ...] = ()


@dataclass(frozen=True, slots=True)
class Blob:
    """Bytes that are to be written: so many, and what gives them when it is their turn."""

    size: int
    read: Callable[[], State]

    @classmethod
    def of(cls, data: State) -> Blob:
        """Bytes that are at hand."""
        return cls(len(data), lambda: data)


@dataclass(frozen=True, slots=True)
class BranchToWrite:
    """A session's record, and its blobs: memory, logits and partial states."""

    record: BranchRecord
    blobs: Sequence[Blob]


@dataclass(frozen=True, slots=True)
class SavedSessions:
    """A file's content: the session that was saved, then its forks."""

    record: SessionRecord
    branches: tuple[SavedBranch, ...]

    @property
    def main(self) -> SavedBranch:
        """The session that was saved."""
        return self.branches[0]


def model_fingerprint(model: Model) -> str:
    """Tells one model from another: hash over metadata, size and the file's first and last megabyte."""
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    for key in sorted(model.metadata):
        digest.update(f"{key}={model.metadata[key]}\n".encode())
    with model.path.open("rb") as file:
        digest.update(file.read(1 << 20))
        size = os.fstat(file.fileno()).st_size
        file.seek(max(0, size - (1 << 20)))
        digest.update(file.read())
    digest.update(str(size).encode())
    return digest.hexdigest()


def computed_with(options: LoadOptions) -> str:
    """The load options that change the values in the KV memory, as text to compare."""
    rope = (options.rope_scaling, options.rope_freq_base, options.rope_freq_scale, options.yarn_orig_ctx)
    # Behind it stood the adapters, before each branch had its own: files of then are still read.
    return repr((rope, []))


def write_sessions(path: Path, record: SessionRecord, branches: Sequence[BranchToWrite]) -> None:
    """Writes sessions beside their place and renames them there: a crash leaves the old file or the new one.

    The records in `branches` replace those in `record`. Raises ConfigError where the file cannot be written.
    """
    records = [
        msgspec.structs.replace(branch.record, blobs=[blob.size for blob in branch.blobs])
        for branch in branches
    ]
    head = _encoded(msgspec.structs.replace(record, branches=records))
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    try:
        with replacing(path) as file:

            def write(data: State) -> None:
                digest.update(data)
                file.write(data)

            file.write(_MAGIC + bytes(_DIGEST_BYTES))
            write(_LENGTH.pack(len(head)))
            write(head)
            for blob in (blob for branch in branches for blob in branch.blobs):
                data = blob.read()
                write(data[: blob.size])
                # Where llama.cpp gives less than it has announced: a reader refuses it, and computes it again.
                write(bytes(max(0, blob.size - len(data))))
            file.seek(len(_MAGIC))
            file.write(digest.digest())
    except OSError as error:
        raise ConfigError(
            f"cannot save the chat to {_shown(path)}: {error.strerror or error}.",
            hint=_SAVE_REMEDIES.get(error.errno or 0, "Choose a folder you can write to."),
        ) from error


def _encoded(record: SessionRecord) -> bytes:
    try:
        return msgspec.json.encode(record)
    except UnicodeEncodeError:
        # A lone surrogate is no character: neither is it for the model.
        text = json.dumps(msgspec.to_builtins(record), ensure_ascii=False)
        return text.encode("utf-8", "replace")


def read_sessions(path: Path, count: int | None = None) -> SavedSessions:
    """Reads a file of sessions, or the first `count` of them, and checks its digest. Raises SessionError.

    Of version 1 the tape is read alone: its memory cannot be compared with anything.
    """
    found: SavedSessions | None = None
    failure: Exception | None = None
    try:
        with opened(path) as file:
            magic, digest = _magic(path, file), file.read(_DIGEST_BYTES)
            body = _Body(file)
            try:
                found = _from_first(body) if magic == _FIRST_MAGIC else _read(body, count)
            except (msgspec.DecodeError, struct.error) as error:
                failure = error
            is_whole = body.finish() == digest
    except OSError as error:
        raise SessionError(
            f"cannot read {path}: {error.strerror or error}.", hint="Check the disk."
        ) from error
    if not is_whole:
        raise SessionError(
            f"{path} is damaged: its checksum differs.", hint="Use another copy; this one is not safe."
        )
    if failure is not None:
        raise SessionError(f"{path} cannot be read: {failure}.", hint="It was written by another version.")
    if found is None:
        raise SessionError(f"{path} is incomplete.", hint="Use another copy.")
    return found


def opened(path: Path) -> IO[bytes]:
    """The file of a saved chat. Raises SessionError."""
    try:
        return path.open("rb")
    except FileNotFoundError as error:
        raise SessionError(f"no saved chat at {path}.", hint="Check the path.") from error
    except IsADirectoryError as error:
        raise SessionError(f"{path} is a folder.", hint="Name the file of a saved chat.") from error
    except PermissionError as error:
        raise SessionError(f"cannot read {path}: {error.strerror}.", hint="Check its permissions.") from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"it is no path ({error})"
        raise SessionError(f"cannot read {_shown(path)}: {reason}.", hint="Check the path.") from error


def _shown(path: Path) -> str:
    """The path, or its escapes where it holds what cannot be printed."""
    return str(path) if str(path).isprintable() else repr(str(path))


def _magic(path: Path, file: IO[bytes]) -> bytes:
    magic = file.read(len(_MAGIC))
    if magic not in (_MAGIC, _FIRST_MAGIC):
        is_newer = magic[:-1] == _MAGIC[:-1]
        raise SessionError(
            f"{path} is not a saved chat of this version.",
            hint="A newer edgellm wrote it: update this one." if is_newer else "Give a file written by save.",
        )
    return magic


class _Body:
    """What stands behind the digest, read from front to back; it is held nowhere but by the caller."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
        self.left = os.fstat(file.fileno()).st_size - file.tell()

    def read(self, size: int) -> bytes:
        """The next bytes; fewer where the file ends."""
        data = self._file.read(min(size, max(0, self.left)))
        self._digest.update(data)
        self.left -= len(data)
        return data

    def finish(self) -> bytes:
        """The digest of all, once the rest is read too."""
        while self.read(_CHUNK_BYTES):
            pass
        return self._digest.digest()


def read_record(path: Path) -> SessionRecord:
    """What a file says of its sessions, without their memory. Its digest is not checked: `read_sessions` does that.

    Raises SessionError.
    """
    try:
        with opened(path) as file:
            magic = _magic(path, file)
            file.seek(_DIGEST_BYTES, os.SEEK_CUR)
            body = _Body(file)
            if magic == _MAGIC:
                record = _head(body, SessionRecord)
            else:
                saved = _from_first(body)
                record = saved.record if saved is not None else None
    except (OSError, msgspec.DecodeError, struct.error) as error:
        raise SessionError(f"{path} cannot be read: {error}.", hint="Use another copy.") from error
    if record is None or not record.branches:
        raise SessionError(f"{path} is incomplete.", hint="Use another copy.")
    return record


def _head(body: _Body, type: type[RecordT]) -> RecordT:
    (size,) = _LENGTH.unpack(body.read(_LENGTH.size))
    return msgspec.json.decode(body.read(size), type=type)


def _read(body: _Body, count: int | None) -> SavedSessions | None:
    """The branches, each with its part of the bytes; None where they do not add up."""
    record = _head(body, SessionRecord)
    sizes = [size for branch in record.branches for size in branch.blobs]
    if sum(sizes) != body.left or min(sizes, default=0) < 0 or not record.branches:
        return None
    branches: list[SavedBranch] = []
    for branch in record.branches:
        if len(branch.blobs) != 2 + len(branch.checkpoints) or len(branch.tokens) != len(branch.kinds):
            return None
        if branch.adapter_runs and sum(count for count, _ in branch.adapter_runs) != len(branch.tokens):
            return None
    for branch in record.branches[:count]:
        memory, logits, *states = [body.read(size) for size in branch.blobs]
        branches.append(
            SavedBranch(branch, memory, logits, tuple(zip(branch.checkpoints, states, strict=True)))
        )
    return SavedSessions(record, tuple(branches))


def _from_first(body: _Body) -> SavedSessions | None:
    old = _head(body, _FirstRecord)
    if len(old.tokens) != len(old.kinds):
        return None
    branch = BranchRecord(
        branch=old.branch,
        tokens=old.tokens,
        kinds=old.kinds,
        kv_length=old.kv_length,
        sampler=old.sampler,
        seed=old.seed,
        extra=old.extra,
    )
    record = SessionRecord(
        model=old.model,
        model_name=old.model_name,
        n_ctx=old.n_ctx,
        kv_types=old.kv_types,
        setup=old.setup,
        made_by={},
        branches=[branch],
    )
    return SavedSessions(record, (SavedBranch(branch, b""),))
