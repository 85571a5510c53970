"""Makes the screenshots of the documentation: `make screenshots` writes docs/screens/*.svg.

A scripted runtime plays the same turns each time, so that a picture changes only where the app does.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest.mock import patch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from edgellm_tui import model_page  # noqa: E402
from edgellm_tui.app import EdgeApp  # noqa: E402
from edgellm_tui.machine import Machine  # noqa: E402
from edgellm_tui.model_page import ModelRow  # noqa: E402
from edgellm_tui.pages import PAGES  # noqa: E402
from edgellm_tui.saved_chats import SavedBranch, record_branches  # noqa: E402
from edgellm_tui.settings import Settings  # noqa: E402
from textual.pilot import Pilot  # noqa: E402
from textual.widgets import TextArea  # noqa: E402

# pyright: reportMissingImports=false
from tui_harness import run, said, settled, wait_until  # noqa: E402
from tui_scripted import Call, Draw, words  # noqa: E402

import edgellm  # noqa: E402  (the path comes first)
from edgellm import Message, ToolResult  # noqa: E402

FOLDER = ROOT / "docs" / "screens"
EARLIER = {
    "A name for a boat that leaks": "What about Sieve? Or Bailiff, if there is a bucket on board.",
    "Fix the pump of the washing machine": "Switch it off at the wall first, and let the water run out.",
}
SIZE, WIDE = (100, 30), (180, 46)
QUESTION = "How warm is it in Oslo? Should I bike?"
ANSWER = [
    *words("It is -3 degrees with snow and a wind of 9 m/s. I would not bike: the roads are likely to be"),
    Draw(" slippery", 0.31, ((" icy", 0.41), (" snowy", 0.1))),
    Draw(".", 0.93),
    *words(" Take the tram instead.", 0.7),
]
WEATHER = Call(
    "weather", {"city": "Oslo"}, ToolResult('{"degrees": -3, "sky": "snow", "wind_ms": 9}', duration_s=0.8)
)
STILL = Machine(1395864371, 5583457484, 0, 4, 3.7, 2_400_000_000, 2_400_000_000, 71.4)

Shot = Callable[[EdgeApp, Pilot[int]], Awaitable[None]]


async def chat(app: EdgeApp, pilot: Pilot[int]) -> None:
    """A turn with a tool."""
    for tool in app.talk.tools:
        # Where the code lies on this machine is nobody's business.
        tool.origin = tool.origin.replace(f"{ROOT}/tools/", "")
    await said(pilot, QUESTION)


def page(name: str, *keys: str) -> Shot:
    """A page after that turn, and keys pressed on it."""

    async def shot(app: EdgeApp, pilot: Pilot[int]) -> None:
        await chat(app, pilot)
        await pilot.press(PAGES[name].key.split(",")[0])
        await wait_until(pilot, lambda: app.page is not None and app.page.id == name)
        await settled(pilot)
        if name == "tokenizer":
            app.query_one("#tokenizer TextArea", TextArea).text = QUESTION
        for key in keys:
            await pilot.press(key)
        await settled(pilot)

    return shot


def earlier_chats(folder: Path) -> edgellm.ChatIndex:
    """Two chats of another day."""
    index = edgellm.ChatIndex(folder)
    for title, answer in EARLIER.items():
        there = (Message("user", title), Message("assistant", answer))
        branch = SavedBranch(0, "main", there, is_current=True)
        record_branches(index, title, title=title, model="smollm2-135m", branches=[branch], tokens=40)
    return index


def noon(_stamp: float) -> str:
    """The time of every chat."""
    return "12:04"


def known_models() -> list[ModelRow]:
    """The catalogue as on a machine that has the default model."""
    return [replace(row, is_here=row.is_default) for row in model_page.model_rows()]


SHOTS: dict[str, tuple[tuple[int, int], Shot]] = {
    "chat": (SIZE, chat),
    "chat-wide": (WIDE, chat),
    "sampler": (SIZE, page("sampler", "down", "down", "down", *["right"] * 12)),
    **{
        name: (SIZE, page(name))
        for name in (
            "inspect",
            "branches",
            "tokenizer",
            "tools",
            "settings",
            "meters",
            "help",
            "chats",
            "model",
        )
        if name in PAGES
    },
}


def take(names: Sequence[str], folder: Path) -> None:
    """Writes the pictures with these names."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = known_models()
    for name in names:
        size, shot = SHOTS[name]

        async def play(app: EdgeApp, pilot: Pilot[int], name: str = name, shot: Shot = shot) -> None:
            await shot(app, pilot)
            picture = app.export_screenshot(title=f"edgellm: {name}")
            (folder / f"{name}.svg").write_text(picture, encoding="utf-8")

        with (
            tempfile.TemporaryDirectory() as home,
            # What differs from day to day and from machine to machine.
            patch("edgellm_tui.chats.when", noon),
            patch("edgellm_tui.branches.when", noon),
            patch("edgellm_tui.model_page.model_rows", partial(list, rows)),
            patch("edgellm_tui.model_page.available_bytes", lambda: 8_000_000_000),
        ):
            run(
                play,
                [[WEATHER, *ANSWER]],
                size=size,
                settings=Settings(glyphs="box"),
                machine=STILL,
                index=earlier_chats(Path(home)),
            )
        print(folder / f"{name}.svg")


def main() -> None:
    """All pictures, or those named, in a home of their own: nothing of the user's is shown."""
    with tempfile.TemporaryDirectory() as home:
        os.environ["EDGELLM_HOME"] = home
        # It is on the picture of the settings; nothing is written there.
        os.environ["EDGELLM_CONFIG_DIR"] = "/home/you/.config/edgellm"
        take(sys.argv[1:] or list(SHOTS), FOLDER)


if __name__ == "__main__":
    main()
