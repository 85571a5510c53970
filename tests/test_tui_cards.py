"""Tool cards and reasoning: what is shown while they come, and what is folded when they are over."""

from __future__ import annotations

from typing import Any

import edgellm_tui.app
import pytest
from edgellm_tui.app import EdgeApp
from edgellm_tui.blocks import ReasoningBlock
from edgellm_tui.look import Look, Palette
from edgellm_tui.read_back import blocks_of
from edgellm_tui.settings import settings_path
from edgellm_tui.strand import Strand
from rich.console import Console
from rich.style import Style
from textual.pilot import Pilot
from tui_harness import run, said, say, screen_text, settled, shown, wait_until
from tui_scripted import Call, Gate, words

import edgellm

LONG = "\n".join(f"line {number}" for number in range(1, 31))


def test_a_card_fills_in_while_its_arguments_are_written() -> None:
    gates = Gate(), Gate(), Gate()
    call = edgellm.ToolCall("c1", "get_weather", {"city": "Oslo"})
    turn = [
        edgellm.ToolCallStarted(0),
        edgellm.ToolCallName(0, "get_weather"),
        edgellm.ToolCallDelta(0, '{"city": "Os'),
        gates[0],
        edgellm.ToolCallDelta(0, 'lo"}'),
        edgellm.ToolCallReady(0, call),
        edgellm.ToolApproved(call, "auto"),
        edgellm.ToolRunning(call),
        gates[1],
        edgellm.ToolFinished(call, edgellm.ToolResult("-3 C", duration_s=1.25)),
        gates[2],
    ]

    async def play(app: EdgeApp, pilot: Pilot[Any]) -> None:
        await say(pilot, "Weather?")
        await shown(pilot, 'tool get_weather({"city": "Os)')
        assert "WRITING" in screen_text(app)
        gates[0].open()
        await shown(pilot, 'tool get_weather(city="Oslo")')
        await shown(pilot, "RUNNING")
        assert "TOOL " in screen_text(app).splitlines()[0]
        gates[1].open()
        await shown(pilot, "OK 1.2 s")
        assert "│ -3 C" in screen_text(app)
        gates[2].open()
        await settled(pilot)

    run(play, [turn])


def test_calls_that_go_wrong_say_how() -> None:
    first, second = (edgellm.ToolCall(f"c{number}", "clock", {}) for number in (1, 2))
    turn = [
        edgellm.ToolCallStarted(0),
        edgellm.ToolCallBroken(0, '{"name": clo', "no JSON"),
        edgellm.ToolCallStarted(1),
        edgellm.CallRepaired(1, "{", "{}", "it was cut"),
        edgellm.ToolCallName(1, "clock"),
        edgellm.ToolCallReady(1, first),
        edgellm.ToolRunning(first),
        edgellm.ToolFinished(first, edgellm.ToolResult("Error: no such zone", is_ok=False, duration_s=0.5)),
        edgellm.ToolCallStarted(2),
        edgellm.ToolCallReady(2, second),
        edgellm.ToolDenied(second, "Not run: the user did not allow it."),
        edgellm.ToolFinished(second, edgellm.ToolResult("Not run: the user did not allow it.", is_ok=False)),
        edgellm.ToolCallStarted(3),
    ]

    async def play(app: EdgeApp, pilot: Pilot[Any]) -> None:
        await said(pilot, "go")
        lines = screen_text(app).splitlines()
        for wanted in ("BROKEN", "FAILED 0.5 s", "DENIED", "STOPPED"):
            assert any(line.endswith(wanted) and "tool " in line for line in lines), wanted
        text = "\n".join(lines)
        assert "| no JSON" in text and "written again: it was cut" in text
        assert text.count("the user did not allow it") == 1

    run(play, [turn], size=(100, 40))


def test_long_results_are_folded_and_unfold() -> None:
    async def play(app: EdgeApp, pilot: Pilot[Any]) -> None:
        await said(pilot, "go")
        assert "... 25 more lines (space unfolds)" in screen_text(app)
        app.conversation.focus()
        await pilot.press("space")
        await shown(pilot, "line 30")
        assert "args" in screen_text(app)
        await pilot.press("space")
        await shown(pilot, "25 more lines")

    run(play, [[Call("read", {"path": "x"}, edgellm.ToolResult(LONG, duration_s=0.1))]], size=(100, 60))


def test_reasoning_shows_its_last_line_and_folds_when_the_answer_begins() -> None:
    gate = Gate()

    async def play(app: EdgeApp, pilot: Pilot[Any]) -> None:
        await say(pilot, "why?")
        await shown(pilot, "thinking (")
        assert "| I wonder" in screen_text(app)
        gate.open()
        await settled(pilot)
        text = screen_text(app)
        assert "> thoughts (4 words)" in text and "I wonder" not in text and "  Because." in text
        (block,) = [block for block in app.talk.current.blocks if isinstance(block, ReasoningBlock)]
        app.conversation.chosen = app.talk.current.blocks.index(block)
        app.conversation.focus()
        await pilot.press("space")
        await shown(pilot, "| I wonder why that")

    run(play, [[*words("I wonder why that", is_reasoning=True), gate, *words("Because.")]])


def test_a_notice_in_the_middle_does_not_cut_the_answer_in_two() -> None:
    strand = Strand(1, None)
    strand.begin("x", 0.0)
    strand.hear(edgellm.TextDelta("one **tw"), 0.0)
    strand.note("of the user's own asking")
    strand.hear(edgellm.TextDelta("o** three"), 0.0)
    strand.end()
    assert [block.plain() for block in strand.blocks] == [
        "x",
        "one **two** three",
        "of the user's own asking",
    ]


def test_notices_and_what_gave_way_are_told() -> None:
    strand = Strand(1, None)
    strand.hear(edgellm.Notice("half the context"), 0.0)
    strand.hear(edgellm.ContextEvicted("drop", (edgellm.Message("user", "x"),), 40), 0.0)
    strand.hear(edgellm.HistoryRewritten("excise", 12, 0, True), 0.0)
    told = [block.plain() for block in strand.blocks]
    assert told[0] == "half the context" and "40 tokens" in told[1] and "12 tokens" in told[2]


def test_a_notice_in_the_middle_does_not_cut_the_answer() -> None:
    strand = Strand(1, None)
    for event in (edgellm.TextDelta("go on "), edgellm.Notice("in circles"), edgellm.TextDelta("and on")):
        strand.hear(event, 0.0)
    strand.end()
    assert [block.plain() for block in strand.blocks] == ["go on and on", "in circles"]
    assert strand.last_answer == "go on and on"


def test_forced_tokens_do_not_count_for_the_speed() -> None:
    strand = Strand(1, None)
    strand.begin("x", 0.0)
    for position in range(40):
        strand.hear(edgellm.TokenDrawn(edgellm.Step(1, b"x", position, is_forced=True)), 0.001 * position)
    assert strand.tok_s == 0.0
    for position in range(3):
        strand.hear(edgellm.TokenDrawn(edgellm.Step(1, b"x", 40 + position)), 1.0 + position)
    assert strand.tok_s == pytest.approx(1.0)


def test_broken_settings_and_plugins_are_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    path = settings_path()
    (path.parent / "tools").mkdir(parents=True)
    path.write_text("theme = 7\n")
    (path.parent / "tools" / "bad.py").write_text("import absent_module\n")
    opened: list[EdgeApp] = []
    monkeypatch.setattr(EdgeApp, "run", lambda app: opened.append(app) or 0)
    assert edgellm_tui.app.run_app() == 0
    (broken,) = opened
    news = list(broken.news)

    async def play(app: EdgeApp, pilot: Pilot[Any]) -> None:
        await shown(pilot, "absent_module")
        app.news += news
        app.strand_changed()
        await shown(pilot, "theme is 7")
        await said(pilot, "hello")
        await wait_until(pilot, lambda: "  fine" in screen_text(app))

    run(play, [words("fine")], size=(120, 40))


def test_a_card_that_is_read_back_says_only_what_is_known_of_its_call() -> None:
    calls = tuple(edgellm.ToolCall(f"c{n}", "note", {"text": "\u4f60\u597d" * 30}) for n in range(3))
    told = [
        edgellm.Message("user", "Go."),
        edgellm.Message("assistant", tool_calls=calls),
        edgellm.Message("tool", "written", tool_call_id="c0"),
        edgellm.Message("tool", "Not run: the user did not allow note.", tool_call_id="c1"),
    ]
    _, cards = blocks_of(told)
    assert [card.state for card in cards.values()] == ["DONE", "DENIED", "STOPPED"]
    look = Look(60, Palette(*[Style.null()] * 7, code_theme="ansi_dark"), Console(width=60))
    for card in cards.values():
        head = card.lines(look)[0]
        assert head.text.rstrip().endswith(card.state) and head.cell_length <= 60
