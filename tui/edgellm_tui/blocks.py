"""What a conversation is drawn from: the user's messages, answers, reasoning, notices; each with cached lines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from textual.strip import Strip

from edgellm_tui.markdown import finished_length, render_block, split_blocks
from edgellm_tui.plain import visible

if TYPE_CHECKING:
    from edgellm_tui.look import Look

INDENT = 2
_PINNED = "[pinned: this turn stays when the context fills]"
Kind = Literal["user", "answer", "reasoning", "card", "notice", "error"]


class Block:
    """Something in the conversation with lines of its own. `message` is its index in the chat's messages, or None."""

    kind: Kind = "notice"
    can_fold = False

    def __init__(self) -> None:
        self.message: int | None = None
        self.is_folded = False
        self._cached: tuple[Look, list[Strip]] | None = None

    def changed(self) -> None:
        """The lines have to be made anew."""
        self._cached = None

    def lines(self, look: Look) -> list[Strip]:
        """The block as strips of at most `look.width` cells."""
        if self._cached is None or self._cached[0] != look:
            self._cached = look, self.make_lines(look)
        return self._cached[1]

    def make_lines(self, look: Look) -> list[Strip]:
        """The lines, drawn now."""
        raise AssertionError(f"{type(self).__name__} draws no lines")

    def plain(self) -> str:
        """What is copied."""
        return ""

    def toggle(self) -> None:
        """Folds or unfolds."""
        if self.can_fold:
            self.is_folded = not self.is_folded
            self.changed()


class UserBlock(Block):
    """A message of the user; `is_gone`: it is no longer in the context; `is_pinned`: its turn stays there."""

    kind = "user"

    def __init__(self, text: str, *, is_gone: bool = False) -> None:
        super().__init__()
        self.text = text
        self.is_gone = is_gone
        self.is_pinned = False

    def pin(self, is_pinned: bool) -> None:
        """Shows whether its turn stays when the context fills."""
        if is_pinned != self.is_pinned:
            self.is_pinned = is_pinned
            self.changed()

    def make_lines(self, look: Look) -> list[Strip]:
        lines = look.wrap(visible(self.text), look.palette.user, first="> ", rest="  ")
        if self.is_pinned:
            lines += look.wrap(_PINNED, look.palette.muted, first="  ", rest="  ")
        return lines

    def plain(self) -> str:
        return self.text


class NoteBlock(Block):
    """A notice, or an error with its remedy."""

    def __init__(self, text: str, *, is_error: bool = False) -> None:
        super().__init__()
        self.kind = "error" if is_error else "notice"
        self.text = text

    def make_lines(self, look: Look) -> list[Strip]:
        is_error = self.kind == "error"
        style = look.palette.bad if is_error else look.palette.muted
        mark = "! error: " if is_error else "· " if look.glyphs.name != "ascii" else "- "
        return look.wrap(visible(self.text), style, first=f"  {mark}", rest="    ")

    def plain(self) -> str:
        return self.text


class AnswerBlock(Block):
    """Growing text: finished Markdown blocks are rendered once, the rest is shown as it stands.

    However the text was cut into pieces, the lines in the end are those of the whole text.
    """

    kind = "answer"

    def __init__(self, text: str = "", *, is_over: bool = True) -> None:
        super().__init__()
        self._parts: list[str] = []
        self._tail = ""
        self._is_over = False
        self._drawn: list[list[Strip]] = []
        self._drawn_for: Look | None = None
        self._tail_lines: list[Strip] = []
        self._tail_done = 0
        if text:
            self.append(text)
            if is_over:
                self.finish()

    @property
    def text(self) -> str:
        """All of it so far."""
        return "".join(self._parts) + self._tail

    def append(self, text: str) -> None:
        """More of the answer."""
        self._tail += text
        while length := finished_length(self._tail):
            self._parts.append(self._tail[:length])
            self._tail = self._tail[length:]
            self._tail_lines, self._tail_done = [], 0
        self.changed()

    @property
    def is_over(self) -> bool:
        """Nothing more comes."""
        return self._is_over

    def reopen(self) -> None:
        """More may come after all."""
        whole, self._parts, self._tail, self._is_over = self.text, [], "", False
        self._drawn, self._drawn_for = [], None
        self.append(whole)

    def finish(self) -> None:
        """Nothing more comes."""
        self._parts += split_blocks(self._tail)
        self._tail, self._is_over = "", True
        self._tail_lines, self._tail_done = [], 0
        self.changed()

    def make_lines(self, look: Look) -> list[Strip]:
        if self._drawn_for != look:
            self._drawn, self._drawn_for = [], look
            self._tail_lines, self._tail_done = [], 0
        while len(self._drawn) < len(self._parts):
            self._drawn.append(render_block(visible(self._parts[len(self._drawn)]), look, INDENT))
        lines: list[Strip] = []
        for strips in self._drawn:
            if lines and strips:
                lines.append(Strip.blank(0))
            lines += strips
        tail = self._draw_tail(look)
        if lines and tail:
            lines.append(Strip.blank(0))
        return lines + tail

    def _draw_tail(self, look: Look) -> list[Strip]:
        """Lines of the unfinished block; only its last source line is laid out again."""
        if not self._tail.strip():
            return []
        lead = " " * INDENT
        end = self._tail.rfind("\n") + 1
        if end > self._tail_done:
            whole = self._tail[self._tail_done : end - 1]
            self._tail_lines += look.wrap(visible(whole), look.palette.text, first=lead, rest=lead)
            self._tail_done = end
        last = self._tail[end:]
        lines = self._tail_lines + (
            look.wrap(visible(last), look.palette.text, first=lead, rest=lead) if last else []
        )
        first = next((index for index, strip in enumerate(lines) if strip.text.strip()), 0)
        return lines[first:]

    def plain(self) -> str:
        return self.text.strip()


class ReasoningBlock(Block):
    """What the model thinks before it answers; folded to one line once it is over."""

    kind = "reasoning"
    can_fold = True

    def __init__(self, text: str = "", *, is_over: bool = False) -> None:
        super().__init__()
        self.text = text
        self.is_over = is_over
        self.is_folded = True

    def append(self, text: str) -> None:
        """More thoughts."""
        self.text += text
        self.changed()

    def finish(self) -> None:
        """The thoughts are over."""
        self.is_over = True
        self.changed()

    def make_lines(self, look: Look) -> list[Strip]:
        palette, glyphs = look.palette, look.glyphs
        words = len(self.text.split())
        mark = glyphs.closed if self.is_folded else glyphs.opened
        state = "thoughts" if self.is_over else "thinking"
        head = look.wrap(f"{mark} {state} ({words} words)", palette.muted, first="  ", rest="  ")
        body = visible(self.text.strip())
        if not self.is_folded:
            return head + look.wrap(body, palette.muted, first="  | ", rest="  | ")
        if self.is_over or not body:
            return head
        # While it runs its last line shows that something happens.
        return head + look.wrap(body[-4 * look.width :], palette.muted, first="  | ", rest="  | ")[-1:]

    def plain(self) -> str:
        return self.text.strip()
