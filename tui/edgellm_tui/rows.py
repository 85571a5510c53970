"""A list to walk in, a field to type in and text to scroll: what the pages are put together from."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from rich.cells import cell_len, set_cell_size
from rich.segment import Segment
from rich.style import Style
from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Horizontal, VerticalScroll
from textual.geometry import Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip
from textual.widget import Widget
from textual.widgets import Input, Label, Static

from edgellm_tui.plain import fitted, one_line

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from textual.events import Click

    from edgellm_tui.glyphs import Glyphs

_TYPING_CELLS = 20


def rule(title: str, width: int, glyphs: Glyphs) -> str:
    """A line across with words in it: `── title ───────`."""
    head = fitted(f"{glyphs.rule * 2} {title}", width)
    return set_cell_size(f"{head} {glyphs.rule * width}", width)


class Rule(Widget):
    """A line across its whole width with a title in it."""

    DEFAULT_CSS = "Rule { height: 1; width: 1fr; }"

    def __init__(self, glyphs: Glyphs, *, id: str) -> None:
        super().__init__(id=id)
        self._glyphs = glyphs
        self.title = ""

    def set(self, title: str) -> None:
        """Shows another title."""
        if title != self.title:
            self.title = title
            self.refresh()

    def render(self) -> Text:
        """As wide as it is now."""
        return Text(rule(self.title, self.size.width, self._glyphs), no_wrap=True)


class Rows(ScrollView, can_focus=True):
    """Lines of which one is chosen: `>` stands before it, whatever the colours. Text must be safe to draw."""

    BINDINGS: ClassVar = [
        Binding("up", "walk(-1)", "up", show=False, id="list.up"),
        Binding("down", "walk(1)", "down", show=False, id="list.down"),
        Binding("pageup", "walk_page(-1)", "page up", show=False, id="list.page_up"),
        Binding("pagedown", "walk_page(1)", "page down", show=False, id="list.page_down"),
        Binding("home", "walk(-1000000)", "first", show=False, id="list.first"),
        Binding("end", "walk(1000000)", "last", show=False, id="list.last"),
        Binding("enter", "pick", "choose", show=False, id="list.pick"),
    ]
    DEFAULT_CSS = "Rows { height: 1fr; scrollbar-size-vertical: 1; overflow-x: hidden; }"

    class Moved(Message):
        """Another row is chosen."""

        def __init__(self, rows: Rows) -> None:
            super().__init__()
            self.rows = rows

        @property
        def control(self) -> Rows:
            return self.rows

    class Picked(Moved):
        """Enter, or a click on the chosen row."""

    def __init__(self, *, mark: str = ">", id: str | None = None, classes: str = "") -> None:
        super().__init__(id=id, classes=classes)
        self.mark = mark
        self.chosen = 0
        self.lines: list[Text] = []

    def set(self, lines: Sequence[str | Text], chosen: int | None = None) -> None:
        """Shows other lines; the cursor stays where it was, as far as there is one."""
        self.lines = [Text(line) if isinstance(line, str) else line for line in lines]
        self.virtual_size = Size(self.size.width, len(self.lines))
        self.chosen = max(0, min(self.chosen if chosen is None else chosen, len(self.lines) - 1))
        self._reveal()
        self.refresh()

    def choose(self, index: int) -> None:
        """Moves the cursor."""
        index = max(0, min(index, len(self.lines) - 1))
        if index != self.chosen:
            self.chosen = index
            self._reveal()
            self.refresh()
            self.post_message(self.Moved(self))

    def _reveal(self) -> None:
        top, height = int(self.scroll_offset.y), self.size.height
        if height and not top <= self.chosen < top + height:
            self.scroll_to(
                y=self.chosen if self.chosen < top else self.chosen - height + 1, animate=False, force=True
            )

    def on_resize(self) -> None:
        """The chosen row stays in sight."""
        self._reveal()

    def action_walk(self, by: int) -> None:
        """The row that is `by` further."""
        self.choose(self.chosen + by)

    def action_walk_page(self, by: int) -> None:
        """A page further."""
        self.choose(self.chosen + by * max(1, self.size.height - 1))

    def action_pick(self) -> None:
        """Picks the chosen row."""
        if self.lines:
            self.post_message(self.Picked(self))

    def on_click(self, event: Click) -> None:
        """Chooses the row that was clicked; a click on the chosen one picks it."""
        index = int(event.y + self.scroll_offset.y)
        if index < len(self.lines):
            if index == self.chosen:
                self.action_pick()
            else:
                self.choose(index)

    def render_line(self, y: int) -> Strip:
        """One line with its mark."""
        width, index = self.size.width, y + int(self.scroll_offset.y)
        if index >= len(self.lines):
            return Strip.blank(width, self.rich_style)
        is_chosen = index == self.chosen
        text, room = self.lines[index], max(0, self.scrollable_content_region.width - 2)
        if text.cell_len > room:
            text = text.copy()
            text.truncate(max(0, room - 2))
            text.append("..")
        segments = [Segment(f"{self.mark if is_chosen else ' '} "), *text.render(self.app.console)]
        strip = Strip([part for part in segments if part.text != "\n"])
        style = self.rich_style
        if is_chosen and self.has_focus:
            style += Style(reverse=True)
        return strip.adjust_cell_length(width).apply_style(style)


class Pane(VerticalScroll):
    """Text to read, scrolled with the arrow keys."""

    DEFAULT_CSS = "Pane { height: 1fr; padding: 0 1; scrollbar-size-vertical: 1; }"

    def compose(self) -> ComposeResult:
        """The text."""
        yield Static("", markup=False)

    def set(self, text: str | Text) -> None:
        """Shows a text that is safe to draw."""
        self.query_one(Static).update(text)
        self.scroll_home(animate=False)


class Field(Horizontal):
    """One line to type a value in, shown when it is asked for. Enter gives it, Esc puts it away."""

    DEFAULT_CSS = """
    Field { height: 1; display: none; }
    Field.-open { display: block; }
    Field.-long { layout: vertical; height: auto; }
    Field.-long Label { width: 1fr; height: auto; }
    Field.-long Input { padding: 0 1; }
    Field.-long Input:focus { padding: 0 1; }
    Field Label { padding: 0 1; }
    Field Input { width: 1fr; height: 1; border: none; padding: 0; }
    Field Input:focus { border: none; }
    """

    def __init__(self) -> None:
        super().__init__()
        self._then: Callable[[str], str | None] | None = None
        self._back: Widget | None = None

    def compose(self) -> ComposeResult:
        """Label and input."""
        yield Label("", markup=False)
        entry = Input(compact=True)
        entry.cursor_blink = False
        yield entry

    @property
    def is_open(self) -> bool:
        """It is shown."""
        return self.has_class("-open")

    def ask(self, label: str, value: str, then: Callable[[str], str | None]) -> None:
        """Asks for a text. `then` gets it and says what is wrong with it, or None."""
        self._then = then
        self._back = self.screen.focused
        self.add_class("-open")
        self.remove_class("-long")
        self.query_one(Label).update(f"> {label}:")
        entry = self.query_one(Input)
        entry.value = value
        entry.focus()
        entry.cursor_position = len(value)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Enter."""
        event.stop()
        problem = self._then(event.value) if self._then is not None else None
        if problem:
            text = f"> {one_line(problem)}  Again:"
            self.set_class(cell_len(text) + _TYPING_CELLS > self.size.width, "-long")
            self.query_one(Label).update(text)
        else:
            self.put_away()

    def put_away(self) -> bool:
        """Hides it; False: it was not there."""
        if not self.is_open:
            return False
        self.remove_class("-open")
        if self._back is not None and self._back.is_attached:
            self._back.focus()
        return True
