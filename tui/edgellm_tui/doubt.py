"""Text as tokens, with a line of marks below that says of which the model was unsure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.cells import cell_len

from edgellm_tui.plain import visible
from edgellm_tui.token_text import mark, probability

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from edgellm import Step


def marked_lines(steps: Iterable[Step], width: int) -> list[tuple[str, str]]:
    """The text of tokens in lines of at most `width` cells, each with a line of marks to be drawn below it."""
    lines: list[tuple[str, str]] = []
    text = marks = ""
    for letters, doubt in _cells(steps):
        size = cell_len(letters)
        if letters == "\n" or cell_len(text) + size > width:
            lines.append((text, marks))
            text = marks = ""
        if letters != "\n":
            text += letters
            marks += doubt * size
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
        doubt = mark(probability(step))
        found += [(letter, doubt) for letter in visible(text)]
    return found
