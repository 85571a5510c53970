"""Driving the app in tests: a scripted runtime, waiting for what must come, and screens compared with files."""

from __future__ import annotations

import asyncio
import difflib
import os
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

from edgellm_tui.app import EdgeApp
from edgellm_tui.machine import Machine
from edgellm_tui.settings import Settings
from rich.segment import Segment
from textual.pilot import Pilot
from tui_scripted import Clock, Item, ScriptedRuntime

SCREENS = Path(__file__).parent / "data" / "screens"
SMALL, LARGE = (80, 24), (200, 50)
_PATIENCE_S = 20.0
_ENVIRONMENT = {
    "TERM": "xterm-256color",
    "COLORTERM": "truecolor",
    "LANG": "C.UTF-8",
    "LC_ALL": "C.UTF-8",
}

STILL = Machine(412 << 20, 3 << 30, 0, 4, 1.5, 2_400_000_000, 2_400_000_000, 61.2)

Play = Callable[[EdgeApp, Pilot[int]], Awaitable[None]]


def run(
    play: Play,
    turns: Sequence[Sequence[Item]] = (),
    *,
    runtime: Any = None,
    size: tuple[int, int] = SMALL,
    settings: Settings | None = None,
    no_color: bool = False,
    environment: dict[str, str] | None = None,
    waits_for_chat: bool = True,
    machine: Machine = STILL,
    **options: Any,
) -> None:
    """Opens the app on a scripted runtime of these turns, and plays with it once a chat is open.

    `runtime` may be another object with `load(name)`; `options` go to EdgeApp. A failure of the app is raised.
    """
    runtime = runtime or ScriptedRuntime(turns)
    environ = {**_ENVIRONMENT, **({"NO_COLOR": "1"} if no_color else {}), **(environment or {})}
    settings = settings or Settings(glyphs="box")
    options = {"load": runtime.load, "clock": getattr(runtime, "clock", Clock()), **options}

    async def whole() -> None:
        app = EdgeApp(settings=settings, **options)
        try:
            async with app.run_test(size=size) as pilot:
                if waits_for_chat:
                    await wait_until(pilot, lambda: app.talk.is_ready)
                    await settled(pilot)
                await play(app, pilot)
        finally:
            app.worker.close()

    with (
        patch.dict(os.environ, environ),
        # A machine under load would say so in the status line.
        patch("edgellm_tui.accounts.read_machine", lambda: machine),
        # Nobody looks on: frames and the wait for a quiet process need not be told apart by an eye.
        patch.multiple("edgellm_tui.frames", _FASTEST_S=0.01, _SLOWEST_S=0.01),
        patch.multiple("textual._wait", SLEEP_GRANULARITY=0.004, SLEEP_IDLE=0.0002),
    ):
        if not no_color:
            os.environ.pop("NO_COLOR", None)
        asyncio.run(whole())


async def wait_until(pilot: Pilot[Any], is_true: Callable[[], Any], what: str = "") -> None:
    """Lets the app run until something is true; fails with the screen where that does not come."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _PATIENCE_S
    while not is_true():
        if loop.time() > deadline:
            raise AssertionError(f"{what or 'what was waited for'} did not come:\n{screen_text(pilot.app)}")
        await pilot.pause(0.01)


async def settled(pilot: Pilot[Any]) -> None:
    """Waits until no turn is open and all that came is on the screen."""
    app = pilot.app
    assert isinstance(app, EdgeApp)
    await wait_until(
        pilot,
        lambda: not app.worker.is_busy and app.is_quiet and app.accounts.is_current,
        "the end of the turn",
    )
    await pilot.pause()


async def shown(pilot: Pilot[Any], text: str) -> None:
    """Waits until a text is on the screen."""

    def is_shown() -> bool:
        try:
            return text in screen_text(pilot.app)
        except KeyError:  # a widget that is just being removed has lost its styles
            return False

    await wait_until(pilot, is_shown, repr(text))


async def say(pilot: Pilot[Any], text: str) -> None:
    """Types a message and sends it."""
    app = pilot.app
    assert isinstance(app, EdgeApp)
    app.prompt.focus()
    app.prompt.insert(text)
    await pilot.press("enter")
    await pilot.pause()


async def said(pilot: Pilot[Any], text: str) -> None:
    """The same, and waits for the end of the turn."""
    await say(pilot, text)
    await settled(pilot)


# -- screens ------------------------------------------------------------------------------------------------------


def screen_lines(app: Any) -> list[list[Segment]]:
    """The screen as it is, in segments. The compositor is Textual's own business: this is the one place that asks."""
    return [list(strip) for strip in app.screen._compositor.render_strips()]


def screen_text(app: Any) -> str:
    """The screen as text, without spaces at the ends of lines."""
    lines = ["".join(segment.text for segment in line).rstrip() for line in screen_lines(app)]
    return "\n".join(lines) + "\n"


def screen_colours(app: Any) -> set[str]:
    """All colours on the screen that are no shade of grey."""
    found: set[str] = set()
    for line in screen_lines(app):
        for segment in line:
            style = segment.style
            for colour in (style.color, style.bgcolor) if style is not None else ():
                if colour is None or colour.is_default:
                    continue
                red, green, blue = colour.get_truecolor()
                if not red == green == blue:
                    found.add(colour.name)
    return found


def compare_screen(app: Any, name: str) -> None:
    """Compares the screen with tests/data/screens/NAME.txt; EDGELLM_UPDATE_SCREENS=1 writes that file anew.

    Without the line of keys, which differs with every page that is added: test_tui_pages.py has that.
    """
    path = SCREENS / f"{name}.txt"
    now = "\n".join(screen_text(app).split("\n")[:-2]) + "\n"
    if os.environ.get("EDGELLM_UPDATE_SCREENS") == "1":
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(now, encoding="utf-8")
        return
    assert path.exists(), (
        f"{path} is missing: look at the screen, then EDGELLM_UPDATE_SCREENS=1 writes it\n{now}"
    )
    before = path.read_text(encoding="utf-8")
    if now != before:
        difference = difflib.unified_diff(
            before.splitlines(), now.splitlines(), "file", "screen", lineterm=""
        )
        raise AssertionError(f"the screen differs from {path.name}:\n" + "\n".join(difference))
