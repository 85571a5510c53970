"""What the app does about the context of the open chat: what gives way, what stays, room made ahead of time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from edgellm_tui.app import EdgeApp
from edgellm_tui.settings import Settings
from textual.pilot import Pilot
from tui_harness import run, said, say, screen_text, settled, shown, wait_until
from tui_scripted import Gate, words

import edgellm


async def choose_policy(app: EdgeApp, pilot: Pilot[Any], keys: int) -> None:
    """Goes so many values further on the settings page, and back to the chat."""
    await pilot.press("f9", *["down"] * 5, *["right"] * keys, "escape")
    await settled(pilot)


def policies(app: EdgeApp) -> list[str]:
    return [strand.chat.context_policy for strand in app.talk.strands.values()]


# -- what gives way -----------------------------------------------------------------------------------------------


def test_another_policy_counts_at_once_in_all_branches_and_the_meters_say_so() -> None:
    async def play(app: EdgeApp, pilot: Pilot[Any]) -> None:
        await said(pilot, "one")
        await said(pilot, "/fork")
        await wait_until(pilot, lambda: len(app.talk.strands) == 2)
        await said(pilot, "two")
        await choose_policy(app, pilot, 1)
        assert policies(app) == ["evict", "evict"]
        await shown(pilot, "when the context fills: evict, from the next message on")
        await pilot.press("f10")
        await shown(pilot, "tokens (evict): the oldest turn")

    run(play, [words("I"), words("II")])


def test_during_an_answer_another_policy_counts_behind_it() -> None:
    gate = Gate()

    async def play(app: EdgeApp, pilot: Pilot[Any]) -> None:
        await say(pilot, "one")
        await wait_until(pilot, gate.reached.is_set)
        await pilot.press("f9", *["down"] * 5, "right", "f2")
        assert policies(app) == ["stop"]
        gate.open()
        await settled(pilot)
        await wait_until(pilot, lambda: policies(app) == ["evict"])
        assert "error" not in screen_text(app)

    run(play, [[*words("I"), gate]])


@pytest.mark.slow
def test_on_a_real_engine_a_chat_that_is_full_goes_on_under_the_policy_of_the_settings(
    tiny_model: Callable[..., Path],
) -> None:
    class Loading:
        def load(self, _model: str) -> Any:
            return edgellm.load(tiny_model("llama"), n_ctx=256, threads=1)

    async def play(app: EdgeApp, pilot: Pilot[Any]) -> None:
        for _ in range(40):
            await said(pilot, "the user and the assistant " * 3)
            if app.talk.current.state == "FAILED" or app.talk.current.finish_reason == "context_full":
                break
        else:
            raise AssertionError("the context did not fill")
        await choose_policy(app, pilot, 1)
        await said(pilot, "and now")
        assert app.talk.current.state == "READY", screen_text(app)
        assert any("taken out to make room" in block.plain() for block in app.talk.current.blocks)

    # A model of noise: without the bias its first answer fills the context.
    chain = "logit_bias({2: 7}) | dist(seed=3)"
    run(play, runtime=Loading(), settings=Settings(glyphs="box", tools=[], sampler=chain))
