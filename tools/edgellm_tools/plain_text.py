"""The readable text of an HTML page. One pass, each character looked at a bounded number of times."""

from __future__ import annotations

import html
import re

_RAW = {"script", "style", "noscript", "template", "svg", "iframe", "object", "canvas", "textarea", "select"}
_BREAKS = {
    "address", "article", "aside", "blockquote", "br", "dd", "div", "dl", "dt", "fieldset", "figcaption", "figure",
    "footer", "form", "header", "hr", "main", "nav", "ol", "p", "pre", "section", "table", "tr", "title", "ul",
}  # fmt: skip
_NAME = re.compile(r"/?([A-Za-z][A-Za-z0-9:-]{0,40})")
_SPACES = re.compile(r"[ \t\r\f\v\n\xa0]+")
_MAX_TITLE_LEVEL = 6


def html_to_text(page: str) -> str:
    """Text with a line a block, `#` before headings and `-` before list items; scripts and styles left out."""
    pieces: list[str] = []
    at = 0
    while at < len(page):
        opening = page.find("<", at)
        if opening < 0:
            pieces.append(_text(page[at:]))
            break
        pieces.append(_text(page[at:opening]))
        if page.startswith("<!--", opening):
            end = page.find("-->", opening + 4)
            at = len(page) if end < 0 else end + 3
            continue
        name = _NAME.match(page, opening + 1)
        if name is None and page[opening + 1 : opening + 2] not in {"!", "?", "/"}:
            pieces.append("<")
            at = opening + 1
            continue
        end = page.find(">", opening)
        if end < 0:
            break
        at = end + 1
        if name is not None:
            tag = name[1].lower()
            is_closing = page[opening + 1] == "/"
            pieces.append(_mark(tag, is_closing))
            if tag in _RAW and not is_closing and page[end - 1] != "/":
                closing = re.compile(f"</{tag}", re.IGNORECASE).search(page, at)
                at = len(page) if closing is None else closing.start()
    return _tidy("".join(pieces))


def _text(raw: str) -> str:
    return _SPACES.sub(" ", html.unescape(raw)) if raw else ""


def _mark(tag: str, is_closing: bool) -> str:
    if len(tag) == 2 and tag[0] == "h" and tag[1].isdigit():
        return "\n" if is_closing else "\n" + "#" * min(int(tag[1]), _MAX_TITLE_LEVEL) + " "
    if tag == "li":
        return "" if is_closing else "\n- "
    if tag in {"td", "th"}:
        return " | " if is_closing else ""
    return "\n" if tag in _BREAKS else ""


def _tidy(text: str) -> str:
    lines = (_SPACES.sub(" ", line).strip(" |") for line in text.split("\n"))
    return "\n".join(line for line in lines if line.strip("#- "))
