"""Chats that outlive the app: what is kept, and how one goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgellm_tui.app import EdgeApp
from edgellm_tui.sessions import SavedBranch, Sessions
from edgellm_tui.settings import Settings
from textual.pilot import Pilot
from textual.widgets import Input
from tui_harness import run, said, say, screen_text, settled, shown, wait_until
from tui_scripted import Call, Gate, ScriptedRuntime, words

import edgellm

NOON = 1_700_000_000.0


def contents(chat: Any) -> list[str]:
    return [message.content for message in chat.messages]


async def opened(app: EdgeApp, pilot: Pilot[Any], title: str) -> None:
    """Goes on with the chat of that title, through its page."""
    await pilot.press("ctrl+o")
    await shown(pilot, title)
    await wait_until(pilot, lambda: bool(app.page and app.page.chosen))  # type: ignore[union-attr]
    page: Any = app.page
    page._list.highlighted = next(i for i, saved in enumerate(page.chats) if saved.title == title)
    await pilot.press("enter")
    await wait_until(pilot, lambda: app.page is None and app.talk.title == title, "the chat")
    await settled(pilot)


def test_a_chat_goes_on_after_a_restart_with_all_its_branches() -> None:
    async def before(app: EdgeApp, pilot: Pilot[Any]) -> None:
        await said(pilot, "How warm is Oslo?")
        await said(pilot, "/retry")
        await wait_until(pilot, lambda: app.talk.current.name.startswith("retry"))
        await settled(pilot)
        await pilot.press("ctrl+q")

    run(before, [words("Cold."), words("Icy.")])

    async def after(app: EdgeApp, pilot: Pilot[Any]) -> None:
        await opened(app, pilot, "How warm is Oslo?")
        assert "Icy." in screen_text(app)
        assert [strand.name for strand in app.talk.strands.values()] == ["main", "retry 1"]
        main, retried = app.talk.strands.values()
        assert retried.origin is not None and retried.origin.parent == main.key
        assert app.talk.current is retried
        before = app.talk.current.chat.tape
        await said(pilot, "And Rome?")
        chat = app.talk.current.chat
        assert contents(chat) == ["How warm is Oslo?", "Icy.", "And Rome?", "Warm."]
        assert chat.tape[: len(before)] == before
        usage = app.talk.current.turn_usage
        assert usage is not None and usage.reused_tokens == len(before)
        await said(pilot, "/branch main")
        assert contents(app.talk.current.chat) == ["How warm is Oslo?", "Cold."]

    run(after, [words("Warm.")])


def test_what_was_said_is_kept_though_the_app_died_in_the_answer() -> None:
    gate = Gate()

    async def before(app: EdgeApp, pilot: Pilot[Any]) -> None:
        await said(pilot, "one")
        app.talk.save()
        await say(pilot, "two")
        await wait_until(pilot, gate.reached.is_set)
        saved = Sessions()
        (row,) = saved.list()
        (branch,) = saved.branches(row.id)
        assert [message.content for message in branch.messages] == ["one", "I", "two"]

    run(before, [words("I"), [gate]])

    # As after a kill: the memory on the disk is older than what was said.
    saved = Sessions()
    (row,) = saved.list()
    (branch,) = saved.branches(row.id)
    longer = (*branch.messages[:2], edgellm.Message("user", "three"))
    kept = SavedBranch(0, "main", longer, is_current=True)
    saved.record(row.id, title="one", model=row.model, branches=[kept], tokens=1)

    async def after(app: EdgeApp, pilot: Pilot[Any]) -> None:
        await opened(app, pilot, "one")
        text = " ".join(screen_text(app).split())
        assert "> three" in text and "had not been saved yet" in text
        assert app.talk.current.chat.options["history"] == longer

    run(after)


def test_a_long_answer_is_kept_while_it_grows() -> None:
    gate = Gate()

    async def before(app: EdgeApp, pilot: Pilot[Any]) -> None:
        await say(pilot, "one")
        await wait_until(pilot, gate.reached.is_set)
        sessions = Sessions()
        await wait_until(pilot, lambda: sessions.list() and sessions.growing(sessions.list()[0].id, 0))

    run(before, [[*words(" ".join(["word"] * 150)), gate]])

    async def after(app: EdgeApp, pilot: Pilot[Any]) -> None:
        await opened(app, pilot, "one")
        assert "word word word" in screen_text(app)

    # As after a kill: nothing of the end of that turn has reached the disk.
    saved = Sessions()
    (row,) = saved.list()
    only = SavedBranch(0, "main", (edgellm.Message("user", "one"),), is_current=True)
    saved.record(row.id, title="one", model=row.model, branches=[only], tokens=1)
    saved.write_growing(row.id, 0, "word word word")
    saved.path(row.id).unlink(missing_ok=True)
    run(after)


def test_chats_are_found_renamed_and_deleted_only_when_asked_twice() -> None:
    async def play(app: EdgeApp, pilot: Pilot[Any]) -> None:
        for text in ("Fix the pump", "Bake bread"):
            await said(pilot, text)
            await pilot.press("ctrl+n")
            await wait_until(pilot, lambda: not app.talk.current.blocks)
        await said(pilot, "/chats grease")
        await shown(pilot, " 1 chat\n")
        assert "Fix the pump" in screen_text(app) and "Bake bread" not in screen_text(app)
        page: Any = app.page
        page.query_one(Input).value = ""
        await shown(pilot, "2 chats")
        page._list.focus()
        page._list.highlighted = next(i for i, saved in enumerate(page.chats) if saved.title == "Bake bread")
        await pilot.press("r")
        page.query_one(Input).value = "Sourdough"
        await pilot.press("enter")
        await wait_until(pilot, lambda: "Sourdough" in {saved.title for saved in Sessions().list()})
        page.refill()
        await shown(pilot, "Sourdough")
        page._list.focus()
        page._list.highlighted = next(i for i, saved in enumerate(page.chats) if saved.title == "Sourdough")
        await pilot.press("d", "up", "down", "down", "x")
        assert len(Sessions().list()) == 2
        page._list.highlighted = next(i for i, saved in enumerate(page.chats) if saved.title == "Sourdough")
        await pilot.pause()
        await pilot.press("d")
        await shown(pilot, "deletes")
        await pilot.press("d")
        await wait_until(pilot, lambda: len(Sessions().list()) == 1)
        assert not list(Sessions().folder.glob("*.chat")) or len(list(Sessions().folder.glob("*.chat"))) == 1

    run(play, [words("With grease."), words("With salt.")])


def test_escape_gives_up_a_search_or_a_title_before_it_leaves_the_page() -> None:
    sessions = Sessions()
    branch = SavedBranch(0, "main", (edgellm.Message("user", "hello"),), is_current=True)
    sessions.record("abc", title="hello", model="scripted-1b", branches=[branch], tokens=1)

    async def play(app: EdgeApp, pilot: Pilot[Any]) -> None:
        await said(pilot, "/chats absent")
        await shown(pilot, "no chats with these words")
        await pilot.press("escape")
        await shown(pilot, " 1 chat\n")
        await pilot.press("r", "x", "escape")
        await pilot.pause()
        assert Sessions().list()[0].title == "hello" and app.page is not None
        await pilot.press("escape")
        await wait_until(pilot, lambda: app.page is None)

    run(play)


def test_a_chat_of_another_model_loads_that_model_first() -> None:
    sessions = Sessions()
    branch = SavedBranch(0, "main", (edgellm.Message("user", "hello"),), is_current=True)
    sessions.record("abc", title="hello", model="other-1b", branches=[branch], tokens=1)
    runtime = ScriptedRuntime()

    async def play(app: EdgeApp, pilot: Pilot[Any]) -> None:
        await opened(app, pilot, "hello")
        assert runtime.loaded == ["", "other-1b"]
        assert "> hello" in screen_text(app)

    run(play, runtime=runtime)


def test_calls_and_results_are_kept_with_the_chat() -> None:
    call = Call("clock", {"zone": "UTC"}, edgellm.ToolResult("12:00", duration_s=0.1))

    async def before(app: EdgeApp, pilot: Pilot[Any]) -> None:
        await said(pilot, "What time is it?")
        await pilot.press("ctrl+q")

    run(before, [[call, *words("Noon.")]])
    saved = Sessions()
    (row,) = saved.list()
    (branch,) = saved.branches(row.id)
    assert [message.role for message in branch.messages] == ["user", "assistant", "tool", "assistant"]
    assert branch.messages[1].tool_calls[0].arguments == {"zone": "UTC"}


def test_a_state_folder_that_cannot_be_written_is_a_message(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")

    async def play(app: EdgeApp, pilot: Pilot[Any]) -> None:
        await said(pilot, "one")
        await shown(pilot, "! error:")
        await said(pilot, "two")
        assert "  II" in screen_text(app)
        await pilot.press("ctrl+o")
        await wait_until(pilot, lambda: app.page is not None)

    run(
        play, [words("I"), words("II")], sessions=Sessions(blocked / "chats"), settings=Settings(glyphs="box")
    )
