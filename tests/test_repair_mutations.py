"""Damaged calls on the default model: nearly all are mended, and nothing raises."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import repair


@pytest.mark.slow
@pytest.mark.model
def test_damaged_calls_are_mended(smollm2_path: Path) -> None:
    figures = repair.measure(smollm2_path, repair.damaged_calls(24, seed=1))
    assert figures["recovered"] >= 0.95, figures
