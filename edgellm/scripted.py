"""A sampler stage that writes given answers: tests of tools, formats and apps need no clever model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgellm.sampling.stage import sampler

if TYPE_CHECKING:
    from edgellm.sampling.candidates import Candidates
    from edgellm.sampling.stage import StageVocabulary


@sampler(name="scripted", chooses=True)
class Scripted:
    """Writes `answers`, one a leg, each followed by the token `end`; after the last one, `end` alone.

    Where a constraint forbids the next token, the most probable one that it allows is taken.
    """

    def __init__(self, answers: list[str], end: int) -> None:
        self._waiting = list(answers)
        self._end = end
        self._answer = b""
        self._start: int | None = None

    def bind(self, vocabulary: StageVocabulary) -> None:
        self._vocabulary = vocabulary

    def apply(self, candidates: Candidates) -> None:
        tokens = candidates.context.tokens
        written = (
            b"".join(map(self._vocabulary.piece, tokens[self._start :])) if self._start is not None else b""
        )
        if self._start is None or not self._answer.startswith(written) or len(tokens) < self._start:
            # Something that was not drawn here lies between, a prompt or a tool's result: the next answer.
            self._answer = self._waiting.pop(0).encode() if self._waiting else b""
            self._start, written = len(tokens), b""
        rest = self._answer[len(written) :]
        wanted = self._next(rest, candidates.ids.tolist()) if rest else self._end
        found = np.flatnonzero(candidates.ids == wanted)
        candidates.choose(int(found[0]) if len(found) else int(candidates.logits.argmax()))

    def _next(self, rest: bytes, ids: list[int]) -> int:
        """The first token of what is left to write."""
        try:
            return self._vocabulary.tokenize(rest.decode())[0]
        except UnicodeDecodeError:
            # The token before has ended inside a character.
            pieces = {token: self._vocabulary.piece(token) for token in ids}
            return max(
                (token for token in ids if rest.startswith(pieces[token])), key=lambda t: len(pieces[t])
            )
