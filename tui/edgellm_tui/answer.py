"""The conversation on the screen: one line-drawn view over all blocks of a branch."""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, ClassVar

from rich.segment import Segment
from textual.binding import Binding
from textual.geometry import Region, Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip

from edgellm_tui.glyphs import BOX, Glyphs
from edgellm_tui.look import Look, palette_of

if TYPE_CHECKING:
    from textual.events import Click, Resize
    from textual.selection import Selection

    from edgellm_tui.blocks import Block

_NEAR_END = 2


class ConversationView(ScrollView, can_focus=True):
    """Draws blocks line by line from their cached strips. Call `sync` when blocks have changed.

    It follows the end while the reader is there. A block cursor ([ and ]) chooses what is folded or copied.
    """

    BINDINGS: ClassVar = [
        Binding("left_square_bracket,alt+up", "cursor(-1)", "block before", show=False, id="chat.before"),
        Binding("right_square_bracket,alt+down", "cursor(1)", "next block", show=False, id="chat.after"),
        Binding("space", "fold", "fold", show=False, id="chat.fold"),
        Binding("c", "copy", "copy", show=False, id="chat.copy"),
        Binding("e", "act('edit')", "edit and resend", show=False, id="chat.edit"),
        Binding("r", "act('retry')", "retry", show=False, id="chat.retry"),
        Binding("k", "act('resume')", "go on", show=False, id="chat.resume"),
        Binding("P", "act('pin')", "keep this turn in the context", show=False, id="chat.pin"),
    ]
    DEFAULT_CSS = "ConversationView { height: 1fr; scrollbar-size-vertical: 1; overflow-x: hidden; }"

    class Acted(Message):
        """The user asks for something about a block: copy, edit, retry, resume, pin."""

        def __init__(self, action: str, block: Block | None) -> None:
            super().__init__()
            self.action = action
            self.block = block

    def __init__(self, *, glyphs: Glyphs = BOX, id: str | None = None, empty: str = "") -> None:
        super().__init__(id=id)
        self.glyphs = glyphs
        self.blocks: list[Block] = []
        self.chosen: int | None = None
        self.empty = empty
        self.drawn_lines = 0
        # The reader is at the end. Only scrolling changes that: neither new lines nor another size do.
        self._follows = True
        self._ends: list[int] = []
        self._lines: list[list[Strip]] = []
        self._known_look: tuple[str, Look] | None = None

    # -- content ------------------------------------------------------------------------------------------

    def show(self, blocks: list[Block]) -> None:
        """Shows other blocks, from their end."""
        self.blocks = blocks
        self.chosen = None
        self.sync()
        self.scroll_end(animate=False)

    def sync(self) -> None:
        """Takes over what has changed in the blocks; what has not keeps its lines."""
        follow = self._follows
        look = self._look()
        if look is None:
            return
        before, self._ends, self._lines = self._lines, [], []
        end = 0
        changed: int | None = None
        for index, block in enumerate(self.blocks):
            lines = block.lines(look)
            if changed is None:
                place = _first_difference(before[index] if index < len(before) else None, lines)
                changed = None if place is None else end + place
            end += len(lines) + (1 if lines else 0)
            self._ends.append(end)
            self._lines.append(lines)
        if changed is None and len(before) > len(self._lines):
            changed = end
        size = Size(look.width, end)
        if size != self.virtual_size:
            self.virtual_size = size
            if follow:
                # Forced: there is no scroll bar yet where the text has just outgrown the view.
                self.scroll_end(animate=False, immediate=True, x_axis=False, force=True)
        if changed is not None:
            # Only from the first line that differs: while text grows, that is its last one.
            top = max(0, changed - self.scroll_offset.y)
            if top < self.size.height:
                self.refresh(Region(0, top, self.size.width, self.size.height - top))

    def _look(self) -> Look | None:
        width = self.size.width - 1
        if width < 8 or not self.is_attached:
            return None
        known = self._known_look
        theme = self.app.theme
        if known is None or known[0] != theme or known[1].width != width:
            known = self._known_look = theme, Look(width, palette_of(self.app), self.app.console, self.glyphs)
        return known[1]

    def on_resize(self, _event: Resize) -> None:
        """Lays all blocks out for the new width, and stays at the end."""
        follow = self._follows
        self.sync()
        if follow:
            self.scroll_end(animate=False, immediate=True, x_axis=False, force=True)

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        """Somebody scrolls."""
        super().watch_scroll_y(old_value, new_value)
        self._follows = self.max_scroll_y - round(new_value) <= _NEAR_END

    def text_lines(self) -> list[str]:
        """All lines as text."""
        found: list[str] = []
        for lines in self._lines:
            found += [strip.text.rstrip() for strip in lines]
            if lines:
                found.append("")
        return found

    # -- drawing ------------------------------------------------------------------------------------------

    def render_line(self, y: int) -> Strip:
        """One line of the view."""
        self.drawn_lines += 1
        width, line = self.size.width, self.scroll_offset.y + y
        base = self.rich_style
        if not self.blocks and self.empty:
            texts = self.empty.split("\n")
            shown = texts[y] if y < len(texts) else ""
            return Strip([Segment(shown, base)]).adjust_cell_length(width, base)
        index = bisect_right(self._ends, line)
        if index >= len(self._lines):
            return Strip.blank(width, base)
        lines = self._lines[index]
        inside = line - (self._ends[index - 1] if index else 0)
        strip = lines[inside] if inside < len(lines) else Strip.blank(0)
        if index == self.chosen and inside < len(lines):
            strip = Strip([Segment(self.glyphs.cursor, base), *strip.crop(1)])
        strip = strip.crop_extend(0, width, base).apply_style(base)
        chosen = self.text_selection
        if chosen is not None and (span := chosen.get_span(line)) is not None:
            strip = self._marked(strip, *span)
        return strip.apply_offsets(0, line)

    def _marked(self, strip: Strip, start: int, end: int) -> Strip:
        end = strip.cell_length if end == -1 else end
        style = self.screen.get_component_rich_style("screen--selection")
        return Strip.join([strip.crop(0, start), strip.crop(start, end).apply_style(style), strip.crop(end)])

    def get_selection(self, selection: Selection) -> tuple[str, str] | None:
        """The selected text."""
        return selection.extract("\n".join(self.text_lines())), "\n"

    def selection_updated(self, selection: Selection | None) -> None:
        """Another part is selected."""
        self.refresh()

    # -- the block cursor ---------------------------------------------------------------------------------

    @property
    def chosen_block(self) -> Block | None:
        """The block under the cursor."""
        return (
            self.blocks[self.chosen] if self.chosen is not None and self.chosen < len(self.blocks) else None
        )

    def action_cursor(self, by: int) -> None:
        """Moves the block cursor."""
        if not self.blocks:
            return
        at = len(self.blocks) if self.chosen is None else self.chosen
        self.chosen = max(0, min(len(self.blocks) - 1, at + by))
        top = self._ends[self.chosen - 1] if self.chosen else 0
        if not self.scroll_offset.y <= top < self.scroll_offset.y + self.size.height:
            self.scroll_to(y=top, animate=False)
        self.refresh()

    def action_fold(self) -> None:
        """Folds or unfolds the chosen block, else the newest that can."""
        block = self.chosen_block or next((each for each in reversed(self.blocks) if each.can_fold), None)
        if block is not None:
            block.toggle()
            self.sync()

    def action_copy(self) -> None:
        """Copies the chosen block."""
        self.post_message(self.Acted("copy", self.chosen_block))

    def action_act(self, what: str) -> None:
        """Asks for something about the chosen block."""
        self.post_message(self.Acted(what, self.chosen_block))

    def on_click(self, event: Click) -> None:
        """A click chooses a block; one on a foldable block's first line folds it."""
        index = bisect_right(self._ends, self.scroll_offset.y + event.y)
        if index >= len(self.blocks):
            return
        was_chosen, self.chosen = self.chosen == index, index
        first = self._ends[index - 1] if index else 0
        if was_chosen and self.scroll_offset.y + event.y == first:
            self.blocks[index].toggle()
            self.sync()
        self.refresh()


def _first_difference(before: list[Strip] | None, now: list[Strip]) -> int | None:
    """The first line that is another object than before; None where the lines are the same ones."""
    if before is now:
        return None
    if before is None:
        return 0
    for index, (one, other) in enumerate(zip(before, now, strict=False)):
        if one is not other:
            return index
    return min(len(before), len(now)) if len(before) != len(now) else None
