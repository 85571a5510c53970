"""Checkpoints: memory that cannot be cut goes back to the nearest of them and computes the rest again."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgellm.engine.checkpoints import Checkpoint, Checkpoints
from edgellm.engine.engine import Engine
from edgellm.native.model import Model
from edgellm.sampling.chain import Chain
from edgellm.types import LoadOptions, SpanKind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from edgellm.engine.session import Session

OPTIONS = LoadOptions(n_ctx=1024, n_seq_max=3, n_batch=64, threads=1, swa_full=False)
UNCUTTABLE = ["mamba", "jamba", "gemma3"]


@contextmanager
def engine_of(path: Path, options: LoadOptions = OPTIONS) -> Iterator[Engine]:
    model = Model.load(path, options)
    engine = Engine(model, options)
    try:
        yield engine
    finally:
        engine.close()
        model.close()


def new_session(engine: Engine) -> Session:
    return engine.session(Chain("greedy", n_vocab=engine.vocabulary.size))


def say(session: Session, tokens: int, first: int = 5) -> None:
    session.extend([(3 + (first + i * 7) % 250, SpanKind.USER) for i in range(tokens)])


def lengths(session: Session) -> list[int]:
    return [point.length for point in session.memory.checkpoints]


def assert_equal_to_a_fresh_one(session: Session) -> None:
    fresh = new_session(session.engine)
    fresh.extend([(token, SpanKind.USER) for token in session.tape.tokens])
    np.testing.assert_allclose(session.logits(), fresh.logits(), atol=0.05, rtol=0.02)
    fresh.close()


@pytest.mark.parametrize("arch", UNCUTTABLE)
def test_rewind_to_a_turn_computes_no_more_than_the_turns_own_last_token(
    tiny_model: Callable[..., Path], arch: str
) -> None:
    with engine_of(tiny_model(arch), replace(OPTIONS, checkpoints=20)) as engine:
        session = new_session(engine)
        ends: list[int] = []
        for turn in range(5):
            say(session, 40 + turn)
            for _ in range(20):
                session.step()
            ends.append(len(session.tape))
        say(session, 10)
        for end in reversed(ends[2:]):
            session.rewind(end)
            before = session.rebuilt_tokens
            say(session, 3, first=90)
            assert session.rebuilt_tokens - before <= 1
            assert session.check_memory()
            assert_equal_to_a_fresh_one(session)


def test_window_that_was_written_over_comes_back_from_a_checkpoint(tiny_model: Callable[..., Path]) -> None:
    """600 tokens in 256 cells: the window in front of token 300 is gone from the context."""
    with engine_of(tiny_model("gemma3")) as engine:
        session = new_session(engine)
        say(session, 300)
        say(session, 300)
        session.rewind(310)
        assert session.kv_length == 300
        say(session, 5, first=77)
        assert session.rebuilt_tokens == 10
        assert_equal_to_a_fresh_one(session)


@pytest.mark.parametrize("arch", UNCUTTABLE)
def test_failed_prefill_goes_back_without_computing_anything_again(
    tiny_model: Callable[..., Path], arch: str
) -> None:
    with engine_of(tiny_model(arch)) as engine:
        session = new_session(engine)
        say(session, 50)
        for _ in range(5):
            session.step()
        held = session.kv_length
        iterator = session.prefill([(9, SpanKind.USER)] * 300)
        next(iterator)
        iterator.close()
        assert session.kv_length == held
        say(session, 2)
        assert session.rebuilt_tokens == 0
        assert_equal_to_a_fresh_one(session)


@pytest.mark.parametrize("arch", UNCUTTABLE)
def test_fork_and_parked_session_keep_their_checkpoints(tiny_model: Callable[..., Path], arch: str) -> None:
    with engine_of(tiny_model(arch)) as engine:
        session = new_session(engine)
        say(session, 50)
        say(session, 60)
        fork = session.fork()
        assert lengths(fork) == lengths(session) == [50, 110]
        others = [new_session(engine) for _ in range(3)]
        for other in others:
            say(other, 30)
        assert fork.seq is None or session.seq is None
        for each in (session, fork):
            each.rewind(60)
            say(each, 5)
            assert each.rebuilt_tokens in (0, 10)
            assert_equal_to_a_fresh_one(each)


def test_no_checkpoint_is_taken_where_memory_can_be_cut(tiny_model: Callable[..., Path]) -> None:
    with engine_of(tiny_model("llama")) as engine:
        session = new_session(engine)
        say(session, 50)
        say(session, 50)
        assert lengths(session) == []


def test_long_prompt_has_checkpoints_on_its_way(tiny_model: Callable[..., Path]) -> None:
    with engine_of(tiny_model("mamba", n_ctx=4096), replace(OPTIONS, n_ctx=4096)) as engine:
        session = new_session(engine)
        say(session, 2000)
        assert lengths(session) == [512, 1024, 1536, 2000]
        session.rewind(1100)
        assert session.kv_length == 1024


def test_bytes_of_all_sessions_are_bounded(tiny_model: Callable[..., Path]) -> None:
    # A checkpoint of this model takes 19,532 bytes.
    with engine_of(tiny_model("mamba"), replace(OPTIONS, checkpoint_mb=1, checkpoints=100)) as engine:
        sessions = [new_session(engine) for _ in range(4)]
        for _ in range(25):
            for session in sessions:
                say(session, 8)
        states = {id(p.state): len(p.state) for s in sessions for p in s.memory.checkpoints}
        assert 900_000 < sum(states.values()) <= 1_000_000
        assert all(session.memory.checkpoints for session in sessions)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=60), st.integers(1, 10))
def test_checkpoints_are_few_ordered_and_keep_the_last(steps: list[int], limit: int) -> None:
    points = Checkpoints(limit)
    length = 0
    for step in steps:
        length += step
        points.add(Checkpoint(length, b""))
    kept = [point.length for point in points]
    assert len(kept) == min(limit, len(steps))
    assert kept == sorted(set(kept))
    assert kept[-1] == length
    found = points.nearest(length - 1)
    assert found is None or found.length == max(n for n in kept if n < length)
    points.cut(length - 1)
    assert [point.length for point in points] == kept[:-1]


def test_old_checkpoints_get_rarer() -> None:
    points = Checkpoints(6)
    for length in range(100, 3300, 100):
        points.add(Checkpoint(length, b""))
    kept = [point.length for point in points]
    gaps = [after - before for before, after in pairwise(kept)]
    assert kept[0] == 100
    assert gaps[-1] == 100
    assert gaps[0] > gaps[-1] * 4
