"""A page that is a list with the chosen row's details beside or below it."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical

from edgellm import EdgeError
from edgellm_tui.pages import PageView
from edgellm_tui.rows import Field, Pane, Rows, Rule
from edgellm_tui.status import Line

if TYPE_CHECKING:
    from collections.abc import Callable


class ListPage(PageView):
    """Fill `rows` and `pane` in `show`. `heads` are the titles of the two parts."""

    # The width's class stands on the screen: outside of what scoped rules see.
    SCOPED_CSS = False
    DEFAULT_CSS = """
    ListPage .body { layout: vertical; height: 1fr; }
    ListPage .left { height: 3fr; }
    ListPage .right { height: 2fr; }
    .-wide ListPage .body { layout: horizontal; }
    .-wide ListPage .left { width: 1fr; height: 1fr; }
    .-wide ListPage .right { width: 1fr; height: 1fr; }
    """
    heads: ClassVar[tuple[str, str]] = ("", "")

    def compose(self) -> ComposeResult:
        """Two parts, the field, and a line for what has to be said."""
        with Horizontal(classes="body"):
            with Vertical(classes="left"):
                yield Rule(self.edge.glyphs, id="left-head")
                yield Rows()
            with Vertical(classes="right"):
                yield Rule(self.edge.glyphs, id="right-head")
                yield Pane()
        yield Field()
        yield Line(id="note")

    @property
    def rows(self) -> Rows:
        """The list."""
        return self.query_one(Rows)

    @property
    def pane(self) -> Pane:
        """The details."""
        return self.query_one(Pane)

    @property
    def field(self) -> Field:
        """The field."""
        return self.query_one(Field)

    def head(self, left: str, right: str | None = None) -> None:
        """Writes the two titles."""
        for id, text in (("#left-head", left), ("#right-head", self.heads[1] if right is None else right)):
            self.query_one(id, Rule).set(text)

    def say(self, text: str) -> None:
        """A line at the bottom: what happened, or what is wrong."""
        self.query_one("#note", Line).set(f" {text}" if text else "")

    def tried(self, action: Callable[[], None]) -> str | None:
        """Runs something a field was filled in for; gives what is wrong, in words, or None."""
        try:
            action()
        except EdgeError as error:
            return f"{error.message} {error.hint}".strip()
        return None

    def leave(self) -> bool:
        """Esc puts the field away first."""
        return self.field.put_away()

    def show(self) -> None:
        """The list gets the focus."""
        self.refill()
        self.rows.focus()

    def refill(self) -> None:
        """Fills list and details anew."""

    def on_resize(self) -> None:
        """What is cut to the width is cut anew."""
        # The parts get their new sizes behind the page.
        self.call_after_refresh(self.edge.guarded, self.refill)
