"""The draw: exact numbers, right frequencies, and no dependence on how rows lie."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgellm.sampling.draw import Uniforms, best, ordered, pick, top_rows, uniform


def test_uniform_is_the_documented_function() -> None:
    from hashlib import blake2b

    packed = b"".join(number.to_bytes(8, "little") for number in (7, 2**64 - 1, 31))
    digest = blake2b(packed, digest_size=8, person=b"edgellm-draw").digest()
    assert uniform(7, -1, 31) == (int.from_bytes(digest, "little") >> 11) / 2**53


def test_uniform_never_changes_between_versions() -> None:
    assert uniform(0, 0, 0) == 0.9524858195602914
    assert uniform(42, 1, 1000) == 0.7230282043816977


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**31), st.integers(0, 2**31))
def test_uniform_is_in_range_and_its_streams_differ(seed: int, branch: int, position: int) -> None:
    u = uniform(seed, branch, position)
    assert 0 <= u < 1
    assert (
        len(
            {
                u,
                uniform(seed, branch, position + 1),
                uniform(seed, branch + 1, position),
                uniform(seed, branch, position, "x"),
            }
        )
        == 4
    )


def test_uniforms_made_ahead_are_those_of_their_places() -> None:
    made = Uniforms()
    places = [(0, n) for n in range(40)] + [(1, 39), (0, 3), (0, 200), (0, 199), (1, 200)]
    assert [made.at(5, branch, n) for branch, n in places] == [uniform(5, branch, n) for branch, n in places]
    assert made.at(6, 1, 200) == uniform(6, 1, 200)
    assert made.at(6, 1, 200, "again") == uniform(6, 1, 200, "again")


def test_uniform_numbers_are_spread_evenly() -> None:
    counts, _ = np.histogram([uniform(1, 0, i) for i in range(20_000)], bins=20, range=(0, 1))
    chi_square = float(((counts - 1000) ** 2 / 1000).sum())
    assert chi_square < 43.8  # 0.1 % of 19 degrees of freedom


PICKS = [
    # probabilities, u, index drawn: descending probability, then id
    ((0.5, 0.3, 0.2), 0.0, 0),
    ((0.5, 0.3, 0.2), 0.49, 0),
    ((0.5, 0.3, 0.2), 0.51, 1),
    ((0.5, 0.3, 0.2), 0.79, 1),
    ((0.5, 0.3, 0.2), 0.81, 2),
    ((0.2, 0.3, 0.5), 0.49, 2),
    ((0.2, 0.3, 0.5), 0.51, 1),
    ((0.25, 0.25, 0.25, 0.25), 0.6, 2),
    ((1.0, 0.0), 0.9999999999999999, 0),
]


@pytest.mark.parametrize(("probs", "u", "expected"), PICKS)
def test_pick(probs: tuple[float, ...], u: float, expected: int) -> None:
    with np.errstate(divide="ignore"):
        logits = np.log(np.array(probs, dtype=np.float32))
    assert pick(np.arange(len(probs), dtype=np.int32), logits, u) == expected


def test_draws_have_the_frequencies_of_the_distribution() -> None:
    probs = np.array([0.4, 0.3, 0.2, 0.07, 0.03])
    logits = np.log(probs).astype(np.float32)
    ids = np.arange(5, dtype=np.int32)
    n = 20_000
    counts = np.bincount([pick(ids, logits, uniform(5, 0, i)) for i in range(n)], minlength=5)
    chi_square = float(((counts - n * probs) ** 2 / (n * probs)).sum())
    assert chi_square < 18.5  # 0.1 % of 4 degrees of freedom


@given(
    st.lists(
        st.sampled_from([-3.0, 0.0, 0.5, 0.5, 2.0, 7.25]) | st.floats(-20, 20, width=32),
        min_size=1,
        max_size=60,
    ),
    st.floats(0, 1, exclude_max=True),
    st.randoms(use_true_random=False),
)
def test_the_same_rows_give_the_same_token_in_any_order(
    logits: list[float], u: float, random: object
) -> None:
    rows = list(enumerate(logits))
    random.shuffle(rows)  # type: ignore[attr-defined]
    ids = np.arange(len(logits), dtype=np.int32)
    values = np.array(logits, dtype=np.float32)
    mixed_ids = np.array([i for i, _ in rows], dtype=np.int32)
    mixed = np.array([value for _, value in rows], dtype=np.float32)
    assert mixed_ids[pick(mixed_ids, mixed, u)] == pick(ids, values, u)
    assert mixed_ids[best(mixed_ids, mixed)] == best(ids, values)


@pytest.mark.parametrize("scale", [0.0, 0.5, 3.0])
def test_long_rows_are_drawn_as_by_sorting_all_of_them(scale: float) -> None:
    rng = np.random.default_rng(3)
    n = 5000
    # Rounding makes equal logits, so that ties are told apart too.
    logits = np.round(rng.standard_normal(n) * scale, 1).astype(np.float32)
    ids = rng.permutation(n).astype(np.int32)
    order = ordered(ids, logits)
    cumulated = np.cumsum(np.exp(logits[order].astype(np.float64) - logits.max()))
    for u in rng.random(60):
        expected = order[np.searchsorted(cumulated, u * cumulated[-1], side="right")]
        assert pick(ids, logits, float(u)) == expected


def test_top_rows_of_a_long_array_are_those_of_the_whole_order() -> None:
    rng = np.random.default_rng(4)
    logits = np.round(rng.standard_normal(6000) * 2, 1).astype(np.float32)
    ids = rng.permutation(6000).astype(np.int32)
    for n in (1, 7, 256):
        assert list(top_rows(ids, logits, n)) == list(ordered(ids, logits)[:n])
