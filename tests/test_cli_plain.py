"""The line chat in words: who speaks is said, and lines come whole."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_harness import cli, terminal
from edgellm_tools.python import python

from edgellm.cli import approval
from edgellm.cli.plain import PlainTranscript
from edgellm.cli.transcript import Transcript
from edgellm.events import (
    ContextEvicted,
    Notice,
    PrefillProgress,
    ReasoningDelta,
    TextDelta,
    ToolDenied,
    ToolFinished,
    ToolRunning,
    TurnFinished,
)
from edgellm.toolbox.toolset import Toolset
from edgellm.types import Message, ToolCall, ToolResult
from edgellm.usage import Usage

CALL = ToolCall("call_0", "clock", {"zone": "Oslo"})
OTHER, THIRD = ToolCall("call_1", "clock", {}), ToolCall("call_2", "clock", {})


def test_a_turn_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    transcript = PlainTranscript()
    for event in (
        PrefillProgress(0, 900),
        PrefillProgress(512, 900),
        ReasoningDelta("What time"),
        ReasoningDelta(" is it?"),
        TextDelta("I will "),
        TextDelta("look.\nNow."),
        ToolRunning(CALL),
        ToolFinished(CALL, ToolResult("12:04\n\x1b[31m")),
        ToolFinished(OTHER, ToolResult("no zone", is_ok=False)),
        ToolDenied(THIRD, "not now"),
        ToolFinished(THIRD, ToolResult("not now", is_ok=False)),
        Notice("the context is nearly full"),
        ContextEvicted("evict", (Message("user", "Hi"), Message("assistant", "Hello")), 40),
        TextDelta("It is noon."),
        TurnFinished("It is noon.", "cancelled", Usage()),
    ):
        transcript.show(event)
    assert capsys.readouterr().out.split("\n") == [
        "status: reading 900 tokens",
        "thinking: What time is it?",
        "model: I will look.",
        "Now.",
        'tool: clock {"zone": "Oslo"}',
        "result: 12:04\\n\\x1b[31m",
        "tool: clock {}",
        "failed: no zone",
        "tool: clock {}",
        "not allowed: clock: not now",
        "status: the context is nearly full",
        "status: context: 2 old messages taken out to make room (40 tokens)",
        "model: It is noon.",
        "status: stopped",
        "",
    ]


@pytest.mark.parametrize("is_plain", [True, False])
def test_a_call_is_told_again_behind_a_turn_that_an_error_ended(
    capsys: pytest.CaptureFixture[str], is_plain: bool
) -> None:
    transcript = PlainTranscript() if is_plain else Transcript(calls=sys.stdout)
    for _turn in range(2):
        transcript.show(ToolRunning(CALL))
        transcript.end_turn()
    assert capsys.readouterr().out.count('clock {"zone": "Oslo"}') == 2


def test_nothing_of_a_line_is_printed_before_it_is_whole(capsys: pytest.CaptureFixture[str]) -> None:
    transcript = PlainTranscript()
    transcript.show(TextDelta("half a"))
    assert capsys.readouterr().out == ""
    transcript.show(TextDelta(" line\nand"))
    assert capsys.readouterr().out == "model: half a line\n"
    transcript.end_line()
    assert capsys.readouterr().out == "and\n"


def test_plain_words_and_logprobs_exclude_each_other() -> None:
    outcome = cli("chat", "--plain", "--logprobs", 3)
    assert outcome.code == 2 and "--plain" in outcome.err


@pytest.mark.slow
def test_a_dumb_terminal_is_talked_to_in_words(tiny_model: Callable[..., Path]) -> None:
    options = ("-m", tiny_model("llama"), "--no-tools", "--max-tokens", 3)
    with terminal("chat", "--plain", *options, env={"TERM": "dumb"}) as tty:
        tty.wait_for("you: ")
        tty.type("Hello\n")
        tty.wait_for("model: ")
        tty.wait_for("you: ")
        tty.type("\x04")
        assert tty.code() == 0
        assert "\x1b" not in tty.text


def test_a_question_shows_all_of_what_would_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(approval, "_is_somebody_there", lambda: True)
    monkeypatch.setattr(approval, "_typed_line", lambda: "n\n")
    code = "print(1)\n" * 2_000 + "delete_everything()"
    call = ToolCall("1", python.name, {"code": code})
    answer = approval.Approver(Toolset(python))(call, python.spec, "python asks.")
    assert answer.decision == "deny"
    assert "delete_everything()" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_what_was_typed_before_a_question_does_not_answer_it(monkeypatch: pytest.MonkeyPatch) -> None:
    master, slave = os.openpty()
    monkeypatch.setattr(approval, "_is_somebody_there", lambda: True)
    with os.fdopen(slave, encoding="utf-8") as typed, os.fdopen(master, "wb", buffering=0) as keys:
        monkeypatch.setattr(sys, "stdin", typed)

        def read() -> str:
            keys.write(b"n\n")
            return typed.readline()

        monkeypatch.setattr(approval, "_typed_line", read)
        keys.write(b"y\n")
        answer = approval.Approver(Toolset(python))(ToolCall("1", "python", {"code": ""}), python.spec, "")
    assert answer.decision == "deny"
