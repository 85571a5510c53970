"""Steps of long ago, with less of them: the top rows before and after the chain."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgellm import Step


def thinned(step: Step) -> Step:
    """The step with raw and final rows only."""
    seen = step.distribution
    return step if seen is None else replace(step, distribution=seen.thin())


def is_thin(step: Step) -> bool:
    """Only raw and final rows of it are left."""
    seen = step.distribution
    return seen is not None and seen.is_thin
