"""An importance matrix: how strongly each column of each weight matrix is used by a text."""

from __future__ import annotations

import struct
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgellm.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

_SUMS, _COUNTS = ".in_sum2", ".counts"
_GGUF = b"GGUF"
_MOST_ENTRIES = 1 << 20


@dataclass(frozen=True, slots=True)
class ImportanceMatrix:
    """For each weight matrix (by tensor name) the sums of squares of its inputs, and how many inputs were summed.

    `sums[name]` is (matrices, columns) float32: one matrix, or one an expert; `counts[name]` is (matrices,) float32.
    """

    sums: Mapping[str, NDArray[np.float32]]
    counts: Mapping[str, NDArray[np.float32]]
    chunks: int = 0
    chunk_tokens: int = 0
    source: str = ""

    def values(self) -> dict[str, NDArray[np.float32]]:
        """Mean squares (matrices * columns,) by tensor name, as llama.cpp's quantizer takes them; an expert that no
        token reached counts as 1 everywhere."""
        found: dict[str, NDArray[np.float32]] = {}
        for name, sums in self.sums.items():
            counts = self.counts[name][:, None]
            mean = np.where(counts > 0, sums / np.maximum(counts, 1.0), 1.0)
            found[name] = np.ascontiguousarray(mean.reshape(-1), dtype=np.float32)
        return found

    @classmethod
    def read(cls, path: str | Path) -> ImportanceMatrix:
        """A matrix as llama.cpp's tools write it: GGUF, or the older .dat. Raises ConfigError."""
        path = Path(path).expanduser()
        try:
            with path.open("rb") as file:
                is_gguf = file.read(4) == _GGUF
            return cls._read_gguf(path) if is_gguf else cls._read_old(path)
        except OSError as error:
            raise ConfigError(
                f"the importance matrix {path} cannot be read: {error.strerror}.", hint="Check the path."
            ) from None
        except (ValueError, KeyError, IndexError, struct.error) as error:
            raise ConfigError(
                f"{path} is not an importance matrix: {error}.",
                hint="Use a file of llama.cpp's llama-imatrix, or make one: edgellm quantize --calibrate TEXT.",
            ) from None

    @classmethod
    def _read_gguf(cls, path: Path) -> ImportanceMatrix:
        import gguf

        reader = gguf.GGUFReader(path)
        tensors = {tensor.name: np.array(tensor.data, dtype=np.float32) for tensor in reader.tensors}
        sums = {
            name.removesuffix(_SUMS): np.atleast_2d(data)
            for name, data in tensors.items()
            if name.endswith(_SUMS)
        }
        if not sums:
            raise ValueError(f"it has no tensor whose name ends in {_SUMS}")
        counts = {name: tensors[name + _COUNTS].reshape(-1) for name in sums}
        for name in sums:
            if len(counts[name]) != len(sums[name]):
                raise ValueError(f"{name} has {len(sums[name])} matrices and {len(counts[name])} counts")

        def number(key: str) -> int:
            held = reader.get_field(key)
            return int(held.contents()) if held is not None else 0

        return cls(
            sums, counts, number("imatrix.chunk_count"), number("imatrix.chunk_size"), source=str(path)
        )

    @classmethod
    def _read_old(cls, path: Path) -> ImportanceMatrix:
        """int32 entries; each: int32 length, name, int32 calls, int32 length, float32 sums."""
        data = path.read_bytes()
        (entries,) = struct.unpack_from("<i", data)
        if not 0 < entries < _MOST_ENTRIES:
            raise ValueError(f"it says that it has {entries} entries")
        at = 4
        sums: dict[str, NDArray[np.float32]] = {}
        counts: dict[str, NDArray[np.float32]] = {}
        for _ in range(entries):
            (length,) = struct.unpack_from("<i", data, at)
            name = data[at + 4 : at + 4 + length].decode("utf-8")
            at += 4 + length
            calls, size = struct.unpack_from("<ii", data, at)
            if size <= 0 or at + 8 + 4 * size > len(data):
                raise ValueError(f"the entry {name!r} is cut off")
            sums[name] = np.frombuffer(data, np.float32, size, at + 8).reshape(1, size).copy()
            counts[name] = np.array([calls], dtype=np.float32)
            at += 8 + 4 * size
        return cls(sums, counts, source=str(path))

    def save(self, path: str | Path) -> None:
        """Writes it as GGUF, as llama.cpp's tools read it: under another name until it is whole. Raises ConfigError."""
        import gguf

        path = Path(path).expanduser()
        try:
            with tempfile.NamedTemporaryFile(
                prefix=f".{path.name}.", suffix=".part", dir=path.parent, delete=False
            ) as file:
                temporary = Path(file.name)
        except OSError as error:
            raise ConfigError(
                f"cannot write to {path.parent}: {error.strerror}.", hint="Choose a folder you can write to."
            ) from error
        try:
            writer = gguf.GGUFWriter(temporary, "")
            writer.add_type("imatrix")
            writer.add_array("imatrix.datasets", [self.source or "text"])
            writer.add_uint32("imatrix.chunk_count", self.chunks)
            writer.add_uint32("imatrix.chunk_size", self.chunk_tokens)
            for name, sums in self.sums.items():
                writer.add_tensor(name + _SUMS, np.ascontiguousarray(sums, dtype=np.float32))
                writer.add_tensor(name + _COUNTS, self.counts[name].reshape(-1, 1).astype(np.float32))
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
            writer.close()
            temporary.chmod(0o644)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
