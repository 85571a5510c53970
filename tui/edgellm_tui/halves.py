"""A page of two halves: a list, and the chosen row's details beside or below it."""

from __future__ import annotations

from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical

from edgellm_tui.pages import PageView
from edgellm_tui.rows import Pane, Rows, Rule


class HalvesPage(PageView):
    """Yield from `halves` in `compose`."""

    # The width's class stands on the screen: outside of what scoped rules see.
    SCOPED_CSS = False
    DEFAULT_CSS = """
    HalvesPage .body { layout: vertical; height: 1fr; }
    HalvesPage .left { height: 3fr; }
    HalvesPage .right { height: 2fr; }
    .-wide HalvesPage .body { layout: horizontal; }
    .-wide HalvesPage .left { width: 1fr; height: 1fr; }
    .-wide HalvesPage .right { width: 1fr; height: 1fr; }
    """

    def halves(self) -> ComposeResult:
        """The list and the details, each under a head of its own."""
        with Horizontal(classes="body"):
            with Vertical(classes="left"):
                yield Rule(self.edge.glyphs, id="left-head")
                yield Rows()
            with Vertical(classes="right"):
                yield Rule(self.edge.glyphs, id="right-head")
                yield Pane()
