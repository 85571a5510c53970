"""llama.cpp's stages on four to eight rows whose outcome one can work out by hand."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from edgellm.errors import SamplerError
from edgellm.native.samplers import NATIVE_NAMES, CandidateBuffer, NativeSampler, make_native
from edgellm.sampling.registry import NATIVE_STAGES, REGISTRY

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

# Rows of 4 with these probabilities; ids are 0 to 3.
P = (0.5, 0.25, 0.15, 0.1)


def native(name: str, *, n_vocab: int = 4, seed: int = 1, **args: Any) -> NativeSampler:
    complete = REGISTRY.lookup(name).complete(args)
    return NativeSampler((name,), (make_native(name, complete, n_vocab=n_vocab, seed=seed),))


def run(sampler: NativeSampler, probs: tuple[float, ...]) -> CandidateBuffer:
    buffer = CandidateBuffer(len(probs))
    buffer.fill(np.log(np.array(probs, dtype=np.float32)))
    sampler.apply(buffer)
    return buffer


def probabilities(buffer: CandidateBuffer) -> dict[int, float]:
    """Softmax of the rows left, by id; rows at -inf are left out."""
    logits = buffer.live_logits().astype(np.float64)
    weights = np.exp(logits - logits.max())
    shares = weights / weights.sum()
    return {int(i): float(p) for i, p in zip(buffer.live_ids(), shares, strict=True) if p > 0}


CUTS: list[tuple[str, dict[str, Any], tuple[float, ...], dict[int, float]]] = [
    ("top_k", {"k": 1}, P, {0: 1.0}),
    ("top_k", {"k": 2}, P, {0: 2 / 3, 1: 1 / 3}),
    ("top_k", {"k": 9}, P, {0: 0.5, 1: 0.25, 2: 0.15, 3: 0.1}),
    ("top_p", {"p": 0.7}, P, {0: 2 / 3, 1: 1 / 3}),
    ("top_p", {"p": 0.5}, P, {0: 1.0}),
    ("top_p", {"p": 0.1, "min_keep": 3}, P, {0: 5 / 9, 1: 2.5 / 9, 2: 1.5 / 9}),
    ("top_p", {"p": 1.0}, P, {0: 0.5, 1: 0.25, 2: 0.15, 3: 0.1}),
    # A quarter of the best is 0.125: the last row falls.
    ("min_p", {"p": 0.25}, P, {0: 5 / 9, 1: 2.5 / 9, 2: 1.5 / 9}),
    ("min_p", {"p": 0.9}, P, {0: 1.0}),
    ("min_p", {"p": 0.9, "min_keep": 2}, P, {0: 2 / 3, 1: 1 / 3}),
    # Entropy 1.208 nats; surprises 0.69, 1.39, 1.90, 2.30: row 1 is nearest, then row 0.
    ("typical", {"p": 0.2}, P, {1: 1.0}),
    ("typical", {"p": 0.7}, P, {1: 1 / 3, 0: 2 / 3}),
    (
        "temperature",
        {"temperature": 0.5},
        P,
        {0: 0.25 / 0.345, 1: 0.0625 / 0.345, 2: 0.0225 / 0.345, 3: 0.01 / 0.345},
    ),
    ("temperature", {"temperature": 1.0}, P, {0: 0.5, 1: 0.25, 2: 0.15, 3: 0.1}),
    ("temperature", {"temperature": 0.0}, P, {0: 1.0}),
    # Four equal rows have all the entropy there can be: the highest temperature, 2, which leaves them equal.
    (
        "dynamic_temperature",
        {"temperature": 1.0, "delta": 1.0},
        (0.25,) * 4,
        {0: 0.25, 1: 0.25, 2: 0.25, 3: 0.25},
    ),
    # delta 0 is plain temperature.
    ("dynamic_temperature", {"temperature": 0.5, "delta": 0.0}, (0.8, 0.2), {0: 0.64 / 0.68, 1: 0.04 / 0.68}),
    # Always acting: of rows at or above 0.2 only the least probable stays, and all below.
    ("xtc", {"probability": 1.0, "threshold": 0.2}, P, {1: 0.5, 2: 0.3, 3: 0.2}),
    ("xtc", {"probability": 0.0, "threshold": 0.2}, P, {0: 0.5, 1: 0.25, 2: 0.15, 3: 0.1}),
    ("logit_bias", {"bias": {3: math.log(5), 0: -math.inf}}, P, {1: 0.25 / 0.9, 2: 0.15 / 0.9, 3: 0.5 / 0.9}),
]


@pytest.mark.parametrize(("name", "args", "before", "after"), CUTS, ids=lambda value: str(value)[:40])
def test_stage(name: str, args: dict[str, Any], before: tuple[float, ...], after: dict[int, float]) -> None:
    sampler = native(name, n_vocab=len(before), **args)
    assert probabilities(run(sampler, before)) == pytest.approx(after, abs=1e-5)
    sampler.close()


def test_top_n_sigma_keeps_logits_within_n_standard_deviations() -> None:
    # Mean 2, standard deviation sqrt(7.5) = 2.74: one of them below 6 is 3.26.
    buffer = CandidateBuffer(4)
    buffer.fill(np.array([6, 3.5, 0, -1.5], dtype=np.float32))
    native("top_n_sigma", n=1.0).apply(buffer)
    assert list(buffer.live_logits()) == [6, 3.5, -math.inf, -math.inf]


def test_dynamic_temperature_of_a_sure_model_is_the_lowest() -> None:
    buffer = CandidateBuffer(2)
    buffer.fill(np.array([100.0, 0.0], dtype=np.float32))
    native("dynamic_temperature", temperature=1.0, delta=0.5, n_vocab=2).apply(buffer)
    # Entropy 0: temperature 1 - 0.5.
    assert list(buffer.live_logits()) == pytest.approx([200.0, 0.0])


def test_penalties_divide_positive_and_multiply_negative_logits() -> None:
    sampler = native("penalties", repeat=2.0, frequency=0.5, presence=0.25)
    for token in (0, 0, 1):
        sampler.accept(token)
    buffer = CandidateBuffer(4)
    buffer.fill(np.array([4, -4, 4, -4], dtype=np.float32))
    sampler.apply(buffer)
    assert list(buffer.live_logits()) == [4 / 2 - 2 * 0.5 - 0.25, -4 * 2 - 0.5 - 0.25, 4, -4]


def test_penalties_forget_what_lies_further_back_than_last_n() -> None:
    sampler = native("penalties", repeat=2.0, last_n=2)
    for token in (0, 1, 1):
        sampler.accept(token)
    buffer = CandidateBuffer(4)
    buffer.fill(np.array([4, 4, 4, 4], dtype=np.float32))
    sampler.apply(buffer)
    assert list(buffer.live_logits()) == [4, 2, 4, 4]
    sampler.reset()
    buffer.fill(np.array([4, 4, 4, 4], dtype=np.float32))
    sampler.apply(buffer)
    assert list(buffer.live_logits()) == [4, 4, 4, 4]


def test_dry_penalises_the_token_that_would_go_on_repeating() -> None:
    sampler = native("dry", multiplier=1.0, base=2.0, allowed_length=2, breakers=())
    # 0 1 2 3 | 0 1 2: a third repeated token, 3, costs 1 * 2 ** (3 - 2).
    for token in (0, 1, 2, 3, 0, 1, 2):
        sampler.accept(token)
    buffer = CandidateBuffer(4)
    buffer.fill(np.zeros(4, dtype=np.float32))
    sampler.apply(buffer)
    assert list(buffer.live_logits()) == [0, 0, 0, -2]


def test_mirostat_v2_cuts_what_surprises_more_than_its_bound() -> None:
    # It starts with a bound of 2 tau = 2 bits: rows below a quarter go, and one of the others is chosen.
    buffer = run(native("mirostat_v2", tau=1.0, eta=0.1), P)
    assert probabilities(buffer) == pytest.approx({0: 2 / 3, 1: 1 / 3}, abs=1e-5)
    assert buffer.selected in (0, 1)


def test_mirostat_cuts_to_one_row_where_no_surprise_is_wanted() -> None:
    buffer = run(native("mirostat", tau=0.0, eta=0.1, m=4), P)
    assert probabilities(buffer) == {0: 1.0}
    assert buffer.selected == 0


def test_adaptive_p_prefers_the_row_nearest_to_its_target() -> None:
    buffer = run(native("adaptive_p", target=0.25, decay=0.0), P)
    assert max(probabilities(buffer).items(), key=lambda item: item[1])[0] == 1
    assert buffer.selected >= 0


def test_greedy_and_dist_choose() -> None:
    assert run(native("greedy"), (0.2, 0.5, 0.3)).selected == 1
    chosen = {run(native("dist", seed=seed), P).selected for seed in range(60)}
    assert chosen == {0, 1, 2, 3}


def test_infill_ends_where_an_end_is_likely_enough(tiny_model: Callable[..., Path]) -> None:
    from edgellm.native.model import Model
    from edgellm.types import LoadOptions

    model = Model.load(tiny_model("llama"), LoadOptions())
    vocabulary = model.vocabulary
    end = next(token for token in range(vocabulary.size) if vocabulary.is_eog(token))
    pointer = make_native("infill", {}, n_vocab=vocabulary.size, seed=1, vocab_pointer=vocabulary.pointer)
    sampler = NativeSampler(("infill",), (pointer,))
    texts = [token for token in range(vocabulary.size) if len(vocabulary.piece(token)) == 1][:2]
    buffer = CandidateBuffer(vocabulary.size)
    # 3 · p(end) · rows > p(text): only the end is left.
    buffer.fill_rows(np.array([end, *texts]), np.log(np.array([0.2, 0.4, 0.4], dtype=np.float32)))
    sampler.apply(buffer)
    assert list(buffer.live_ids()) == [end]
    # With the end all but impossible, the texts stay: above 0.2, and above 1 / (number of texts + 1).
    buffer.fill_rows(np.array([end, *texts]), np.log(np.array([0.001, 0.5, 0.499], dtype=np.float32)))
    sampler.apply(buffer)
    assert set(texts) <= set(buffer.live_ids())
    sampler.close()
    model.close()


def test_neighbours_in_one_c_chain_do_what_they_do_one_by_one() -> None:
    specs: list[tuple[str, dict[str, Any]]] = [
        ("top_k", {"k": 3}),
        ("top_p", {"p": 0.8}),
        ("temperature", {"temperature": 2.0}),
    ]
    pointers = [make_native(n, REGISTRY.lookup(n).complete(a), n_vocab=4, seed=1) for n, a in specs]
    sampler = NativeSampler([name for name, _ in specs], pointers)
    at_once = probabilities(run(sampler, P))
    buffer = CandidateBuffer(4)
    buffer.fill(np.log(np.array(P, dtype=np.float32)))
    for index in range(3):
        sampler.apply_member(index, buffer)
    assert probabilities(buffer) == at_once
    # Of 3 rows with 5/9, 2.5/9 and 1.5/9, two reach 0.8; temperature 2 takes square roots.
    root = 0.5**0.5
    assert at_once == pytest.approx({0: root / (root + 0.5), 1: 0.5 / (root + 0.5)}, abs=1e-5)


def test_clone_has_its_own_state() -> None:
    sampler = native("penalties", repeat=2.0)
    sampler.accept(0)
    twin = sampler.clone()
    twin.accept(1)
    for each, expected in ((sampler, [1, 2, 2, 2]), (twin, [1, 1, 2, 2])):
        buffer = CandidateBuffer(4)
        buffer.fill(np.full(4, 2, dtype=np.float32))
        each.apply(buffer)
        assert list(buffer.live_logits()) == expected
        each.close()


def test_buffer_starts_over_after_xtc_moved_its_rows() -> None:
    sampler = native("xtc", probability=1.0, threshold=0.2)
    buffer = run(sampler, P)
    assert buffer.offset == 1
    buffer.fill(np.zeros(4, dtype=np.float32))
    assert (buffer.offset, buffer.n, list(buffer.live_ids())) == (0, 4, [0, 1, 2, 3])


def test_use_after_close_is_an_error_and_closing_twice_is_not() -> None:
    sampler = native("top_k", k=1)
    sampler.close()
    sampler.close()
    with pytest.raises(SamplerError, match="after close"):
        sampler.accept(1)


def test_every_native_stage_is_in_the_table_and_can_be_made() -> None:
    assert {info.name for info in NATIVE_STAGES} == NATIVE_NAMES
    for info in NATIVE_STAGES:
        if info.name in ("infill", "dry", "logit_bias"):
            continue
        native(info.name).close()


def test_stages_that_need_a_vocabulary_say_so() -> None:
    with pytest.raises(SamplerError, match="'infill' needs a model's vocabulary"):
        native("infill")
    with pytest.raises(SamplerError, match="outside the vocabulary of 4"):
        native("logit_bias", bias={4: 1.0})
