"""What the app does about the context of the open chat: what gives way, what stays, room made ahead of time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from edgellm_tui.app import EdgeApp
from edgellm_tui.blocks import UserBlock
from edgellm_tui.meters import ledger_lines
from edgellm_tui.saved_chats import chat_index, recorded_branches
from edgellm_tui.settings import Settings
from edgellm_tui.settings_page import check_value
from textual.pilot import Pilot
from tui_harness import run, said, say, screen_text, settled, shown, wait_until
from tui_scripted import Gate, ScriptedRuntime, words

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


# -- what stays ---------------------------------------------------------------------------------------------------

MARK = "[pinned: this turn stays when the context fills]"


def marked(app: EdgeApp) -> list[str]:
    return [
        block.text for block in app.talk.current.blocks if isinstance(block, UserBlock) and block.is_pinned
    ]


def test_a_key_on_a_block_pins_its_turn_and_lets_it_go_again() -> None:
    async def play(app: EdgeApp, pilot: Pilot[Any]) -> None:
        chat: Any = app.talk.current.chat
        await said(pilot, "one")
        await said(pilot, "two")
        app.conversation.focus()
        # On the answer to the first message: the turn is that of the message.
        await pilot.press("[", "[", "[", "P")
        await shown(pilot, "pinned: this turn stays once context_policy (F9) lets others go")
        assert (chat.pinned, marked(app)) == ((0,), ["one"])
        assert screen_text(app).splitlines()[1:3] == ["> one", f"  {MARK}"]
        await pilot.press("P")
        await shown(pilot, "not pinned any more")
        assert (chat.pinned, marked(app)) == ((), [])
        assert MARK not in screen_text(app)

    run(play, [words("I"), words("II")])


def test_the_command_pins_the_newest_turn_and_forks_take_it_along() -> None:
    async def play(app: EdgeApp, pilot: Pilot[Any]) -> None:
        await said(pilot, "/pin")
        await shown(pilot, "There is no message of yours to go back to.")
        await said(pilot, "one")
        await said(pilot, "two")
        await said(pilot, "/pin")
        await shown(pilot, "pinned: this turn stays when the context fills")
        assert (app.talk.current.chat.pinned, marked(app)) == ((2,), ["two"])
        await said(pilot, "/fork")
        await wait_until(pilot, lambda: len(app.talk.strands) == 2)
        assert marked(app) == ["two"]
        await said(pilot, "/rewind")
        await wait_until(pilot, lambda: len(app.talk.strands) == 3)
        assert marked(app) == []

    run(play, [words("I"), words("II")], settings=Settings(glyphs="box", context_policy="evict"))


def test_nothing_is_pinned_while_an_answer_is_written_or_of_a_message_that_was_not_read() -> None:
    async def play(app: EdgeApp, pilot: Pilot[Any]) -> None:
        await say(pilot, "one")
        await shown(pilot, "I so far")
        await say(pilot, "/pin")
        await shown(pilot, "An answer is being written.")
        await pilot.press("escape")
        await settled(pilot)
        strand = app.talk.current
        strand.blocks.append(unread := UserBlock("two"))
        unread.message = len(strand.chat.messages)
        await said(pilot, "/pin")
        await shown(pilot, "That message has not been read.")
        assert strand.chat.pinned == ()

    run(play, [[*words("I so far"), Gate()]])


@pytest.mark.parametrize("has_memory", [True, False])
def test_pins_are_kept_with_the_chat_also_where_its_memory_is_read_again(has_memory: bool) -> None:
    runtime = ScriptedRuntime([words("I"), words("II")])

    async def before(app: EdgeApp, pilot: Pilot[Any]) -> None:
        await said(pilot, "one")
        await said(pilot, "two")
        app.conversation.focus()
        await pilot.press("[", "[", "[", "P")
        await settled(pilot)
        await pilot.press("ctrl+q")

    run(before, runtime=runtime)
    (row,) = chat_index().list()
    (branch,) = recorded_branches(chat_index(), row.id)
    assert branch.pinned == (0,)
    if not has_memory:
        chat_index().path(row.id, 0).unlink()

    async def after(app: EdgeApp, pilot: Pilot[Any]) -> None:
        await pilot.press("ctrl+o")
        await shown(pilot, "1 chat")
        await pilot.press("enter")
        await wait_until(pilot, lambda: app.page is None and app.talk.kept.title == "one")
        await settled(pilot)
        assert (app.talk.current.chat.pinned, marked(app)) == ((0,), ["one"])

    run(after, runtime=runtime)


# -- whose it is --------------------------------------------------------------------------------------------------


def test_the_ledger_names_every_schema_with_its_price_and_sums_up() -> None:
    entries = (
        edgellm.LedgerEntry("system", 20, price_s=0.4),
        edgellm.LedgerEntry("tool", 1400, "clock\x1b[2J", 28.0),
        edgellm.LedgerEntry("tool", 80, price_s=1.6),
    )
    assert ledger_lines(edgellm.Ledger(4096, entries, 50.0)) == [
        "owner                     tokens   price",
        "S system                      20   0.4 s",
        "T schema of clock<1b>[2J   1,400  28.0 s",
        "T about the tools             80   1.6 s",
        ". free                     2,596",
        "1,500 of 4,096 tokens; computing them again takes 30.0 s at 50 tokens/s",
    ]
    unmeasured = edgellm.Ledger(4096, (edgellm.LedgerEntry("glue", 4),))
    assert ledger_lines(unmeasured)[1:] == ["- template       4", ". free       4,092", "4 of 4,096 tokens"]


def test_the_ledger_stands_in_the_chat_and_on_the_meters_page_behind_the_rest() -> None:
    async def play(app: EdgeApp, pilot: Pilot[Any]) -> None:
        await said(pilot, "one")
        await said(pilot, "/context")
        await shown(pilot, "A answers        1  0.0 s")
        await shown(pilot, "of 4,096 tokens; computing them again takes")
        await pilot.press("f10", "end")
        await shown(pilot, "A answers        1  0.0 s")

    run(play, [words("I")])


# -- guesses ------------------------------------------------------------------------------------------------------


def test_guesses_are_a_setting_of_new_chats_and_a_command_of_the_open_one() -> None:
    async def play(app: EdgeApp, pilot: Pilot[Any]) -> None:
        chat: Any = app.talk.current.chat
        assert chat.options["speculate"] == "auto" == chat.speculation
        await said(pilot, "/speculate ngram")
        await shown(pilot, "guesses ahead: ngram, no token came free yet")
        assert chat.speculation == "ngram"
        await said(pilot, "/speculate draft")
        await shown(pilot, "/speculate draft is unknown. Choose off, auto, ngram.")
        await said(pilot, "/speculate off")
        await shown(pilot, "guesses ahead: off")

    run(play, settings=Settings(glyphs="box", speculate="auto"))


def test_tokens_that_came_free_are_counted_on_the_meters_page_and_in_the_stats() -> None:
    leg = edgellm.Leg(prefill_tokens=8, reused_tokens=0, decode_tokens=40, free_tokens=10)
    end = edgellm.TurnFinished("I", "eog", edgellm.Usage((leg,)))

    async def play(app: EdgeApp, pilot: Pilot[Any]) -> None:
        await said(pilot, "one")
        await said(pilot, "/stats")
        await shown(pilot, "10 came free by guesses")
        await pilot.press("f10")
        await shown(pilot, "guesses ahead: ngram, 10 of 41 tokens came free (24 %)")

    run(play, [[*words("I"), end]], settings=Settings(glyphs="box", speculate="ngram"))


@pytest.mark.parametrize("value", ["draft", "", "on"])
def test_a_way_to_guess_that_is_none_is_refused(value: str) -> None:
    with pytest.raises(edgellm.ConfigError, match="Choose off, auto or ngram"):
        check_value("speculate", value, (), Settings())


# -- ahead of time ------------------------------------------------------------------------------------------------


SUMMED_UP = "2 old messages summed up to make room"


def summarizing(turns: int = 3) -> tuple[ScriptedRuntime, Settings]:
    runtime = ScriptedRuntime([words(f"answer {number}") for number in range(turns)])
    return runtime, Settings(glyphs="box", context_policy="summarize")


@pytest.fixture
def is_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgellm_tui.context_care._IDLE_S", 0.1)
    monkeypatch.setattr("edgellm_tui.context_care._SHOWN_AFTER_S", 0.02)


@pytest.mark.usefixtures("is_quick")
def test_where_nothing_else_is_done_old_turns_are_summed_up_ahead_of_time() -> None:
    runtime, settings = summarizing()

    async def play(app: EdgeApp, pilot: Pilot[Any]) -> None:
        chat: Any = app.talk.current.chat
        await said(pilot, "one")
        await said(pilot, "two")
        await shown(pilot, SUMMED_UP)
        await settled(pilot)
        assert [message.content for message in chat.messages] == ["two", "answer 1"]
        one, two = (block for block in app.talk.current.blocks if isinstance(block, UserBlock))
        assert one.is_gone and (two.is_gone, two.message) == (False, 0)
        assert app.talk.current.state == "READY"
        (row,) = chat_index().list()
        await wait_until(pilot, lambda: recorded_branches(chat_index(), row.id)[0].gone == (0, 1))
        await said(pilot, "three")
        assert chat.messages[-1].content == "answer 2"

    run(play, runtime=runtime, settings=settings)


@pytest.mark.usefixtures("is_quick")
@pytest.mark.parametrize("how", ["a letter", "a message", "esc", "a page that asks"])
def test_whatever_the_user_does_ends_it_at_once(how: str) -> None:
    runtime, settings = summarizing()
    runtime.tidies_last = True

    async def play(app: EdgeApp, pilot: Pilot[Any]) -> None:
        chat: Any = app.talk.current.chat
        await said(pilot, "one")
        await wait_until(pilot, chat.is_tidying.is_set)
        await shown(pilot, "SUMMING UP")
        assert not chat.tidy_stopped.is_set()
        if how == "a letter":
            await pilot.press("h")
        elif how == "a message":
            app.outbox.say("two")
        elif how == "esc":
            await pilot.press("escape")
        else:
            app.command("/context")
        await wait_until(pilot, chat.tidy_stopped.is_set)
        await settled(pilot)
        await wait_until(pilot, lambda: "SUMMING UP" not in screen_text(app))
        if how == "a message":
            assert [text for text, _ in chat.sent] == ["one", "two"]
        assert SUMMED_UP not in screen_text(app)

    run(play, runtime=runtime, settings=settings)


@pytest.mark.usefixtures("is_quick")
@pytest.mark.parametrize(("policy", "text"), [("evict", ""), ("stop", ""), ("summarize", "half a sent")])
def test_nothing_is_summed_up_under_other_policies_or_while_the_user_writes(policy: str, text: str) -> None:
    runtime, settings = summarizing()
    settings.context_policy = policy

    async def play(app: EdgeApp, pilot: Pilot[Any]) -> None:
        chat: Any = app.talk.current.chat
        await said(pilot, "one")
        app.prompt.insert(text)
        await pilot.pause(0.3)
        assert chat.tidied == 0
        app.prompt.text = ""
        await pilot.pause(0.3)
        assert (chat.tidied > 0) == (policy == "summarize")

    run(play, runtime=runtime, settings=settings)


@pytest.mark.slow
@pytest.mark.usefixtures("is_quick")
def test_on_a_real_engine_the_context_is_half_free_again_before_the_next_message(
    tiny_model: Callable[..., Path],
) -> None:
    class Loading:
        def load(self, _model: str) -> Any:
            return edgellm.load(tiny_model("llama"), n_ctx=512, threads=1)

    async def play(app: EdgeApp, pilot: Pilot[Any]) -> None:
        chat, used = app.talk.current.chat, 0
        for number in range(12):
            await said(pilot, f"{number} the user and the assistant " * 3)
            used = len(chat.tape)
            if used > 256:
                break
        await shown(pilot, "to make room")
        await settled(pilot)
        assert len(chat.tape) < used
        assert any(leg.finish_reason == "tidy" for leg in chat.usage.legs)
        await said(pilot, "and now")
        assert app.talk.current.state == "READY", screen_text(app)

    chain = "logit_bias({2: 7}) | dist(seed=3)"
    settings = Settings(glyphs="box", tools=[], sampler=chain, context_policy="summarize")
    run(play, runtime=Loading(), settings=settings)
