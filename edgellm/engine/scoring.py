"""How likely the model finds given continuations of a tape, all of them in a few batches."""

from __future__ import annotations

from itertools import takewhile
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from edgellm.engine.session import Session


def score_continuations(
    session: Session, continuations: Sequence[Sequence[int]]
) -> list[NDArray[np.float64]]:
    """Natural-log probabilities of each continuation's tokens after the session's tape.

    Each array has the continuation's length. What all continuations begin with is decoded once; then each is a
    fork of the session's memory on a scratch sequence. The tape and its memory stay as they are.
    Raises Cancelled, ContextFull, DecodeError.
    """
    if not all(continuations):
        raise ValueError("a continuation needs at least one token")
    first = session.logits()
    shared = _shared_length(continuations)
    scores: list[list[float]] = [[_log_softmax(first, tokens[0])] for tokens in continuations]
    engine = session.engine
    start = len(session.tape)
    done = 0
    while done < len(continuations):
        with (
            engine.scratch(session, len(continuations) - done) as seqs,
            engine.in_use(),
            engine.kept(session),
        ):
            group = range(done, done + len(seqs))
            head = list(continuations[done][:shared])
            # Row t of the head predicts token t + 1, for all continuations alike.
            for offset in range(0, len(head), engine.context.n_batch):
                part = head[offset : offset + engine.context.n_batch]
                engine.decode(
                    [(token, start + offset + i, seqs[0], True) for i, token in enumerate(part)], (session,)
                )
                for i in range(len(part)):
                    row = engine.context.logits(i)
                    for index in group:
                        if offset + i + 1 < len(continuations[index]):
                            scores[index].append(_log_softmax(row, continuations[index][offset + i + 1]))
            if head:
                for seq in seqs[1:]:
                    engine.context.remove(seq, -1)
                    engine.context.copy(seqs[0], seq)
            plan = [
                (index, position, seqs[index - done])
                for index in group
                for position in range(shared, len(continuations[index]) - 1)
            ]
            for offset in range(0, len(plan), engine.context.n_batch):
                part_of_plan = plan[offset : offset + engine.context.n_batch]
                rows = [(continuations[i][p], start + p, seq, True) for i, p, seq in part_of_plan]
                engine.decode(rows, (session,))
                for row_index, (index, position, _) in enumerate(part_of_plan):
                    row = engine.context.logits(row_index)
                    scores[index].append(_log_softmax(row, continuations[index][position + 1]))
        done += len(group)
    return [np.array(score) for score in scores]


def _shared_length(continuations: Sequence[Sequence[int]]) -> int:
    """Length of the common beginning, leaving every continuation one token of its own."""
    columns = takewhile(lambda column: len(set(column)) == 1, zip(*continuations, strict=False))
    return min(sum(1 for _ in columns), *(len(tokens) - 1 for tokens in continuations))


def _log_softmax(logits: NDArray[np.float32], token: int) -> float:
    top = float(logits.max())
    return float(logits[token]) - top - float(np.log(np.exp(logits - top, dtype=np.float32).sum()))
