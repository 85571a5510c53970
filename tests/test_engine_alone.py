"""The step of a session that is alone: decode and draw in one call, which must be what two are."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import edgellm
from edgellm.engine.engine import Engine
from edgellm.errors import Cancelled, SamplerError
from edgellm.native.lone_step import NOT_DECODED, LoneStep
from edgellm.native.model import Model
from edgellm.native.samplers import Owned
from edgellm.native.scan import is_compiled
from edgellm.sampling.chain import Chain
from edgellm.sampling.parts import NativePart
from edgellm.types import LoadOptions, SpanKind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from edgellm.distribution import Step
    from edgellm.engine.session import Session

OPTIONS = LoadOptions(n_ctx=256, n_seq_max=3, n_batch=64, threads=1)
PROMPT = [(token, SpanKind.USER) for token in (5, 6, 7, 8)]
CHAINS = {
    "greedy": "greedy",
    "dist": "top_k(5) | temperature(1.5) | dist(seed=3)",
    "holes": "top_k(5) | min_p(0.2) | typical(0.9) | dist(seed=4)",
    "stateful": "top_k(5) | penalties(repeat=1.5, last_n=8) | dist(seed=5)",
}

pytestmark = pytest.mark.skipif(not is_compiled(), reason="nothing was compiled at installation")


@pytest.fixture(scope="module", params=["llama", "mamba"])
def model(request: pytest.FixtureRequest, tiny_model: Callable[..., Path]) -> Iterator[Model]:
    # A vocabulary in which five of the largest are looked for in one pass.
    model = Model.load(tiny_model(request.param, more_tokens=2000), OPTIONS)
    yield model
    model.close()


@pytest.fixture
def engine(model: Model) -> Iterator[Engine]:
    engine = Engine(model, OPTIONS)
    yield engine
    engine.close()


def new_session(engine: Engine, chain_like: Any = CHAINS["dist"], trace: int = 0) -> Session:
    chain = Chain(chain_like, n_vocab=engine.vocabulary.size, vocabulary=engine.vocabulary)
    session = engine.session(chain)
    # Draws are those of the branch, and each session has one of its own.
    session.branch = 0
    session.trace = trace
    session.extend(PROMPT)
    return session


def watched(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What is drawn in one call with its decode from here on."""
    found: list[int] = []
    real = engine.context.decode_and_draw

    def draw(*args: Any) -> int:
        found.append(real(*args))
        return found[-1]

    monkeypatch.setattr(engine.context, "decode_and_draw", draw)
    return found


def told(step: Step) -> tuple[Any, ...]:
    rows = step.distribution
    points = [] if rows is None else [(rows.raw.probs.tolist(), rows.final.probs.tolist())]
    return step.token, step.piece, step.position, step.is_eog, step.is_control, step.logprob, points


@pytest.mark.parametrize("trace", [0, 5])
@pytest.mark.parametrize("text", CHAINS.values(), ids=CHAINS)
def test_it_draws_what_is_drawn_step_by_step(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, text: str, trace: int
) -> None:
    drawn = watched(engine, monkeypatch)
    quick = new_session(engine, text, trace)
    steps = [quick.step() for _ in range(30)]
    # The first was drawn from the prompt's own logits.
    assert drawn == [step.token for step in steps[1:]]
    assert quick.check_memory() and quick.kv_length == len(quick.tape) - 1
    engine.context.can_draw = False
    slow = new_session(engine, text, trace)
    others = [slow.step() for _ in range(30)]
    assert len(drawn) == 29
    assert [told(step) for step in steps] == [told(step) for step in others]
    assert quick.tape.tokens == slow.tape.tokens and quick.tape.kinds == slow.tape.kinds


def test_what_the_compiled_draw_leaves_is_drawn_step_by_step(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So many rows of so small a vocabulary are not looked for in one pass.
    drawn = watched(engine, monkeypatch)
    session = new_session(engine, trace=100)
    tokens = [session.step().token for _ in range(10)]
    assert drawn == [-1] * 9
    engine.context.can_draw = False
    other = new_session(engine, trace=100)
    assert [other.step().token for _ in range(10)] == tokens


def test_a_session_that_somebody_waits_beside_shares_a_batch(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = watched(engine, monkeypatch)
    first, second = new_session(engine), new_session(engine)
    alone = [first.step().token for _ in range(6)]
    first.rewind(len(PROMPT))
    together: list[int] = []
    for _ in range(6):
        second.request()
        together.append(first.step().token)
        second.step()
    assert together == alone
    assert len(drawn) == 5, "none of those for two"


def test_a_lone_session_of_several_that_ask_by_request_is_quick_too(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = watched(engine, monkeypatch)
    new_session(engine)
    session = new_session(engine)
    session.step()
    for count in range(1, 4):
        session.request()
        engine.step()
        assert len(drawn) == count and session.drawing.has_ready and not session.is_waiting
        assert session.step().token == drawn[-1]
    assert session.kv_length == len(session.tape) - 1


def test_a_decode_that_is_refused_goes_the_long_way(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    session = new_session(engine)
    expected = new_session(engine)
    assert session.step().token == expected.step().token
    with monkeypatch.context() as patch:
        refused: list[object] = []

        def refuse(*args: object) -> int:
            refused.append(args)
            return NOT_DECODED

        patch.setattr(engine.context, "decode_and_draw", refuse)
        token = session.step().token
    assert len(refused) == 1
    assert token == expected.step().token
    assert session.check_memory() and session.kv_length == len(session.tape) - 1


def test_a_cancel_is_heard_and_nothing_is_lost(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    session = new_session(engine)
    session.step()
    before = list(session.tape.tokens)
    real = engine.context.decode_and_draw

    def cancelled(*args: Any) -> int:
        session.cancel()
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(engine.context, "decode_and_draw", cancelled)
        with pytest.raises(Cancelled):
            session.step()
    assert session.tape.tokens == before and session.check_memory()
    assert not session.is_waiting
    session.is_cancelled = False
    assert session.step().position == len(before)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SamplerError])
@pytest.mark.parametrize(
    "place", ["prepare", "before decode", "after decode", "before accept", "after accept", "traits"]
)
def test_an_end_in_its_midst_leaves_tape_memory_and_draws(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, place: str, error: type[BaseException]
) -> None:
    session, expected = (new_session(engine, CHAINS["stateful"]) for _ in range(2))
    wanted = [expected.step().token for _ in range(8)]
    assert [session.step().token for _ in range(4)] == wanted[:4]
    when, _, what = place.rpartition(" ")
    target, name = {
        "decode": (engine.context, "decode_and_draw"),
        "accept": (session.chain, "accept"),
        "prepare": (session.chain, "prepare"),
        "traits": (engine.vocabulary, "traits"),
    }[what]
    real = getattr(target, name)

    def ending(*args: Any, **options: Any) -> Any:
        if when == "after":
            real(*args, **options)
        raise error("here")

    with monkeypatch.context() as patch:
        patch.setattr(target, name, ending)
        with pytest.raises(error):
            session.step()
    assert len(session.tape) == len(PROMPT) + 4
    assert session.check_memory() and not session.is_waiting
    # It goes on with the same draws, and the chain has heard of each token once.
    assert [session.step().token for _ in range(4)] == wanted[4:]
    np.testing.assert_allclose(session.logits(), expected.logits(), atol=0.05, rtol=0.02)


def test_a_step_that_nobody_was_given_is_taken_back(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    session, expected = new_session(engine), new_session(engine)
    wanted = [expected.step().token for _ in range(3)]
    assert session.step().token == wanted[0]
    real = engine.step_alone

    def interrupted(one: Session) -> Step | None:
        real(one)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(engine, "step_alone", interrupted)
        with pytest.raises(KeyboardInterrupt):
            session.step()
    assert len(session.tape) == len(PROMPT) + 1 and session.check_memory()
    assert [session.step().token for _ in range(2)] == wanted[1:]


@pytest.mark.parametrize(("before", "after"), [(0, 5), (5, 0), (5, 3)])
def test_a_trace_that_is_changed_meanwhile_counts_from_the_next_token(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, before: int, after: int
) -> None:
    session = new_session(engine, trace=before)
    session.step()
    real = engine.context.decode_and_draw

    def changing(*args: Any) -> int:
        session.trace = after
        return real(*args)

    def rows(step: Step) -> int:
        return len(step.distribution.raw.probs) if step.distribution is not None else 0

    monkeypatch.setattr(engine.context, "decode_and_draw", changing)
    assert [rows(session.step()) for _ in range(2)] == [before, after]


def test_logits_of_another_place_are_not_kept(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    @edgellm.sampler
    class Once:
        """Wants two tokens again, once."""

        def __init__(self) -> None:
            self.count = 0

        def apply(self, candidates: edgellm.Candidates) -> None:
            """Changes nothing."""

        def accept(self, token: int) -> edgellm.Rewind | None:
            """At the fourth token drawn, behind the four of the prompt."""
            self.count += 1
            return edgellm.Rewind(2) if self.count == 8 else None

        def pending(self) -> int:
            """What may be taken back."""
            return 2

    session = new_session(engine, [Once(), "dist(seed=1)"])
    real = session.chain.rewind

    def interrupted(tokens: Any) -> None:
        real(tokens)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(session.chain, "rewind", interrupted)
        with pytest.raises(KeyboardInterrupt):
            for _ in range(10):
                session.step()
    held = session.held_logits
    if held is not None:
        np.testing.assert_allclose(held, replayed(engine, session), atol=0.05, rtol=0.02)
    assert session.check_memory()
    np.testing.assert_allclose(session.logits(), replayed(engine, session), atol=0.05, rtol=0.02)


def replayed(engine: Engine, session: Session) -> Any:
    """Logits after its tape, computed from nothing."""
    fresh = engine.session(Chain("greedy", n_vocab=engine.vocabulary.size))
    fresh.extend([(token, SpanKind.USER) for token in session.tape.tokens])
    return fresh.logits().copy()


def test_a_step_that_is_given_back_is_read_before_others(engine: Engine) -> None:
    session = new_session(engine)
    steps = [session.drawing._step(token) for token in (1, 2, 3)]  # pyright: ignore[reportPrivateUsage]
    session.drawing._ready.extend(steps[1:])  # pyright: ignore[reportPrivateUsage]
    session.drawing.give(steps[0])
    assert [session.drawing.read().token for _ in range(3)] == [1, 2, 3]


def test_a_chain_that_is_closed_while_it_draws_is_freed_behind_the_draw(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = new_session(engine)
    session.step()
    # Others, of chains that nobody holds any more, may be freed at any time.
    parts = session.chain._parts  # pyright: ignore[reportPrivateUsage]
    ours = {id(part.sampler.owned) for part in parts if isinstance(part, NativePart)}
    freed: list[int] = []
    free = Owned.__del__
    real = engine.context.decode_and_draw

    def closing(*args: Any) -> int:
        Chain(CHAINS["dist"], n_vocab=engine.vocabulary.size).close()
        session.chain.close()
        gc.collect()
        assert not freed
        return real(*args)

    def counted(owned: Owned) -> None:
        if id(owned) in ours:
            freed.append(1)
        free(owned)

    monkeypatch.setattr(Owned, "__del__", counted)
    monkeypatch.setattr(engine.context, "decode_and_draw", closing)
    session.step()
    assert freed


@pytest.mark.parametrize("text", [*CHAINS.values(), "temperature(1.5) | dist(seed=1)"])
def test_a_chain_that_is_closed_says_so(engine: Engine, text: str) -> None:
    session = new_session(engine, text)
    session.step()
    session.chain.close()
    with pytest.raises(SamplerError):
        session.step()


def test_a_chain_for_another_vocabulary_is_refused(engine: Engine) -> None:
    session = new_session(engine)
    other = Chain("greedy", n_vocab=engine.vocabulary.size + 64)
    with pytest.raises(SamplerError, match="does not fit"):
        session.chain = other
    with pytest.raises(SamplerError, match="does not fit"):
        engine.session(other)
    assert session.step().position == len(PROMPT)


def test_another_batch_than_the_one_it_knows_is_not_used(engine: Engine) -> None:
    import ctypes

    class Other(ctypes.Structure):
        _fields_ = (("n_tokens", ctypes.c_int32), ("token", ctypes.c_void_p))

    assert engine.context.can_draw
    assert LoneStep.of(None, None, Other()) is None
