"""Text from models and tools made safe to draw: nothing in it can steer the terminal or pose as something else."""

from __future__ import annotations

import re
import time
import unicodedata

from rich.cells import cell_len, set_cell_size

# C0 but tab and line feed, DEL, C1; bidirectional controls; zero-width characters; surrogates; tags.
_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)


def visible(text: str) -> str:
    """The text with control and invisible characters named: `\\x1b` as <1b>, U+202E as <U+202E>."""
    if text.isascii() and text.isprintable():
        return text
    return _HIDDEN.sub(_named, text.replace("\r\n", "\n")).expandtabs(4)


def _named(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"<{code:02x}>" if code < 0x100 else f"<U+{code:04X}>"


def one_line(text: str, width: int = 0) -> str:
    """The same on one line, cut to `width` cells (0: not cut)."""
    flat = " ".join(visible(text).split())
    if not width or cell_len(flat) <= width:
        return flat
    return set_cell_size(flat, max(0, width - 3)).rstrip() + "..."


def fitted(text: str, width: int) -> str:
    """A text as it is, cut to `width` cells with two dots where it is longer."""
    if cell_len(text) <= width:
        return text
    return set_cell_size(set_cell_size(text, max(0, width - 2)) + "..", width)


def has_text(text: str) -> bool:
    """Whether there is anything to see in it."""
    return any(not letter.isspace() and unicodedata.category(letter) != "Cf" for letter in text)


def when(stamp: float, now: float | None = None) -> str:
    """A time in few characters: 12:04 today, the day of the month before that."""
    moment, today = time.localtime(stamp), time.localtime(now)
    if moment[:3] == today[:3]:
        return time.strftime("%H:%M", moment)
    return time.strftime("%d %b" if moment.tm_year == today.tm_year else "%Y-%m-%d", moment)
