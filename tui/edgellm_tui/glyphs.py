"""Which characters the app draws with: plain ASCII, box drawing, or eighth blocks."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import ClassVar

from textual.scrollbar import ScrollBar, ScrollBarRender


@dataclass(frozen=True, slots=True)
class Glyphs:
    """A set of characters. `eighths` are the parts of a bar cell, from the smallest to the whole."""

    name: str
    rule: str
    column: str
    closed: str
    opened: str
    cursor: str
    branch: str
    last_branch: str
    line: str
    eighths: str
    levels: str


ASCII = Glyphs("ascii", "-", "|", ">", "v", ">", "|- ", "`- ", "|  ", "#", "_.:-=+*#")
BOX = Glyphs("box", "─", "│", ">", "v", ">", "├─ ", "└─ ", "│  ", "█", "▁▂▃▄▅▆▇█")
FULL = Glyphs("full", "─", "│", "▸", "▾", "❯", "├─ ", "└─ ", "│  ", "▏▎▍▌▋▊▉█", "▁▂▃▄▅▆▇█")
SETS = {each.name: each for each in (ASCII, BOX, FULL)}


def fitting(name: str = "auto") -> Glyphs:
    """The set of that name; "auto" asks the environment: ASCII on a Linux console or without UTF-8."""
    if name in SETS:
        return SETS[name]
    locale = os.environ.get("LC_ALL") or os.environ.get("LC_CTYPE") or os.environ.get("LANG") or "C.UTF-8"
    if os.environ.get("TERM") in ("linux", "vt100", "vt220") or "utf" not in locale.lower():
        return ASCII
    return BOX


class PlainScrollBarRender(ScrollBarRender):
    """Scroll bars in whole cells of colour, without the parts of blocks at their ends."""

    VERTICAL_BARS: ClassVar[list[str]] = [" "]
    HORIZONTAL_BARS: ClassVar[list[str]] = [" "]


def draw_scroll_bars(glyphs: Glyphs) -> None:
    """Lets all scroll bars of the process be drawn with these."""
    ScrollBar.renderer = PlainScrollBarRender if glyphs is ASCII else ScrollBarRender
