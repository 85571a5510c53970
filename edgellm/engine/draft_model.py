"""A small model that guesses what a large one will say."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgellm.engine.drafter import Drafter
from edgellm.errors import ConfigError
from edgellm.native.context import Context, DecodeStatus
from edgellm.native.model import Model

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from edgellm.native.vocabulary import Vocabulary
    from edgellm.types import LoadOptions

_SURENESS = 1
# Rows of one decode: between two of them a cancel is heard on any thread.
_ROWS = 32


class DraftModel(Drafter):
    """Guesses greedily, with a context of its own that follows whichever tape it is asked about.

    It shares the process, not the weights: worth it where it is many times smaller. Where its context is full, or it
    fails, it does not guess. Close it when the sessions that use it are gone. `model_bytes` is the size of the
    model it guesses for; 0: not known.
    """

    def __init__(
        self, path: Path, options: LoadOptions, vocabulary: Vocabulary, *, model_bytes: int = 0
    ) -> None:
        chosen = options.for_draft()
        self._model = Model.load(path, chosen)
        try:
            self._check(vocabulary, path)
            self._context = Context(self._model, chosen)
        except BaseException:
            self._model.close()
            raise
        self._cost = min(1.0, self._model.size_bytes / model_bytes) if model_bytes else 1.0
        # What its memory holds: tokens of a tape from `_start` on, and perhaps guesses behind them.
        self._held: list[int] = []
        self._start = 0
        # Where the logits after the last of them stand in the last batch; None: they are not at hand.
        self._row: int | None = None

    @property
    def cost(self) -> float:
        """Its size as a share of the model's: a token reads all weights."""
        return self._cost

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
        if not len(tape) or not self.read(tape, len(tape)) or self._row is None:
            return [], 0
        if len(self._held) + count >= self._context.n_ctx:
            return [], 0
        found = [int(self._context.logits(self._row).argmax())]
        while len(found) < count and self._decode(found[-1:], wants_logits=True):
            found.append(int(self._context.logits(0).argmax()))
        return found, _SURENESS

    def unread(self, tape: Sequence[int]) -> int:
        """How many tokens it has to decode before it can guess: of a tape that it does not follow, all."""
        shared = self._shared(tape)
        if shared == 0:
            return len(tape)
        is_ready = self._row is not None and shared == len(self._held)
        length = len(tape) - self._start
        return length - (shared if is_ready else min(shared, length - 1))

    def read(self, tape: Sequence[int], most: int, window: int = 0) -> bool:
        """Decodes at most `most` of them, in small batches; what it holds of another tape is given up.

        False also where it is aborted, fails, or its context is full.
        """
        unread = self.unread(tape)
        is_full = len(tape) - self._start >= self._context.n_ctx
        if window and (unread > window or is_full):
            self._begin(max(0, len(tape) - min(window, self._context.n_ctx // 2)))
        elif unread == len(tape) or not self._cut(len(tape) - self._start - unread):
            self._begin(0)
        end = min(len(tape), self._start + len(self._held) + most)
        if end - self._start >= self._context.n_ctx:
            return False
        while (at := self._start + len(self._held)) < end:
            part = list(tape[at : min(end, at + _ROWS)])
            if not self._decode(part, wants_logits=at + len(part) == len(tape)):
                return False
        return end == len(tape)

    def _shared(self, tape: Sequence[int]) -> int:
        """How many of the tokens it holds the tape has in their place."""
        held, part = self._held, list(tape[self._start : self._start + len(self._held)])
        if part == held:
            return len(held)
        return next(
            (i for i, pair in enumerate(zip(held, part, strict=False)) if pair[0] != pair[1]), len(part)
        )

    def _decode(self, tokens: Sequence[int], *, wants_logits: bool) -> bool:
        """Adds tokens to what it holds; false, with what it held before, where that fails."""
        first = len(self._held)
        self._row = None
        last = first + len(tokens) - 1
        rows = [(token, first + i, 0, wants_logits and first + i == last) for i, token in enumerate(tokens)]
        if self._context.decode(rows) is not DecodeStatus.DONE:
            self._cut(first)
            return False
        self._held += tokens
        self._row = len(tokens) - 1 if wants_logits else None
        return True

    def _begin(self, start: int) -> None:
        """Holds nothing; what it reads next stands on the tape from `start` on."""
        self._context.remove(0, -1)
        self._held.clear()
        self._row = None
        self._start = start

    def _cut(self, length: int) -> bool:
        """Holds its first `length` tokens; false, with nothing held, where its memory cannot be cut there."""
        if length == len(self._held) and self._row is not None:
            return True
        del self._held[length:]
        self._row = None
        if self._context.remove(0, length) and self._context.position_range(0)[1] == length - 1:
            return True
        self._begin(0)
        return False

    def abort(self) -> None:
        """Makes a decode that runs stop within milliseconds, and those after it at once. Safe from any thread."""
        self._context.abort()

    def listen(self) -> None:
        """Decodes run again."""
        self._context.clear_abort()

    def close(self) -> None:
        """Frees it."""
        self._context.close()
        self._model.close()
