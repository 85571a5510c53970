"""Sessions on disk: tapes, their KV memory, and enough to tell whether they fit the model that opens them."""

from __future__ import annotations

import hashlib
import os
import struct
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from edgellm.atomic import replacing
from edgellm.errors import ConfigError, SessionError
from edgellm.native.overlay import AdapterPart
from edgellm.types import AdapterSet

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgellm.native.model import Model
    from edgellm.types import LoadOptions

# The last byte is the version. Version 1 held one session, and nothing to compare its memory with.
_MAGIC = b"EDGELLM\x02"
_FIRST_MAGIC = b"EDGELLM\x01"
_LENGTH = struct.Struct("<Q")
_DIGEST_BYTES = 16


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
    memory: bytes
    logits: bytes = b""
    checkpoints: tuple[tuple[int, bytes], ...] = ()


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


def write_sessions(path: Path, record: SessionRecord, branches: Sequence[SavedBranch]) -> None:
    """Writes sessions beside their place and renames them there: a crash leaves the old file or the new one.

    The records in `branches` replace those in `record`. Raises ConfigError where the folder cannot be written.
    """
    records: list[BranchRecord] = []
    blobs: list[bytes] = []
    for saved in branches:
        own = [saved.memory, saved.logits, *(state for _, state in saved.checkpoints)]
        lengths = [length for length, _ in saved.checkpoints]
        records.append(
            msgspec.structs.replace(saved.record, checkpoints=lengths, blobs=[len(b) for b in own])
        )
        blobs += own
    head = msgspec.json.encode(msgspec.structs.replace(record, branches=records))
    parts = [_LENGTH.pack(len(head)), head, *blobs]
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    for part in parts:
        digest.update(part)
    try:
        with replacing(path) as file:
            file.write(_MAGIC + digest.digest())
            for part in parts:
                file.write(part)
    except OSError as error:
        raise ConfigError(
            f"cannot save the chat to {path}: {error.strerror or error}.",
            hint="Name a file, not a folder." if path.is_dir() else "Choose a folder you can write to.",
        ) from error


def read_sessions(path: Path) -> SavedSessions:
    """Reads a file of sessions and checks its digest. Raises SessionError.

    Of version 1 the tape is read alone: its memory cannot be compared with anything.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise SessionError(f"no saved chat at {path}.", hint="Check the path.") from error
    except IsADirectoryError as error:
        raise SessionError(f"{path} is a folder.", hint="Name the file of a saved chat.") from error
    except OSError as error:
        raise SessionError(
            f"cannot read {path}: {error.strerror or error}.", hint="Check its permissions."
        ) from error
    start = len(_MAGIC) + _DIGEST_BYTES
    magic = data[: len(_MAGIC)]
    if magic not in (_MAGIC, _FIRST_MAGIC):
        is_newer = magic[:-1] == _MAGIC[:-1]
        raise SessionError(
            f"{path} is not a saved chat of this version.",
            hint="A newer edgellm wrote it: update this one." if is_newer else "Give a file written by save.",
        )
    body = memoryview(data)[start:]
    if hashlib.blake2b(body, digest_size=_DIGEST_BYTES).digest() != data[len(_MAGIC) : start]:
        raise SessionError(
            f"{path} is damaged: its checksum differs.", hint="Use another copy; this one is not safe."
        )
    try:
        (head_size,) = _LENGTH.unpack_from(body, 0)
        head = body[_LENGTH.size : _LENGTH.size + head_size]
        if magic == _FIRST_MAGIC:
            found = _from_first(msgspec.json.decode(head, type=_FirstRecord))
        else:
            found = _split(msgspec.json.decode(head, type=SessionRecord), body[_LENGTH.size + head_size :])
    except (msgspec.DecodeError, struct.error) as error:
        raise SessionError(
            f"{path} cannot be read: {error}.", hint="It was written by another version."
        ) from error
    if found is None:
        raise SessionError(f"{path} is incomplete.", hint="Use another copy.")
    return found


def read_record(path: Path) -> SessionRecord:
    """What a file says of its sessions, without their memory. Its digest is not checked: `read_sessions` does that.

    Raises SessionError.
    """
    try:
        with path.open("rb") as file:
            magic = file.read(len(_MAGIC) + _DIGEST_BYTES)[: len(_MAGIC)]
            if magic not in (_MAGIC, _FIRST_MAGIC):
                raise SessionError(
                    f"{path} is not a saved chat of this version.", hint="Move it to another folder."
                )
            (head_size,) = _LENGTH.unpack(file.read(_LENGTH.size))
            head = file.read(min(head_size, os.fstat(file.fileno()).st_size))
        if magic == _MAGIC:
            record = msgspec.json.decode(head, type=SessionRecord)
        else:
            saved = _from_first(msgspec.json.decode(head, type=_FirstRecord))
            record = saved.record if saved is not None else None
    except (OSError, msgspec.DecodeError, struct.error) as error:
        raise SessionError(f"{path} cannot be read: {error}.", hint="Use another copy.") from error
    if record is None or not record.branches:
        raise SessionError(f"{path} is incomplete.", hint="Use another copy.")
    return record


def _split(record: SessionRecord, body: memoryview) -> SavedSessions | None:
    """Gives each branch its part of the bytes; None where they do not add up."""
    sizes = [size for branch in record.branches for size in branch.blobs]
    ends = [0]
    for size in sizes:
        ends.append(ends[-1] + size)
    if ends[-1] != len(body) or not record.branches:
        return None
    blobs = [bytes(body[start:end]) for start, end in pairwise(ends)]
    branches: list[SavedBranch] = []
    for branch in record.branches:
        own, blobs = blobs[: len(branch.blobs)], blobs[len(branch.blobs) :]
        if len(own) != 2 + len(branch.checkpoints) or len(branch.tokens) != len(branch.kinds):
            return None
        if branch.adapter_runs and sum(count for count, _ in branch.adapter_runs) != len(branch.tokens):
            return None
        branches.append(
            SavedBranch(branch, own[0], own[1], tuple(zip(branch.checkpoints, own[2:], strict=True)))
        )
    return SavedSessions(record, tuple(branches))


def _from_first(old: _FirstRecord) -> SavedSessions | None:
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
