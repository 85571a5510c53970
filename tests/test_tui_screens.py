"""Every page at two sizes, in colour and without: one app walks through all of them, each compared with its file."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from copy import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from edgellm_tui import model_page
from edgellm_tui.app import EdgeApp
from edgellm_tui.applog import LogLine
from edgellm_tui.pages import PAGES
from edgellm_tui.saved_chats import SavedBranch, chat_index, record_branches
from textual.pilot import Pilot
from textual.widgets import TextArea
from tui_harness import (
    LARGE,
    SCREENS,
    SMALL,
    compare_screen,
    run,
    said,
    screen_colours,
    settled,
    shown,
    wait_until,
)
from tui_scripted import Call, Draw, words

import edgellm

TURNS = [
    [
        *words("Let me look that up."),
        Call("get_weather", {"city": "Oslo"}, edgellm.ToolResult('{"temp_c": -3}', duration_s=0.8)),
        *words("It is **-3 C** in Oslo, so I would take"),
        Draw(" the tram", 0.23, ((" a bus", 0.41), (" skis", 0.1))),
    ],
    words(" and walk."),
    words("Warmer."),
]
MODELS = [
    model_page.ModelRow(
        "little", 12_000_000, True, "Apache-2.0", description="A tiny model.", source="a file"
    ),
    model_page.ModelRow(
        "guarded",
        3_900_000_000,
        False,
        "Guarded Terms",
        "https://example.org/terms",
        needs_acceptance=True,
        description="Wants its licence accepted.",
        source="a file",
    ),
]


def noon(_stamp: float) -> str:
    return "12:04"


def native_log(**_: object) -> str:
    return "print_info: file type = Q8_0\n"


def no_plan(_model: object) -> None:
    return None


def stand_still(monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes off the pages what differs from machine to machine and from day to day."""
    for module in ("chats", "branches"):
        monkeypatch.setattr(f"edgellm_tui.{module}.when", noon)
    monkeypatch.setattr("edgellm_tui.settings_page.settings_path", lambda: Path("/home/you/app.toml"))
    monkeypatch.setattr(
        "edgellm_tui.log_page.time", SimpleNamespace(strftime=time.strftime, localtime=time.gmtime)
    )
    monkeypatch.setattr(edgellm, "native_log", native_log)
    monkeypatch.setattr(model_page, "model_rows", lambda: MODELS)
    monkeypatch.setattr(model_page, "plan_of", no_plan)
    monkeypatch.setattr(model_page, "available_bytes", lambda: 4_000_000_000)
    index = chat_index()
    for number, title in enumerate(["Fix the pump \x1b[2J", "Poem drafts"]):
        there = (edgellm.Message("user", title), edgellm.Message("assistant", f"Answer {number}."))
        branch = SavedBranch(0, "main", there, is_current=True)
        record_branches(index, f"id{number}", title=title, model="smollm2-135m", branches=[branch], tokens=9)


async def tokenizer(app: EdgeApp, pilot: Pilot[Any]) -> None:
    """A text with a token that comes twice."""
    app.query_one("#tokenizer TextArea", TextArea).text = "the sea the"
    await shown(pilot, "3 tokens")


async def log(app: EdgeApp, pilot: Pilot[Any]) -> None:
    """A line of each kind, one with a control character."""
    app.app_log.lines.clear()
    app.app_log.lines += [LogLine(0.0, "INFO", "a fact"), LogLine(61.0, "ERROR", "a \x1b[31m failure")]
    await pilot.press("r")


async def tools(app: EdgeApp, pilot: Pilot[Any]) -> None:
    """The bundled tools alone: others may be installed."""
    bundled = [tool for tool in app.talk.tools if tool.name in ("calculator", "clock", "shell")]
    app.talk.tools = tuple(map(copy, bundled))
    for tool in app.talk.tools:
        tool.origin = f"edgellm_tools/{tool.name}.py"
    app.talk.failures = ("broken.py: no module named nowhere",)
    await pilot.press("up", "down")


PREPARED: dict[str, Callable[[EdgeApp, Pilot[Any]], Awaitable[None]]] = {
    "tokenizer": tokenizer,
    "log": log,
    "tools": tools,
}


@pytest.mark.slow
@pytest.mark.parametrize(("size", "name"), [(SMALL, "80x24"), (LARGE, "200x50")])
@pytest.mark.parametrize("no_color", [False, True])
def test_every_page_is_drawn_as_it_was(
    size: tuple[int, int], name: str, no_color: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_still(monkeypatch)
    differing: list[str] = []
    coloured: set[str] = set()

    def compare(app: EdgeApp, page: str) -> None:
        try:
            compare_screen(app, f"page-{page}-{name}")
        except AssertionError as error:
            differing.append(str(error))
        if screen_colours(app):
            coloured.add(page)

    async def play(app: EdgeApp, pilot: Pilot[Any]) -> None:
        await said(pilot, "How do I get home in Oslo?")
        # Another candidate in place of the last token begins a second branch.
        await pilot.press("f3", "1", "enter")
        await settled(pilot)
        await pilot.press("f2")
        await said(pilot, "And in Bergen?")
        compare(app, "chat")
        for page, info in PAGES.items():
            await pilot.press(info.key)
            await wait_until(pilot, lambda page=page: app.page is not None and app.page.id == page)
            await settled(pilot)
            if page in PREPARED:
                await PREPARED[page](app, pilot)
                await settled(pilot)
            await pilot.pause()
            compare(app, page)

    run(play, TURNS, size=size, no_color=no_color)
    assert not differing, "\n\n".join(differing)
    assert not coloured if no_color else {"chat", "inspect"} <= coloured


def test_every_page_has_its_two_files() -> None:
    """A page that is added cannot be forgotten here."""
    found = {path.stem for path in SCREENS.glob("page-*.txt")}
    assert found == {f"page-{page}-{size}" for page in ("chat", *PAGES) for size in ("80x24", "200x50")}
