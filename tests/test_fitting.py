"""Results longer than the room that is left: the model is shown what fits, and the chat goes on."""

from __future__ import annotations

import json
import random
import re
from typing import TYPE_CHECKING, Any

import pytest
from scripted_chats import CALL, script

import edgellm
from edgellm.context_policy import CONTEXT_POLICIES
from edgellm.toolbox.result import LONG_NOTICE
from edgellm.toolbox.results import ResultStore
from edgellm.toolbox.shortening import NO_ROOM, Shortening

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

N_CTX = 512
LINES = "\n".join(f"line {number} of the report" for number in range(300))
REPORT = CALL % ("report", "{}")
ON = re.compile(r"call read_more with (\{.*\})\]$")


@pytest.fixture(scope="module")
def runtime(tiny_model: Callable[..., Path]) -> Iterator[edgellm.Runtime]:
    with edgellm.load(tiny_model("llama"), n_ctx=N_CTX, n_seq_max=4, threads=1) as runtime:
        yield runtime


@edgellm.tool(permission="auto")
def report() -> str:
    """The report."""
    return LINES


def reports(runtime: edgellm.Runtime, *answers: str, **options: Any) -> edgellm.Chat:
    return runtime.chat(sampler=script(runtime, *answers), tools=[report], constraint="off", **options)


def notices(events: list[Any]) -> list[str]:
    return [event.message for event in events if isinstance(event, edgellm.Notice)]


def results(chat: edgellm.Chat) -> list[str]:
    return [message.content for message in chat.messages if message.role == "tool"]


@pytest.mark.parametrize("policy", CONTEXT_POLICIES)
def test_the_model_is_shown_what_fits_and_reads_on(runtime: edgellm.Runtime, policy: str) -> None:
    chat = reports(runtime, REPORT, "I see.", context_policy=policy)
    events = list(chat.send("Read it."))
    assert isinstance(events[-1], edgellm.TurnFinished) and events[-1].text == "I see."
    assert any("Of report's result the model is shown" in notice for notice in notices(events))
    (shown,) = results(chat)
    assert LINES.startswith(shown.partition("\n[cut: ")[0]) and shown.startswith("line 0")
    found = ON.search(shown)
    assert found is not None
    start = json.loads(found[1])["start"]
    assert start == len(shown.partition("\n[cut: ")[0])
    assert len(chat.tape) <= N_CTX and chat.conversation.session.check_memory()
    if policy == "evict":
        chat.set_sampler(script(runtime, CALL % ("read_more", found[1]), "Yes."))
        assert chat.ask("And then?") == "Yes."
        assert results(chat)[-1].startswith(LINES[start : start + 20])
    chat.close()


@pytest.mark.parametrize("policy", CONTEXT_POLICIES)
def test_a_turn_that_fills_the_context_alone_goes_with_what_waits_of_it(
    runtime: edgellm.Runtime, policy: str
) -> None:
    chat = reports(runtime, *[REPORT] * 20, context_policy=policy)
    for turn in range(8):
        try:
            list(chat.send(f"Read it again, {turn}."))
        except edgellm.ContextFull:
            assert chat.conversation.postponed
    if policy == "stop":
        # What helps in a full chat helps here.
        chat.set_context_policy("evict")
    chat.set_sampler(script(runtime, "Yes."))
    assert chat.ask("And?") == "Yes."
    assert chat.messages[-2].content == "And?" and not chat.conversation.postponed
    chat.close()


def test_results_that_wait_in_a_full_chat_do_not_keep_it_from_going_on(
    runtime: edgellm.Runtime, tmp_path: Path
) -> None:
    chat = reports(runtime, REPORT, "I see.")
    for event in chat.send("Read it. " + "why " * 5):
        if isinstance(event, edgellm.ToolFinished):
            chat.cancel()
    assert len(chat.conversation.postponed) == 1
    file = tmp_path / "full.chat"
    chat.save(file)
    assert chat.ask("And?") == "I see."
    assert ON.search(results(chat)[0])
    chat.close()
    opened = runtime.open_chat(file, tools=[report], sampler=script(runtime, "Yes."))
    assert opened.ask("And?") == "Yes."
    opened.close()


def test_parallel_results_share_the_room(tiny_model: Callable[..., Path]) -> None:
    @edgellm.tool(permission="auto")
    def short(n: int) -> str:
        """Little."""
        return f"little {n}"

    calls = "\n".join((REPORT, CALL % ("short", '{"n": 1}'), REPORT))
    with edgellm.load(tiny_model("llama"), n_ctx=2 * N_CTX, n_seq_max=1, threads=1) as runtime:
        chat = runtime.chat(sampler=script(runtime, calls, "So."), tools=[report, short], constraint="off")
        assert chat.ask("Read all.") == "So."
        first, little, second = results(chat)
        assert little == "little 1"
        assert ON.search(first) and ON.search(second)
        assert abs(len(runtime.tokenize(first)) - len(runtime.tokenize(second))) < 10


def test_what_was_cut_is_cut_again_from_where_it_began() -> None:
    store = ResultStore()

    def truncate(text: str, most: int) -> tuple[str, int]:
        return text[: 4 * most], -(-len(text) // 4)

    shortening = Shortening(truncate, store)
    draw = random.Random(1)
    text, shown = LINES, len(LINES)
    for most in (900, 400, 399, 150, 100):
        text = shortening.cut(text, most)
        assert shortening.size(text) <= most + 4
        part = text.partition("\n[cut: ")[0]
        assert LINES.startswith(part) and len(part) < shown
        found = ON.search(text)
        assert found is not None and json.loads(found[1]) == {"result": "r1", "start": len(part)}
        shown = len(part)
    nothing = shortening.cut(text, shortening.size(LONG_NOTICE))
    assert nothing.startswith("[cut: none of ") and ON.search(nothing)
    assert shortening.cut(nothing, 200).startswith("line 0 of")
    assert shortening.cut(nothing, draw.randint(0, 20)) == NO_ROOM
    # The rest of a kept result is no result of its own.
    rest = store.read("r1", 1000)
    assert json.loads(ON.search(shortening.cut(rest, 100))[1])["result"] == "r1"  # pyright: ignore[reportOptionalSubscript]
    assert list(store.state()) == ["r1"]
    # A result that only looks as if it had been cut is one of its own.
    shortening.cut('mine\n[cut: x; to read on, call read_more with {"result": "r1", "start": 4}]' * 20, 60)
    assert list(store.state()) == ["r1", "r2"]
