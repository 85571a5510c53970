"""Answers as Markdown: nothing that the model has written is kept from being seen."""

from __future__ import annotations

import re

import pytest
from edgellm_tui.look import Look, Palette
from edgellm_tui.markdown import render_block, split_blocks
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.style import Style

_PLAIN = Style()
LOOK = Look(60, Palette(*[_PLAIN] * 7, code_theme="ansi_dark"), Console(width=60))


def shown(text: str) -> list[str]:
    """The lines of a finished answer."""
    return [strip.text.rstrip() for block in split_blocks(text) for strip in render_block(block, LOOK)]


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("144.", ["144."]),
        ("144.\nThat is all.", ["144.", "That is all."]),
        ("-", ["-"]),
        ("#\ntext", ["#", "text"]),
        ("a List<String> of <b>names</b>", ["a List<String> of <b>names</b>"]),
        ("<div>hi</div>", ["<div>hi</div>"]),
        ("[a]: http://x.y", ["[a]: http://x.y"]),
        ("![a cat](http://x/y.png)", ["!a cat (http://x/y.png)"]),
        ("&nbsp;", ["&nbsp;"]),
        ("roses are red\nviolets are blue", ["roses are red", "violets are blue"]),
        # Markdown is still Markdown.
        ("# Title\n\n1. *one*\n2. `two`", ["Title", " 1 one", " 2 two"]),
        ("- one\n- two", [" • one", " • two"]),
        ("| a | b |\n|---|---|\n| 1 | 2 |", [" a  b", " ────", " 1  2"]),
    ],
)
def test_what_is_written_is_seen(text: str, lines: list[str]) -> None:
    assert shown(text) == lines


PIECES = (
    *(
        "144.",
        "7)",
        "- x",
        "* y",
        "1. one",
        "# h",
        "##",
        "<b>t</b>",
        "<hr>",
        "word",
        "[r]: z",
        "[l](u)",
        "> q",
    ),
    *(
        "`c`",
        "**",
        "    k",
        "```",
        "",
        "---",
        "a | b",
        "|---|---|",
        "&amp;",
        "![i](j)",
        "~~s~~",
        "<!-- n -->",
    ),
)


@given(st.lists(st.sampled_from(PIECES), max_size=8))
def test_every_letter_of_an_answer_is_on_the_screen(pieces: list[str]) -> None:
    text = "\n".join(pieces)
    seen = "".join(shown(text))
    letters = re.findall(r"[a-z]", text.replace("&amp;", ""))
    assert sorted(re.findall(r"[a-z]", seen.replace("&amp;", ""))) == sorted(letters)


@given(st.sampled_from(("144", "7", "12345678")), st.sampled_from((".", ")", ". ", ".\n", ".\n\nSo it is.")))
def test_a_number_is_an_answer(number: str, end: str) -> None:
    assert number in shown(number + end)[0]
