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
            engine.kept(session.memory),
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


def score_after_each(sessions: Sequence[Session], tokens: Sequence[int]) -> list[NDArray[np.float64]]:
    """Natural-log probabilities of the same tokens after the tape of each session, in as few batches as possible.

    Each array has the length of `tokens`. Tapes stay as they are; a session's memory holds all of its tape but
    the last token afterwards. Raises Cancelled, ContextFull, DecodeError.
    """
    engine = sessions[0].engine
    limit = max(1, engine.context.n_seq_max - 1)
    scores: list[NDArray[np.float64]] = []
    for first in range(0, len(sessions), limit):
        group = sessions[first : first + limit]
        with engine.kept(*(session.memory for session in group)):
            for session in group:
                session.hold_last()
            with engine.in_use():
                scores += _score_group(group, tokens)
    return scores


def _score_group(group: Sequence[Session], tokens: Sequence[int]) -> list[NDArray[np.float64]]:
    engine = group[0].engine
    scores = [np.empty(len(tokens)) for _ in group]
    # The last token of a tape predicts the first of `tokens`, and so on.
    plan = [(index, offset) for index in range(len(group)) for offset in range(len(tokens))]
    try:
        for start in range(0, len(plan), engine.context.n_batch):
            part = plan[start : start + engine.context.n_batch]
            rows = []
            for index, offset in part:
                tape, seq = group[index].tape, group[index].own_seq()
                token = tokens[offset - 1] if offset else tape.tokens[-1]
                rows.append((token, len(tape) - 1 + offset, seq, True))
            engine.decode(rows, group)
            for row, (index, offset) in enumerate(part):
                scores[index][offset] = _log_softmax(engine.context.logits(row), tokens[offset])
    finally:
        for session in group:
            session.memory.restore()
    return scores


def _shared_length(continuations: Sequence[Sequence[int]]) -> int:
    """Length of the common beginning, leaving every continuation one token of its own."""
    columns = takewhile(lambda column: len(set(column)) == 1, zip(*continuations, strict=False))
    return min(sum(1 for _ in columns), *(len(tokens) - 1 for tokens in continuations))


def _log_softmax(logits: NDArray[np.float32], token: int) -> float:
    top = float(logits.max())
    return float(logits[token]) - top - float(np.log(np.exp(logits - top, dtype=np.float32).sum()))
