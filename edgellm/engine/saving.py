"""Sessions written to a file and taken up again, with a look at whether their memory is still what it was."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgellm.engine.session import Session
from edgellm.engine.session_file import (
    Blob,
    BranchRecord,
    BranchToWrite,
    Probe,
    SavedBranch,
    SessionRecord,
    computed_with,
    model_fingerprint,
    write_sessions,
)
from edgellm.engine.tape import Tape
from edgellm.errors import ContextFull, SessionError
from edgellm.native.library import build_info
from edgellm.native.overlay import key_of, set_of
from edgellm.types import Resumed, SpanKind

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from edgellm.engine.engine import Engine
    from edgellm.native.overlay import Overlay
    from edgellm.sampling.chain import Chain
    from edgellm.types import AdapterSet

TOLERANCE = 1.5
"""Logits may differ by so much on another build or with other threads: docs/decisions/saved-memory.md."""

_TOP = 32


def save_sessions(path: Path, sessions: Sequence[tuple[Session, Mapping[str, Any]]]) -> None:
    """Writes sessions of one engine, each with its caller's own JSON object: tapes, memory, checkpoints, chains.

    One token is decoded for each, to have something to compare with. Raises ConfigError where the file cannot be
    written, and where a session is closed.
    """
    for session, _ in sessions:
        session.check_open()
        session.settle()
    engine = sessions[0][0].engine
    record = SessionRecord(
        model=model_fingerprint(engine.model),
        model_name=engine.model.path.name,
        n_ctx=engine.context.n_ctx,
        kv_types=(engine.options.kv_type_k, engine.options.kv_type_v),
        setup=computed_with(engine.options),
        made_by=_made_by(engine),
        branches=[],
    )
    write_sessions(path, record, [_branch(session, extra) for session, extra in sessions])


def _branch(session: Session, extra: Mapping[str, Any]) -> BranchToWrite:
    probe = _probe(session)
    memory = session.memory
    size = memory.state_size() if probe is not None else 0
    points = tuple(memory.checkpoints) if size else ()
    record = BranchRecord(
        branch=session.branch,
        tokens=session.tape.tokens,
        kinds=[kind.value for kind in session.tape.kinds],
        kv_length=memory.length,
        checkpoints=[point.length for point in points],
        sampler=str(session.chain.spec),
        seed=session.chain.seed,
        extra=dict(extra),
        probe=probe,
        adapters=session.overlay.parts,
        adapter_runs=[(len(list(run)), adapters) for adapters, run in groupby(session.tape.sets)],
    )
    logits = session.held_logits
    # The memory itself is fetched when it is written: one at a time is held beside the context.
    blobs = [
        Blob(size, memory.state if size else bytes),
        Blob.of(logits.tobytes() if logits is not None else b""),
        *(Blob.of(point.state) for point in points),
    ]
    return BranchToWrite(record, blobs)


def _probe(session: Session) -> Probe | None:
    """The next token of the tape decoded behind the memory; where all is held, the first one again."""
    memory, context = session.memory, session.engine.context
    if memory.length >= context.n_ctx and context.can_always_cut:
        memory.cut(memory.length - 1)
    if not memory.length:
        return None
    tokens = session.tape.tokens
    token = tokens[memory.length] if memory.length < len(tokens) else tokens[0]
    try:
        logits = session.peek(token)
    except ContextFull:
        return None
    top = np.argsort(logits)[: -_TOP - 1 : -1]
    return Probe(token, [int(i) for i in top], [float(logits[i]) for i in top])


def restore_session(
    engine: Engine,
    chain: Chain,
    record: SessionRecord,
    saved: SavedBranch,
    *,
    adapters: AdapterSet | None = None,
) -> tuple[Session, Resumed]:
    """A session as it was saved, and what has become of its memory.

    `adapters` take the place of those it was saved with, which must be where they were (else SessionError).
    One token is decoded and compared: memory that gives other logits, or that does not fit this context, is
    computed again from the tape. Raises SessionError for another model, ContextFull for a tape longer than the
    context or where other chats leave no room.
    """
    if record.model != model_fingerprint(engine.model):
        raise SessionError(
            f"the chat was saved with another model ({record.model_name}).",
            hint=f"Load that model; this one is {engine.model.path.name}.",
        )
    branch = saved.record
    if not _is_sound(branch, engine.vocabulary.size):
        raise SessionError(
            "the saved chat holds what no chat of this model does.",
            hint="Use another copy; this one is not safe.",
        )
    overlay = _overlay(engine, branch, adapters)
    saved_with = set_of(branch.adapters) if branch.adapters is not None else overlay.chosen
    tape = Tape(branch.tokens, [SpanKind(kind) for kind in branch.kinds], branch.sets(saved_with))
    # Also those of branches that are not opened: whoever opens them later finds no other's draws.
    engine.reserve_branches(each.branch for each in record.branches)
    session = Session(engine, chain, branch=branch.branch, tape=tape, overlay=overlay)
    session.check_room(0)
    chain.replay(tape.tokens)
    engine.adopt(session)
    try:
        return session, _take_up(session, record, saved)
    except BaseException:
        session.close()
        raise


def _is_sound(branch: BranchRecord, n_vocab: int) -> bool:
    """Whether a session may have been so: the checksum tells that a file is whole, not who wrote it."""
    probe = branch.probe
    tokens = [*branch.tokens, *(() if probe is None else (probe.token, *probe.ids))]
    return (
        all(0 <= token < n_vocab for token in tokens)
        and {kind.value for kind in SpanKind}.issuperset(branch.kinds)
        and all(count >= 0 for count, _ in branch.adapter_runs)
        and (probe is None or 0 < len(probe.ids) == len(probe.logits))
    )


def _overlay(engine: Engine, branch: BranchRecord, wanted: AdapterSet | None) -> Overlay:
    if wanted is not None or branch.adapters is None:
        return engine.adapters.overlay(wanted)
    for part in branch.adapters:
        if not Path(part.path).is_file():
            raise SessionError(
                f"the chat was saved with the {part.kind} {part.path}, which is not there.",
                hint="Put it back, or open the chat with others: adapters=AdapterSet(...), AdapterSet() for none.",
            )
    return engine.adapters.overlay(set_of(branch.adapters))


def _take_up(session: Session, record: SessionRecord, saved: SavedBranch) -> Resumed:
    engine, memory, branch = session.engine, session.memory, saved.record
    stale = ""
    if record.kv_types != (engine.options.kv_type_k, engine.options.kv_type_v):
        stale = f"its KV memory is of type {'/'.join(record.kv_types)}"
    elif record.setup != computed_with(engine.options):
        stale = "it was computed with other RoPE settings or adapters"
    elif key_of(branch.adapters or ()) != key_of(session.overlay.parts):
        stale = "it was computed with other adapters"
    elif branch.kv_length and (branch.probe is None or not saved.memory):
        stale = "the file holds no memory that can be checked"
    memory.load(branch.kv_length, b"" if stale else saved.memory)
    if stale or not branch.kv_length:
        return Resumed("rebuilt", stale, rebuilt_tokens=branch.kv_length) if stale else Resumed("exact")
    memory.own_seq()
    if memory.length != branch.kv_length:
        return Resumed("rebuilt", "llama.cpp refuses its KV memory", rebuilt_tokens=branch.kv_length)
    memory.take_checkpoints(saved.checkpoints)
    assert branch.probe is not None
    wanted = np.array(branch.probe.logits, dtype=np.float32)
    logits = session.peek(branch.probe.token)
    difference = float(np.abs(logits[branch.probe.ids] - wanted).max())
    elsewhere = ", ".join(
        name for name, value in _made_by(engine).items() if record.made_by.get(name) != value
    )
    if difference <= TOLERANCE and len(saved.logits) == logits.nbytes:
        session.hold_logits(np.frombuffer(saved.logits, dtype=np.float32).copy())
    if difference == 0.0:
        return Resumed("exact")
    if difference <= TOLERANCE:
        return Resumed("within tolerance", elsewhere and f"other {elsewhere}", difference)
    memory.forget()
    reason = f"its logits differ by {difference:.2g}" + (f" (other {elsewhere})" if elsewhere else "")
    return Resumed("rebuilt", reason, difference, branch.kv_length)


def _made_by(engine: Engine) -> dict[str, str]:
    context, options = engine.context, engine.options
    return {
        "llama.cpp build": build_info(),
        "threads": str(context.n_threads),
        "flash attention": options.flash_attention,
        "GPU layers": str(options.n_gpu_layers),
    }
