"""Chats that outlive the app: what is kept, and how one goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from edgellm_tui.app import EdgeApp
from edgellm_tui.saved_chats import (
    SavedBranch,
    chat_index,
    read_growing,
    record_branches,
    recorded_branches,
    write_growing,
)
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
    await wait_until(pilot, lambda: app.page is None and app.talk.kept.title == title, "the chat")
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
        app.talk.kept.save()
        await say(pilot, "two")
        await wait_until(pilot, gate.reached.is_set)
        saved = chat_index()
        (row,) = saved.list()
        (branch,) = recorded_branches(saved, row.id)
        assert [message.content for message in branch.messages] == ["one", "I", "two"]

    run(before, [words("I"), [gate]])

    # As after a kill: the memory on the disk is older than what was said.
    saved = chat_index()
    (row,) = saved.list()
    (branch,) = recorded_branches(saved, row.id)
    longer = (*branch.messages[:2], edgellm.Message("user", "three"))
    kept = SavedBranch(0, "main", longer, is_current=True)
    record_branches(saved, row.id, title="one", model=row.model, branches=[kept], tokens=1)

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
        index = chat_index()
        await wait_until(pilot, lambda: index.list() and read_growing(index, index.list()[0].id, 0))

    run(before, [[*words(" ".join(["word"] * 150)), gate]])

    async def after(app: EdgeApp, pilot: Pilot[Any]) -> None:
        await opened(app, pilot, "one")
        assert "word word word" in screen_text(app)

    # As after a kill: nothing of the end of that turn has reached the disk.
    saved = chat_index()
    (row,) = saved.list()
    only = SavedBranch(0, "main", (edgellm.Message("user", "one"),), is_current=True)
    record_branches(saved, row.id, title="one", model=row.model, branches=[only], tokens=1)
    write_growing(saved, row.id, 0, "word word word")
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
        await shown(pilot, "Sourdough")
        page._list.focus()
        page._list.highlighted = next(i for i, saved in enumerate(page.chats) if saved.title == "Sourdough")
        await pilot.press("d", "up", "down", "down", "x")
        assert len(chat_index().list()) == 2
        page._list.highlighted = next(i for i, saved in enumerate(page.chats) if saved.title == "Sourdough")
        await pilot.pause()
        await pilot.press("d", "p", "d")
        await shown(pilot, "deletes")
        await settled(pilot)
        assert len(chat_index().list()) == 2
        await pilot.press("d")
        await wait_until(pilot, lambda: "Sourdough" not in screen_text(app))
        await wait_until(pilot, lambda: len(chat_index().list()) == 1)
        assert (
            not list(chat_index().folder.glob("*.chat")) or len(list(chat_index().folder.glob("*.chat"))) == 1
        )

    run(play, [words("With grease."), words("With salt.")])


def test_escape_gives_up_a_search_or_a_title_before_it_leaves_the_page() -> None:
    index = chat_index()
    branch = SavedBranch(0, "main", (edgellm.Message("user", "hello"),), is_current=True)
    record_branches(index, "abc", title="hello", model="scripted-1b", branches=[branch], tokens=1)

    async def play(app: EdgeApp, pilot: Pilot[Any]) -> None:
        await said(pilot, "/chats absent")
        await shown(pilot, "no chats with these words")
        await pilot.press("escape")
        await shown(pilot, " 1 chat\n")
        await pilot.press("slash", "h", "e")
        await shown(pilot, " he\n")
        await pilot.press("escape", "r", "x")
        await shown(pilot, " x\n")
        await pilot.press("escape")
        await pilot.pause()
        assert chat_index().list()[0].title == "hello" and app.page is not None
        await pilot.press("escape")
        await wait_until(pilot, lambda: app.page is None)

    run(play)


def test_a_chat_of_another_model_loads_that_model_first() -> None:
    index = chat_index()
    branch = SavedBranch(0, "main", (edgellm.Message("user", "hello"),), is_current=True)
    record_branches(index, "abc", title="hello", model="other-1b", branches=[branch], tokens=1)
    runtime = ScriptedRuntime()

    async def play(app: EdgeApp, pilot: Pilot[Any]) -> None:
        await opened(app, pilot, "hello")
        assert runtime.loaded == ["", "other-1b"]
        assert "> hello" in screen_text(app)

    run(play, runtime=runtime)


def test_a_chat_of_another_model_that_cannot_be_opened_leaves_a_new_chat_on_that_model() -> None:
    index = chat_index()
    index.record(
        "abc", title="hello", model="other-1b", messages=[edgellm.Message("user", "hello")], tokens=1
    )
    runtime = ScriptedRuntime([words("It goes on.")])

    async def play(app: EdgeApp, pilot: Pilot[Any]) -> None:
        await pilot.press("ctrl+o")
        await shown(pilot, "hello")
        await pilot.press("enter")
        await shown(pilot, "it has no file")
        await settled(pilot)
        assert runtime.loaded == ["", "other-1b"] and app.talk.is_ready
        assert app.talk.kept.id != "abc"
        await said(pilot, "And now?")
        assert "It goes on." in screen_text(app)

    run(play, runtime=runtime)


def test_what_is_sent_while_another_model_is_loaded_is_answered_by_that_one() -> None:
    class Slow(ScriptedRuntime):
        def load(self, name: str) -> ScriptedRuntime:
            if name:
                loading.reached.set()
                loading.opened.wait(5)
            return super().load(name)

    loading = Gate()
    runtime = Slow([words("Hello."), words("I am another.")])

    async def play(app: EdgeApp, pilot: Pilot[Any]) -> None:
        await said(pilot, "one")
        await say(pilot, "/model other-1b")
        await wait_until(pilot, loading.reached.is_set)
        await say(pilot, "who are you?")
        assert "1 waiting to be sent" in screen_text(app)
        loading.open()
        await shown(pilot, "I am another.")
        await settled(pilot)
        assert contents(app.talk.current.chat) == ["who are you?", "I am another."]

    run(play, runtime=runtime)


def test_what_waits_for_an_answer_is_not_sent_to_another_chat_but_written_again() -> None:
    gate = Gate()
    runtime = ScriptedRuntime([[*words("I"), gate], words("Hello.")])

    async def play(app: EdgeApp, pilot: Pilot[Any]) -> None:
        await say(pilot, "one")
        await wait_until(pilot, gate.reached.is_set)
        chat = app.talk.current.chat
        await say(pilot, "two")
        await pilot.press("ctrl+n")
        await wait_until(pilot, lambda: app.talk.current.chat is not chat)
        await settled(pilot)
        assert app.prompt.text == "two"
        assert contents(app.talk.current.chat) == [] and [text for text, _ in chat.sent] == ["one"]
        # What is sent before the new chat is there is meant for it.
        app.action_new_chat()
        await pilot.press("enter")
        await shown(pilot, "Hello.")
        await settled(pilot)
        assert contents(app.talk.current.chat) == ["two", "Hello."]

    run(play, runtime=runtime)


def test_a_model_without_a_chat_is_told_and_keeps_what_is_sent() -> None:
    class NoTemplate(ScriptedRuntime):
        def chat(self, **options: Any) -> Any:
            if self.loaded[-1]:
                raise edgellm.TemplateError("the model has no chat template.", hint="Take another one.")
            return super().chat(**options)

    async def play(app: EdgeApp, pilot: Pilot[Any]) -> None:
        await said(pilot, "one")
        await say(pilot, "/model base-1b")
        await shown(pilot, "no chat template")
        assert "NO CHAT" in screen_text(app)
        await say(pilot, "two")
        await shown(pilot, "1 waiting to be sent")
        app.open_model("")
        await shown(pilot, "Hello.")
        assert contents(app.talk.current.chat) == ["two", "Hello."]

    run(play, runtime=NoTemplate([words("One."), words("Hello.")]))


def test_a_chat_that_another_app_has_open_is_not_written_over() -> None:
    index = chat_index()
    branch = SavedBranch(0, "main", (edgellm.Message("user", "hello"),), is_current=True)
    record_branches(index, "abc", title="hello", model="scripted-1b", branches=[branch], tokens=1)
    code = "import sys; from pathlib import Path; from edgellm_tui.held import hold; "
    code += "print(hold(Path(sys.argv[1]), 'abc'), flush=True); input()"
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(index.folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert other.stdout is not None and other.stdout.readline() == "True\n"

    async def play(app: EdgeApp, pilot: Pilot[Any]) -> None:
        await opened(app, pilot, "hello")
        assert "open in another edgellm" in " ".join(screen_text(app).split())
        await said(pilot, "And now?")
        app.talk.kept.save()
        await settled(pilot)
        found = {row.id: row.messages for row in chat_index().list()}
        assert found.pop("abc") == 1 and list(found.values()) == [3]
        # Once the other has left it, it can be gone on with.
        other.communicate("\n")
        page = {saved.id: saved for saved in chat_index().list()}["abc"]
        await app.go_on_with(page)
        await wait_until(pilot, lambda: app.talk.kept.id == "abc")

    try:
        run(play, [words("Beside it.")])
    finally:
        other.kill()
        other.wait()


def test_growing_answers_of_a_chat_with_a_longer_name_stay() -> None:
    index = chat_index()
    branch = SavedBranch(0, "main", (edgellm.Message("user", "hello"),), is_current=True)
    index.folder.mkdir(parents=True, exist_ok=True)
    for name in ("abc.0.growing", "abc.x.0.growing"):
        (index.folder / name).write_text("so far", encoding="utf-8")
    record_branches(index, "abc", title="hello", model="m", branches=[branch], tokens=1)
    assert not (index.folder / "abc.0.growing").exists()
    assert (index.folder / "abc.x.0.growing").exists()


def test_calls_and_results_are_kept_with_the_chat() -> None:
    call = Call("clock", {"zone": "UTC"}, edgellm.ToolResult("12:00", duration_s=0.1))

    async def before(app: EdgeApp, pilot: Pilot[Any]) -> None:
        await said(pilot, "What time is it?")
        await pilot.press("ctrl+q")

    run(before, [[call, *words("Noon.")]])
    saved = chat_index()
    (row,) = saved.list()
    (branch,) = recorded_branches(saved, row.id)
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
        play,
        [words("I"), words("II")],
        index=edgellm.ChatIndex(blocked / "chats"),
        settings=Settings(glyphs="box"),
    )


def test_a_chat_that_is_there_as_files_alone_is_found_and_goes_on() -> None:
    runtime = ScriptedRuntime([words("Cold.")])

    async def before(app: EdgeApp, pilot: Pilot[Any]) -> None:
        await said(pilot, "How warm is Oslo?")
        await said(pilot, "/fork")
        await wait_until(pilot, lambda: len(app.talk.strands) == 2)
        await pilot.press("ctrl+q")

    run(before, runtime=runtime)
    index = chat_index()
    (row,) = index.list()
    assert index.branches(row.id) == [0, 1]
    for path in index.folder.glob("index.sqlite3*"):
        path.unlink()
    # What the scripted runtime writes is no file of a real one's; the index would read its head.
    index.record(row.id, title=row.title, model="scripted-1b.gguf", messages=[], tokens=0)

    async def after(app: EdgeApp, pilot: Pilot[Any]) -> None:
        await opened(app, pilot, "How warm is Oslo?")
        assert [strand.name for strand in app.talk.strands.values()] == ["main", "branch 1"]
        assert "Cold." in screen_text(app) and runtime.loaded == ["", ""]
        await said(pilot, "And Rome?")
        await said(pilot, "/rename Fjord")

    run(after, runtime=runtime)
    assert [saved.title for saved in chat_index().list("oslo fjord")] == ["Fjord"]


def test_a_file_is_saved_and_loaded_with_all_branches(tmp_path: Path) -> None:
    file = tmp_path / "two words.chat"

    async def play(app: EdgeApp, pilot: Pilot[Any]) -> None:
        await said(pilot, "How warm is Oslo?")
        await said(pilot, "/fork")
        await wait_until(pilot, lambda: len(app.talk.strands) == 2)
        await said(pilot, "And Rome?")
        for _ in range(2):
            before = list(app.talk.strands.values())
            await said(pilot, f'/save "{file}"')
            await shown(pilot, "all 2 branches saved in")
            await said(pilot, f"/load '{file}'")
            await wait_until(pilot, lambda old=before: old[0] not in app.talk.strands.values())
            await settled(pilot)
            strands = list(app.talk.strands.values())
            assert [strand.name for strand in strands] == ["fork 1", "main"]
            assert [contents(strand.chat)[-1] for strand in strands] == ["Warm.", "Cold."]
            assert app.talk.current is strands[0]
        await said(pilot, "/save one two.chat")
        # Wherever the line is broken.
        wanted = 'quotation marks: /save "one two.chat"'
        await wait_until(pilot, lambda: wanted in " ".join(screen_text(app).split()), wanted)
        await said(pilot, f"/save {tmp_path}/none/a.chat")
        await shown(pilot, "there is no folder")
        assert not (tmp_path / "none").exists()
        await pilot.press("ctrl+q")

    run(play, [words("Cold."), words("Warm.")])
    (row,) = [
        saved for saved in chat_index().list("Oslo") if len(recorded_branches(chat_index(), saved.id)) == 2
    ][:1]
    assert chat_index().branches(row.id) == [0, 1]


def test_a_file_of_several_branches_that_was_copied_here_is_opened_whole() -> None:
    runtime, index = ScriptedRuntime(), chat_index()
    chat = runtime.chat()
    chat.say("user", "How warm is Oslo?", edgellm.SpanKind.USER)
    fork = chat.fork()
    fork.say("user", "And Rome?", edgellm.SpanKind.USER)
    index.record("abc", title="Oslo", model="scripted-1b.gguf", messages=[], tokens=0)
    chat.save(index.path("abc"), branches=[fork])
    chat.save(index.path("abc", 3))

    async def play(app: EdgeApp, pilot: Pilot[Any]) -> None:
        await opened(app, pilot, "Oslo")
        assert [strand.name for strand in app.talk.strands.values()] == ["main", "branch 4", "branch 3"]
        await said(pilot, "And Bergen?")
        await pilot.press("ctrl+q")

    run(play, runtime=runtime)
    assert index.branches("abc") == [0, 3, 4]
    assert any("And Rome?" in line for line in index.lines("abc"))


def test_a_file_that_is_no_chat_is_said_in_the_log_and_left() -> None:
    folder = chat_index().folder
    folder.mkdir(parents=True)
    (folder / "abc.chat").write_text("no chat")

    async def play(app: EdgeApp, pilot: Pilot[Any]) -> None:
        await pilot.press("ctrl+o")
        await wait_until(pilot, lambda: any("abc.chat" in line.text for line in app.app_log.lines))
        assert "no chats yet" in screen_text(app)

    run(play)
    assert (folder / "abc.chat").exists()


def test_the_preview_shows_the_lines_that_hold_the_words_accents_aside() -> None:
    said_there = edgellm.Message("assistant", "\n".join([*(f"line {n}" for n in range(9)), "Über den Fluß."]))
    branch = SavedBranch(0, "main", (edgellm.Message("user", "hello"), said_there), is_current=True)
    record_branches(chat_index(), "abc", title="hello", model="scripted-1b", branches=[branch], tokens=1)

    async def play(app: EdgeApp, pilot: Pilot[Any]) -> None:
        await said(pilot, "/chats uber")
        await shown(pilot, " 1 chat\n")
        assert "Über den Fluß." in screen_text(app) and "line 3" not in screen_text(app)

    run(play)


def test_a_chat_of_which_nothing_is_left_leaves_the_open_one_as_it_is() -> None:
    index = chat_index()
    message = edgellm.Message("user", "hello")
    index.record("abc", title="hello", model="", messages=[message], tokens=1)

    async def play(app: EdgeApp, pilot: Pilot[Any]) -> None:
        await said(pilot, "one")
        open_id = app.talk.kept.id
        await app.go_on_with(index.list("hello")[0])
        await shown(pilot, "nothing is left of the chat 'hello'")
        assert app.talk.kept.id == open_id and not app.talk.current.chat.is_closed
        await said(pilot, "two")
        assert "  II" in screen_text(app)
        assert [saved.title for saved in index.list("one two")] == ["one"]

    run(play, [words("I"), words("II")])


def test_a_second_file_that_cannot_be_opened_leaves_none_open() -> None:
    index = chat_index()
    message = edgellm.Message("user", "hello")
    index.record("abc", title="hello", model="", messages=[message], tokens=1)
    broken = index.path("abc", 2)

    class Refusing(ScriptedRuntime):
        def open_chats(self, path: str | Path, **options: Any) -> Any:
            if path == broken:
                raise edgellm.SessionError(f"{path} is incomplete.", hint="Use another copy.")
            return super().open_chats(path, **options)

    runtime = Refusing([words("I")])

    async def play(app: EdgeApp, pilot: Pilot[Any]) -> None:
        await said(pilot, "one")
        app.talk.kept.save()
        await wait_until(pilot, index.path(app.talk.kept.id).exists)
        for path in (index.path("abc"), broken):
            path.write_bytes(index.path(app.talk.kept.id).read_bytes())
        await app.go_on_with(index.list("hello")[0])
        await shown(pilot, "is incomplete")
        assert [chat.is_closed for chat in runtime.chats] == [False, True]

    run(play, runtime=runtime)


def test_an_open_chat_that_is_deleted_while_it_answers_stays_deleted() -> None:
    gate = Gate()

    async def play(app: EdgeApp, pilot: Pilot[Any]) -> None:
        await say(pilot, "one")
        await wait_until(pilot, gate.reached.is_set)
        id, chat = app.talk.kept.id, app.talk.current.chat
        await wait_until(pilot, lambda: chat_index().find(id))
        await pilot.press("ctrl+o")
        await shown(pilot, " 1 chat\n")
        await pilot.press("d", "d")
        assert app.talk.kept.id != id and not app.talk.kept.title
        await wait_until(pilot, lambda: app.talk.is_ready and not app.worker.is_busy)
        await settled(pilot)
        app.talk.kept.save()
        await settled(pilot)
        assert chat.is_closed and chat_index().list() == []
        await said(pilot, "two")
        assert [saved.title for saved in chat_index().list()] == ["two"]
        assert not chat_index().path(id).exists()

    run(play, [[*words("I am"), gate], words("II")])


def test_a_preview_that_cannot_be_read_is_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    branch = SavedBranch(0, "main", (edgellm.Message("user", "hello"),), is_current=True)
    record_branches(chat_index(), "abc", title="hello", model="scripted-1b", branches=[branch], tokens=1)

    def fail(*_: object) -> list[str]:
        raise edgellm.ConfigError("the index cannot be used.", hint="Check the folder.")

    monkeypatch.setattr(edgellm.ChatIndex, "lines", fail)

    async def play(app: EdgeApp, pilot: Pilot[Any]) -> None:
        await pilot.press("ctrl+o")
        await shown(pilot, " 1 chat\n")
        await pilot.press("escape")
        await shown(pilot, "the index cannot be used.")

    run(play)


def test_the_memory_of_chats_unused_for_longest_makes_room_and_pinned_ones_keep_theirs() -> None:
    async def play(app: EdgeApp, pilot: Pilot[Any]) -> None:
        for text in ("first", "second", "third"):
            await said(pilot, f"{text} " + "word " * 40)
            await pilot.press("ctrl+n")
            await wait_until(pilot, lambda: not app.talk.current.blocks)
        await settled(pilot)
        by_title = {saved.title.split()[0]: saved for saved in chat_index().list()}
        await pilot.press("ctrl+o")
        await shown(pilot, "3 chats")
        page: Any = app.page
        page._list.highlighted = next(i for i, one in enumerate(page.chats) if one.id == by_title["first"].id)
        await pilot.press("p")
        await shown(pilot, "3 chats, ^ 1 pinned")
        assert " ^ first word" in screen_text(app)
        await pilot.press("escape")
        # Each takes more than half of that, as the scripted runtime writes them.
        app.settings.saved_chats_mb = 1
        for path in chat_index().folder.glob("*.chat"):
            path.write_text(path.read_text(encoding="utf-8") + " " * 600_000, encoding="utf-8")
        await said(pilot, "fourth")
        app.talk.kept.save()
        await settled(pilot)
        await shown(pilot, "made room")
        told = " ".join(screen_text(app).split())
        assert 'the memory of "second word' in told and "(saved_chats_mb, F9)" in told
        assert any("made room" in line.text for line in app.app_log.lines)
        index = chat_index()
        assert index.path(by_title["first"].id).exists() and not index.path(by_title["second"].id).exists()
        await opened(app, pilot, by_title["second"].title)
        assert "second word" in screen_text(app) and "or had to make room" in " ".join(
            screen_text(app).split()
        )

    run(play, [words("I"), words("II"), words("III"), words("IV")])


def test_what_has_become_of_the_memory_is_said_once() -> None:
    rebuilt = edgellm.Resumed("rebuilt", "the KV cache is of another type", rebuilt_tokens=12)
    runtime = ScriptedRuntime([words("Cold."), [edgellm.Notice(str(rebuilt)), *words("Warm.")]])

    async def play(app: EdgeApp, pilot: Pilot[Any]) -> None:
        def notes() -> list[str]:
            return [block.plain() for block in app.talk.current.blocks if block.kind == "notice"]

        await said(pilot, "How warm is Oslo?")
        assert notes() == []
        for _ in range(2):
            await pilot.press("ctrl+n")
            await wait_until(pilot, lambda: not app.talk.current.blocks)
            await opened(app, pilot, "How warm is Oslo?")
            (told,) = notes()
            assert told.startswith(str(runtime.resumed))
            assert told.endswith("Nothing is computed again.") == (runtime.resumed is not rebuilt)
            runtime.resumed = rebuilt
        await said(pilot, "And Rome?")
        assert notes() == [str(rebuilt)]

    run(play, runtime=runtime)


def test_a_terminated_app_saves_and_leaves() -> None:
    async def play(app: EdgeApp, pilot: Pilot[Any]) -> None:
        await said(pilot, "one")
        os.kill(os.getpid(), signal.SIGTERM)
        await wait_until(pilot, lambda: app.return_code == 0, "the end")

    run(play, [words("1")])
    assert list(chat_index().folder.glob("*.chat"))
