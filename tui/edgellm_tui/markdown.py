"""Answers as blocks: where a growing text can be cut, and each finished block rendered once."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, ClassVar

from rich.markdown import Heading, Markdown
from rich.text import Text

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.markdown import MarkdownElement
    from textual.strip import Strip

    from edgellm_tui.look import Look

_FENCE = re.compile(r"\s*(`{3,}|~{3,})")
_ITEM = re.compile(r"([-*+]|\d{1,9}[.)])(\s|$)")
_ITEM_START = re.compile(r"[-*+\d]")


class _LeftHeading(Heading):
    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        self.text.justify = "left"
        yield Text("") if self.tag == "h1" and not self.text.plain else self.text


class AnswerMarkdown(Markdown):
    """Rich's Markdown with headings at the left edge."""

    elements: ClassVar[dict[str, type[MarkdownElement]]] = {**Markdown.elements, "heading_open": _LeftHeading}


def finished_length(text: str, *, is_over: bool = False) -> int:
    """Length of the first finished block of a text, 0 where it may still grow.

    What comes later never changes the answer for what was there: the blocks of a text do not depend on the pieces
    it came in. A block ends at a blank line outside a fence, or behind a closing fence, where the next line neither
    is indented nor goes on with the block's list. `is_over`: nothing more comes, so the last line is whole.
    """
    fence = ""
    has_content = is_list = False
    may_end = False
    start = 0
    while start < len(text):
        end = text.find("\n", start)
        is_whole = end >= 0 or is_over
        line = text[start : end if end >= 0 else len(text)]
        if not fence and line.strip() and has_content and may_end:
            starts_item = bool(_ITEM_START.match(line)) and is_list
            if starts_item and not is_whole:
                return 0
            if line[0] not in " \t" and not (starts_item and _ITEM.match(line)):
                return start
        if not is_whole:
            return 0
        mark = _FENCE.match(line)
        if fence:
            if mark and mark[1][0] == fence[0] and len(mark[1]) >= len(fence) and line.strip() == mark[1]:
                fence, may_end = "", True
        elif mark:
            fence, may_end = mark[1], False
            has_content = True
        elif line.strip():
            if not has_content:
                is_list = bool(_ITEM.match(line.lstrip()))
            has_content, may_end = True, False
        else:
            may_end = has_content
        start = end + 1 if end >= 0 else len(text)
    return 0


def split_blocks(text: str) -> list[str]:
    """All blocks of a finished text, in order; joined they are the text."""
    blocks: list[str] = []
    while length := finished_length(text, is_over=True):
        blocks.append(text[:length])
        text = text[length:]
    return [*blocks, text] if text else blocks


def render_block(block: str, look: Look, indent: int = 0) -> list[Strip]:
    """One block (already safe to draw) as strips, without blank lines around it."""
    strips = look.render(AnswerMarkdown(block, code_theme=look.palette.code_theme, hyperlinks=False), indent)
    while strips and not strips[-1].text.strip():
        strips.pop()
    while strips and not strips[0].text.strip():
        strips.pop(0)
    return strips
