"""What reaches the terminal: colours it can show, no more bytes than its line carries, pages at any size, the mouse."""

from __future__ import annotations

import asyncio
import importlib.util
import io
import os
import re
import threading
from collections import deque
from collections.abc import Callable
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
from cli_harness import terminal
from edgellm_tui.app import EdgeApp
from edgellm_tui.look import fitting_theme
from edgellm_tui.pages import PAGES
from edgellm_tui.rows import Rows
from edgellm_tui.settings import Settings
from edgellm_tui.slow_link import PacedFile, Pacer, paced_driver
from edgellm_tui.typed_bytes import take_any_bytes
from textual.driver import Driver
from textual.drivers import linux_driver
from textual.drivers.headless_driver import HeadlessDriver
from textual.pilot import Pilot
from textual.widget import Widget
from tui_harness import LARGE, SMALL, run, said, screen_text, settled, shown, wait_until
from tui_scripted import Clock, words

MANY_COLOURS = re.compile(r"\x1b\[[0-9;]*[34]8;[25];")


class Line(io.StringIO):
    """What was sent, and when."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock
        self.sent: list[tuple[float, int]] = []

    def write(self, text: str) -> int:
        self.sent.append((self.clock(), len(text.encode())))
        return super().write(text)


# -- a slow line --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("speed", [1, 300, 2400])
@pytest.mark.parametrize("text", ["plain " * 200, "─" * 500, "a─👋" * 100])
def test_no_second_carries_more_than_the_line_does(speed: int, text: str) -> None:
    clock = Clock()
    pacer = Pacer(speed, clock=clock, sleep=clock.advance)
    line = Line(clock)
    size = len(text.encode())
    pacer.hand_over(size)
    assert pacer.owed_s == pytest.approx(size / speed)
    PacedFile(line, pacer).write(text)
    assert line.getvalue() == text
    assert pacer.owed_s == 0
    slack = max(4, pacer.slice_bytes)
    for start, _ in line.sent:
        assert sum(count for at, count in line.sent if start <= at < start + 1) <= speed + slack


def test_a_line_that_was_idle_is_free_at_once() -> None:
    clock = Clock()
    pacer = Pacer(100, clock=clock, sleep=clock.advance)
    file = PacedFile(Line(clock), pacer)
    file.write("x" * 10)
    clock.advance(60)
    before = clock()
    file.write("x" * 10)
    assert clock() == before
    assert file.isatty() is False


def test_the_driver_hands_over_what_it_writes() -> None:
    class Recorder(HeadlessDriver):
        _file = io.StringIO()

        def write(self, data: str) -> None:
            self._file.write(data)

    clock = Clock()
    pacer = Pacer(100, clock=clock, sleep=clock.advance)
    kind = paced_driver(Recorder, pacer)

    async def play(app: EdgeApp, pilot: Pilot[int]) -> None:
        driver: Driver = kind(app)
        before = clock()
        driver.write("─" * 100)
        assert clock() - before >= 2.5
        assert pacer.owed_s == 0

    run(play)


def test_frames_wait_for_what_the_line_still_owes() -> None:
    async def play(app: EdgeApp, pilot: Pilot[int]) -> None:
        assert app.pacer is not None and app.driver_class.__name__ == "PacedDriver"
        quick = app.frames.interval_s
        app.pacer.hand_over(9600)
        assert quick < 1 and app.frames.interval_s >= 4

    run(play, settings=Settings(slow_link_bps=2400))


def test_a_frame_comes_where_the_clock_leaps_while_it_is_asked_for() -> None:
    leaping = SimpleNamespace(get_time=count(0.0, 1.0).__next__, sleep=asyncio.sleep)

    async def play(app: EdgeApp, pilot: Pilot[int]) -> None:
        # Textual's timers skip what is late when they start, a frame must not be.
        with patch("textual.timer._time", leaping), patch("edgellm_tui.frames._FASTEST_S", 0.1):
            app.frames.begun()
            app.frames.wake()
            await wait_until(pilot, lambda: not app.frames.is_due)

    run(play)


def test_an_error_in_a_frame_ends_the_app() -> None:
    async def play(app: EdgeApp, pilot: Pilot[int]) -> None:
        with patch.object(app, "draw", side_effect=ZeroDivisionError):
            app.frames.wake()
            await wait_until(pilot, lambda: app.return_code)

    with pytest.raises(ZeroDivisionError):
        run(play)


def test_without_a_cap_the_driver_is_textuals_own() -> None:
    async def play(app: EdgeApp, pilot: Pilot[int]) -> None:
        assert app.pacer is None and app.driver_class.__name__ != "PacedDriver"

    run(play)


# -- terminals ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("term", "colours", "theme"),
    [
        ("linux", "", "ansi-dark"),
        ("xterm", "", "ansi-dark"),
        ("xterm", "truecolor", "textual-dark"),
        ("xterm-256color", "", "textual-dark"),
    ],
)
def test_the_theme_fits_the_terminal(
    monkeypatch: pytest.MonkeyPatch, term: str, colours: str, theme: str
) -> None:
    monkeypatch.setenv("TERM", term)
    monkeypatch.setenv("COLORTERM", colours)
    assert fitting_theme(["ansi-dark", "textual-dark"]) == theme
    assert fitting_theme(["textual-dark"]) == "textual-dark"


def strange(app: EdgeApp) -> set[str]:
    """What is on the screen and in few fonts of a console: `·`, a space of a token, is in all of them."""
    return {each for each in screen_text(app) if not each.isascii() and each != "·"}


@pytest.mark.slow
@pytest.mark.parametrize("page", ["", *PAGES])
def test_on_a_linux_console_pages_are_drawn_in_ascii(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # What models say of themselves may be in any script.
    monkeypatch.setattr("edgellm.native.library._log", deque())

    async def play(app: EdgeApp, pilot: Pilot[int]) -> None:
        assert app.theme == "ansi-dark" and app.glyphs.name == "ascii"
        await said(pilot, "Hello")
        if page:
            await app.action_page(page)
        await settled(pilot)
        view = app.page or app.conversation
        for bar in (each for each in view.walk_children(Widget) if each.max_scroll_y > 0):
            bar.scroll_to(y=1, animate=False)
        await pilot.pause()
        assert not strange(app), screen_text(app)

    # As low as this, there is more on most pages than they show.
    size = (80, 14)
    answer = words("\n\n".join(f"Line {number}" for number in range(30)))
    run(play, [answer], size=size, settings=Settings(), environment={"TERM": "linux", "COLORTERM": ""})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("environment", "refused"),
    [
        ({"TERM": "xterm", "COLORTERM": ""}, MANY_COLOURS),
        ({"TERM": "xterm-256color", "COLORTERM": "truecolor", "NO_COLOR": "1"}, MANY_COLOURS),
    ],
)
def test_a_terminal_gets_only_colours_it_can_show(
    tiny_model: Callable[..., Path], environment: dict[str, str], refused: re.Pattern[str]
) -> None:
    config = Path(os.environ["EDGELLM_CONFIG_DIR"])
    config.mkdir(parents=True)
    (config / "app.toml").write_text(f'model = "{tiny_model("llama")}"\n', encoding="utf-8")
    env = {"COLUMNS": "80", "LINES": "24", "COLORTERM": "", **environment}
    with terminal(env=env) as tty:
        tty.wait_for("READY")
        tty.type("\x11")
        assert tty.code() == 0
        assert not refused.search(tty.text) or is_grey(tty.text)


def is_grey(text: str) -> bool:
    """Whether all colours of a text are shades of grey."""
    triples = re.findall(r"[34]8;2;(\d+);(\d+);(\d+)", text)
    return bool(triples) and all(red == green == blue for red, green, blue in triples)


# -- size and mouse -----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["help", "tokenizer", "sampler", "tools", "settings", "meters", "log"])
def test_a_page_follows_the_size_of_the_terminal(name: str) -> None:
    async def play(app: EdgeApp, pilot: Pilot[int]) -> None:
        await said(pilot, "How warm is the sea?")
        await app.action_page(name)
        for width, height in (LARGE, (40, 12), SMALL, (120, 30)):
            await pilot.resize_terminal(width, height)
            await settled(pilot)
            await wait_until(
                pilot,
                lambda width=width: (
                    screen_text(app).rstrip("\n").endswith("^q quit")
                    and (name == "meters" or len(screen_text(app).split("\n")[1]) == width)
                ),
            )
            lines = screen_text(app).rstrip("\n").split("\n")
            assert len(lines) <= height and max(map(len, lines)) <= width
            assert app.page is not None and app.page.id == name
            assert lines[-1].endswith("^q quit")
            assert name == "meters" or len(lines[1]) == width

    run(play, [words("It is warm.")])


def test_the_end_of_the_answer_stays_in_sight_whatever_the_size_and_so_does_another_place() -> None:
    async def play(app: EdgeApp, pilot: Pilot[int]) -> None:
        await said(pilot, "Count.")
        for size in ((60, 15), SMALL, LARGE, (50, 12), SMALL):
            await pilot.resize_terminal(*size)
            await settled(pilot)
            assert "\n  n39" in screen_text(app), size
            await wait_until(pilot, lambda: screen_text(app).split("\n")[0].endswith("tok/s"), str(size))
        app.conversation.scroll_home(animate=False)
        await pilot.pause()
        for size in ((60, 15), SMALL):
            await pilot.resize_terminal(*size)
            await settled(pilot)
            assert "> Count." in screen_text(app) and "\n  n39" not in screen_text(app), size

    run(play, [words("\n\n".join(f"n{number}" for number in range(40)))])


def test_the_mouse_chooses_a_line_and_picks_it() -> None:
    async def play(app: EdgeApp, pilot: Pilot[int]) -> None:
        await pilot.press("f8")
        await shown(pilot, "calculator")
        rows = app.query_one("#tools Rows", Rows)
        await pilot.click(rows, offset=(6, 2))
        await wait_until(pilot, lambda: rows.chosen == 2)
        await pilot.click(rows, offset=(6, 2))
        await shown(pilot, "arguments as JSON")

    run(play)


def test_a_long_list_keeps_the_chosen_line_in_sight() -> None:
    async def play(app: EdgeApp, pilot: Pilot[int]) -> None:
        await pilot.press("f9")
        await shown(pilot, "settings, kept in")
        await pilot.press("end")
        await wait_until(
            pilot, lambda: any(line.startswith("> key") for line in screen_text(app).split("\n"))
        )
        await pilot.press("pageup", "home")
        await wait_until(
            pilot, lambda: any(line.startswith("> theme") for line in screen_text(app).split("\n"))
        )

    run(play)


# -- pictures -----------------------------------------------------------------------------------------------------


def test_a_screenshot_is_a_picture_of_the_page(tmp_path: Path) -> None:
    path = Path(__file__).parents[1] / "scripts" / "screenshots.py"
    spec = importlib.util.spec_from_file_location("screenshots", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.take(["meters"], tmp_path)
    picture = (tmp_path / "meters.svg").read_text(encoding="utf-8")
    assert picture.startswith("<svg") and "METERS" in picture


def test_the_tour_shows_pictures_that_are_there_and_every_page_key() -> None:
    docs = Path(__file__).parents[1] / "docs"
    tour = (docs / "tui-tour.md").read_text(encoding="utf-8")
    for name in re.findall(r"\]\((screens/[\w-]+\.svg)\)", tour):
        assert (docs / name).is_file(), name
    for info in PAGES.values():
        key = info.key.upper() if info.key[1:].isdigit() else info.key
        assert f"| {key} |" in tour, info


def test_bytes_that_are_no_text_do_not_end_the_app() -> None:
    take_any_bytes(linux_driver.LinuxDriver)
    came, typed = os.pipe()
    os.write(typed, b"caf\xe9 \xff!")
    os.close(typed)
    keys: list[str] = []
    driver: Any = object.__new__(linux_driver.LinuxDriver)
    driver.fileno, driver._debug, driver.exit_event = came, False, threading.Event()

    def take(event: Any) -> None:
        keys.append(event.character)
        if event.character == "!":
            driver.exit_event.set()

    driver.process_message = take
    driver.run_input_thread()
    os.close(came)
    assert keys == [*"caf\ufffd \ufffd!"]
