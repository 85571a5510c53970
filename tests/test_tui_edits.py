"""What the user does to what was said: edit, retry, go on, take back, copy, export, attach; slash commands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from edgellm_tui.app import EdgeApp
from edgellm_tui.clipboard import clipboard_program, copy_text
from edgellm_tui.commands import COMMANDS
from edgellm_tui.export import exported
from edgellm_tui.prompt import History
from edgellm_tui.transcript import Transcript
from textual.pilot import Pilot
from tui_harness import run, said, say, screen_text, settled, shown, wait_until
from tui_scripted import Call, Draw, Gate, ScriptedRuntime, words

import edgellm
from edgellm import SpanKind


def sent(app: EdgeApp) -> list[str | None]:
    chat: Any = app.talk.current.chat
    return [text for text, _ in chat.sent]


async def on(app: EdgeApp, pilot: Pilot[Any], name: str) -> None:
    """Waits until a branch whose name begins so is the current one, and all is over."""
    await wait_until(pilot, lambda: app.talk.current.name.startswith(name), f"branch {name}")
    await settled(pilot)


def test_an_edited_message_begins_a_branch_and_the_old_one_stays() -> None:
    async def play(app: EdgeApp, pilot: Pilot[Any]) -> None:
        await said(pilot, "How warm is Oslo?")
        first = app.talk.current
        await said(pilot, "/edit")
        assert app.prompt.text == "How warm is Oslo?"
        app.prompt.text = "How warm is Rome?"
        await pilot.press("enter")
        await on(app, pilot, "edit")
        text = screen_text(app)
        assert "> How warm is Rome?" in text and "Warm." in text and "Oslo" not in text
        assert [message.content for message in app.talk.current.chat.messages] == [
            "How warm is Rome?",
            "Warm.",
        ]
        assert [message.content for message in first.chat.messages] == ["How warm is Oslo?", "Cold."]
        await said(pilot, "/branch main")
        assert "Cold." in screen_text(app)

    run(play, [words("Cold."), words("Warm.")])


def test_an_edit_that_is_given_up_leaves_all_as_it_is() -> None:
    async def play(app: EdgeApp, pilot: Pilot[Any]) -> None:
        await said(pilot, "one")
        await said(pilot, "/edit")
        await pilot.press("escape")
        assert app.prompt.text == "" and app.outbox.editing is None
        await said(pilot, "two")
        assert sent(app) == ["one", "two"]

    run(play, [words("1"), words("2")])


def test_retry_answers_the_chosen_message_again() -> None:
    async def play(app: EdgeApp, pilot: Pilot[Any]) -> None:
        await said(pilot, "one")
        await said(pilot, "two")
        app.conversation.focus()
        await pilot.press("[", "[", "[", "[", "r")
        await on(app, pilot, "retry")
        messages = [message.content for message in app.talk.current.chat.messages]
        assert messages == ["one", "I once more"]
        assert len(app.talk.strands) == 2

    run(play, [words("I"), words("II"), words("I once more")])


def test_a_stopped_answer_goes_on_in_the_same_block() -> None:
    async def play(app: EdgeApp, pilot: Pilot[Any]) -> None:
        await say(pilot, "Count.")
        await shown(pilot, "one two")
        await pilot.press("escape")
        await settled(pilot)
        assert "stopped; the text so far stays" in screen_text(app)
        await said(pilot, "/continue")
        text = screen_text(app)
        assert "  one two three four" in text and "stopped" not in text.lower()
        await said(pilot, "/continue")
        assert "The last answer is complete." in screen_text(app)

    run(play, [[*words("one two"), Gate()], words(" three four")])


def test_a_message_stopped_before_it_was_read_is_retried_at_its_own_place() -> None:
    async def play(app: EdgeApp, pilot: Pilot[Any]) -> None:
        await said(pilot, "one")
        chat: Any = app.talk.current.chat
        send = chat.send

        def stopped(text: str, **_options: Any) -> Any:
            yield edgellm.TurnFinished("", "cancelled", edgellm.Usage())

        chat.send = stopped
        await said(pilot, "two")
        chat.send = send
        await said(pilot, "/retry")
        await on(app, pilot, "retry")
        messages = [message.content for message in app.talk.current.chat.messages]
        assert messages == ["one", "I", "two", "II"]

    run(play, [words("I"), words("II")])


def test_messages_that_wait_come_back_to_the_prompt_when_the_answer_is_stopped() -> None:
    async def play(app: EdgeApp, pilot: Pilot[Any]) -> None:
        await say(pilot, "one")
        await shown(pilot, "1 2")
        await say(pilot, "two")
        await say(pilot, "three")
        app.prompt.insert("fo")
        await pilot.press("escape")
        await settled(pilot)
        assert app.prompt.text == "two\n\nthree\n\nfo"
        assert "waiting" not in screen_text(app) and sent(app) == ["one"]

    run(play, [[*words("1 2"), Gate()]])


def test_keys_in_the_conversation_act_on_the_chosen_block() -> None:
    async def play(app: EdgeApp, pilot: Pilot[Any]) -> None:
        await said(pilot, "one")
        await say(pilot, "two")
        await shown(pilot, "II")
        await pilot.press("escape")
        await settled(pilot)
        app.conversation.focus()
        await pilot.press("[", "[", "[", "[", "[")
        assert screen_text(app).splitlines()[1] == "> one"
        await pilot.press("c")
        await shown(pilot, "copied 3 characters")
        await pilot.press("e")
        assert app.prompt.text == "one" and app.outbox.editing == (app.talk.current, 0)
        await pilot.press("escape")
        app.conversation.focus()
        await pilot.press("k")
        await shown(pilot, "II and more")
        await settled(pilot)
        app.conversation.focus()
        await pilot.press("k")
        await shown(pilot, "The last answer is complete.")

    run(play, [words("I"), [*words("II"), Gate()], words(" and more")])


def test_rewind_goes_back_and_says_how_far_it_can() -> None:
    async def play(app: EdgeApp, pilot: Pilot[Any]) -> None:
        for text in ("one", "two"):
            await said(pilot, text)
        await said(pilot, "/rewind 7")
        assert "There are 2 turns to take back." in screen_text(app)
        await said(pilot, "/rewind")
        await on(app, pilot, "rewind")
        assert [message.content for message in app.talk.current.chat.messages] == ["one", "I"]

    run(play, [words("I"), words("II")])


def test_nothing_of_that_happens_during_an_answer() -> None:
    async def play(app: EdgeApp, pilot: Pilot[Any]) -> None:
        await say(pilot, "Count.")
        await shown(pilot, "one")
        for command in ("/edit", "/retry", "/continue", "/rewind", "/fork"):
            await say(pilot, command)
            assert app.outbox.editing is None
        assert screen_text(app).count("An answer is being written. Esc stops it.") == 5
        await pilot.press("escape")
        await settled(pilot)
        assert len(app.talk.strands) == 1

    run(play, [[*words("one"), Gate()]])


# -- out of the app ---------------------------------------------------------------------------------------------


def test_copies_go_to_the_terminal_a_program_or_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[str] = []
    program = tmp_path / "xclip"
    program.write_text(f"#!/bin/sh\ncat > {tmp_path}/clip\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert copy_text("ä", heard.append, {"TERM": "xterm"}) == "copied 1 characters to the terminal"
    told = copy_text("ö", heard.append, {"TERM": "xterm", "DISPLAY": ":0"})
    assert told == "copied 1 characters to the terminal and xclip"
    assert (tmp_path / "clip").read_text() == "ö" and heard == ["ä", "ö"]
    # Windows' own program takes UTF-16 alone for what it is, whatever the console's code page.
    program.rename(tmp_path / "clip.exe")
    assert copy_text("ö", heard.append, {"TERM": "linux"}) == "copied 1 characters to clip.exe"
    assert (tmp_path / "clip").read_text("utf-16-le") == "ö"
    (tmp_path / "clip.exe").unlink()
    program.write_text("#!/bin/sh\nexit 1\n")
    program.chmod(0o755)
    told = copy_text("ü", heard.append, {"TERM": "linux", "DISPLAY": ":0"})
    path = edgellm.state_dir() / "copied.txt"
    assert told.endswith(str(path)) and path.read_text() == "ü" and len(heard) == 2
    assert clipboard_program({}) == []


def test_the_last_answer_is_copied() -> None:
    async def play(app: EdgeApp, pilot: Pilot[Any]) -> None:
        await said(pilot, "one")
        await pilot.press("ctrl+y")
        await shown(pilot, "copied 9 characters to the terminal")
        assert app.clipboard == "**b**old."

    run(play, [words("**b**old.")])


ANSWER = [
    *words("It is", 0.95),
    Draw(" <icy>", 0.3, ((" slippery", 0.4),)),
    Call("clock", {"zone": "UTC"}, edgellm.ToolResult("12:00 ``` x", duration_s=0.1)),
    Draw(" so", 0.04),
]


@pytest.mark.parametrize("kind", ["md", "json", "html"])
def test_exports_hold_all_that_was_said(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    async def play(app: EdgeApp, pilot: Pilot[Any]) -> None:
        await said(pilot, "Is it <b>safe</b>?")
        await said(pilot, f"/export {kind}")
        await shown(pilot, "written to")

    run(play, [ANSWER])
    (path,) = tmp_path.glob("is-it-b-safe-b.*")
    text = path.read_text(encoding="utf-8")
    if kind == "md":
        assert (
            "## User\n\nIs it <b>safe</b>?" in text and "Call of clock:" in text and "````\n12:00 ```" in text
        )
    elif kind == "json":
        whole = json.loads(text)
        assert [message["role"] for message in whole["messages"]][:2] == ["user", "assistant"]
        (icy,) = [token for token in whole["tokens"] if token["text"] == " <icy>"]
        assert icy["p"] == pytest.approx(0.3) and icy["top"][0] == [" slippery", pytest.approx(0.4)]
        assert icy["kind"] == "text"
    else:
        assert "Is it &lt;b&gt;safe&lt;/b&gt;?" in text
        assert '<span class="p2" title="p 0.300; &#x27; slippery&#x27; 0.400' in text
        assert " &lt;icy&gt;<sup>=</sup></span>" in text and "<sup>*</sup>" in text and "<icy>" not in text


def test_rivals_that_are_a_part_of_a_character_are_named_by_their_bytes() -> None:
    runtime = ScriptedRuntime([[Draw(" icy", 0.3, (("odd", 0.4),))]])
    chat = runtime.chat(trace=5)
    list(chat.send("How is it?"))
    real = runtime.vocabulary.piece

    def piece(token: int) -> bytes:
        return b"\xe6\x8b" if real(token) == b"odd" else real(token)

    runtime.vocabulary.piece = piece  # type: ignore[method-assign]
    page = exported("html", "t", "m", chat, Transcript(), chat.steps)
    assert "&#x27;&lt;e6 8b&gt;&#x27; 0.400" in page and "\\x" not in page


def test_worked_examples_for_the_model_are_no_part_of_the_page() -> None:
    runtime = ScriptedRuntime([words("Cold.")])
    chat = runtime.chat(trace=5)
    chat.say("user", "How far is the station?", SpanKind.USER)
    chat.texts.clear()
    chat.starts.clear()
    list(chat.send("How warm is Oslo?"))
    page = exported("html", "t", "m", chat, Transcript(), chat.steps)
    assert "Oslo" in page and "Cold." in page and "station" not in page


def test_an_export_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    async def play(app: EdgeApp, pilot: Pilot[Any]) -> None:
        await said(pilot, "/export md")
        assert "There is nothing to export yet." in screen_text(app)
        await said(pilot, "one")
        await said(pilot, f"/export {tmp_path}/absent/x.html")
        await shown(pilot, "cannot be written")
        await said(pilot, "/export x.pdf")
        assert "Write /export md, json, html or jsonl" in screen_text(app)

    run(play, [words("1")], size=(200, 50))


def test_files_are_attached_with_their_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("buy ``` milk")
    (tmp_path / "bin.dat").write_bytes(b"\xff\xfe")

    async def play(app: EdgeApp, pilot: Pilot[Any]) -> None:
        app.prompt.insert("Read @not")
        await pilot.press("tab")
        assert app.prompt.text == "Read @notes.txt "
        await pilot.press("enter")
        await settled(pilot)
        assert sent(app) == ["Read @notes.txt\n\nnotes.txt:\n````\nbuy ``` milk\n````"]
        await said(pilot, "Read @./bin.dat")
        assert "is no UTF-8 text" in screen_text(app)
        await said(pilot, "I am @home")
        assert sent(app)[1:] == ["I am @home"]

    run(play, [words("1"), words("2")])


# -- commands and keys ------------------------------------------------------------------------------------------


def test_help_lists_every_command() -> None:
    async def play(app: EdgeApp, pilot: Pilot[Any]) -> None:
        await said(pilot, "/help")
        text = screen_text(app)
        assert all(f"/{name}" in text for name in COMMANDS)
        await said(pilot, "/retyr")
        assert "There is no command /retyr. Did you mean /retry?" in screen_text(app)
        await said(pilot, "/pin 3")
        assert "/pin takes nothing behind it." in screen_text(app)

    run(play, size=(200, 50))


def test_commands_are_completed_and_prompts_come_back() -> None:
    async def play(app: EdgeApp, pilot: Pilot[Any]) -> None:
        app.prompt.insert("/re")
        await pilot.press("tab")
        assert "/retry" in screen_text(app) and "/rewind" in screen_text(app)
        app.prompt.text = "/conti"
        app.prompt.move_cursor((0, 6))
        await pilot.press("tab")
        assert app.prompt.text == "/continue "
        app.prompt.text = ""
        await said(pilot, "one")
        await pilot.press("up")
        assert app.prompt.text == "one"
        await pilot.press("down")
        assert app.prompt.text == ""

    run(play, [words("1")], history=History())


def test_every_command_can_be_given_before_anything_was_said() -> None:
    async def play(app: EdgeApp, pilot: Pilot[Any]) -> None:
        for name in COMMANDS:
            if name not in ("quit", "chats", "model", "adapters"):
                await said(pilot, f"/{name}")
        await wait_until(pilot, lambda: app.talk.is_ready)
        await said(pilot, "one")
        assert "  still here" in screen_text(app)

    run(play, [words("still here")])


def test_the_sampler_is_shown_and_changed() -> None:
    async def play(app: EdgeApp, pilot: Pilot[Any]) -> None:
        await said(pilot, "/sampler exact")
        await shown(pilot, "sampler: greedy")
        await said(pilot, "/sampler nonsense(")
        await shown(pilot, "! error:")

    run(play)


def test_the_palette_names_what_the_app_does() -> None:
    async def play(app: EdgeApp, pilot: Pilot[Any]) -> None:
        titles = [command.title for command in app.get_system_commands(app.screen)]
        for title in (
            "Chat: new",
            "Chat: retry",
            "Chat: export as HTML",
            "Sampler: preset exact",
            "App: quit",
        ):
            assert title in titles
        await pilot.press("ctrl+p")
        await pilot.press(*"export")
        await shown(pilot, "Chat: export as Markdown")
        await pilot.press("escape")
        await wait_until(pilot, lambda: not app.screen.is_modal)

    run(play)


def test_what_was_being_written_when_the_app_was_left_is_under_the_up_arrow(tmp_path: Path) -> None:
    async def play(app: EdgeApp, pilot: Pilot[Any]) -> None:
        app.prompt.insert("half a thou")
        await pilot.press("ctrl+q")

    run(play, history=History(tmp_path / "prompts"))
    assert History(tmp_path / "prompts").before("") == "half a thou"


def test_a_message_that_is_edited_replaces_none_of_another_branch() -> None:
    async def play(app: EdgeApp, pilot: Pilot[Any]) -> None:
        await said(pilot, "one")
        await said(pilot, "/fork")
        await said(pilot, "two")
        await say(pilot, "/edit")
        assert app.prompt.text == "two" and app.outbox.editing is not None
        app.talk.show(app.talk.strands[1])
        await pilot.pause()
        assert app.prompt.text == "two" and "editing:" not in screen_text(app)
        await pilot.press("enter")
        await shown(pilot, "Fine.")
        await settled(pilot)
        assert len(app.talk.strands) == 2
        assert [message.content for message in app.talk.current.chat.messages][-2:] == ["two", "Fine."]

    run(play, [words("1"), words("2"), words("Fine.")])


def test_two_apps_keep_the_prompts_of_both(tmp_path: Path) -> None:
    path = tmp_path / "prompts"
    first, second = History(path), History(path)
    first.add("one")
    second.add("two \udcff")
    first.add("three")
    assert [History(path).before(""), first.before("")] == ["three", "three"]
    assert path.read_text().split("\0") == ["one", "two ?", "three"]
    assert [each.name for each in tmp_path.iterdir()] == ["prompts"]
