"""The window into the decode: what its rows say, and going back to earlier tokens."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from edgellm_tui import glyphs
from edgellm_tui.app import EdgeApp
from edgellm_tui.distribution import bar_rows, candidates, draw_rows, packed, stage_rows, summary
from edgellm_tui.drawn import bar, plain, sparkline, titled
from edgellm_tui.kept import is_thin, thinned
from edgellm_tui.plain import fitted
from edgellm_tui.rows import rule
from edgellm_tui.settings import Settings
from edgellm_tui.token_text import mark, quoted, share, token_text
from edgellm_tui.whatif import without
from textual.pilot import Pilot
from tui_harness import LARGE, SMALL, compare_screen, run, said, say, screen_text, settled, shown, wait_until
from tui_scripted import Draw, Gate, ScriptedRuntime, words

import edgellm
from edgellm.sampling.chain import Chain, StepContext
from edgellm.testing import random_logits

TRAM = [
    *words("It is cold, and I would take"),
    Draw(" the tram", 0.23, ((" a bus", 0.41), (" skis", 0.1), (" a car", 0.05))),
    Draw(" now", 0.05, ((" soon", 0.6), (" never", 0.3))),
]


def drawn_step(chain: str, seed: int = 1, size: int = 400, rows: int = 20) -> edgellm.Step:
    made = Chain(chain, n_vocab=size, seed=seed)
    draw = made.sample(random_logits(size, seed), StepContext(7), trace=rows)
    made.close()
    piece = f" t{draw.token}".encode()
    return edgellm.Step(draw.token, piece, 7, logprob=draw.logprob, distribution=draw.distribution)


def piece_of(token: int) -> bytes:
    return f" t{token}".encode()


# -- tokens as text ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("piece", "text"),
    [
        (b" icy", " icy"),
        (b"\n\n", "\\n\\n"),
        (b"\t", "\\t"),
        (b"\xf0\x9f\x91", "<f0 9f 91>"),
        (b" \xe6\x9d", " <e6 9d>"),
        (b"\x8b ok", "<8b> ok"),
        ("京".encode(), "京"),
        (b"\x1b[2J", "<1b>[2J"),
        ("\u202e".encode(), "<U+202E>"),
    ],
)
def test_nothing_in_a_token_is_invisible(piece: bytes, text: str) -> None:
    assert token_text(piece) == text


def test_quotes_show_spaces_and_keep_the_width() -> None:
    assert quoted(b" icy", 10) == '" icy"    '
    assert len(quoted(b" a very long token", 10)) == 10


def test_doubt_has_a_mark_besides_its_colour() -> None:
    assert [mark(p) for p in (None, 1.0, 0.9, 0.89, 0.5, 0.49, 0.1, 0.09)] == [*"   --==*"]
    assert [share(p) for p in (1.0, 0.412, 0.0005, 0.0)] == ["1.00", ".412", ".001", ".000"]


def test_bars_and_sparklines_fill_what_they_should() -> None:
    assert bar(0.5, 8, glyphs.BOX) == "████    "
    assert bar(0.001, 8, glyphs.BOX).strip() and bar(0.0, 8, glyphs.BOX) == " " * 8
    assert sparkline([0.0, 1.0, 2.0], 2, glyphs.BOX, 2.0) == "▅█"
    assert sparkline([], 5, glyphs.ASCII) == ""


# -- one token --------------------------------------------------------------------------------------------


def test_the_stage_that_cut_a_candidate_is_named() -> None:
    step = drawn_step("top_k(5) | min_p(0.2) | temperature(0.7) | dist")
    seen = step.distribution
    assert seen is not None
    found = candidates(step, 8)
    left = [set(rows.ids.tolist()) for rows in seen.stages]
    for each in found:
        expected = "top_k" if each.token not in left[0] else "min_p" if each.token not in left[1] else ""
        assert each.cut_by == expected
        assert (each.final is None) == bool(expected)
    assert {each.cut_by for each in found} == {"top_k", "min_p", ""}
    assert [each.is_drawn for each in found].count(True) == 1
    text = "\n".join(plain(row) for row in stage_rows(step, piece_of, 90, 8))
    assert text.count("cut") == sum(bool(each.cut_by) for each in found)
    assert "<< drawn" in text


def test_words_that_do_not_fit_beside_each_other_go_below() -> None:
    assert packed(["kept 3", "H 1 bit", "u=.5"], 15) == ["kept 3  H 1 bit", "u=.5"]
    assert packed(["kept 3"], 3) == ["kept 3"] and packed([], 9) == []


def test_the_drawn_token_is_among_the_rows_however_improbable() -> None:
    for seed in range(1, 60):
        step = drawn_step("temperature(3) | dist", seed, rows=20)
        shown = candidates(step, 5)
        assert sum(each.is_drawn for each in shown) == 1 and len(shown) == 5


def test_rows_that_were_not_kept_are_not_called_cut() -> None:
    step = drawn_step("top_k(40) | temperature(0.7) | dist", rows=4)
    assert all(not each.cut_by for each in candidates(step, 4))


def test_what_a_grammar_forbids_is_cut_by_it_however_many_rows_it_leaves() -> None:
    made = Chain("temperature(0.7) | dist", n_vocab=400, seed=1)
    logits = random_logits(400, 1)
    best = np.argsort(-logits)
    allowed = np.sort(best[[0, *range(2, 300)]]).astype(np.int32)
    constraint: Any = SimpleNamespace(allowed_ids=lambda: allowed)
    draw = made.sample(logits, StepContext(7), trace=20, constraint=constraint)
    made.close()
    step = edgellm.Step(draw.token, b" x", 7, distribution=draw.distribution, is_constrained=True)
    found = candidates(step, 5)
    assert [each.cut_by for each in found] == ["", "constraint", "", "", ""]
    assert "cut: grammar" in "\n".join(plain(row) for row in bar_rows(step, piece_of, 80, 5, glyphs.BOX))
    table = [plain(row) for row in stage_rows(step, piece_of, 90, 5)]
    assert [line.count("cut") for line in table[3:]] == [0, 1, 0, 0, 0] and ".." not in "".join(table)


def test_what_is_too_long_for_its_line_ends_in_dots() -> None:
    assert fitted("a chain", 7) == "a chain" and fitted("a chain", 6) == "a ch.."
    row = plain(titled("top_k > top_p > temp", 16, glyphs.BOX))
    assert row == "── top_k > top.." == rule("top_k > top_p > temp", 16, glyphs.BOX)
    assert fitted("京京京", 5) == "京 .."


def test_a_step_kept_in_short_shows_the_same_ends() -> None:
    step = drawn_step("top_k(5) | min_p(0.1) | temperature(0.7) | dist")
    short = thinned(step)
    assert is_thin(short) and not is_thin(step)
    seen, kept = step.distribution, short.distribution
    assert seen is not None and kept is not None and kept.u == seen.u
    for one, other in ((seen.raw, kept.raw), (seen.final, kept.final)):
        np.testing.assert_array_equal(one.ids, other.ids)
        np.testing.assert_array_equal(one.probs, other.probs)
        np.testing.assert_array_equal(one.logits, other.logits)
        assert (one.n_left, one.entropy_bits) == (other.n_left, other.entropy_bits)
    # Which stage cut what is not known any more, and not made up.
    text = "\n".join(plain(row) for row in bar_rows(short, piece_of, 80, 9, glyphs.BOX))
    assert "cut" in text and "cut:" not in text
    assert summary(short) == summary(step)


def test_the_draw_points_into_the_part_of_the_token_that_was_drawn() -> None:
    for seed in range(1, 40):
        step = drawn_step("top_k(4) | dist", seed)
        line, pointer = (plain(row) for row in draw_rows(step, piece_of, 120))
        at = pointer.index("^")
        parts = line[2:-2].split("|")
        start = 2
        for part in parts:
            if start <= at <= start + len(part):
                break
            start += len(part) + 1
        name = f'" t{step.token}"'
        assert name in part or len(part) <= 6


@pytest.mark.parametrize(
    "chain",
    [
        "top_k(40) | top_p(0.9) | temperature(0.7) | dist",
        "top_k(12) | top_p(0.9) | min_p(0.05) | temperature(0.7) | dist",
        "top_p(0.8) | temperature(1.3) | dist",
        "temperature(0.5) | top_p(0.7) | top_k(6) | dist",
        "min_p(0.1) | temperature(1.2) | dist",
        "top_k(10) | greedy",
    ],
)
def test_what_a_stage_less_would_have_drawn_is_right_or_not_said(chain: str) -> None:
    spec = edgellm.ChainSpec.parse(chain)
    said = 0
    for seed in range(1, 41):
        step = drawn_step(chain, seed)
        for index in range(len(spec.stages) - 1):
            token = without(step, spec, index)
            shorter = edgellm.ChainSpec(spec.stages[:index] + spec.stages[index + 1 :])
            made = Chain(shorter, n_vocab=400, seed=seed)
            if token is not None:
                said += 1
                assert token == made.sample(random_logits(400, seed), StepContext(7)).token, (seed, index)
            made.close()
    assert said > 10


def test_behind_an_unknown_stage_nothing_is_claimed() -> None:
    chain = "top_k(9) | typical(0.9) | temperature(0.7) | dist"
    spec, step = edgellm.ChainSpec.parse(chain), drawn_step(chain)
    assert without(step, spec, 0) is None
    assert without(step, spec, 2) is not None
    assert without(replace(step, distribution=None), spec, 2) is None


# -- in the app -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "name"), [(SMALL, "80x24"), ((120, 40), "120x40"), (LARGE, "200x50")])
def test_the_panel_shows_how_the_newest_token_was_drawn(size: tuple[int, int], name: str) -> None:
    async def play(app: EdgeApp, pilot: Pilot[Any]) -> None:
        await said(pilot, "How do you travel?")
        compare_screen(app, f"panel-{name}")

    run(play, [TRAM], size=size)


def test_the_arrows_go_back_to_earlier_tokens_and_end_follows_again() -> None:
    async def play(app: EdgeApp, pilot: Pilot[Any]) -> None:
        await said(pilot, "How do you travel?")
        app.panel.focus()
        await pilot.press("left", "left")
        assert "token 7 of 9" in screen_text(app)
        compare_screen(app, "panel-scrubbed")
        await pilot.press("right")
        assert '" the tram"' in screen_text(app) and "surprisal 2.12 bit" in screen_text(app)
        await pilot.press("home")
        assert "token 1 of 9" in screen_text(app)
        await pilot.press("n")
        assert "token 8 of 9" in screen_text(app)
        await pilot.press("N")
        assert "token 8 of 9" in screen_text(app)
        await pilot.press("end")
        assert "next token" in screen_text(app)

    run(play, [TRAM])


def test_the_panel_stays_at_a_token_while_more_are_drawn() -> None:
    gate = Gate()

    async def play(app: EdgeApp, pilot: Pilot[Any]) -> None:
        await say(pilot, "Count.")
        await wait_until(pilot, lambda: gate.reached.is_set() and len(app.talk.current.steps) == 3)
        await wait_until(pilot, lambda: '" three"' in screen_text(app))
        app.panel.focus()
        await pilot.press("left")
        assert "token 2 of 3" in screen_text(app)
        gate.open()
        await settled(pilot)
        assert "token 2 of 5" in screen_text(app)

    run(play, [[*words("one two three"), gate, *words(" four five")]])


def test_p_hides_the_panel_and_no_rows_are_made_for_it() -> None:
    async def play(app: EdgeApp, pilot: Pilot[Any]) -> None:
        app.conversation.focus()
        await pilot.press("p")
        before = app.panel.rows
        await said(pilot, "How do you travel?")
        assert "next token" not in screen_text(app) and app.panel.rows is before
        app.conversation.focus()
        await pilot.press("p")
        await shown(pilot, '" now"')

    run(play, [TRAM], settings=Settings(glyphs="box", show_distribution=True))


def test_what_the_rows_do_not_tell_is_asked_of_the_model() -> None:
    async def play(app: EdgeApp, pilot: Pilot[Any]) -> None:
        await said(pilot, "How do you travel?")
        assert "top_k: ? (w)" in screen_text(app)
        app.panel.focus()
        await pilot.press("w")
        await wait_until(pilot, lambda: "top_k: the same (asked)" in screen_text(app))

    run(play, [TRAM])


def test_older_tokens_are_kept_in_short_and_recomputed_on_request() -> None:
    async def play(app: EdgeApp, pilot: Pilot[Any]) -> None:
        await said(pilot, "Count.")
        app.panel.focus()
        await pilot.press("home")
        assert "raw and final rows only" in screen_text(app)
        await pilot.press("w")
        await wait_until(pilot, lambda: "recomputed" in screen_text(app))

    run(play, runtime=ScriptedRuntime([words("a " * 300)]), size=LARGE)


def test_a_grammar_leaves_nothing_to_recompute_and_says_so() -> None:
    step = replace(drawn_step("top_k(5) | dist"), is_constrained=True)
    assert "grammar on" in summary(step)


def test_the_panel_is_drawn_while_one_model_gives_way_to_another() -> None:
    async def play(app: EdgeApp, pilot: Pilot[Any]) -> None:
        await said(pilot, "How do I get there?")
        kept, app.talk.runtime = app.talk.runtime, None
        try:
            app.panel.frame()
            assert "raw" in screen_text(app)
        finally:
            app.talk.runtime = kept

    run(play, [TRAM], size=LARGE)
