"""The runnable chain: laws, plugin stages and their failures, bans and rewinds, forks."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellm.errors import SamplerError
from edgellm.sampling.candidates import Candidates
from edgellm.sampling.chain import Chain, Draw, StepContext
from edgellm.sampling.draw import ordered
from edgellm.sampling.stage import Rewind, sampler
from edgellm.testing import ByteVocabulary, draw_tokens, random_logits

CHAINS = [
    "top_k(40) | top_p(0.9) | temperature(0.7) | dist(seed=3)",
    "greedy",
    "dist(seed=3)",
    "temperature(1.5) | dist(seed=3)",
    "top_k(5) | greedy",
    "min_p(0.02) | temperature(1.3) | xtc(0.5, 0.05) | dist(seed=3)",
    "penalties(1.3, frequency=0.2) | top_k(20) | typical(0.8) | dist(seed=3)",
    "dry(breakers=[]) | top_n_sigma(1.5) | dynamic_temperature | dist(seed=3)",
    "logit_bias({5: -inf, 7: 3}) | temperature(0) | dist(seed=3)",
    "temperature(0.8) | mirostat(seed=3)",
    "mirostat_v2(seed=3)",
    "top_k(30) | adaptive_p(seed=3)",
]


def make(spec: Any, n_vocab: int = 300, **options: Any) -> Chain:
    return Chain(spec, n_vocab=n_vocab, vocabulary=ByteVocabulary(n_vocab), **options)


def draw(chain: Chain, logits: Any, position: int = 0, **options: Any) -> Draw:
    return chain.sample(np.asarray(logits, dtype=np.float32), StepContext(position), **options)


@pytest.mark.parametrize("text", CHAINS)
def test_looking_on_changes_no_token(text: str) -> None:
    plain, traced, other = make(text), make(text), make(text)
    tokens = draw_tokens(plain, [], 25, 1)
    assert tokens == draw_tokens(traced, [], 25, 1, trace=1)
    assert tokens == draw_tokens(other, [], 25, 1, trace=50)


@pytest.mark.parametrize("text", CHAINS)
@pytest.mark.parametrize("n_vocab", [300, 20_011])
def test_taps_hold_the_top_rows_and_what_was_drawn(text: str, n_vocab: int) -> None:
    chain = make(text, n_vocab)
    logits = random_logits(n_vocab, 4)
    drawn = chain.sample(logits, StepContext(9), trace=6)
    seen = drawn.distribution
    assert seen is not None
    exact = logits.astype(np.float64)
    log_probs = exact - exact.max() - math.log(np.exp(exact - exact.max()).sum())
    order = ordered(np.arange(n_vocab, dtype=np.int32), logits)[:6]
    assert list(seen.raw.ids) == list(order)
    assert seen.raw.logits == pytest.approx(logits[order])
    assert seen.raw.probs == pytest.approx(np.exp(log_probs[order]), rel=1e-4)
    assert seen.raw.n_left == n_vocab
    entropy = -float(np.exp(log_probs) @ log_probs) / math.log(2)
    assert seen.raw.entropy_bits == pytest.approx(entropy, rel=1e-3)
    assert drawn.logprob == pytest.approx(log_probs[drawn.token], abs=1e-3)
    expected = [one.name for one in chain.spec.stages if one.name not in ("dist", "greedy")]
    assert [rows.stage for rows in seen.stages] == expected
    left = n_vocab
    for rows in seen.stages:
        assert 1 <= len(rows.ids) == min(6, rows.n_left)
        assert rows.n_left <= left
        left = rows.n_left
        assert (
            float(rows.probs.sum()) == pytest.approx(1.0, abs=1e-4)
            if rows.n_left <= 6
            else rows.probs.sum() <= 1.0001
        )
        assert list(rows.probs) == sorted(rows.probs, reverse=True)
        assert 0 <= rows.entropy_bits <= math.log2(rows.n_left) + 1e-3
    if seen.final.n_left <= 6:
        assert drawn.token in seen.final.ids
    assert (drawn.u == drawn.u) is (chain.spec.stages[-1].name == "dist")


def test_the_draw_can_be_checked_by_hand_from_the_final_rows() -> None:
    chain = make(CHAINS[0])
    for position in range(30):
        drawn = chain.sample(random_logits(300, position), StepContext(position), trace=40)
        assert drawn.distribution is not None
        rows = drawn.distribution.final
        place = int(np.searchsorted(np.cumsum(rows.probs.astype(np.float64)), drawn.u, side="right"))
        assert rows.ids[min(place, len(rows.ids) - 1)] == drawn.token


@settings(max_examples=60)
@given(
    st.sampled_from(CHAINS),
    st.lists(st.floats(-40, 40, width=32), min_size=8, max_size=60),
    st.integers(0, 1000),
)
def test_a_token_of_the_vocabulary_is_drawn_from_rows_that_sum_to_one(
    text: str, logits: list[float], position: int
) -> None:
    chain = make(text, 300)
    padded = np.full(300, -50, dtype=np.float32)
    padded[: len(logits)] = logits
    drawn = chain.sample(padded, StepContext(position), trace=300)
    assert drawn.distribution is not None
    for rows in (drawn.distribution.raw, *drawn.distribution.stages):
        assert rows.n_left >= 1
        assert float(rows.probs.sum()) == pytest.approx(1.0, abs=1e-4)
    assert drawn.token in drawn.distribution.final.ids


def test_the_same_seed_gives_the_same_tokens_and_others_differ() -> None:
    text = "temperature(1.5) | dist"
    first = draw_tokens(make(text, seed=5), [], 30, 2)
    assert first == draw_tokens(make(text, seed=5), [], 30, 2)
    assert first != draw_tokens(make(text, seed=6), [], 30, 2)
    assert make("dist(seed=9)", seed=5).seed == 9
    assert make("dist").seed != make("dist").seed


def test_branches_draw_different_numbers() -> None:
    chain = make("dist(seed=1)")
    logits = np.zeros(300, dtype=np.float32)
    tokens = {chain.sample(logits, StepContext(5, branch)).token for branch in range(20)}
    assert len(tokens) > 10


def test_top_k_in_front_draws_what_top_k_behind_another_stage_draws() -> None:
    # Behind temperature(1) all rows go to llama.cpp; in front, only those that can win.
    quick, slow = (
        make("top_k(30) | dist(seed=4)", 20_000),
        make("temperature(1) | top_k(30) | dist(seed=4)", 20_000),
    )
    for position in range(20):
        logits = random_logits(20_000, position)
        assert draw(quick, logits, position).token == draw(slow, logits, position).token


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("text", ["top_k(3)", "temperature(0.5)", "greedy"])
def test_logits_that_are_no_numbers_are_an_error(bad: float, text: str) -> None:
    for n_vocab in (300, 20_000):
        logits = random_logits(n_vocab, 1)
        logits[n_vocab - 2] = bad
        with pytest.raises(SamplerError, match="the model's logits hold"):
            draw(make(text, n_vocab), logits)


def test_a_wrong_number_of_logits_is_an_error() -> None:
    with pytest.raises(SamplerError, match="299 logits for a vocabulary of 300"):
        draw(make("greedy"), np.zeros(299))


def test_a_stage_that_forbids_everything_is_an_error() -> None:
    chain = make(f"logit_bias({ {i: -math.inf for i in range(300)} })".replace("-inf", "-inf"))
    with pytest.raises(SamplerError, match="'logit_bias' left no token"):
        draw(chain, np.zeros(300))


# -- Python stages


@sampler
class Script:
    """Does what a function says."""

    def __init__(self, name: str = "") -> None:
        self.name = name

    def apply(self, candidates: Candidates) -> None:
        ACTIONS[self.name](candidates)


@sampler(chooses=True)
class Chooser(Script):
    """Does what a function says, and chooses."""

    def __init__(self, name: str = "") -> None:
        super().__init__(name)


def _set_logits(value: float) -> Any:
    def action(c: Candidates) -> None:
        c.logits[:] = value

    return action


ACTIONS: dict[str, Any] = {
    "nothing": lambda c: None,
    "nan": _set_logits(math.nan),
    "inf": _set_logits(math.inf),
    "-inf": _set_logits(-math.inf),
    "raise": lambda c: 1 // 0,
    "empty": lambda c: c.keep(0),
    "empty mask": lambda c: c.keep(np.zeros(c.n, dtype=bool)),
    "short mask": lambda c: c.keep(np.ones(c.n - 1, dtype=bool)),
    "bad index": lambda c: c.keep([0, c.n]),
    "twice": lambda c: c.keep([0, 0]),
    "ids": lambda c: c.ids.__setitem__(0, 1),
    "choose": lambda c: c.choose(1),
    "choose far": lambda c: c.choose(c.n),
    "choose removed": lambda c: (c.logits.__setitem__(0, -math.inf), c.choose(0)),
    "choose, keep": lambda c: (c.choose(1), c.keep(2), c.sort()),
}

BAD_STAGES = [
    ("script", "nan", "left NaN"),
    ("script", "inf", r"left \+inf"),
    ("script", "-inf", "left only -inf"),
    ("script", "raise", "failed: ZeroDivisionError: integer division or modulo by zero"),
    ("script", "empty", r"keep\(0\)"),
    ("script", "empty mask", "empty mask"),
    ("script", "short mask", "mask of shape"),
    ("script", "bad index", "indices"),
    ("script", "twice", "indices"),
    ("script", "ids", "read-only"),
    ("script", "choose", "chose a token without saying"),
    ("chooser", "nothing", "is to choose the token and did not"),
    ("chooser", "choose far", r"choose\(5\) of 5 rows"),
    ("chooser", "choose removed", "a row that was removed"),
    ("chooser", "choose, keep", "is to choose the token and did not"),
]


@pytest.mark.parametrize(("kind", "action", "message"), BAD_STAGES)
def test_a_stage_that_misbehaves_is_an_error_with_its_name(kind: str, action: str, message: str) -> None:
    stage = Script(action) if kind == "script" else Chooser(action)
    chain = make(["top_k(5)", stage])
    with pytest.raises(SamplerError, match=message) as caught:
        draw(chain, random_logits(300, 1))
    assert f"sampler stage '{kind}'" in str(caught.value)
    # The next step is not harmed.
    ACTIONS["fine"] = lambda c: c.choose(0)
    assert draw(make(["top_k(5)", Chooser("fine")]), random_logits(300, 1)).chosen_by == "chooser"


def test_the_error_of_a_stage_carries_its_traceback() -> None:
    with pytest.raises(SamplerError) as caught:
        draw(make([Script("raise")]), np.zeros(300))
    assert "ZeroDivisionError" in caught.value.log
    assert "test_sampling_chain.py" in caught.value.log


def test_a_constructor_that_raises_is_an_error_with_its_name() -> None:
    @sampler
    class Fragile:
        def __init__(self, size: int = 1) -> None:
            if size > 1:
                raise ValueError("size is at most 1")

        def apply(self, candidates: Candidates) -> None: ...

    from edgellm.sampling.spec import ChainSpec, StageSpec
    from edgellm.sampling.stage import info_of

    info, _ = info_of(Fragile())
    with pytest.raises(SamplerError, match="'fragile' failed: ValueError: size is at most 1"):
        make(ChainSpec((StageSpec("fragile", (("size", 2),), info),)))


def test_a_view_dies_when_apply_returns() -> None:
    kept: list[Any] = []
    ACTIONS["keep view"] = lambda c: kept.extend([c, c.logits, c.context])
    draw(make([Script("keep view"), "top_k(3)"]), random_logits(300, 1))
    candidates, logits, context = kept
    with pytest.raises(SamplerError, match="after apply"):
        _ = candidates.logits
    with pytest.raises(SamplerError, match="after apply"):
        candidates.keep(1)
    with pytest.raises(ValueError, match="read-only"):
        logits[0] = 1
    assert context.piece(65) == b"A"


def test_what_a_stage_sees_and_may_do() -> None:
    seen: list[Any] = []

    def look(c: Candidates) -> None:
        seen.append((c.n, len(c), c.is_sorted, list(c.ids), list(c.logits)))
        assert float(c.probs().sum()) == pytest.approx(1)
        c.logits[0] = -5
        c.sort()
        seen.append((c.is_sorted, list(c.ids)))
        c.keep([2, 0])
        seen.append(list(c.ids))
        c.keep(np.array([True, True]))
        c.logits = [1.0, 9.0]

    ACTIONS["look"] = look
    logits = np.full(300, -9, dtype=np.float32)
    logits[[3, 4, 5]] = [3, 2, 1]
    drawn = draw(make(["top_k(3)", Script("look"), "greedy"]), logits, trace=3)
    assert seen == [(3, 3, True, [3, 4, 5], [3, 2, 1]), (True, [4, 5, 3]), [3, 4]]
    assert drawn.token == 4
    assert drawn.distribution is not None
    assert list(drawn.distribution.final.ids) == [4, 3]
    assert list(drawn.distribution.final.logits) == [9, 1]


def test_rows_out_of_order_are_noticed_before_llama_cpp_relies_on_it() -> None:
    # top_p trusts `sorted`; with the flag left on, it would keep the first row, which is now the worst.
    def reverse(c: Candidates) -> None:
        c.logits[:] = -c.logits

    ACTIONS["reverse"] = reverse
    logits = np.full(300, -99, dtype=np.float32)
    logits[:3] = [2, 1, -2]
    drawn = draw(make(["top_k(3)", Script("reverse"), "top_p(0.5)", "greedy"]), logits, trace=3)
    assert drawn.token == 2
    assert drawn.distribution is not None
    assert list(drawn.distribution.final.ids) == [2]


def test_context_gives_position_tape_seed_and_numbers() -> None:
    from edgellm.sampling.draw import uniform

    seen: list[Any] = []

    def look(c: Candidates) -> None:
        context = c.context
        seen.append((context.position, context.branch, context.seed, list(context.tokens), context.u))
        assert context.uniform("mine") == uniform(7, 2, 3, "mine")

    ACTIONS["context"] = look
    drawn = make([Script("context"), "dist(seed=7)"]).sample(
        random_logits(300, 1), StepContext(3, 2, [1, 2, 3])
    )
    assert seen == [(3, 2, 7, [1, 2, 3], uniform(7, 2, 3))]
    assert drawn.u == uniform(7, 2, 3)


# -- the tape


@sampler
class Undo:
    """Takes back the last `count` tokens whenever `token` was accepted."""

    def __init__(self, token: int, count: int = 1, ban: list[int] | None = None) -> None:
        self.token, self.count, self.ban = token, count, ban or []
        self.seen: list[int] = []

    def apply(self, candidates: Candidates) -> None: ...

    def accept(self, token: int) -> Rewind | None:
        self.seen.append(token)
        return Rewind(self.count, tuple(self.ban), "test") if token == self.token else None

    def reset(self) -> None:
        self.seen = []

    def pending(self) -> int:
        return 2


def peaked(*tokens: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Logits with the given tokens on top, the first the most likely."""
    logits = np.zeros(300, dtype=np.float32)
    for place, token in enumerate(tokens):
        logits[token] = 20 - place
    return logits


def test_a_rewind_bans_the_first_token_taken_back_at_its_position() -> None:
    chain = make([Undo(7, count=2), "greedy"])
    chain.replay([1, 2])
    assert chain.pending_tokens == 2
    assert draw(chain, peaked(5), 2).token == 5
    assert chain.accept(5) is None
    assert draw(chain, peaked(7), 3).token == 7
    request = chain.accept(7)
    assert request is not None
    assert (request.stage, request.tokens, request.position, request.ban, request.reason) == (
        "undo",
        2,
        2,
        (5,),
        "test",
    )
    chain.rewind([1, 2])
    assert chain.python_stages[0].seen == [1, 2]  # type: ignore[attr-defined]
    assert draw(chain, peaked(5, 6), 2).token == 6
    drawn = draw(chain, peaked(5, 6), 2, trace=2)
    assert drawn.distribution is not None and drawn.distribution.stages[0].stage == "ban"
    assert draw(chain, peaked(5, 6), 3).token == 5


def test_bans_add_up_and_a_cut_before_them_lifts_them() -> None:
    chain = make([Undo(7), "greedy"])
    chain.replay([1])
    for banned in (7,):
        chain.accept(banned)
    chain.rewind([1])
    assert draw(chain, peaked(7, 8), 1).token == 8
    chain.rewind([])
    assert draw(chain, peaked(7, 8), 1).token == 7


def test_wishes_that_reach_into_the_prompt_or_repeat_without_effect_are_dropped() -> None:
    chain = make([Undo(7, count=2), "greedy"])
    chain.replay([7, 7])
    assert chain.accept(7) is None
    assert chain.accept(7) is not None
    chain.rewind([7, 7])
    # The same two tokens come again, forced by somebody: the ban had no effect, so there is no endless loop.
    chain.accept(7)
    assert chain.accept(7) is None


def test_a_stage_that_always_takes_back_is_heard_32_times_at_one_place() -> None:
    chain = make([Undo(7, ban=[1]), "greedy"])
    for ban in range(100, 132):
        chain.python_stages[0].ban = [ban]  # type: ignore[attr-defined]
        assert chain.accept(7) is not None
        chain.rewind([])
    chain.python_stages[0].ban = [200]  # type: ignore[attr-defined]
    twin = chain.fork()
    assert chain.accept(7) is None
    assert draw(chain, peaked(131, 6), 0).token == 6
    twin.python_stages[0].ban = [201]  # type: ignore[attr-defined]
    assert twin.accept(7) is None


@pytest.mark.parametrize("wish", [Rewind("x"), Rewind(True), Rewind(1, ban=5), Rewind(1, ban=("x",))])  # type: ignore[arg-type]
def test_an_impossible_wish_names_its_stage(wish: Rewind, monkeypatch: pytest.MonkeyPatch) -> None:
    def accept(_self: Undo, _token: int) -> Rewind:
        return wish

    monkeypatch.setattr(Undo, "accept", accept)
    chain = make([Undo(7), "greedy"])
    with pytest.raises(SamplerError, match="'undo'"):
        chain.accept(7)


def test_a_ban_that_would_leave_nothing_is_void() -> None:
    from edgellm.sampling.constraint import Constraint

    chain = make([Undo(66), "greedy"], 257)
    chain.accept(66)
    chain.rewind([])
    constraint = Constraint.from_regex(ByteVocabulary().grammar_tokenizer(), "B+")
    assert chain.sample(np.zeros(257, dtype=np.float32), StepContext(0), constraint=constraint).token == 66


def test_a_fork_has_stages_of_its_own() -> None:
    chain = make(["penalties(2.0)", Undo(7, count=9), "greedy"])
    chain.replay([1, 2])
    fork = chain.fork([1, 2])
    fork.accept(3)
    first, second = chain.python_stages[0], fork.python_stages[0]
    assert (first.seen, second.seen) == ([1, 2], [1, 2, 3])  # type: ignore[attr-defined]
    assert draw(chain, peaked(3, 4), 2).token == 3
    # Divided by 2, token 3 falls behind in the fork alone.
    assert draw(fork, peaked(3, 4), 3).token == 4
    chain.close()
    assert draw(fork, peaked(3, 4), 3).token == 4
    fork.close()


def test_penalties_are_rebuilt_by_rewinding() -> None:
    chain = make("penalties(2.0) | greedy")
    chain.replay([1, 3])
    assert draw(chain, peaked(3, 4), 2).token == 4
    chain.rewind([1])
    assert draw(chain, peaked(3, 4), 1).token == 3
    chain.reset()
    assert draw(chain, peaked(1, 4), 0).token == 1


def test_xtc_needs_no_memory_to_act_alike_after_a_rewind() -> None:
    chain = make("xtc(0.5, 0.1) | greedy", seed=11)
    first = [draw(chain, peaked(1, 2, 3), position).token for position in range(40)]
    chain.rewind([])
    assert first == [draw(chain, peaked(1, 2, 3), position).token for position in range(40)]
    # Half of the time the best row is excluded: 20 is peaked so that rows 1 to 3 are above the threshold or not.
    flat = np.zeros(300, dtype=np.float32)
    flat[:4] = 10
    drawn = {draw(chain, flat, position).token for position in range(40)}
    assert len(drawn) > 1
