"""How sure the model was of a token, as a mark that needs no colour: `-` below .9, `=` below .5, `*` below .1."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from rich.cells import cell_len

from edgellm_tui.plain import visible

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from edgellm import Step

LEGEND = "- p<.90   = p<.50   * p<.10"
_BANDS = ((0.1, "*"), (0.5, "="), (0.9, "-"))


def probability(step: Step) -> float | None:
    """The raw probability of a token; None where nobody drew it, or nobody looked."""
    return math.exp(step.logprob) if step.logprob is not None and not step.is_forced else None


def mark_of(p: float | None) -> str:
    """The mark of a probability, a space for a sure or an unknown one."""
    return next((mark for limit, mark in _BANDS if p is not None and p < limit), " ")


def marked_lines(steps: Iterable[Step], width: int) -> list[tuple[str, str]]:
    """The text of tokens in lines of at most `width` cells, each with a line of marks to be drawn below it."""
    lines: list[tuple[str, str]] = []
    text = marks = ""
    for letters, mark in _cells(steps):
        size = cell_len(letters)
        if letters == "\n" or cell_len(text) + size > width:
            lines.append((text, marks))
            text = marks = ""
        if letters != "\n":
            text += letters
            marks += mark * size
    return [*lines, (text, marks)] if text else lines


def _cells(steps: Iterable[Step]) -> Sequence[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    pending = b""
    for step in steps:
        # A character may be spread over several tokens.
        pending += step.piece
        try:
            text, pending = pending.decode("utf-8"), b""
        except UnicodeDecodeError:
            if len(pending) < 4:
                continue
            text, pending = pending.decode("utf-8", "backslashreplace"), b""
        mark = mark_of(probability(step))
        found += [(letter, mark) for letter in visible(text)]
    return found
