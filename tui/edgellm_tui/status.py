"""The lines above and below the conversation: model, state and speed; keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.cells import cell_len, set_cell_size
from textual.widgets import Static

from edgellm_tui.meters import context_bar

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgellm_tui.meters import Share
    from edgellm_tui.strand import Strand

# The bar of the context stands in the line from this width on, and takes that part of it.
_BAR_FROM, _BAR_PART = 110, 5


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


@dataclass(frozen=True, slots=True)
class Status:
    """What the first line of the screen says. `shares` are the owners of the context, `worries` short words."""

    model: str
    state: str
    used: int = 0
    n_ctx: int = 0
    tok_s: float = 0.0
    page: str = ""
    shares: Sequence[Share] = ()
    worries: Sequence[str] = ()


def status_line(status: Status, width: int) -> str:
    """One line of `width` cells: page and model at the left, what happens at the right; where there is room, whose
    the context is."""
    right = status.state
    if status.n_ctx:
        if status.shares and width >= _BAR_FROM:
            size = width // _BAR_PART
            right += f"  [{context_bar(status.shares, status.n_ctx, size)}]"
        right += f"  ctx {status.used}/{status.n_ctx} {100 * status.used // status.n_ctx}%"
    speed = f"  {status.tok_s:.1f} tok/s" if status.tok_s else ""
    if cell_len(right) + len(speed) + 3 <= width:
        right += speed
    where = f"{status.page + '  ' if status.page else ''}{status.model}"
    left = f" edgellm  {where}"
    if status.worries:
        more = f" +{len(status.worries) - 1}" if len(status.worries) > 1 else ""
        said = f"  ! {status.worries[0]}{more}"
        # Where it would take the room of page and model, the mark alone stands: the meters say what it is.
        right += said if cell_len(left) + cell_len(right) + cell_len(said) + 3 <= width else "  !"
    room = max(0, width - cell_len(right) - 2)
    if cell_len(left) > room:
        left = f" {where}"
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
