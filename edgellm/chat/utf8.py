"""Text out of token bytes: a character split over tokens is shown whole, and never lost."""

from __future__ import annotations

import codecs


class TextDecoder:
    """Incremental UTF-8. Bytes that cannot become a character any more are U+FFFD, one per bad sequence."""

    __slots__ = ("_decoder",)

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, piece: bytes) -> str:
        """The characters that are certain now."""
        return self._decoder.decode(piece)

    def finish(self) -> str:
        """What an unfinished character at the end comes to; the decoder is empty afterwards."""
        rest = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return rest

    @property
    def pending(self) -> bytes:
        """Bytes held back: the beginning of a character."""
        return self._decoder.getstate()[0]
