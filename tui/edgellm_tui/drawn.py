"""Lines made of (text, role) cells: what is shown, apart from its colours."""

from __future__ import annotations

from itertools import zip_longest
from typing import TYPE_CHECKING

from rich.segment import Segment
from rich.style import Style
from textual.geometry import Region, Size
from textual.scroll_view import ScrollView
from textual.strip import Strip
from textual.widget import Widget

from edgellm_tui.look import Palette, palette_of
from edgellm_tui.rows import rule

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgellm_tui.glyphs import Glyphs

Row = list[tuple[str, str]]


def styles_of(palette: Palette) -> dict[str, Style]:
    """The style of each role. Every role is told by words or marks as well."""
    return {
        "": palette.text,
        "muted": palette.muted,
        "accent": palette.accent,
        "user": palette.user,
        "good": palette.good,
        "bad": palette.bad,
        "likely": palette.text + Style(underline=True),
        "doubtful": palette.doubtful,
        "unlikely": palette.bad,
        "chosen": palette.accent + Style(reverse=True),
    }


def plain(row: Row) -> str:
    """A row's text."""
    return "".join(text for text, _ in row)


def titled(title: str, width: int, glyphs: Glyphs, role: str = "muted") -> Row:
    """A line across with a title in it."""
    return [(rule(title, width, glyphs), role)]


def bar(share: float, width: int, glyphs: Glyphs) -> str:
    """A bar of `share` (0 to 1) of `width` cells; a share above 0 shows at least a little."""
    steps = glyphs.eighths
    full, rest = divmod(round(max(0.0, min(1.0, share)) * width * len(steps)), len(steps))
    text = steps[-1] * full + (steps[rest - 1] if rest else "")
    return (text or (steps[0] if share > 0 else "")).ljust(width)


def sparkline(values: Sequence[float], width: int, glyphs: Glyphs, top: float = 0.0) -> str:
    """The last `width` values as columns between 0 and the highest (at least `top`)."""
    shown = values[-width:]
    if not shown:
        return ""
    highest = max(top, *shown) or 1.0
    last = len(glyphs.levels) - 1
    return "".join(glyphs.levels[min(last, max(0, round(value / highest * last)))] for value in shown)


class _Colours:
    """Strips of rows in the app's theme."""

    def __init__(self) -> None:
        self._theme = ""
        self._styles: dict[str, Style] = {}

    def strip(self, widget: Widget, row: Row, width: int, base: Style) -> Strip:
        theme = widget.app.theme
        if theme != self._theme:
            self._theme, self._styles = theme, styles_of(palette_of(widget.app))
        segments = [Segment(text, self._styles[role]) for text, role in row if text]
        return Strip(segments).crop_extend(0, width, base).apply_style(base)


class RowsPane(Widget):
    """Rows that fit the pane; drawn again only where they differ."""

    def __init__(self, *, id: str | None = None, classes: str = "") -> None:
        super().__init__(id=id, classes=classes)
        self.rows: list[Row] = []
        self._colours = _Colours()
        self._base = Style()

    def set(self, rows: list[Row]) -> None:
        """Shows these rows."""
        before, self.rows = self.rows, rows
        changed = [y for y, (one, other) in enumerate(zip_longest(before, rows)) if one != other]
        if changed:
            self.refresh(Region(0, changed[0], self.size.width, changed[-1] - changed[0] + 1))

    def render_lines(self, crop: Region) -> list[Strip]:
        """Some lines. The style of the widget is worked out once for all of them: it takes as long as a line."""
        self._base = self.rich_style
        return super().render_lines(crop)

    def render_line(self, y: int) -> Strip:
        """One line."""
        row = self.rows[y] if y < len(self.rows) else []
        return self._colours.strip(self, row, self.size.width, self._base)


class RowsView(ScrollView, can_focus=True):
    """Rows that may be more than fit. `reveal` scrolls one into view."""

    DEFAULT_CSS = "RowsView { height: 1fr; scrollbar-size-vertical: 1; overflow-x: hidden; }"

    def __init__(self, *, id: str | None = None, classes: str = "") -> None:
        super().__init__(id=id, classes=classes)
        self.rows: list[Row] = []
        self._colours = _Colours()

    @property
    def text_width(self) -> int:
        """Cells of a row, the scroll bar left out."""
        return max(8, self.size.width - 1)

    def set(self, rows: list[Row]) -> None:
        """Shows these rows."""
        self.rows = rows
        size = Size(self.text_width, len(rows))
        if size != self.virtual_size:
            self.virtual_size = size
        self.refresh()

    def reveal(self, y: int, height: int = 1) -> None:
        """Scrolls so that the row, and `height` - 1 below it, can be seen."""
        top, room = self.scroll_offset.y, self.size.height
        if y < top:
            self.scroll_to(y=y, animate=False, immediate=True, force=True)
        elif y + height > top + room:
            self.scroll_to(y=y + height - room, animate=False, immediate=True, force=True)

    def render_line(self, y: int) -> Strip:
        """One line of the view."""
        base, line = self.rich_style, self.scroll_offset.y + y
        row = self.rows[line] if line < len(self.rows) else []
        return self._colours.strip(self, row, self.size.width, base)
