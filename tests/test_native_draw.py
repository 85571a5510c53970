"""A whole draw in one call against the same draw step by step."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellm.errors import SamplerError
from edgellm.native.scan import is_compiled
from edgellm.sampling.chain import Chain, StepContext

pytestmark = pytest.mark.skipif(not is_compiled(), reason="nothing was compiled")

CHAINS = (
    "top_k(40) | top_p(0.9) | temperature(0.7) | dist",
    "top_k(40) | logit_bias({3: -inf, 7: 2.0}) | min_p(0.05) | temperature(1.5) | dist",
    "top_k(5) | typical(0.5) | dist",
    "top_k(64) | top_n_sigma(1.0) | dynamic_temperature(1, 0.5) | dist",
    "top_k(40) | temperature(0.5) | logit_bias({1: -inf}) | dist",
    "top_k(20) | greedy",
    "greedy",
)


def pair(text: str, n_vocab: int) -> tuple[Chain, Chain]:
    quick, slow = (Chain(text, n_vocab=n_vocab, seed=11) for _ in range(2))
    assert quick._quick is not None
    slow._quick = None
    return quick, slow


@given(st.sampled_from(CHAINS), st.integers(0, 10_000), st.sampled_from([0, 4, 20, 50]), st.booleans())
@settings(max_examples=150, deadline=None)
def test_it_draws_and_shows_what_the_stages_do_one_by_one(
    text: str, seed: int, trace: int, has_ties: bool
) -> None:
    n_vocab = 20_000
    quick, slow = pair(text, n_vocab)
    logits = np.random.default_rng(seed).normal(0, 3, n_vocab).astype(np.float32)
    if has_ties:
        logits = np.round(logits * 2).astype(np.float32) / 2
    for position in range(5):
        one, other = (chain.sample(logits, StepContext(position), trace=trace) for chain in (quick, slow))
        assert (one.token, one.chosen_by, one.logprob) == (other.token, other.chosen_by, other.logprob)
        assert one.u == other.u or (np.isnan(one.u) and np.isnan(other.u))
        assert (one.distribution is None) == (other.distribution is None) == (trace == 0)
        if one.distribution is None or other.distribution is None:
            continue
        points = [(seen.raw, *seen.stages) for seen in (one.distribution, other.distribution)]
        assert len(points[0]) == len(points[1])
        for mine, theirs in zip(*points, strict=True):
            assert (mine.stage, mine.n_left) == (theirs.stage, theirs.n_left)
            assert mine.entropy_bits == theirs.entropy_bits
            np.testing.assert_array_equal(mine.ids, theirs.ids)
            np.testing.assert_array_equal(mine.logits, theirs.logits)
            np.testing.assert_array_equal(mine.probs, theirs.probs)


def test_what_has_to_be_done_step_by_step_is() -> None:
    # More rows than fit, a trace of more than a quarter of the blocks.
    for text, n_vocab, trace in (
        ("top_k(2000) | dist(seed=1)", 600_000, 3),
        ("top_k(1) | dist(seed=1)", 300, 40),
    ):
        quick, slow = pair(text, n_vocab)
        logits = np.random.default_rng(1).normal(0, 3, n_vocab).astype(np.float32)
        one, other = (chain.sample(logits, StepContext(0), trace=trace) for chain in (quick, slow))
        assert one.token == other.token
    for text in (
        "top_k(40) | dist(seed=1)",
        "temperature(1) | top_k(4) | dist",
        "top_k(4) | xtc(0.5, 0.1) | dist",
        "mirostat_v2(5, 0.1)",
    ):
        assert Chain(text, n_vocab=300)._quick is None


def test_a_trace_changes_no_token_among_equal_logits() -> None:
    chain, _ = pair("top_k(10) | dist(seed=3)", 20_000)
    logits = np.round(np.random.default_rng(1).normal(0, 1, 20_000)).astype(np.float32)
    for position in range(40):
        drawn = {chain.sample(logits, StepContext(position), trace=trace).token for trace in (0, 5, 20, 60)}
        assert len(drawn) == 1


def test_a_ban_is_kept() -> None:
    quick, _ = pair("top_k(2) | greedy", 20_000)
    logits = np.arange(20_000, dtype=np.float32)
    assert quick.sample(logits, StepContext(0)).token == 19_999
    quick._bans[0] = frozenset((19_999,))
    assert quick.sample(logits, StepContext(0)).token == 19_998


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_logits_that_are_no_numbers_are_told(wrong: float) -> None:
    quick, _ = pair("top_k(40) | dist", 20_000)
    logits = np.zeros(20_000, dtype=np.float32)
    logits[77] = wrong
    with pytest.raises(SamplerError, match="the model's logits hold"):
        quick.sample(logits, StepContext(0))


def test_a_stage_that_leaves_nothing_is_told() -> None:
    quick, _ = pair("top_k(1) | logit_bias({5: -inf}) | dist", 20_000)
    logits = np.zeros(20_000, dtype=np.float32)
    logits[5] = 9.0
    with pytest.raises(SamplerError, match="left no token"):
        quick.sample(logits, StepContext(0))


def test_a_chain_that_is_closed_says_so_and_forks_draw_on() -> None:
    quick, _ = pair("top_k(40) | temperature(0.7) | dist", 20_000)
    logits = np.random.default_rng(1).normal(0, 3, 20_000).astype(np.float32)
    fork = quick.fork()
    token = quick.sample(logits, StepContext(3)).token
    quick.close()
    with pytest.raises(SamplerError, match="is closed"):
        quick.sample(logits, StepContext(3))
    assert fork.sample(logits, StepContext(3)).token == token
