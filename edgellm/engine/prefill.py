"""Prefill: the tokens of a tape, and of one to come, computed in chunks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgellm.engine.prefixes import MIN_TOKENS
from edgellm.errors import Cancelled

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence

    from edgellm.engine.engine import Engine
    from edgellm.engine.session import Session
    from edgellm.types import SpanKind

# Fixed for each model, not tuned while it runs: batch shapes move the last bits of the logits, and the same seed must
# give the same text. The rows between two signs of progress: a board prefills 60 tokens a second with the smallest
# models, where each batch costs something besides, and a few with large ones, where it does not.
CHUNK, SMALL_MODEL_CHUNK = 128, 256
_SMALL_MODEL = 500_000_000


def chunk_size(n_params: int, n_batch: int) -> int:
    """Rows that are computed at a time with a model of so many parameters."""
    return min(SMALL_MODEL_CHUNK if n_params < _SMALL_MODEL else CHUNK, n_batch)


def _chunk_of(engine: Engine) -> int:
    return chunk_size(engine.model.n_params, engine.context.n_batch)


def prefill(
    session: Session, entries: Sequence[tuple[int, SpanKind]], *, head: int
) -> Generator[tuple[int, int], None, None]:
    """What `Session.prefill` gives."""
    session.check_open()
    session.settle()
    session.check_room(len(entries))
    engine, tape, memory = session.engine, session.tape, session.memory
    length_before, kv_before, logits_before = len(tape), memory.length, session.held_logits
    if entries:
        with engine.in_use():
            # A turn ends here: where the user goes back to, and this prefill if it fails.
            memory.keep()
    tape.extend(entries)
    session.hold_logits(logits_before if not entries else None)
    is_complete = False
    try:
        if memory.expected:
            with engine.in_use():
                memory.take_expected()
        held = memory.length
        is_kept = (
            length_before > 0 or head < MIN_TOKENS or held >= head or (not held and _begin(session, head))
        )
        start, total = memory.length, len(tape) - memory.length
        if total == 0:
            session.drawing.tell_prompt(length_before)
        while memory.length < len(tape):
            with engine.in_use():
                # A batch ends with the head also where it is not kept: the same batches, the same text.
                limit = head if head >= MIN_TOKENS and memory.length < head else None
                decode_chunk(session, _chunk_of(engine), limit)
                if not is_kept and memory.length == head:
                    memory.keep_beginning()
            if memory.length == len(tape):
                session.drawing.tell_prompt(length_before)
                is_complete = True
                # Where another answer would be drawn from.
                memory.keep()
            yield memory.length - start, total
        is_complete = True
    except Cancelled:
        session.is_cancelled = False
        raise
    finally:
        if not is_complete and not session.is_closed:
            session.cut_tape(length_before)
            memory.cut(kv_before)
            session.hold_logits(logits_before if memory.length == length_before else None)


def _begin(session: Session, head: int) -> bool:
    """Takes the head of an empty memory from disk; false where it is to be computed, and kept."""
    with session.engine.in_use():
        return session.memory.begin_with(session.tape.tokens[:head])


def prefill_ahead(session: Session, tokens: Sequence[int], *, head: int) -> Iterator[int]:
    """What `Session.prefill_ahead` gives."""
    session.check_open()
    session.settle()
    engine, memory = session.engine, session.memory
    start = memory.length
    is_agreed = tuple(tokens[:start]) == tuple(session.tape.tokens[:start])
    if not memory.can_expect or not is_agreed or not start < len(tokens) <= engine.context.n_ctx:
        return
    with engine.in_use():
        # Memory that was parked may turn out to be lost.
        seq = memory.expect(tokens[start:])
        start = memory.length
        can_begin = head >= MIN_TOKENS and not start and not memory.expected
        is_kept = start > 0 or head < MIN_TOKENS or len(memory.expected) >= head
        is_kept = is_kept or (can_begin and memory.expect_beginning(tokens[:head]))
    while (at := start + memory.ahead) < len(tokens):
        with engine.in_use(), engine.kept(memory):
            if memory.seq != seq or memory.length != start:
                return
            engine.touch(memory)
            end = min(at + _chunk_of(engine), len(tokens))
            end = head if at < head < end and head >= MIN_TOKENS else end
            memory.is_unsure = True
            engine.decode([(tokens[i], i, seq, False) for i in range(at, end)], (session,))
            memory.expects(tokens[at:end])
            if not is_kept and end == head:
                memory.keep_expected()
        yield memory.ahead


def decode_chunk(session: Session, size: int, limit: int | None = None) -> None:
    """Computes the next `size` tokens of the tape, those behind `limit` not. With the last one come its logits."""
    engine, tape, memory = session.engine, session.tape, session.memory
    seq = session.own_seq()
    engine.touch(memory)
    start = memory.length
    end = min(start + size, len(tape) if limit is None else limit)
    is_last = end == len(tape)
    rows = [(tape.tokens[i], i, seq, is_last and i == end - 1) for i in range(start, end)]
    memory.is_unsure = True
    engine.decode(rows, (session,))
    # The logits are copied: another session's decode would overwrite them before ours is sampled.
    logits = engine.context.logits(len(rows) - 1).copy() if is_last else None
    again = session.decoded(end, logits=logits)
    memory.prefilled_tokens += len(rows) - again
