"""The lines above and below the conversation: model, state and speed; keys."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.cells import cell_len, set_cell_size
from textual.widgets import Static

if TYPE_CHECKING:
    from edgellm_tui.strand import Strand


def state_words(strand: Strand, elapsed_s: float) -> str:
    """What a branch is doing, in words."""
    if strand.state == "PREFILL":
        done, total = strand.prefill
        if not total:
            return "PREFILL"
        share = f"PREFILL {100 * done // total} %"
        return f"{share} {elapsed_s * (total - done) / done:.0f} s left" if done and elapsed_s > 1 else share
    if strand.state == "DECODE":
        return f"DECODE {strand.turn_tokens} tok"
    return strand.state


def status_line(
    model: str, state: str, used: int, n_ctx: int, tok_s: float, width: int, page: str = ""
) -> str:
    """One line of `width` cells: the model at the left, what happens at the right."""
    right = state
    if n_ctx:
        right += f"  ctx {used}/{n_ctx} {100 * used // n_ctx}%"
    if tok_s:
        right += f"  {tok_s:.1f} tok/s"
    left = f" edgellm  {page + '  ' if page else ''}{model}"
    room = max(0, width - cell_len(right) - 2)
    return f"{set_cell_size(left, room)} {right} "


class Line(Static):
    """One line of text that is redrawn only when it differs."""

    DEFAULT_CSS = "Line { height: 1; width: 1fr; }"

    def __init__(self, *, id: str, classes: str = "") -> None:
        super().__init__("", id=id, classes=classes, markup=False)
        self.shown = ""

    def set(self, text: str) -> None:
        """Shows a text."""
        if text != self.shown:
            self.shown = text
            # Its size stays: without `layout=False` every tick of a number would lay the whole screen out anew.
            self.update(text, layout=False)
