"""The merges of a byte-level BPE vocabulary: how a token is put together from bytes, step by step."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from edgellm.errors import ConfigError
from edgellm.models.gguf_file import read_gguf

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_KEY = "tokenizer.ggml.merges"
_MODEL_KEY = "tokenizer.ggml.model"


@dataclass(frozen=True, slots=True)
class MergeStep:
    """One merge: `left` and `right` become one part. `rank` counts the vocabulary's merges from 0, the first learned;
    `parts` are all parts after it."""

    rank: int
    left: bytes
    right: bytes
    parts: tuple[bytes, ...]


class Merges:
    """The merge table of a vocabulary: pairs of parts, the first learned first."""

    def __init__(self, ranks: Mapping[tuple[bytes, bytes], int]) -> None:
        self._ranks = ranks

    def __len__(self) -> int:
        return len(self._ranks)

    def steps(self, text: bytes) -> tuple[MergeStep, ...]:
        """The merges that are made, in order, when these bytes stand alone; of those possible, the first learned.

        The last step's `parts` are what the bytes become: more than one where no merge joins them.
        """
        parts = [text[at : at + 1] for at in range(len(text))]
        steps: list[MergeStep] = []
        while len(parts) > 1:
            ranks = self._ranks
            found = [(ranks[pair], at) for at, pair in enumerate(pairwise(parts)) if pair in ranks]
            if not found:
                break
            rank, at = min(found)
            left, right = parts[at], parts[at + 1]
            parts[at : at + 2] = [left + right]
            steps.append(MergeStep(rank, left, right, tuple(parts)))
        return tuple(steps)


def read_merges(path: Path) -> Merges:
    """The merges that the GGUF at `path` lists. Raises ConfigError where its vocabulary is no byte-level BPE."""
    metadata = read_gguf(path, keep=_KEY).metadata
    listed = metadata.get(_KEY)
    if metadata.get(_MODEL_KEY) != "gpt2" or not isinstance(listed, tuple):
        raise ConfigError(
            f"{path.name} has no byte-level BPE vocabulary, but {metadata.get(_MODEL_KEY, 'none')!r}.",
            hint="Only those list the merges that make a token.",
        )
    letters = {letter: bytes([byte]) for byte, letter in _byte_letters().items()}
    ranks: dict[tuple[bytes, bytes], int] = {}
    for rank, line in enumerate(listed):
        # A part may hold any letter but a space: spaces are written as another letter.
        left, _, right = str(line).partition(" ")
        ranks.setdefault((_bytes_of(left, letters), _bytes_of(right, letters)), rank)
    return Merges(ranks)


def _bytes_of(part: str, letters: Mapping[str, bytes]) -> bytes:
    return b"".join(letters.get(letter) or letter.encode() for letter in part)


def _byte_letters() -> dict[int, str]:
    """GPT-2's letter for each byte: itself where it is visible, else one from 256 on (openai/gpt-2, encoder.py)."""
    seen = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in seen]
    return {byte: chr(byte) for byte in seen} | {byte: chr(256 + at) for at, byte in enumerate(hidden)}
