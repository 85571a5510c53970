"""What had to make room in the context stays in the record, on the screen and in exports, marked as such."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from edgellm_tui import edits
from edgellm_tui.app import EdgeApp
from edgellm_tui.read_back import blocks_of
from edgellm_tui.saved_chats import SavedBranch, chat_index, record_branches, recorded_branches
from edgellm_tui.settings import Settings
from edgellm_tui.transcript import Transcript
from textual.pilot import Pilot
from tui_harness import run, said, screen_text, settled, shown, wait_until
from tui_scripted import ScriptedRuntime, words

import edgellm
from edgellm import Message, ToolCall

GONE = "no longer in the context"


def spoken(*texts: str) -> list[Message]:
    """The user's and the model's in turn."""
    return [Message("assistant" if place % 2 else "user", text) for place, text in enumerate(texts)]


def told(transcript: Transcript) -> list[str]:
    """The texts; those that are gone in brackets."""
    return [
        f"({message.content})" if place in transcript.gone else message.content
        for place, message in enumerate(transcript.messages)
    ]


def test_turns_that_went_stand_where_they_stood() -> None:
    transcript = Transcript()
    first = spoken("hi", "A", "hi", "A", "pinned", "B", "c", "C")
    transcript.follow(first)
    transcript.let_go(first[:2])
    transcript.follow([*first[2:], *spoken("d", "D")])
    assert told(transcript) == ["(hi)", "(A)", "hi", "A", "pinned", "B", "c", "C", "d", "D"]
    # The turn behind the pinned one goes, and an answer that was stopped has gone on.
    transcript.let_go(first[6:8])
    transcript.follow([*first[2:6], *spoken("d", "D and more")])
    assert told(transcript) == ["(hi)", "(A)", "hi", "A", "pinned", "B", "(c)", "(C)", "d", "D and more"]


def test_a_summary_stands_behind_what_it_sums_up_and_goes_in_its_turn() -> None:
    transcript = Transcript(spoken("a", "A", "b", "B"))
    transcript.let_go(spoken("a", "A"))
    summary = spoken("What was it?", "a and A.")
    transcript.follow([*summary, *spoken("b", "B", "c", "C")])
    assert told(transcript) == ["(a)", "(A)", "What was it?", "a and A.", "b", "B", "c", "C"]
    transcript.let_go([*summary, *spoken("b", "B")])
    transcript.follow(spoken("What was it?", "all.", "c", "C"))
    assert told(transcript)[-4:] == ["What was it?", "all.", "c", "C"]
    assert len(transcript.gone) == 6


def test_a_fork_has_what_went_before_its_place() -> None:
    transcript = Transcript([*spoken("a", "A", "b", "B", "c", "C")], {0, 1})
    assert told(transcript.fork(spoken("b", "B"))) == ["(a)", "(A)", "b", "B"]
    assert told(transcript.fork(())) == ["(a)", "(A)"]
    assert told(transcript.fork(spoken("b", "Other"))) == ["(a)", "(A)", "b", "Other"]


def test_a_result_that_was_shortened_stands_before_its_notice_also_in_the_open_turn() -> None:
    call = ToolCall("c1", "look", {}, "{}")
    asked = [Message("user", "look"), Message("assistant", "", tool_calls=(call,))]
    result, notice = (
        Message("tool", text, tool_call_id="c1", name="look") for text in ("a long page", "[dropped]")
    )
    for known in ([*asked, result], []):
        transcript = Transcript(known)
        transcript.let_go([result])
        transcript.follow([*asked, notice, Message("assistant", "It is long.")])
        assert told(transcript) == ["look", "", "(a long page)", "[dropped]", "It is long."]
        blocks, cards = blocks_of(transcript.messages, gone=transcript.gone)
        assert cards["c1"].result == "a long page"
        assert [block.message for block in blocks] == [0, 1, None, 3]
        assert "the result above is no longer" in blocks[2].plain()


class Tiny:
    """A tiny engine whose context is full after some turns."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def load(self, _model: str) -> Any:
        return edgellm.load(self._path, n_ctx=256, threads=1)


@pytest.mark.slow
def test_what_the_context_lost_is_kept_shown_found_and_exported(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    settings = Settings(
        glyphs="box", context_policy="evict", sampler="logit_bias({2: 7}) | dist(seed=3)", tools=[]
    )
    runtime = Tiny(tiny_model("llama"))
    questions = [f"question {turn} of many words about the weather" for turn in range(9)]

    async def before(app: EdgeApp, pilot: Pilot[Any]) -> None:
        for text in questions:
            await said(pilot, text)
        strand = app.talk.current
        first = strand.blocks[0]
        assert len(strand.chat.messages) < 18 and first.message is None
        await pilot.press("ctrl+q")

    run(before, runtime=runtime, settings=settings)
    (row,) = chat_index().list("question 0")
    (branch,) = recorded_branches(chat_index(), row.id)
    assert [message.content for message in branch.messages if message.role == "user"] == questions
    assert branch.gone and len(branch.in_context) + len(branch.gone) == len(branch.messages) == row.messages

    async def after(app: EdgeApp, pilot: Pilot[Any]) -> None:
        await pilot.press("ctrl+o")
        await shown(pilot, "question 0")
        await pilot.press("enter")
        await wait_until(pilot, lambda: app.page is None and bool(app.talk.current.blocks))
        await settled(pilot)
        strand = app.talk.current
        assert strand.chat.messages == branch.in_context and strand.chat.resumed.verdict == "exact"
        assert strand.title == questions[0]
        notes = [block.plain() for block in strand.blocks if block.kind == "notice"]
        assert f"the {len(branch.gone)} messages above are {GONE}" in notes
        for kind in ("md", "json", "html"):
            await said(pilot, f"/export {tmp_path}/x.{kind}")
            # The path may be broken over two lines.
            await wait_until(pilot, lambda kind=kind: strand.blocks[-1].plain().endswith(f"x.{kind}"))
        written = (tmp_path / "x.md").read_text(encoding="utf-8")
        assert all(text in written for text in questions) and f"## User ({GONE})\n\nquestion 0" in written
        page = (tmp_path / "x.html").read_text(encoding="utf-8")
        assert f'data-kind="user, {GONE}">question 0' in page
        whole = json.loads((tmp_path / "x.json").read_text(encoding="utf-8"))
        assert [one["is_in_context"] for one in whole["messages"]].count(False) == len(branch.gone)
        # It goes on, and what went once stays in the record.
        await said(pilot, "/fork")
        await wait_until(pilot, lambda: len(app.talk.strands) == 2)
        await said(pilot, "and now")
        await pilot.press("ctrl+q")

    run(after, runtime=runtime, settings=settings)
    for kept in recorded_branches(chat_index(), row.id):
        assert [message.content for message in kept.messages if message.role == "user"][:9] == questions


def test_a_chat_is_read_again_from_what_is_in_its_context_with_its_own_system_turn() -> None:
    branch = SavedBranch(
        0, "main", tuple(spoken("a", "A", "b", "B")), is_current=True, gone=(0, 1), system="Rhyme."
    )
    record_branches(chat_index(), "abc", title="a", model="scripted-1b", branches=[branch], tokens=1)
    runtime = ScriptedRuntime([words("It does.")])

    async def play(app: EdgeApp, pilot: Pilot[Any]) -> None:
        await said(pilot, "/system")
        await shown(pilot, "Be brief.")
        await pilot.press("ctrl+o")
        await wait_until(pilot, lambda: bool(app.page and app.page.chosen))  # type: ignore[union-attr]
        await pilot.press("enter")
        await wait_until(pilot, lambda: app.page is None and app.talk.kept.id == "abc")
        await settled(pilot)
        chat = app.talk.current.chat
        assert chat.options["history"] == branch.in_context and chat.options["system"] == "Rhyme."
        assert f"the 2 messages above are {GONE}" in screen_text(app)
        await said(pilot, "/system")
        await shown(pilot, "Rhyme.")
        await said(pilot, "/rewind 2")
        await shown(pilot, "There are 1 turns to take back.")
        with pytest.raises(edgellm.ConfigError, match="no longer in the context"):
            edits.edit(app, app.talk.current.blocks[0])

    run(play, runtime=runtime, settings=Settings(glyphs="box", system="Be brief."))
