"""A small model that guesses what a large one will say."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgellm.errors import ConfigError
from edgellm.native.context import Context, DecodeStatus
from edgellm.native.model import Model

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from edgellm.native.vocabulary import Vocabulary
    from edgellm.types import LoadOptions

_SURENESS = 1


class DraftModel:
    """Guesses greedily, with a context of its own that follows whichever tape it is asked about.

    It shares the process, not the weights: worth it where it is many times smaller. Where its context is full, or it
    fails, it does not guess. Close it when the sessions that use it are gone.
    """

    def __init__(self, path: Path, options: LoadOptions, vocabulary: Vocabulary) -> None:
        chosen = options.for_draft()
        self._model = Model.load(path, chosen)
        try:
            self._check(vocabulary, path)
            self._context = Context(self._model, chosen)
        except BaseException:
            self._model.close()
            raise
        self._held: list[int] = []

    def _check(self, wanted: Vocabulary, path: Path) -> None:
        """Its tokens must be the other's: as many, and every one spelled the same."""
        own = self._model.vocabulary
        if own.size == wanted.size and all(
            own.piece(token) == wanted.piece(token) for token in range(own.size)
        ):
            return
        raise ConfigError(
            f"the draft model {path.name} has another vocabulary ({own.size} tokens, not {wanted.size}, or others).",
            hint="Use a smaller model of the same family.",
        )

    def guess(self, tape: Sequence[int], count: int) -> tuple[list[int], int]:
        """At most `count` tokens that follow the tape, each the likeliest after those before it."""
        if not len(tape) or len(tape) + count >= self._context.n_ctx:
            return [], 0
        shared = 0
        limit = min(len(self._held), len(tape) - 1)
        while shared < limit and self._held[shared] == tape[shared]:
            shared += 1
        if shared < len(self._held) and not self._cut(shared):
            shared = 0
        if not self._read(tape, shared):
            return [], 0
        found = [int(self._context.logits(self._last_row).argmax())]
        while len(found) < count:
            if self._context.decode_one(found[-1], len(self._held), 0) is not DecodeStatus.DONE:
                break
            self._held.append(found[-1])
            found.append(int(self._context.logits(0).argmax()))
        return found, _SURENESS

    def _cut(self, length: int) -> bool:
        del self._held[length:]
        if self._context.remove(0, length) and self._context.position_range(0)[1] == length - 1:
            return True
        self._context.remove(0, -1)
        self._held.clear()
        return False

    def _read(self, tape: Sequence[int], start: int) -> bool:
        """Decodes the tape from `start` on; the logits after it are then at `_last_row`."""
        for first in range(start, len(tape), self._context.n_batch):
            part = list(tape[first : first + self._context.n_batch])
            is_last = first + len(part) == len(tape)
            rows = [(token, first + i, 0, is_last and i == len(part) - 1) for i, token in enumerate(part)]
            if self._context.decode(rows) is not DecodeStatus.DONE:
                self._cut(0)
                return False
            self._held += part
            self._last_row = len(part) - 1
        return True

    def close(self) -> None:
        """Frees it."""
        self._context.close()
        self._model.close()
