"""A page that is a list with the chosen row's details beside or below it."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from textual.app import ComposeResult

from edgellm import EdgeError
from edgellm_tui.halves import HalvesPage
from edgellm_tui.rows import Field, Pane, Rows, Rule
from edgellm_tui.status import Line

if TYPE_CHECKING:
    from collections.abc import Callable


class ListPage(HalvesPage):
    """Fill `rows` and `pane` in `show`. `heads` are the titles of the two parts."""

    heads: ClassVar[tuple[str, str]] = ("", "")

    def compose(self) -> ComposeResult:
        """Two parts, the field, and a line for what has to be said."""
        yield from self.halves()
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
        self.call_after_refresh(self.edge.pager.guarded, self.refill)
