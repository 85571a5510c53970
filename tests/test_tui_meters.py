"""The meters page: what its figures are of."""

from __future__ import annotations

from typing import Any

from edgellm_tui.app import EdgeApp
from textual.pilot import Pilot
from tui_harness import run, say, settled, shown, wait_until
from tui_scripted import Gate, words


def test_the_speed_is_that_of_now_or_of_the_last_answer() -> None:
    gate = Gate()

    async def play(app: EdgeApp, pilot: Pilot[Any]) -> None:
        await say(pilot, "How warm is Oslo?")
        await wait_until(pilot, gate.reached.is_set)
        await app.action_page("meters")
        await shown(pilot, "decode  10.0 tok/s now")
        gate.open()
        await settled(pilot)
        await shown(pilot, "decode  10.0 tok/s last, 10.0 tok/s in all")

    run(play, [[*words("It is cold there."), gate]])
