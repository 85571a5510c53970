"""What the line chat does at the prompt: old turns are summed up ahead, and the user's line ends that at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_harness import terminal

import edgellm
from edgellm.cli.idle import AFTER_S, Idle

EVENT = edgellm.ContextEvicted("summarize", (), 40)


class Waiting:
    """A chat whose tidying goes on until it is stopped, where it `lasts`."""

    def __init__(
        self, policy: str = "summarize", *, lasts: bool = False, error: Exception | None = None
    ) -> None:
        self.context_policy = policy
        self.begun, self.stopped = threading.Event(), threading.Event()
        self._lasts, self._error = lasts, error
        self.was_wanted = True

    def tidy(self, *, is_wanted: Callable[[], bool]) -> tuple[Any, ...]:
        self.begun.set()
        if self._lasts:
            assert self.stopped.wait(20)
        self.was_wanted = is_wanted()
        if self._error is not None:
            raise self._error
        return (EVENT,)

    def stop_tidy(self) -> None:
        self.stopped.set()


def idle(chat: Any, after_s: float = 0.0) -> Idle:
    # Any: what plays a Chat.
    return Idle(chat, after_s=after_s)


def test_it_begins_when_the_user_takes_time_and_gives_what_was_done() -> None:
    chat = Waiting()
    with idle(chat) as waited:
        assert chat.begun.wait(20)
    assert waited.events == (EVENT,)


def test_leaving_ends_it_at_once() -> None:
    chat = Waiting(lasts=True)
    with idle(chat) as waited:
        assert chat.begun.wait(20)
    assert not chat.was_wanted and waited.events == (EVENT,)
    assert not any(isinstance(thread, threading.Timer) for thread in threading.enumerate())


@pytest.mark.parametrize(("policy", "after_s"), [("evict", 0.0), ("stop", 0.0), ("summarize", 60.0)])
def test_other_policies_and_quick_users_have_nothing_done(policy: str, after_s: float) -> None:
    chat = Waiting(policy)
    with idle(chat, after_s) as waited:
        assert not chat.begun.wait(0.1)
    assert waited.events == ()


def test_what_is_wrong_is_left_to_the_next_turn() -> None:
    chat = Waiting(error=edgellm.ConfigError("the chat is closed.", hint="Open another one."))
    with idle(chat) as waited:
        assert chat.begun.wait(20)
    assert waited.events == ()


@pytest.mark.slow
def test_at_a_terminal_it_is_told_before_the_next_answer(model: Path) -> None:
    words = ("chat", "-m", model, "--no-tools", "--ctx", 512, "--when-full", "summarize", "--max-tokens", 80)
    with terminal(*words, "--sampler", "logit_bias({2: -inf}) | dist(seed=3)") as tty:
        for text in ("the user " * 12, "the assistant " * 8, "and the user " * 8):
            tty.wait_for("> ")
            tty.type(f"{text}\n")
            tty.wait_for("cut off")
        tty.wait_for("> ")
        time.sleep(AFTER_S + 1)
        tty.type("\n")
        tty.wait_for("to make room")
        tty.wait_for("> ")
        tty.type("And now?\n")
        tty.wait_for("> ")
        tty.type("\x04")
        assert tty.code() == 0
