"""Tokens and their bytes: the model's vocabulary, and text made into tokens without forging control tokens."""

from __future__ import annotations

import ctypes
import re
from functools import cached_property
from typing import TYPE_CHECKING, Any

from edgellm.errors import ConfigError
from edgellm.native.library import lib
from edgellm.types import SpanKind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgellm.types import Segment

_CONTROL = 1 << 3  # LLAMA_TOKEN_ATTR_CONTROL
_UNKNOWN = 1 << 0
_USER_DEFINED = 1 << 4
_TAG = re.compile(r"[<\[].+[>\]]")
_FIRST_PIECE_BUFFER = 64


class Vocabulary:
    """The vocabulary of a loaded model. Token identity is an int id or bytes; `str` is for people."""

    def __init__(self, pointer: Any) -> None:
        # Any: an opaque llama_vocab pointer; None once the model is closed.
        self._pointer = pointer
        self._llama = lib()
        self.size: int = self._llama.llama_vocab_n_tokens(pointer)
        self.bos = self._id_or_none(self._llama.llama_vocab_bos(pointer))
        self.eos = self._id_or_none(self._llama.llama_vocab_eos(pointer))
        self.adds_bos: bool = bool(self._llama.llama_vocab_get_add_bos(pointer))
        # Asked once a token: each call into the library gives the GIL away, which beside a busy thread costs 5 ms.
        self._pieces: dict[int, bytes] = {}
        self._ends: dict[int, bool] = {}
        self._controls: dict[int, bool] = {}
        self._traits: dict[int, tuple[bytes, bool, bool]] = {}

    @property
    def pointer(self) -> Any:
        """The llama_vocab pointer. Raises ConfigError once the model is closed: llama.cpp would crash over it."""
        if not self._pointer:
            raise ConfigError("the model is closed.", hint="Load it again.")
        return self._pointer

    def close(self) -> None:
        """The model is gone. Pieces that were read before stay known."""
        self._pointer = None

    @staticmethod
    def _id_or_none(token: int) -> int | None:
        return token if token >= 0 else None

    def piece(self, token: int) -> bytes:
        """The token's own bytes, special tokens included. Raises ValueError for an id outside the vocabulary."""
        piece = self._pieces.get(token)
        if piece is None:
            piece = self._pieces[token] = self._read_piece(token)
        return piece

    def _read_piece(self, token: int) -> bytes:
        if not 0 <= token < self.size:
            raise ValueError(f"token id {token} is outside the vocabulary of {self.size}")
        size = _FIRST_PIECE_BUFFER
        while True:
            buffer = ctypes.create_string_buffer(size)
            n: int = self._llama.llama_token_to_piece(self.pointer, token, buffer, size, 0, True)
            if n >= 0:
                return buffer.raw[:n]
            size = -n

    def text_of(self, tokens: Sequence[int]) -> bytes:
        """The joined bytes of some tokens."""
        return b"".join(map(self.piece, tokens))

    def tokenize(self, text: str, *, parse_special: bool = False, add_special: bool = False) -> list[int]:
        """Token ids of a text.

        `parse_special`: spellings of control tokens become those tokens (only for text that is trusted).
        `add_special`: BOS/EOS are added where the model is configured so.
        """
        raw = text.encode("utf-8", "replace")
        capacity = len(raw) + 8
        while True:
            buffer = (self._llama.llama_token * capacity)()
            n: int = self._llama.llama_tokenize(
                self.pointer, raw, len(raw), buffer, capacity, add_special, parse_special
            )
            if n >= 0:
                return list(buffer[:n])
            capacity = -n

    def is_eog(self, token: int) -> bool:
        """True for tokens that end a generation (llama_vocab_is_eog)."""
        known = self._ends.get(token)
        if known is None:
            known = self._ends[token] = bool(self._llama.llama_vocab_is_eog(self.pointer, token))
        return known

    def is_control(self, token: int) -> bool:
        """True for control tokens (llama_vocab_is_control)."""
        known = self._controls.get(token)
        if known is None:
            known = self._controls[token] = bool(self._llama.llama_vocab_is_control(self.pointer, token))
        return known

    def traits(self, token: int) -> tuple[bytes, bool, bool]:
        """(`piece`, `is_eog`, `is_control`), looked up at once. Raises ValueError as `piece` does."""
        known = self._traits.get(token)
        if known is None:
            known = self._traits[token] = self.piece(token), self.is_eog(token), self.is_control(token)
        return known

    @cached_property
    def special_tokens(self) -> dict[str, int]:
        """Control tokens by spelling, the first id where a spelling occurs twice."""
        attr = self._llama.llama_vocab_get_attr
        found: dict[str, int] = {}
        for token in range(self.size):
            if attr(self.pointer, token) & (_CONTROL | _UNKNOWN):
                spelling = self.piece(token).decode("utf-8", "replace")
                if spelling:
                    found.setdefault(spelling, token)
        return found

    @cached_property
    def _guarded(self) -> dict[str, int]:
        """Spellings that only template text may turn into their token: control tokens, and tags such as
        <tool_call> that llama.cpp reads as one token in any text (USER_DEFINED)."""
        attr = self._llama.llama_vocab_get_attr
        found = dict(self.special_tokens)
        for token in range(self.size):
            if attr(self.pointer, token) & _USER_DEFINED:
                spelling = self.piece(token).decode("utf-8", "replace")
                if _TAG.fullmatch(spelling):
                    found.setdefault(spelling, token)
        return found

    @cached_property
    def _guarded_pattern(self) -> re.Pattern[str] | None:
        # Longest first: llama.cpp's tokenizer partitions text by special tokens in that order.
        spellings = sorted(self._guarded, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, spellings))) if spellings else None

    def encode(self, segments: Sequence[Segment]) -> list[tuple[int, SpanKind]]:
        """Rendered segments as tokens, each with the owner of its first byte.

        The text is tokenized jointly, as the model was trained; but a control token comes only from a
        spelling that lies wholly inside template text. The same spelling in a content, or straddling
        the border of one, stays plain text.
        """
        text = "".join(segment.text for segment in segments)
        if not text:
            return []
        tokens: list[int] = []
        pattern = self._guarded_pattern
        matches = list(pattern.finditer(text)) if pattern else []
        genuine = _spans_inside_template(segments, [match.span() for match in matches])
        if all(genuine):
            tokens = self.tokenize(text, parse_special=True)
        else:
            at = 0
            for match, is_genuine in zip(matches, genuine, strict=True):
                if is_genuine:
                    tokens += self._plain_tokens(text[at : match.start()])
                    tokens.append(self._guarded[match.group()])
                    at = match.end()
                elif match.group() not in self.special_tokens:
                    # Cut inside the tag: llama.cpp would read it as one token even in plain text.
                    tokens += self._plain_tokens(text[at : match.start() + 1])
                    at = match.start() + 1
            tokens += self._plain_tokens(text[at:])
        return list(zip(tokens, self._owners(tokens, segments), strict=True))

    def _plain_tokens(self, text: str) -> list[int]:
        return self.tokenize(text, parse_special=False) if text else []

    def _owners(self, tokens: Sequence[int], segments: Sequence[Segment]) -> list[SpanKind]:
        """The kind of the segment in which each token's first byte lies."""
        ends: list[tuple[int, SpanKind]] = []
        total = 0
        for segment in segments:
            total += len(segment.text.encode("utf-8", "replace"))
            ends.append((total, segment.kind))
        owners: list[SpanKind] = []
        # A vocabulary that writes a space in front of the text shifts all bytes by that much.
        excess = max(0, sum(len(self.piece(token)) for token in tokens) - total)
        position = -excess
        index = 0
        for token in tokens:
            while index < len(ends) - 1 and max(position, 0) >= ends[index][0]:
                index += 1
            owners.append(ends[index][1] if ends else SpanKind.GLUE)
            position += len(self.piece(token))
        return owners


def _spans_inside_template(segments: Sequence[Segment], spans: list[tuple[int, int]]) -> list[bool]:
    """For each character span of the joined text: does it lie wholly in the template's own text?"""
    content: list[tuple[int, int]] = []
    at = 0
    for segment in segments:
        if not segment.is_template and segment.text:
            content.append((at, at + len(segment.text)))
        at += len(segment.text)
    return [all(end <= low or start >= high for low, high in content) for start, end in spans]
