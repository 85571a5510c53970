"""Answers as blocks: where a growing text can be cut, and each finished block rendered once."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, ClassVar

from markdown_it import MarkdownIt
from markdown_it.rules_block import heading, list_block
from rich.markdown import Heading, Markdown
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Callable

    from markdown_it.ruler import RuleOptionsType
    from markdown_it.rules_block import StateBlock
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.markdown import MarkdownElement
    from textual.strip import Strip

    from edgellm_tui.look import Look

_FENCE = re.compile(r"\s*(`{3,}|~{3,})")
_ITEM = re.compile(r"([-*+]|\d{1,9}[.)])(\s|$)")
_BARE = re.compile(r"([-*+]|\d{1,9}[.)]|#{1,6})\s*")
_ITEM_START = re.compile(r"[-*+\d]")


class _LeftHeading(Heading):
    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        self.text.justify = "left"
        yield Text("") if self.tag == "h1" and not self.text.plain else self.text


def _parser() -> MarkdownIt:
    """CommonMark without what would keep something of an answer from being seen."""
    parser = MarkdownIt("commonmark", {"html": False}).enable(["strikethrough", "table"])
    # Tags, definitions of links, addresses of pictures; and "144." is an answer, no empty item of a list.
    parser.disable(["html_block", "html_inline", "reference", "image"])
    interrupted: RuleOptionsType = {"alt": ["paragraph", "reference", "blockquote"]}
    parser.block.ruler.at("list", _unless_bare(list_block), interrupted)
    parser.block.ruler.at("heading", _unless_bare(heading), interrupted)
    return parser


def _unless_bare(rule: Callable[[StateBlock, int, int, bool], bool]) -> Callable[..., bool]:
    def ruled(state: StateBlock, start: int, end: int, silent: bool) -> bool:
        line = state.src[state.bMarks[start] + state.tShift[start] : state.eMarks[start]]
        # Silent: whether a paragraph, or an item of a list, ends here.
        return (silent or not _BARE.fullmatch(line)) and rule(state, start, end, silent)

    return ruled


_PARSER = _parser()


class AnswerMarkdown(Markdown):
    """Rich's Markdown with headings at the left edge, lines as the model broke them, and nothing left out."""

    elements: ClassVar[dict[str, type[MarkdownElement]]] = {**Markdown.elements, "heading_open": _LeftHeading}

    def __init__(self, markup: str, *, code_theme: str) -> None:
        super().__init__("", code_theme=code_theme, hyperlinks=False)
        self.markup = markup
        self.parsed = _PARSER.parse(markup)
        for token in self.parsed:
            for child in token.children or ():
                if child.type == "softbreak":
                    child.type = "hardbreak"


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
    strips = look.render(AnswerMarkdown(block, code_theme=look.palette.code_theme), indent)
    while strips and not strips[-1].text.strip():
        strips.pop()
    while strips and not strips[0].text.strip():
        strips.pop(0)
    if strips:
        return strips
    # Nothing of it was to be seen: then it is no Markdown.
    lead = " " * indent
    return look.wrap(block.strip("\n"), look.palette.text, first=lead, rest=lead) if block.strip() else []
