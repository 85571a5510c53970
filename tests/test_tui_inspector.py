"""The inspector, the tape, branches: what they show and what their keys do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from edgellm_tui import glyphs
from edgellm_tui.ahead import look_ahead
from edgellm_tui.app import EdgeApp
from edgellm_tui.bias import amount_of, bias_of, biased
from edgellm_tui.branches import tree_of
from edgellm_tui.drawn import plain
from edgellm_tui.strand import Origin, Strand
from edgellm_tui.token_rows import Place, answers_of, marked_rows, real_answers, span_rows, table_rows
from edgellm_tui.trace_file import as_trace
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from textual.pilot import Pilot
from textual.widgets import Input
from tui_harness import (
    LARGE,
    SMALL,
    compare_screen,
    run,
    said,
    say,
    screen_colours,
    screen_text,
    settled,
    shown,
    wait_until,
)
from tui_scripted import Call, Draw, Gate, words

import edgellm
from edgellm import Span, SpanKind

TRAM = [
    *words("It is cold, and I would take"),
    Draw(" the tram", 0.23, ((" a bus", 0.41), (" skis", 0.1), (" a car", 0.05))),
    Draw(" now", 0.05, ((" soon", 0.6), (" never", 0.3))),
]
PIECES = st.sampled_from([" the", "a", "\\n", "京", "<f0 9f>", " long-token-" * 6, "", " 👋"])


def chat_of(app: EdgeApp) -> Any:
    return app.talk.current.chat


# -- rows -------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(PIECES, st.floats(0, 1) | st.none()), max_size=40), st.integers(20, 60))
def test_tokens_are_laid_out_whole_and_within_the_width(
    tokens: list[tuple[str, float | None]], width: int
) -> None:
    places = [Place(at, at, text, SpanKind.TEXT, p) for at, (text, p) in enumerate(tokens)]
    laid = marked_rows(places, width, selected=3)
    lines, marks = laid.rows[::2], laid.rows[1::2]
    assert "".join(plain(line)[1:] for line in lines) == "".join(text for text, _ in tokens)
    for line, under in zip(lines, marks, strict=True):
        assert cell_len(plain(line)) <= width
        assert cell_len(plain(under)) <= cell_len(plain(line))
    assert set(laid.at) == {place.position for place in places if place.text}
    assert ("^" in "".join(map(plain, marks))) == (len(tokens) > 3 and bool(tokens[3][0]))
    for rows in (span_rows(places, width, 3, glyphs.ASCII), table_rows(places, width, 3)):
        assert all(cell_len(plain(row)) <= width for row in rows.rows)
        assert set(rows.at) >= {place.position for place in places if place.text}


def test_answers_are_runs_of_what_the_model_wrote() -> None:
    kinds = ["glue", "user", "glue", "reasoning", "text", "tool_call", "glue", "tool_result", "glue", "text"]
    spans = [Span(SpanKind(kind), 2 * i, 2 * i + 2) for i, kind in enumerate(kinds)]
    assert answers_of(spans) == [(6, 12), (18, 20)]
    # Worked examples in front of the conversation are none of its answers.
    assert real_answers(spans, 1, None) == [(18, 20)]
    assert real_answers(spans, 2, None) == [(6, 12), (18, 20)]
    assert real_answers(spans, 0, None) == []
    assert real_answers(spans, 0, 18) == [(18, 20)]


def test_a_tree_keeps_every_branch_and_puts_children_behind_their_parent() -> None:
    strands = [
        Strand(1, None, name="main"),
        Strand(2, None, origin=Origin(1), name="a"),
        Strand(3, None, origin=Origin(2), name="b"),
        Strand(4, None, origin=Origin(1), name="c"),
        Strand(6, None, origin=Origin(5), name="orphan"),
    ]
    assert [lead + strand.name for lead, strand in tree_of(strands, glyphs.ASCII)] == [
        "main",
        "|- a",
        "|  `- b",
        "`- c",
        "orphan",
    ]


# -- the inspector ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "name"), [(SMALL, "80x24"), (LARGE, "200x50")])
@pytest.mark.parametrize("no_color", [False, True])
def test_the_inspector_shows_the_answer_and_how_a_token_was_drawn(
    size: tuple[int, int], name: str, no_color: bool
) -> None:
    async def play(app: EdgeApp, pilot: Pilot[Any]) -> None:
        await said(pilot, "How do you travel?")
        await pilot.press("f3", "left")
        await pilot.pause()
        compare_screen(app, f"inspector-{name}")
        assert bool(screen_colours(app)) != no_color

    run(play, [TRAM], size=size, no_color=no_color)


def test_keys_go_through_tokens_and_candidates() -> None:
    async def play(app: EdgeApp, pilot: Pilot[Any]) -> None:
        await said(pilot, "How do you travel?")
        await pilot.press("f3", "home")
        assert "token 1/9" in screen_text(app)
        await pilot.press("n")
        assert "token 8/9" in screen_text(app) and '> 2 " the tram"' in screen_text(app)
        await pilot.press("down")
        assert '> 3 " skis"' in screen_text(app)
        await pilot.press("up", "up", "up")
        assert '> 1 " a bus"' in screen_text(app)
        await pilot.press("4")
        assert '> 4 " a car"' in screen_text(app)
        await pilot.press("end", "N")
        assert "token 8/9" in screen_text(app)
        await pilot.press("right")
        assert "token 9/9" in screen_text(app)

    run(play, [TRAM])


def test_another_candidate_is_put_in_place_and_the_answer_goes_on() -> None:
    async def play(app: EdgeApp, pilot: Pilot[Any]) -> None:
        await said(pilot, "How do you travel?")
        main = app.talk.current
        tape = chat_of(app).tape
        await pilot.press("f3", "left", "1", "enter")
        await settled(pilot)
        await wait_until(pilot, lambda: app.talk.current is not main and "home." in screen_text(app))
        branch = app.talk.current
        assert branch.origin is not None and branch.origin.parent == main.key
        position = branch.origin.position
        assert position is not None and branch.chat.tape[:position] == tape[:position]
        assert branch.last_answer == "It is cold, and I would take a bus and then home."
        # The token that was put has the distribution of the one it replaced.
        step = branch.steps[position]
        assert step.piece == b" a bus" and step.logprob == pytest.approx(-0.8916, abs=1e-3)
        assert main.chat.tape == tape and main.last_answer.endswith("the tram now")
        assert branch.chat.sent == [(None, {})]

    run(play, [TRAM, words(" and then home.")])


def test_a_running_answer_ends_where_another_candidate_is_put() -> None:
    gate = Gate()

    async def play(app: EdgeApp, pilot: Pilot[Any]) -> None:
        await say(pilot, "How do you travel?")
        await wait_until(pilot, lambda: gate.reached.is_set() and len(app.talk.current.steps) == 9)
        await pilot.press("f3", "left", "1", "enter")
        await settled(pilot)
        await wait_until(pilot, lambda: "home." in screen_text(app))
        assert app.talk.current.last_answer.endswith("a bus and then home.")

    run(play, [[*TRAM, gate, *words(" ever")], words(" and then home.")])


def test_b_draws_the_token_anew_in_a_branch() -> None:
    async def play(app: EdgeApp, pilot: Pilot[Any]) -> None:
        await said(pilot, "How do you travel?")
        await pilot.press("f3", "left", "b")
        await settled(pilot)
        await wait_until(pilot, lambda: "on foot" in screen_text(app))
        assert app.talk.current.last_answer == "It is cold, and I would take on foot"

    run(play, [TRAM, words(" on foot")])


def test_the_whole_tape_can_be_read_with_its_special_tokens() -> None:
    async def play(app: EdgeApp, pilot: Pilot[Any]) -> None:
        await said(pilot, "How do you travel?")
        await pilot.press("f3", "t", "home")
        await pilot.pause()
        compare_screen(app, "tape")
        assert "<|im_start|>user\\n" in screen_text(app) and "── glue" in screen_text(app)
        await pilot.press("t")
        await pilot.pause()
        compare_screen(app, "tape-table")
        # Tokens that the model did not draw can be asked about, too.
        await pilot.press("right", "right", "right")
        assert "w asks the model" in screen_text(app)
        await pilot.press("w")
        await wait_until(pilot, lambda: "(recomputed)" in screen_text(app))
        await pilot.press("t")
        assert "answer 1/1" in screen_text(app)

    run(play, [TRAM])


def test_looking_ahead_shows_what_is_certain() -> None:
    async def play(app: EdgeApp, pilot: Pilot[Any]) -> None:
        await said(pilot, "How do you travel?")
        sent = len(chat_of(app).runtime.chats)
        await pilot.press("f3", "left", "1", "l")
        await wait_until(pilot, lambda: '" a bus home"  (1 tokens were certain' in screen_text(app))
        scratch = chat_of(app).runtime.chats[sent]
        assert scratch.is_closed and scratch.sent == [(None, {"tool_choice": "none", "max_tokens": 24})]
        assert len(app.talk.strands) == 1

    run(play, [TRAM, [Draw(" home", 0.95), Draw(" soon", 0.5), Draw(" again", 0.95)]])


def test_no_answer_and_no_model_are_pages_too() -> None:
    async def play(app: EdgeApp, pilot: Pilot[Any]) -> None:
        await pilot.press("f3")
        await pilot.pause()
        assert "no answer yet" in screen_text(app)
        await pilot.press("left", "down", "enter", "b", "l", "s", "w", "t", "n", "space")
        await pilot.press("f6", "enter")
        await settled(pilot)

    run(play)


def test_calls_and_reasoning_are_part_of_the_answer() -> None:
    async def play(app: EdgeApp, pilot: Pilot[Any]) -> None:
        await said(pilot, "Weather?")
        await pilot.press("f3")
        await shown(pilot, "answer 2/2")
        await pilot.press("left_square_bracket")
        await shown(pilot, "answer 1/2")
        assert "get_weather" in screen_text(app)

    run(play, [[*words("Hm.", is_reasoning=True), Call("get_weather", {"city": "Oslo"}), *words("Cold.")]])


def test_a_token_is_made_less_likely_from_here_on() -> None:
    async def play(app: EdgeApp, pilot: Pilot[Any]) -> None:
        await said(pilot, "How do you travel?")
        chat = app.talk.current.chat
        before, token = chat.chain.spec, app.talk.runtime.vocabulary.id_of(" soon")
        await pilot.press("f3", "1", "g")
        await shown(pilot, "add to the logit of")
        await pilot.press(*"nan", "enter")
        await shown(pilot, "Again:")
        entry = app.focused
        assert isinstance(entry, Input)
        entry.value = "-1.5"
        await pilot.press("enter")
        await wait_until(pilot, lambda: chat.chain.spec != before)
        assert str(chat.chain.spec) == f"logit_bias({{{token}: -1.5}}) | {before}"
        await shown(pilot, "the chat draws from logit_bias")
        # Esc puts the field away, and the page stays.
        await pilot.press("g", "escape")
        assert app.page is not None and app.focused is app.page

    run(play, [TRAM])


def test_biases_are_added_and_taken_off_again() -> None:
    chain = edgellm.ChainSpec.parse("top_k(3) | dist(seed=7)")
    one = biased(chain, 4, 2.0)
    two = biased(one, 9, float("-inf"))
    assert str(two) == "logit_bias({4: 2.0, 9: -inf}) | top_k(3) | dist(7)"
    assert (bias_of(two, 4), bias_of(two, 9), bias_of(two, 1)) == (2.0, float("-inf"), 0.0)
    assert biased(biased(two, 4, 0), 9, 0) == chain
    for text in ("inf", "nan", "much"):
        with pytest.raises(ValueError, match="Give a"):
            amount_of(text)


def test_what_is_shown_is_copied_and_the_trace_is_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    copied: list[str] = []

    async def play(app: EdgeApp, pilot: Pilot[Any]) -> None:
        monkeypatch.setattr(app, "copy", copied.append)
        await pilot.press("f3", "ctrl+s")
        await shown(pilot, "There is nothing to export yet.")
        await pilot.press("f2")
        await said(pilot, "How do you travel?")
        await pilot.press("f3", "c")
        assert copied == ["It is cold, and I would take the tram now"]
        await pilot.press("ctrl+s")
        await shown(pilot, "How its tokens were drawn written to how-do-you-travel.jsonl")
        steps = app.talk.current.step_list()
        lines = [json.loads(line) for line in (tmp_path / "how-do-you-travel.jsonl").read_text().splitlines()]
        assert [line["text"] for line in lines] == [step.piece.decode() for step in steps]
        last = lines[-1]
        assert last["u"] == 0.5 and last["position"] == steps[-1].position and not last["is_forced"]
        assert [point["stage"] for point in last["points"]] == ["raw", "top_k(3)", "temperature(0.5)"]
        assert last["points"][0]["rows"][0][1:] == [" soon", 0.6]

    run(play, [TRAM])


def test_a_draw_without_a_random_number_is_null_in_the_trace() -> None:
    step = edgellm.Step(1, b"x", 3, is_forced=True)
    assert json.loads(as_trace([step], lambda _token: b"x")) == {
        "position": 3,
        "id": 1,
        "text": "x",
        "logprob": None,
        "is_forced": True,
    }


# -- branches ---------------------------------------------------------------------------------------------


def test_a_branch_is_found_by_its_words() -> None:
    async def play(app: EdgeApp, pilot: Pilot[Any]) -> None:
        await said(pilot, "How do you travel?")
        await pilot.press("f3", "left", "1", "enter")
        await settled(pilot)
        await pilot.press("f6", "slash", *"TRAM now", "enter")
        await pilot.pause()
        assert ">  main" in screen_text(app)
        await pilot.press("slash")
        entry = app.focused
        assert isinstance(entry, Input) and entry.value == "TRAM now"
        entry.value = "bus home"
        await pilot.press("enter")
        await pilot.pause()
        assert '>* └─ " a bus"' in screen_text(app)
        await pilot.press("slash", *"zebra", "enter")
        await shown(pilot, "no branch has these words")
        # A search is no name.
        assert "zebra" not in [strand.name for strand in app.talk.strands.values()]

    run(play, [TRAM, words(" and then home.")])


def test_marked_candidates_run_side_by_side_and_one_is_kept() -> None:
    async def play(app: EdgeApp, pilot: Pilot[Any]) -> None:
        await said(pilot, "How do you travel?")
        main = app.talk.current
        await pilot.press("f3", "left", "1", "space", "3", "space")
        assert '+1 " a bus"' in screen_text(app) and '>+3 " skis"' in screen_text(app).replace("> 3", ">+3")
        await pilot.press("s")
        await shown(pilot, "skis two")
        await settled(pilot)
        compare_screen(app, "race-80x24")
        assert len(app.talk.strands) == 3
        await pilot.press("2")
        await settled(pilot)
        await wait_until(pilot, lambda: app.page is None)
        assert app.talk.current.last_answer == "It is cold, and I would take skis two then"
        assert set(app.talk.strands) == {main.key, app.talk.current.key}
        assert app.racing == []

    run(play, [TRAM, words(" one first"), words(" two then")])


def test_on_a_wide_screen_they_stand_in_columns() -> None:
    async def play(app: EdgeApp, pilot: Pilot[Any]) -> None:
        await said(pilot, "How do you travel?")
        await pilot.press("f3", "left", "s")
        await shown(pilot, "three last")
        await settled(pilot)
        compare_screen(app, "race-200x50")
        # Esc leaves them all as branches.
        await pilot.press("escape")
        await pilot.pause()
        assert "4 branches" in screen_text(app)

    turns = [TRAM, words(" one first"), words(" two then"), words(" three last")]
    run(play, turns, size=LARGE)


def test_branches_are_a_tree_to_switch_name_and_delete_in() -> None:
    async def play(app: EdgeApp, pilot: Pilot[Any]) -> None:
        await said(pilot, "How do you travel?")
        main = app.talk.current
        await pilot.press("f3", "left", "1", "enter")
        await settled(pilot)
        await pilot.press("f6")
        await pilot.pause()
        screen = screen_text(app)
        assert '└─ " a bus" p .410 @' in screen and "2 branches" in screen
        assert '" the tram" -> " a bus"' in screen
        await pilot.press("m", *"bus")
        await pilot.press("enter")
        await pilot.pause()
        assert "bus" in app.talk.current.name
        # The current branch is not deleted, another one is, after a second press.
        await pilot.press("d")
        assert "the current branch stays" in screen_text(app)
        await pilot.press("up", "enter")
        await settled(pilot)
        assert app.talk.current is main and app.page is None
        await pilot.press("f6", "down", "d", "space", "space", "d")
        assert "d again deletes" in screen_text(app) and len(app.talk.strands) == 2
        await pilot.press("d")
        await settled(pilot)
        assert list(app.talk.strands.values()) == [main]

    run(play, [TRAM, words(" and then home.")])


def test_forks_and_open_answers_go_on_from_the_tree() -> None:
    gate = Gate()

    async def play(app: EdgeApp, pilot: Pilot[Any]) -> None:
        await say(pilot, "Count.")
        await wait_until(pilot, gate.reached.is_set)
        await pilot.press("escape")
        await settled(pilot)
        await pilot.press("f6", "f")
        await wait_until(pilot, lambda: len(app.talk.strands) == 2)
        await pilot.press("g")
        await settled(pilot)
        assert app.talk.current.last_answer.endswith("three")
        await pilot.press("g")
        assert "nothing to go on with" in screen_text(app)

    run(play, [[*words("one two"), gate], words(" three")])


# -- with a model -----------------------------------------------------------------------------------------


def test_looking_ahead_on_a_model_leaves_the_chat_alone(tiny_model: Any) -> None:
    with edgellm.load(tiny_model("llama", n_ctx=1024), n_ctx=1024, threads=1) as runtime:
        chat = runtime.chat(template="chatml", seed=3)
        list(chat.send("the user", max_tokens=12))
        tape, chats = chat.tape, len(runtime._chats)
        text, count, best = look_ahead(chat, len(tape) - 3, 40)
        assert isinstance(text, str) and 0 <= count <= 24 and 0 <= best <= 1
        assert chat.tape == tape and len(runtime._chats) == chats
