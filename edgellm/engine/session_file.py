"""A session on disk: the tape, its KV memory, and enough to tell whether they fit the model that opens them."""

from __future__ import annotations

import hashlib
import os
import struct
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from edgellm.errors import ConfigError, SessionError

if TYPE_CHECKING:
    from edgellm.native.model import Model
    from edgellm.types import LoadOptions

_MAGIC = b"EDGELLM\x01"
_LENGTH = struct.Struct("<Q")
_DIGEST_BYTES = 16


class SessionRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What is written: `kinds` are span kinds by name, one a token; `extra` belongs to the caller.

    `kv_length` tokens of the tape are in the KV memory that follows the record in the file; `setup` is what it
    was computed with.
    """

    model: str
    model_name: str
    n_ctx: int
    kv_types: tuple[str, str]
    branch: int
    tokens: list[int]
    kinds: list[str]
    kv_length: int
    sampler: str
    seed: int | None
    extra: dict[str, Any] = {}
    setup: str = ""


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
    return repr((rope, [(Path(lora.path).name, lora.scale) for lora in options.lora]))


def write_session(path: Path, record: SessionRecord, memory: bytes) -> None:
    """Writes a session beside its place and renames it there: a crash leaves the old file or the new one.

    Raises ConfigError where the folder cannot be written.
    """
    head = msgspec.json.encode(record)
    body = b"".join((_LENGTH.pack(len(head)), head, _LENGTH.pack(len(memory)), memory))
    digest = hashlib.blake2b(body, digest_size=_DIGEST_BYTES).digest()
    temporary = ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(_MAGIC + digest + body)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        raise ConfigError(
            f"cannot save the chat to {path}: {error.strerror or error}.",
            hint="Choose a folder you can write to.",
        ) from error


def read_session(path: Path) -> tuple[SessionRecord, bytes]:
    """Reads a session file and checks its digest. Raises SessionError."""
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise SessionError(f"no saved chat at {path}.", hint="Check the path.") from error
    except OSError as error:
        raise SessionError(
            f"cannot read {path}: {error.strerror or error}.", hint="Check its permissions."
        ) from error
    start = len(_MAGIC) + _DIGEST_BYTES
    if data[: len(_MAGIC)] != _MAGIC:
        raise SessionError(
            f"{path} is not a saved chat of this version.", hint="Give a file written by save."
        )
    body = memoryview(data)[start:]
    if hashlib.blake2b(body, digest_size=_DIGEST_BYTES).digest() != data[len(_MAGIC) : start]:
        raise SessionError(
            f"{path} is damaged: its checksum differs.", hint="Use another copy; this one is not safe."
        )
    try:
        (head_size,) = _LENGTH.unpack_from(body, 0)
        head = body[_LENGTH.size : _LENGTH.size + head_size]
        record = msgspec.json.decode(head, type=SessionRecord)
        (memory_size,) = _LENGTH.unpack_from(body, _LENGTH.size + head_size)
    except (msgspec.DecodeError, struct.error) as error:
        raise SessionError(
            f"{path} cannot be read: {error}.", hint="It was written by another version."
        ) from error
    memory = bytes(body[2 * _LENGTH.size + head_size :])
    if len(memory) != memory_size or len(record.tokens) != len(record.kinds):
        raise SessionError(f"{path} is incomplete.", hint="Use another copy.")
    return record, memory
