"""Antislop: when a banned phrase has been written, it is taken back, and its first token is forbidden there.

Idea: sam-paech/antislop-sampler (2024), https://github.com/sam-paech/antislop-sampler; banned strings in
exllamav3's generator work alike.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

import edgellm


@edgellm.sampler
class Antislop:
    """Rewinds banned phrases (ASCII letters in either case) and goes on with something else.

    Text that may still turn out to be the beginning of a phrase is held back from the reader.
    """

    def __init__(
        self,
        phrases: Annotated[list[str], Meta(description="texts that must not be written")],
    ) -> None:
        self._phrases = [phrase.encode().lower() for phrase in phrases if phrase]
        if not self._phrases:
            raise ValueError("phrases must hold at least one text")
        self._longest = max(map(len, self._phrases))
        self._vocabulary: edgellm.StageVocabulary | None = None
        self.reset()

    def bind(self, vocabulary: edgellm.StageVocabulary) -> None:
        self._vocabulary = vocabulary

    def reset(self) -> None:
        self._text = b""
        self._lengths: list[int] = []

    def apply(self, candidates: edgellm.Candidates) -> None:
        """Nothing: the chain itself forbids what a rewind has banned."""

    def accept(self, token: int) -> edgellm.Rewind | None:
        assert self._vocabulary is not None, "the chain binds before it accepts"
        piece = self._vocabulary.piece(token).lower()
        self._text += piece
        self._lengths.append(len(piece))
        found = self._ended_phrase(len(piece))
        # Older text cannot be part of a phrase that is still to end.
        while self._lengths and len(self._text) - self._lengths[0] >= self._longest + len(piece):
            self._text = self._text[self._lengths.pop(0) :]
        if found is None:
            return None
        phrase, start = found
        return edgellm.Rewind(self._tokens_since(start), reason=f"banned phrase {phrase.decode()!r}")

    def pending(self) -> int:
        """Tokens that hold the longest beginning of a phrase at the end of the text."""
        for length in range(min(self._longest - 1, len(self._text)), 0, -1):
            tail = self._text[-length:]
            if any(len(phrase) > length and phrase.startswith(tail) for phrase in self._phrases):
                return self._tokens_since(len(self._text) - length)
        return 0

    def _ended_phrase(self, new_bytes: int) -> tuple[bytes, int] | None:
        """The phrase that ends within the last `new_bytes` bytes and begins first, with its place from the end."""
        best: tuple[bytes, int] | None = None
        for phrase in self._phrases:
            start = self._text.find(phrase, max(0, len(self._text) - new_bytes - len(phrase) + 1))
            if start >= 0 and (best is None or start < best[1]):
                best = phrase, start
        if best is None:
            return None
        return best[0], best[1] - len(self._text)

    def _tokens_since(self, start: int) -> int:
        """How many of the last tokens hold the text from byte `start` on (negative: counted from the end)."""
        need = len(self._text) - start if start >= 0 else -start
        count = total = 0
        for length in reversed(self._lengths):
            if total >= need:
                break
            total += length
            count += 1
        return count
