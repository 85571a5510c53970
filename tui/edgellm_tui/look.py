"""How blocks are drawn: width, colours and glyphs, and lines of text as strips."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.segment import Segment
from rich.style import Style
from rich.text import Text
from textual.color import Color
from textual.strip import Strip

from edgellm_tui.glyphs import BOX, Glyphs

if TYPE_CHECKING:
    from collections.abc import Container

    from rich.console import Console, RenderableType
    from textual.app import App


@dataclass(frozen=True, slots=True)
class Palette:
    """Colours by role. No state is told by colour alone: the words stand beside it."""

    text: Style
    muted: Style
    accent: Style
    user: Style
    good: Style
    doubtful: Style
    bad: Style
    code_theme: str


@dataclass(frozen=True, slots=True)
class Look:
    """All that the lines of a block depend on besides the block."""

    width: int
    palette: Palette
    console: Console
    glyphs: Glyphs = BOX

    def wrap(self, text: str, style: Style, *, first: str = "", rest: str = "") -> list[Strip]:
        """Plain text (already safe to draw) wrapped by words; `first` and `rest` stand before its lines."""
        lead = max(len(first), len(rest))
        found: list[Strip] = []
        for line in text.split("\n"):
            wrapped = (
                Text(line).wrap(self.console, max(8, self.width - lead), no_wrap=False) if line else [Text()]
            )
            for part in wrapped:
                prefix = rest if found else first
                found.append(Strip([Segment(prefix, style), Segment(part.plain.rstrip(), style)]))
        return found

    def render(self, renderable: RenderableType, indent: int = 0) -> list[Strip]:
        """A Rich renderable as strips."""
        options = self.console.options.update(width=max(8, self.width - indent), height=None)
        lead = [Segment(" " * indent)] if indent else []
        lines = self.console.render_lines(renderable, options, pad=False)
        return [Strip([*lead, *line]) for line in lines]


def fitting_theme(themes: Container[str]) -> str:
    """The theme for this terminal: its own 16 colours on a Linux console and where it promises no more than those."""
    term, colours = os.environ.get("TERM", ""), os.environ.get("COLORTERM", "")
    is_plain = term in ("linux", "vt100", "vt220", "xterm", "ansi") and colours not in ("truecolor", "24bit")
    return "ansi-dark" if is_plain and "ansi-dark" in themes else "textual-dark"


def palette_of(app: App[object]) -> Palette:
    """The roles in the colours of the app's theme."""
    theme = app.current_theme

    def style(colour: str | None, *, bold: bool = False, underline: bool = False) -> Style:
        if colour is None:
            return Style(bold=bold, underline=underline)
        return Style(color=Color.parse(colour).rich_color, bold=bold, underline=underline)

    return Palette(
        text=Style(),
        muted=Style(dim=True),
        accent=style(theme.accent or theme.primary, bold=True),
        user=style(theme.primary, bold=True),
        good=style(theme.success),
        doubtful=style(theme.warning, underline=True),
        bad=style(theme.error, bold=True),
        code_theme="ansi_dark" if theme.dark else "ansi_light",
    )
