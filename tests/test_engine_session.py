"""Sessions: tape and KV memory stay equal through every operation and every failure."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import tiny_models
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scale import SCALE

from edgellm.engine.engine import Engine
from edgellm.engine.saving import restore_session, save_sessions
from edgellm.engine.scoring import score_after_each, score_continuations
from edgellm.engine.session import Session
from edgellm.engine.session_file import read_sessions
from edgellm.errors import Cancelled, ConfigError, ContextFull, DecodeError, SamplerError, SessionError
from edgellm.native.context import DecodeStatus
from edgellm.native.model import Model
from edgellm.sampling.chain import Chain
from edgellm.types import LoadOptions, SpanKind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

OPTIONS = LoadOptions(n_ctx=256, n_seq_max=3, n_batch=64, threads=1)


def entries(tokens: list[int]) -> list[tuple[int, SpanKind]]:
    return [(token, SpanKind.USER) for token in tokens]


def chain(engine: Engine, text: str = "top_k(40) | dist(seed=1)") -> Chain:
    return Chain(text, n_vocab=engine.vocabulary.size, vocabulary=engine.vocabulary)


# Keeps the window alone, in 256 cells for all sessions: old ones are written over after a few hundred tokens.
WINDOW_ONLY = replace(OPTIONS, n_ctx=1024, swa_full=False)


@pytest.fixture(scope="module", params=[*tiny_models.ARCHS, "gemma3 window only"])
def any_model(
    request: pytest.FixtureRequest, tiny_model: Callable[..., Path]
) -> Iterator[tuple[Model, LoadOptions]]:
    arch, _, kind = request.param.partition(" ")
    options = WINDOW_ONLY if kind else OPTIONS
    model = Model.load(tiny_model(arch), options)
    yield model, options
    model.close()


def _failed(_rows: Sequence[Any]) -> DecodeStatus:
    return DecodeStatus.FAILED


def assert_sound(session: Session) -> None:
    assert session.kv_length <= len(session.tape)
    assert session.check_memory()


def replayed_logits(engine: Engine, tokens: list[int]) -> np.ndarray:
    """Logits after a tape, computed from nothing."""
    fresh = engine.session(chain(engine))
    fresh.extend(entries(tokens))
    logits = fresh.logits().copy()
    fresh.close()
    return logits


def test_the_last_drawn_token_is_pending_and_prefilled_with_the_next_turn(engine: Engine) -> None:
    session = engine.session(chain(engine))
    session.extend(entries([10, 11, 12]))
    session.step()
    session.step()
    assert len(session.tape) == 5
    assert session.kv_length == 4
    before = session.prefilled_tokens
    session.extend(entries([20, 21]))
    assert session.prefilled_tokens - before == 3
    assert session.kv_length == 7
    assert_sound(session)


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("extend"), st.lists(st.integers(3, 250), min_size=1, max_size=20)),
        st.tuples(st.just("step"), st.integers(1, 4)),
        st.tuples(st.just("rewind"), st.floats(0, 1)),
        st.tuples(st.just("fork"), st.none()),
        st.tuples(st.just("swap"), st.none()),
        st.tuples(st.just("save"), st.none()),
        st.tuples(st.just("cancel"), st.lists(st.integers(3, 250), min_size=1, max_size=9)),
        st.tuples(st.just("fail"), st.lists(st.integers(3, 250), min_size=1, max_size=9)),
        st.tuples(st.just("abandon"), st.lists(st.integers(3, 250), min_size=130, max_size=140)),
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=25 * SCALE, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(operations=OPERATIONS)
def test_tape_and_memory_agree_after_any_operations(
    any_model: tuple[Model, LoadOptions], tmp_path: Path, operations: list[tuple[str, object]]
) -> None:
    engine = Engine(*any_model)
    try:
        _run(engine, tmp_path, operations)
    finally:
        engine.close()


def _run(engine: Engine, tmp_path: Path, operations: list[tuple[str, object]]) -> None:
    sessions = [engine.session(chain(engine))]
    sessions[0].extend(entries([5, 6, 7]))
    for name, value in operations:
        session = sessions[-1]
        tokens, kv = list(session.tape.tokens), session.kv_length
        match name, value:
            case "extend", list():
                session.extend(entries(value)) if len(tokens) < 150 else None
            case "step", int():
                for _ in range(value if tokens else 0):
                    assert session.step().token == session.tape.tokens[-1]
            case "rewind", float():
                session.rewind(round(value * len(tokens)))
                assert session.tape.tokens == tokens[: round(value * len(tokens))]
            case "fork", _:
                sessions.append(session.fork())
                assert sessions[-1].tape.tokens == tokens
            case "swap", _:
                sessions.insert(0, sessions.pop())
            case "save", _:
                save_sessions(tmp_path / "chat.session", [(session, {})])
                saved = read_sessions(tmp_path / "chat.session")
                sessions.append(restore_session(engine, chain(engine), saved.record, saved.main)[0])
                assert sessions[-1].tape.tokens == tokens
            case "cancel", list():
                session.cancel()
                with pytest.raises(Cancelled):
                    session.extend(entries(value))
                session.is_cancelled = False
                assert (session.tape.tokens, session.kv_length) == (tokens, kv)
            case "fail", list():
                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr(engine.context, "decode", _failed)
                    with pytest.raises(DecodeError):
                        session.extend(entries(value))
                assert session.tape.tokens == tokens
            case "abandon", list():
                if len(tokens) < 100:
                    iterator = session.prefill(entries(value))
                    next(iterator)
                    iterator.close()
                    assert session.tape.tokens == tokens
            case _:
                pytest.fail(f"{name} is no operation")
        for each in sessions:
            assert_sound(each)
    session = sessions[-1]
    if len(session.tape):
        # Other batch shapes move the last bits; a wrong or missing KV cell moves everything.
        np.testing.assert_allclose(
            session.logits(), replayed_logits(engine, session.tape.tokens), atol=0.05, rtol=0.02
        )


@pytest.mark.parametrize("arch", ["mamba", "jamba"])
def test_recurrent_memory_that_cannot_be_cut_is_rebuilt_and_counted(
    tiny_model: Callable[..., Path], arch: str
) -> None:
    options = replace(OPTIONS, checkpoints=0)
    model = Model.load(tiny_model(arch), options)
    engine = Engine(model, options)
    session = engine.session(chain(engine))
    session.extend(entries(list(range(10, 30))))
    session.rewind(15)
    assert session.kv_length == 0
    session.extend(entries([40]))
    assert session.rebuilt_tokens == 15
    np.testing.assert_allclose(session.logits(), replayed_logits(engine, session.tape.tokens), atol=0.05)
    engine.close()
    model.close()


def test_more_sessions_than_sequences_are_parked_and_come_back_unharmed(engine: Engine) -> None:
    sessions = [engine.session(chain(engine, "greedy")) for _ in range(5)]
    for index, session in enumerate(sessions):
        session.extend(entries([10 + index, 20 + index, 30 + index]))
    drawn = [[session.step().token for _ in range(3)] for session in sessions]
    assert sum(session.seq is not None for session in sessions) == OPTIONS.n_seq_max
    for index, session in enumerate(sessions):
        assert session.rebuilt_tokens == 0
        alone = engine.session(chain(engine, "greedy"))
        alone.extend(entries([10 + index, 20 + index, 30 + index]))
        assert [alone.step().token for _ in range(3)] == drawn[index]
        alone.close()


def test_sessions_that_ask_together_share_one_decode(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    sessions = [engine.session(chain(engine)) for _ in range(3)]
    for session in sessions:
        session.extend(entries([5, 6, 7]))
        session.step()
    sizes: list[int] = []
    decode = engine.context.decode

    def counted(rows: Sequence[Any]) -> DecodeStatus:
        sizes.append(len(rows))
        return decode(rows)

    monkeypatch.setattr(engine.context, "decode", counted)
    for session in sessions:
        session.request()
    for session in sessions:
        session.step()
    assert sizes == [3]


def test_context_full_leaves_the_tape_as_it_was(engine: Engine) -> None:
    session = engine.session(chain(engine))
    session.extend(entries([7] * 250))
    with pytest.raises(ContextFull, match="exceed the context of 256"):
        session.extend(entries([8] * 20))
    assert session.tape.tokens == [7] * 250
    assert_sound(session)
    with pytest.raises(ContextFull):
        for _ in range(20):
            session.step()
    assert len(session.tape) == 256
    assert_sound(session)


def test_two_chats_that_fill_the_context_park_each_other(engine: Engine) -> None:
    first, second = engine.session(chain(engine)), engine.session(chain(engine))
    first.extend(entries([7] * 200))
    second.extend(entries([8] * 200))
    first.step()
    second.step()
    assert_sound(first)
    assert_sound(second)


def test_cancel_from_another_thread_stops_a_prefill_and_leaves_nothing_behind(engine: Engine) -> None:
    session = engine.session(chain(engine))
    session.extend(entries([5, 6, 7]))
    started = threading.Event()
    decode = engine.context.decode

    def slow(rows: list[tuple[int, int, int, bool]]) -> DecodeStatus:
        started.set()
        engine_aborted.wait(5)
        return decode(rows)

    engine_aborted = threading.Event()
    engine.context.decode = slow  # type: ignore[method-assign]  # the point: a decode that is under way

    def cancel() -> None:
        started.wait(5)
        session.cancel()
        engine_aborted.set()

    thread = threading.Thread(target=cancel)
    thread.start()
    with pytest.raises(Cancelled):
        session.extend(entries([9] * 100))
    thread.join()
    engine.context.decode = decode  # type: ignore[method-assign]
    session.is_cancelled = False
    assert session.tape.tokens == [5, 6, 7]
    assert_sound(session)
    session.extend(entries([9] * 10))
    assert session.step().position == 13


def test_second_thread_is_refused_while_one_decodes(engine: Engine) -> None:
    session = engine.session(chain(engine))
    with engine.in_use(), pytest.raises(ConfigError, match="another thread"):
        session.extend(entries([5]))
    assert len(session.tape) == 0


def test_step_on_an_empty_tape_says_what_to_do(engine: Engine) -> None:
    with pytest.raises(ConfigError, match="Extend it first"):
        engine.session(chain(engine)).step()


def test_a_stage_that_raises_leaves_tape_and_memory_and_can_be_retried(engine: Engine) -> None:
    session = engine.session(chain(engine))
    session.extend(entries([5, 6, 7]))
    session.step()
    tokens = list(session.tape.tokens)
    sample = session.chain.sample

    def broken(*args: object, **kwargs: object) -> object:
        raise SamplerError("stage 'mine' failed.", hint="Fix it.")

    session.chain.sample = broken  # type: ignore[method-assign, assignment]
    with pytest.raises(SamplerError):
        session.step()
    assert session.tape.tokens == tokens
    assert_sound(session)
    session.chain.sample = sample  # type: ignore[method-assign]
    session.step()
    assert len(session.tape) == len(tokens) + 1


def test_a_session_that_cannot_be_closed_now_stays_whole(engine: Engine) -> None:
    session = engine.session(chain(engine))
    session.extend(entries([5, 6, 7]))
    with engine.in_use(), pytest.raises(ConfigError, match="in use"):
        session.close()
    assert session.step().position == 3
    session.close()
    session.close()


def test_same_seed_gives_the_same_tokens_also_after_rewind(engine: Engine) -> None:
    session = engine.session(chain(engine, "temperature(1.5) | dist(seed=3)"))
    session.extend(entries([5, 6, 7]))
    first = [session.step().token for _ in range(8)]
    session.rewind(3)
    session.extend(())
    assert [session.step().token for _ in range(8)] == first


def test_scores_are_those_of_decoding_token_by_token(engine: Engine) -> None:
    session = engine.session(chain(engine))
    session.extend(entries([5, 6, 7]))
    continuations = [[10, 11, 12], [10, 11, 13, 14], [10, 30], [10, 11, 12, 50]]
    scores = score_continuations(session, continuations)
    assert len(session.tape) == 3
    assert_sound(session)
    for tokens, score in zip(continuations, scores, strict=True):
        fork = session.fork()
        for token, logprob in zip(tokens, score, strict=True):
            logits = fork.logits().astype(np.float64)
            expected = logits[token] - logits.max() - np.log(np.exp(logits - logits.max()).sum())
            assert logprob == pytest.approx(expected, abs=0.02)
            fork.extend(entries([token]))
        fork.close()


def test_saved_session_of_another_model_is_refused(
    engine: Engine, tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    session = engine.session(chain(engine))
    session.extend(entries([5, 6, 7]))
    save_sessions(tmp_path / "a", [(session, {})])
    saved = read_sessions(tmp_path / "a")
    other_model = Model.load(tiny_model("qwen3"), OPTIONS)
    other = Engine(other_model, OPTIONS)
    with pytest.raises(SessionError, match="another model"):
        restore_session(other, chain(other), saved.record, saved.main)[0]
    other.close()
    other_model.close()


def test_damaged_session_file_is_refused(engine: Engine, tmp_path: Path) -> None:
    session = engine.session(chain(engine))
    session.extend(entries([5, 6, 7]))
    path = tmp_path / "a"
    save_sessions(path, [(session, {})])
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(SessionError, match="damaged"):
        read_sessions(path)
    path.write_bytes(b"hello")
    with pytest.raises(SessionError, match="not a saved chat"):
        read_sessions(path)
    with pytest.raises(SessionError, match="no saved chat"):
        read_sessions(tmp_path / "missing")


def test_restored_session_continues_without_computing_the_tape_again(engine: Engine, tmp_path: Path) -> None:
    session = engine.session(chain(engine, "greedy"))
    session.extend(entries([5, 6, 7]))
    for _ in range(4):
        session.step()
    save_sessions(tmp_path / "a", [(session, {})])
    saved = read_sessions(tmp_path / "a")
    other = restore_session(engine, chain(engine, "greedy"), saved.record, saved.main)[0]
    assert [other.step().token for _ in range(4)] == [session.step().token for _ in range(4)]
    assert other.rebuilt_tokens == 0
    assert other.prefilled_tokens == 0


def test_one_text_is_scored_after_many_tapes_in_one_batch(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    tapes = [[5, 6, 7], [8, 9], [10, 11, 12, 13], [14], [15, 16]]
    text = [20, 21, 22]
    sessions = []
    for tape in tapes:
        sessions.append(engine.session(chain(engine)))
        sessions[-1].extend(entries(tape))
    for _ in range(2):
        for tape, session, score in zip(tapes, sessions, score_after_each(sessions, text), strict=True):
            assert session.tape.tokens == tape
            assert_sound(session)
            (expected,) = score_continuations(session, [text])
            np.testing.assert_allclose(score, expected, atol=0.02)
    assert [session.rebuilt_tokens for session in sessions] == [0] * 5
