"""Text for terminals: control characters made visible, colour only where it is wanted."""

from __future__ import annotations

import os
import re
import sys
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_STYLES = {
    "dim": "2",
    "bold": "1",
    "red": "31",
    "green": "32",
    "yellow": "33",
    "blue": "34",
    "magenta": "35",
    "cyan": "36",
}
# C0 without tab and newline, DEL, C1; line separators and the marks that turn the direction of text, with which
# one text can be made to look like another.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_CONTROL_OR_BREAK = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_PROSE = 24  # columns from which on a cell is worth wrapping
_SHORT = {"\n": "\\n", "\t": "\\t", "\r": "\\r"}


def escape(text: str) -> str:
    """The text with its control characters spelled out; tabs and newlines stay."""
    return _CONTROL.sub(_spelled, text)


def one_line(text: str, limit: int = 200) -> str:
    """The text on one line, newlines spelled out, cut to `limit` characters."""
    short = text if len(text) <= limit else text[: limit - 1] + "…"
    return _CONTROL_OR_BREAK.sub(_spelled, short)


def _spelled(match: re.Match[str]) -> str:
    character = match.group()
    code = ord(character)
    return _SHORT.get(character) or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}")


def is_terminal(stream: TextIO | None) -> bool:
    """True where a person looks at the stream."""
    try:
        return stream is not None and stream.isatty()
    except ValueError:  # it is closed
        return False


def has_colour(stream: TextIO | None) -> bool:
    """True on a terminal, unless NO_COLOR or TERM=dumb says otherwise."""
    return is_terminal(stream) and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def styled(text: str, style: str, stream: TextIO | None) -> str:
    """The text in a style, where the stream shows styles."""
    return f"\x1b[{_STYLES[style]}m{text}\x1b[0m" if text and has_colour(stream) else text


def prepare_streams() -> None:
    """Nothing that is printed may fail for its characters, whatever the locale.

    A stream that is closed becomes one that leads nowhere: print would take stdout in place of a closed stderr, and a
    file that is opened later would be given its number.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def say(text: str) -> None:
    """A line on stderr."""
    print(escape(text), file=sys.stderr, flush=True)


def warn(text: str) -> None:
    """A warning on stderr."""
    say(f"edgellm: {text}")


def megabytes(size_bytes: int) -> str:
    """A size for people: "98 MB", "2.4 GB"."""
    if size_bytes >= 1_000_000_000:
        return f"{size_bytes / 1e9:,.1f} GB"
    return f"{size_bytes / 1e6:,.0f} MB" if size_bytes >= 1_000_000 else f"{size_bytes / 1e3:,.0f} kB"


def width() -> int:
    """Columns of the terminal; where stdout is none, wide enough to cut nothing."""
    if not is_terminal(sys.stdout):
        return 10_000
    try:
        return max(40, os.get_terminal_size(sys.stdout.fileno()).columns)
    except (OSError, ValueError):
        return 80


def table(rows: Iterable[Sequence[str]], heads: Sequence[str] = ()) -> str:
    """Columns under each other, cut where the terminal ends; prose in the last one is wrapped, and put below where
    there is no room beside the others."""
    lines = [[one_line(cell, 10_000) for cell in row] for row in rows]
    every = [list(heads), *lines] if heads else lines
    if not every:
        return ""
    widths = [max(len(row[index]) for row in every) for index in range(len(every[0]))]
    room = width()
    shown: list[str] = []
    for number, row in enumerate(every):
        cells = [cell.ljust(size) for cell, size in zip(row, widths, strict=True)]
        line = "  ".join(cells).rstrip()
        if len(line) <= room:
            shown.append(styled(line, "bold", sys.stdout) if heads and number == 0 else line)
        elif number == 0 and heads:
            shown.append(styled(_cut(line, room), "bold", sys.stdout))
        elif len(row[-1]) > _PROSE and " " in row[-1]:
            shown += _wrapped("  ".join(cells[:-1]), row[-1], room)
        else:
            shown.append(_cut(line, room))
    return "\n".join(shown)


def _cut(line: str, room: int) -> str:
    return line if len(line) <= room else line[: room - 1] + "…"


def _wrapped(before: str, prose: str, room: int) -> list[str]:
    """The lines of a row whose last cell does not fit behind the others."""
    import textwrap

    start = len(before) + 2 if before else 0
    if room - start >= _PROSE:
        first, *more = textwrap.wrap(prose, room - start)
        return [f"{before}  {first}" if before else first, *(" " * start + line for line in more)]
    return [
        _cut(before.rstrip(), room),
        *textwrap.wrap(prose, room, initial_indent="    ", subsequent_indent="    "),
    ]
