"""A GGUF file's header, read without its weights: metadata, tensor table, and whether the file is whole.

The `gguf` package builds Python objects for each of 49,152 tokens (4 s here, and numpy with it). Start-up
needs none of them, so this parser walks over arrays and keeps only short ones.
Source of the format: ggml's docs/gguf.md.
"""

from __future__ import annotations

import mmap
import os
import struct
from dataclasses import dataclass
from pathlib import Path

from edgellm.errors import ModelCorrupt, ModelNotFound, ModelUnsupported

Scalar = int | float | bool | str
Value = Scalar | tuple[Scalar, ...]

# Arrays up to this length are kept (head counts by layer, rope sections); longer ones are vocabularies.
_KEPT_ARRAY = 1024
_MAX_KEY = 65535
_MAX_DIMS = 4
_DEFAULT_ALIGNMENT = 32
_UINT32, _STRING, _ARRAY, _BOOL = 4, 8, 9, 7
_SCALARS: dict[int, struct.Struct] = {
    0: struct.Struct("<B"),
    1: struct.Struct("<b"),
    2: struct.Struct("<H"),
    3: struct.Struct("<h"),
    _UINT32: struct.Struct("<I"),
    5: struct.Struct("<i"),
    6: struct.Struct("<f"),
    _BOOL: struct.Struct("<?"),
    10: struct.Struct("<Q"),
    11: struct.Struct("<q"),
    12: struct.Struct("<d"),
}
_LENGTH = struct.Struct("<Q")

# ggml type id: name, weights in a block, bytes of a block. A test compares it with gguf.GGML_QUANT_SIZES.
TENSOR_TYPES: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    9: ("Q8_1", 32, 40),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36),
    41: ("Q1_0", 128, 18),
}

_FOREIGN_STARTS: tuple[tuple[bytes, str], ...] = (
    (b"PK\x03\x04", "a zip archive (a wheel, perhaps)"),
    (b"<!DOC", "a web page"),
    (b"<!doc", "a web page"),
    (b"<html", "a web page"),
    (b"version https://git-lfs", "a git-lfs pointer, not the file it points to"),
    (b"ggjt", "a model in the old ggml format"),
    (b"lmgg", "a model in the old ggml format"),
    (b"tjgg", "a model in the old ggml format"),
    (b"\x1f\x8b", "a gzip archive"),
)


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor of the table. `shape` has the input dimension first; `offset` is from the data's start."""

    name: str
    type: str
    shape: tuple[int, ...]
    offset: int
    size_bytes: int

    @property
    def parameters(self) -> int:
        """Weights in it."""
        product = 1
        for size in self.shape:
            product *= size
        return product


@dataclass(frozen=True, slots=True)
class GGUFFile:
    """One file's header. `array_lengths` also has the arrays that `metadata` leaves out as too long; the tensors'
    values begin `data_start` bytes into the file."""

    path: Path
    version: int
    size_bytes: int
    metadata: dict[str, Value]
    array_lengths: dict[str, int]
    tensors: tuple[TensorEntry, ...]
    data_start: int


class _Cut(Exception):
    """The header runs past the end of the file, or a length in it is absurd."""


class _Reader:
    """A cursor over the mapped file."""

    def __init__(self, data: mmap.mmap, size: int) -> None:
        self.data = data
        self.size = size
        self.at = 0

    def number(self, kind: int) -> int | float | bool:
        """One number of a GGUF scalar type."""
        layout = _SCALARS.get(kind)
        if layout is None:
            raise _Cut(f"value type {kind} does not exist")
        if self.at + layout.size > self.size:
            raise _Cut("it ends within its header")
        (value,) = layout.unpack_from(self.data, self.at)
        self.at += layout.size
        return value

    def count(self) -> int:
        """A 64-bit length."""
        return int(self.number(10))

    def text(self, limit: int = 1 << 32) -> str:
        """A string with its length before it."""
        length = self.count()
        if length > limit or self.at + length > self.size:
            raise _Cut("a text in its header is longer than the file")
        raw = self.data[self.at : self.at + length]
        self.at += length
        return raw.decode("utf-8", errors="replace")

    def value(self, kind: int) -> Scalar:
        """One scalar."""
        return self.text() if kind == _STRING else self.number(kind)

    def array(self, *, is_kept: bool = False) -> tuple[tuple[Scalar, ...] | None, int]:
        """An array, or None for a long one unless it `is_kept`, and its length. Leaves the cursor behind it."""
        kind, length = int(self.number(_UINT32)), self.count()
        if length > self.size:
            raise _Cut("an array in its header is longer than the file")
        if (is_kept or length <= _KEPT_ARRAY) and kind != _ARRAY:
            return tuple(self.value(kind) for _ in range(length)), length
        if kind == _STRING:
            self._skip_texts(length)
        elif kind in _SCALARS:
            self.at += length * _SCALARS[kind].size
            if self.at > self.size:
                raise _Cut("an array in its header is longer than the file")
        else:
            raise _Cut(f"array type {kind} does not exist")
        return None, length

    def _skip_texts(self, length: int) -> None:
        # The one hot loop of start-up: 300,000 texts in a large vocabulary, so no calls beyond the unpacking.
        unpack, data, at = _LENGTH.unpack_from, self.data, self.at
        try:
            for _ in range(length):
                at += 8 + unpack(data, at)[0]
        except (struct.error, OverflowError):
            raise _Cut("a text in its header is longer than the file") from None
        if at > self.size:
            raise _Cut("a text in its header is longer than the file")
        self.at = at


def read_gguf(path: str | Path, *, keep: str = "") -> GGUFFile:
    """Header of the GGUF at `path`, after checking that the file holds every tensor it names.

    `keep` is the key of an array that goes into `metadata` however long it is.
    Raises ModelNotFound where there is no such file, ModelCorrupt where it is not a GGUF, is damaged or cut
    short, ModelUnsupported for versions and byte orders llama.cpp no longer reads.
    """
    path = Path(path)
    if path.is_dir():
        raise ModelNotFound(f"{path} is a folder.", hint="Name the .gguf file in it.")
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            _check_start(path, file.read(32), size)
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _parse(path, _Reader(data, size), keep)
    except FileNotFoundError:
        raise ModelNotFound(
            f"There is no file {path}.", hint="Check the path, or see `edgellm models list`."
        ) from None
    except PermissionError:
        raise ModelNotFound(f"{path} may not be read.", hint="Check the file's permissions.") from None
    except _Cut as why:
        raise _corrupt(path, f"is damaged or cut short: {why}.") from None


def _corrupt(path: Path, what: str) -> ModelCorrupt:
    return ModelCorrupt(f"{path} {what}", hint="Download it again (`edgellm models pull NAME`).")


def _check_start(path: Path, start: bytes, size: int) -> None:
    if not start:
        raise _corrupt(path, "is empty.")
    if start[:4] != b"GGUF":
        for prefix, what in _FOREIGN_STARTS:
            if start.startswith(prefix):
                raise _corrupt(path, f"is not a GGUF model: it is {what}.")
        raise _corrupt(path, f"is not a GGUF model: it starts with {start[:4]!r}, not b'GGUF'.")
    if size < 24:
        raise _corrupt(path, f"is cut short: {size} bytes are not even a GGUF header.")
    (version,) = struct.unpack_from("<I", start, 4)
    if version and version & 0xFFFF == 0:
        raise ModelUnsupported(
            f"{path} is a big-endian GGUF.", hint="Get the little-endian file of the same model."
        )
    if version not in (2, 3):
        raise ModelUnsupported(
            f"{path} has GGUF version {version}; 2 and 3 are supported.",
            hint="Get a newer conversion of the same model.",
        )


def _parse(path: Path, reader: _Reader, keep: str) -> GGUFFile:
    reader.at = 4
    version = int(reader.number(_UINT32))
    n_tensors, n_values = reader.count(), reader.count()
    # Each entry takes at least 24 bytes, so these bounds stop a damaged count before it becomes a long loop.
    if n_tensors > reader.size // 24 or n_values > reader.size // 12:
        raise _Cut("its header counts more entries than the file has room for")
    metadata: dict[str, Value] = {}
    lengths: dict[str, int] = {}
    for _ in range(n_values):
        key = reader.text(_MAX_KEY)
        kind = int(reader.number(_UINT32))
        if key in metadata or key in lengths:
            raise _Cut(f"the key {key!r} is there twice")
        if kind == _ARRAY:
            kept, lengths[key] = reader.array(is_kept=key == keep)
            if kept is not None:
                metadata[key] = kept
        else:
            metadata[key] = reader.value(kind)
    alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment <= 0 or alignment & (alignment - 1):
        raise _Cut(f"its alignment is {alignment!r}, not a power of two")
    tensors = tuple(_read_tensor(path, reader) for _ in range(n_tensors))
    start = _aligned(reader.at, alignment)
    _check_extents(path, tensors, start, alignment, reader.size)
    return GGUFFile(path, version, reader.size, metadata, lengths, tensors, start)


def _aligned(offset: int, alignment: int) -> int:
    return (offset + alignment - 1) // alignment * alignment


def _read_tensor(path: Path, reader: _Reader) -> TensorEntry:
    name = reader.text(_MAX_KEY)
    n_dims = int(reader.number(_UINT32))
    if n_dims > _MAX_DIMS:
        raise _Cut(f"tensor {name!r} has {n_dims} dimensions")
    shape = tuple(reader.count() for _ in range(n_dims))
    kind = int(reader.number(_UINT32))
    offset = reader.count()
    known = TENSOR_TYPES.get(kind)
    if known is None:
        raise ModelUnsupported(
            f"{path}: tensor {name!r} has the unknown quantization type {kind}.",
            hint="Get another quantization of this model, or a newer edgellm.",
        )
    type_name, block, block_bytes = known
    elements = 1
    for size in shape:
        elements *= size
    if (shape[0] if shape else 1) % block:
        raise _Cut(f"rows of tensor {name!r} are not whole blocks of {type_name}")
    return TensorEntry(name, type_name, shape, offset, elements // block * block_bytes)


def _check_extents(
    path: Path, tensors: tuple[TensorEntry, ...], start: int, alignment: int, size: int
) -> None:
    # llama.cpp wants the tensors one after the other, each padded to the alignment.
    expected = 0
    names: set[str] = set()
    for tensor in tensors:
        if tensor.name in names:
            raise _Cut(f"the tensor {tensor.name!r} is there twice")
        names.add(tensor.name)
        if tensor.offset != expected:
            raise _Cut(f"tensor {tensor.name!r} is at {tensor.offset} instead of {expected}")
        expected = _aligned(tensor.offset + tensor.size_bytes, alignment)
    needed = start + (tensors[-1].offset + tensors[-1].size_bytes if tensors else 0)
    if tensors and needed > size:
        raise _corrupt(path, f"is cut short: it has {size:,} bytes, its tensors need {needed:,}.")
