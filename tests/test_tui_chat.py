"""The chat in the app: messages, answers, stopping, errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from edgellm_tui.app import EdgeApp
from edgellm_tui.prompt import Prompt
from edgellm_tui.settings import Settings
from textual.pilot import Pilot
from tui_harness import (
    LARGE,
    SMALL,
    compare_screen,
    run,
    said,
    say,
    screen_colours,
    screen_text,
    settled,
    shown,
    wait_until,
)
from tui_scripted import Call, Draw, Gate, ScriptedRuntime, words

import edgellm

OSLO = [
    *words("Let me look that up."),
    Call("get_weather", {"city": "Oslo"}, edgellm.ToolResult('{"temp_c": -3}', duration_s=0.8)),
    *words("It is **-3 C** in Oslo.\n\n- wear a coat\n- take"),
    Draw(" the tram", 0.23, ((" a bus", 0.41), (" skis", 0.1))),
]


@pytest.mark.parametrize(("size", "name"), [(SMALL, "80x24"), (LARGE, "200x50")])
@pytest.mark.parametrize("no_color", [False, True])
def test_a_turn_with_a_tool_is_drawn_whole(size: tuple[int, int], name: str, no_color: bool) -> None:
    async def play(app: EdgeApp, pilot: Pilot[Any]) -> None:
        await said(pilot, "What is the weather like in Oslo?")
        compare_screen(app, f"chat-{name}")
        assert bool(screen_colours(app)) != no_color

    run(play, [OSLO], size=size, no_color=no_color)


def test_escape_stops_the_answer_and_then_nothing_moves() -> None:
    async def play(app: EdgeApp, pilot: Pilot[Any]) -> None:
        await say(pilot, "Count.")
        await shown(pilot, "one two")
        assert "DECODE" in screen_text(app)
        await pilot.press("escape")
        await settled(pilot)
        assert "STOPPED" in screen_text(app)
        before, drawn = screen_text(app), app.conversation.drawn_lines
        await pilot.pause(0.6)
        assert screen_text(app) == before
        assert app.conversation.drawn_lines == drawn

    run(play, [[*words("one two"), Gate(), *words(" three")]])


def test_an_error_of_the_engine_is_a_message_and_the_app_goes_on() -> None:
    async def play(app: EdgeApp, pilot: Pilot[Any]) -> None:
        await said(pilot, "one")
        assert "! error: The batch failed. Try again." in screen_text(app)
        await said(pilot, "two")
        assert "boom" in screen_text(app)
        await said(pilot, "three")
        assert "  fine" in screen_text(app)

    turns = [
        [edgellm.DecodeError("The batch failed.", hint="Try again.")],
        [RuntimeError("boom")],
        words("fine"),
    ]
    run(play, turns)


def test_what_is_sent_during_an_answer_waits_for_its_end() -> None:
    gate = Gate()

    async def play(app: EdgeApp, pilot: Pilot[Any]) -> None:
        await say(pilot, "one")
        await wait_until(pilot, gate.reached.is_set)
        await say(pilot, "two")
        assert "1 waiting to be sent" in screen_text(app)
        gate.open()
        await shown(pilot, "second")
        await settled(pilot)
        chat: Any = app.talk.current.chat
        assert [text for text, _ in chat.sent] == ["one", "two"]

    run(play, runtime=ScriptedRuntime([[*words("first"), gate], words("second")]))


def test_a_message_that_cannot_be_sent_does_not_hold_up_those_behind_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    gate = Gate()

    async def play(app: EdgeApp, pilot: Pilot[Any]) -> None:
        await say(pilot, "one")
        await wait_until(pilot, gate.reached.is_set)
        note = Path("note.txt")
        note.write_text("x", encoding="utf-8")
        await say(pilot, "two @note.txt")
        await say(pilot, "three")
        note.unlink()
        gate.open()
        await shown(pilot, "second")
        await settled(pilot)
        chat: Any = app.talk.current.chat
        assert [text for text, _ in chat.sent] == ["one", "three"]
        assert "note.txt cannot be read" in screen_text(app)

    run(play, runtime=ScriptedRuntime([[*words("first"), gate], words("second")]))


def test_what_could_not_be_saved_is_not_called_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGELLM_STATE_DIR", "/proc/none")

    async def play(app: EdgeApp, pilot: Pilot[Any]) -> None:
        await said(pilot, "hi")
        for _ in range(2):
            await say(pilot, "/save")
            await pilot.pause(0.1)
            assert "cannot be used" in screen_text(app) and app.talk.kept.is_unsaved
            assert " saved\n" not in screen_text(app)

    run(play, [words("hello")])


def test_pause_in_the_typing_has_the_draft_computed_and_sending_ends_it() -> None:
    runtime = ScriptedRuntime([words("Fine.")])
    runtime.drafts_last = True

    async def play(app: EdgeApp, pilot: Pilot[Any]) -> None:
        chat: Any = app.talk.current.chat
        app.prompt.focus()
        for text in ("How ", "are "):
            app.prompt.insert(text)
            await pilot.pause()
        await wait_until(pilot, chat.is_drafting.is_set)
        assert chat.drafts == ["How are "]
        await say(pilot, "you?")
        await shown(pilot, "Fine.")
        await settled(pilot)
        assert chat.draft_stopped.is_set()
        assert [text for text, _ in chat.sent] == ["How are you?"]
        assert chat.drafts == ["How are "]

    run(play, runtime=runtime)


@pytest.mark.parametrize(("text", "computes"), [("/help me", True), ("Hello", False)])
def test_commands_are_no_drafts_and_the_setting_turns_drafts_off(text: str, computes: bool) -> None:
    async def play(app: EdgeApp, pilot: Pilot[Any]) -> None:
        chat: Any = app.talk.current.chat
        app.on_prompt_paused(Prompt.Paused(text))
        app.on_prompt_paused(Prompt.Paused("  "))
        await settled(pilot)
        assert chat.drafts == []

    run(play, settings=Settings(glyphs="box", compute_drafts=computes))
