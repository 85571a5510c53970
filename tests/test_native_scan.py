"""The scan of a vocabulary: compiled and numpy's, which must agree, against what plain numpy says."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellm.errors import SamplerError
from edgellm.native import scan
from edgellm.native.samplers import CandidateBuffer
from edgellm.native.scan import ROW, VocabularyScan
from edgellm.sampling.draw import ordered, pick

ROOT = Path(__file__).parents[1]
BOTH = pytest.mark.parametrize("is_compiled", [True, False])


def random_logits(n: int, seed: int, digits: int = 8) -> np.ndarray:
    # Rounded, there are ties.
    return np.round(np.random.default_rng(seed).normal(0, 3, n), digits).astype(np.float32)


def top(logits: np.ndarray, k: int, is_compiled: bool) -> tuple[list[int], list[float], float]:
    rows = np.zeros(len(logits), dtype=ROW)
    count, maximum = VocabularyScan(len(logits), is_compiled=is_compiled).top(logits, k, rows)
    return rows["id"][:count].tolist(), rows["logit"][:count].tolist(), maximum


def test_it_is_compiled_where_it_was_installed_with_a_compiler() -> None:
    if shutil.which("cc") is None:
        pytest.skip("no C compiler was there to compile it")
    assert scan.is_compiled(), "install edgellm again: scan.c has changed, or was not compiled"


@BOTH
@given(st.integers(1, 500), st.integers(1, 5000), st.integers(0, 50), st.sampled_from([0, 1, 8]))
@settings(max_examples=60)
def test_it_finds_the_k_largest(is_compiled: bool, k: int, n: int, seed: int, digits: int) -> None:
    logits = random_logits(n, seed, digits)
    found, values, maximum = top(logits, k, is_compiled)
    bound = np.sort(logits)[::-1][min(k, n) - 1]
    assert maximum == logits.max()
    assert found == sorted(set(found)) and values == logits[found].tolist()
    assert set(np.flatnonzero(logits >= bound)) <= set(found)
    # What it finds besides reaches down to one bound: nothing above the lowest is missing.
    assert set(found) == set(np.flatnonzero(logits >= logits[found].min()))


@BOTH
def test_it_finds_few_more_than_that(is_compiled: bool) -> None:
    assert len(top(random_logits(49_152, 1), 40, is_compiled)[0]) < 80


@BOTH
def test_rows_that_were_masked_do_not_come_along(is_compiled: bool) -> None:
    masked = np.full(49_152, -np.inf, dtype=np.float32)
    masked[[7, 9000, 49_151]] = 1.0
    assert top(masked, 40, is_compiled)[0] == [7, 9000, 49_151]


@BOTH
@pytest.mark.parametrize("wrong", [np.nan, np.inf])
@pytest.mark.parametrize("place", [0, 63, 64, 4097, 4999])
def test_a_logit_that_is_no_number_shows_in_the_largest(is_compiled: bool, wrong: float, place: int) -> None:
    logits = random_logits(5000, 3)
    logits[place] = wrong
    found, _, maximum = top(logits, 40, is_compiled)
    assert not found and (np.isnan(maximum) if np.isnan(wrong) else maximum == np.inf)


@BOTH
def test_only_infinitely_small_ones_are_told_too(is_compiled: bool) -> None:
    found, _, maximum = top(np.full(5000, -np.inf, dtype=np.float32), 40, is_compiled)
    assert not found and maximum == -np.inf


@BOTH
@given(st.integers(1, 60_000), st.integers(0, 50), st.sampled_from([0.1, 1.0, 10.0, 100.0]), st.booleans())
@settings(max_examples=60)
def test_the_mass_is_that_of_double_precision(
    is_compiled: bool, n: int, seed: int, spread: float, is_masked: bool
) -> None:
    logits = (random_logits(n, seed) * spread).astype(np.float32)
    if is_masked:
        logits[1::2] = -np.inf
    exact = logits.astype(np.float64) - float(logits.max())
    weights = np.exp(exact)
    total, product = VocabularyScan(n, is_compiled=is_compiled).mass(logits, float(logits.max()))
    assert total == pytest.approx(weights.sum(), rel=2e-6)
    expected = (weights[weights > 0] * exact[weights > 0]).sum()
    assert product == pytest.approx(expected, rel=2e-5, abs=1e-6)


@given(
    st.lists(st.sampled_from([0.0, 1.0, -1.0, 2.5, 2.5000002, -30.0, -np.inf]), min_size=1, max_size=200),
    st.floats(0, 1, exclude_max=True),
    st.integers(0, 5),
)
def test_the_compiled_draw_is_the_documented_one(values: list[float], u: float, seed: int) -> None:
    if not scan.is_compiled():
        pytest.skip("nothing was compiled")
    logits = np.array(values, dtype=np.float32)
    if not np.isfinite(logits.max()):
        return
    ids = np.random.default_rng(seed).permutation(len(logits)).astype(np.int32)
    buffer = CandidateBuffer(len(logits))
    buffer.fill_rows(ids, logits)
    assert buffer.draw(u) == ids[pick(ids, logits, u)]
    order = ordered(ids, logits)
    assert buffer.draw(0.0) == ids[order[0]]
    # The rows are as they were.
    assert buffer.live_ids().tolist() == ids.tolist()


@BOTH
def test_holes_are_closed_in_order(is_compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not is_compiled:
        monkeypatch.setattr(scan, "compiled", lambda: None)
    buffer = CandidateBuffer(300)
    logits = random_logits(300, 2)
    logits[[0, 7, 8, 299]] = -np.inf
    logits[100] = np.nan
    buffer.fill(logits)
    buffer.selected = 3
    buffer.close_holes()
    expected = np.flatnonzero(logits > -np.inf)
    assert buffer.live_ids().tolist() == expected.tolist()
    assert buffer.live_logits().tolist() == logits[expected].tolist()
    assert buffer.selected == -1
    buffer.selected = 3
    buffer.close_holes()
    assert (buffer.n, buffer.selected) == (295, 3)


def test_more_rows_than_the_compiled_draw_takes_are_left_to_numpy() -> None:
    buffer = CandidateBuffer(2000)
    buffer.fill(random_logits(2000, 1))
    assert buffer.draw(0.5) == -1


def test_a_library_of_another_version_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "VERSION", scan.VERSION + 1)
    scan.compiled.cache_clear()
    try:
        assert not scan.is_compiled()
        assert top(random_logits(5000, 1), 3, True) == top(random_logits(5000, 1), 3, False)
    finally:
        monkeypatch.undo()
        scan.compiled.cache_clear()


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
@pytest.mark.parametrize("tuning", [("-march=native",), ("-mavx2",), ()], ids=["native", "avx2", "portable"])
def test_every_width_of_vectors_finds_the_same(
    tuning: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = tmp_path / "scan.so"
    flags = (
        "-O3",
        "-ffp-contract=off",
        "-fno-math-errno",
        "-fno-trapping-math",
        "-Wall",
        "-Wextra",
        "-Werror",
    )
    command = ["cc", *flags, *tuning, "-shared", "-fPIC", "-o", made, ROOT / "edgellm/native/scan.c", "-lm"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode and tuning:
        pytest.skip(f"this compiler has no {tuning[0]}")
    assert done.returncode == 0, done.stderr
    if tuning == ("-mavx2",) and "avx2" not in Path("/proc/cpuinfo").read_text(encoding="utf-8"):
        pytest.skip("this processor has no AVX2")
    monkeypatch.setattr(scan, "LIBRARY", made)
    scan.compiled.cache_clear()
    try:
        assert scan.is_compiled()
        for n, seed in ((5000, 1), (20_011, 2), (49_152, 3)):
            logits = random_logits(n, seed, 2)
            found, values, maximum = top(logits, 20, True)
            bound = np.sort(logits)[::-1][19]
            assert maximum == logits.max() and values == logits[found].tolist()
            assert set(np.flatnonzero(logits >= bound)) <= set(found)
            sums = [VocabularyScan(n, is_compiled=each).mass(logits, maximum) for each in (True, False)]
            assert sums[0] == pytest.approx(sums[1], rel=2e-5)
    finally:
        monkeypatch.undo()
        scan.compiled.cache_clear()


@BOTH
def test_rows_are_cut_in_order(is_compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not is_compiled:
        monkeypatch.setattr(scan, "compiled", lambda: None)
    buffer = CandidateBuffer(300)
    logits = random_logits(300, 2, 0)
    buffer.fill(logits)
    buffer.cut(20)
    order = ordered(np.arange(300, dtype=np.int32), logits)[:20]
    assert buffer.live_ids().tolist() == order.tolist() and buffer.is_sorted


@BOTH
def test_probabilities_and_the_highest_logit_of_rows(
    is_compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not is_compiled:
        monkeypatch.setattr(scan, "compiled", lambda: None)
    buffer = CandidateBuffer(300)
    logits = random_logits(300, 4)
    logits[5] = -np.inf
    buffer.fill(logits)
    weights = np.exp(logits.astype(np.float64) - logits.max())
    assert buffer.probs() == pytest.approx(weights / weights.sum(), rel=2e-6)
    assert buffer.highest() == logits.max()
    buffer.logits[7] = np.nan
    assert np.isnan(buffer.highest())


def test_what_is_no_row_of_floats_is_refused() -> None:
    rows = np.zeros(9000, dtype=ROW)
    for wrong in (np.zeros(9000), np.zeros(18_000, dtype=np.float32)[::2]):
        if scan.is_compiled():
            with pytest.raises(SamplerError, match="contiguous float32"):
                VocabularyScan(9000).top(wrong, 3, rows)  # type: ignore[arg-type]
