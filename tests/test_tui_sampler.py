"""The sampler page: a chain is changed as a draft, previewed, applied, kept, and raced against the one in use."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from edgellm_tui.app import EdgeApp
from edgellm_tui.chain_draft import ChainDraft, share, stepped
from edgellm_tui.chain_preview import cut_by, preview_rows
from edgellm_tui.sampler_page import SamplerPage
from edgellm_tui.settings import Settings, load_settings
from hypothesis import given, settings
from hypothesis import strategies as st
from textual.pilot import Pilot
from textual.widgets import Input
from tui_harness import (
    LARGE,
    run,
    said,
    say,
    screen_text,
    settled,
    shown,
    wait_until,
)
from tui_scripted import Draw, ScriptedRuntime, words

import edgellm

CHAIN = "top_k(40) | top_p(0.9) | temperature(0.7) | dist"


def draft(text: str = CHAIN) -> ChainDraft:
    return ChainDraft(edgellm.ChainSpec.parse(text))


def stage(name: str) -> edgellm.StageInfo:
    return next(info for info in edgellm.sampler_stages() if info.name == name)


# -- the draft ----------------------------------------------------------------------------------------------------


def test_a_stage_is_added_moved_left_out_and_taken_away() -> None:
    chain = draft()
    assert chain.add(stage("min_p"), 1) == 1
    assert chain.text == "top_k(40) | min_p | top_p(0.9) | temperature(0.7) | dist"
    assert chain.move(1, 2) == 3
    assert chain.text == "top_k(40) | top_p(0.9) | temperature(0.7) | min_p | dist"
    chain.toggle(3)
    assert chain.text == CHAIN and len(chain.slots) == 5
    chain.remove(0)
    assert chain.text == "top_p(0.9) | temperature(0.7) | dist"
    while chain.undo():
        pass
    assert chain.text == CHAIN


def test_what_chooses_stays_last() -> None:
    chain = draft()
    assert chain.move(3, -1) == 3
    assert chain.move(2, 1) == 2
    for change in (chain.remove, chain.toggle):
        with pytest.raises(edgellm.SamplerError, match="has to choose"):
            change(3)
    assert chain.add(stage("greedy"), 0) == 3
    assert chain.text == "top_k(40) | top_p(0.9) | temperature(0.7) | greedy"


def test_a_plugins_stage_is_added_like_any_other() -> None:
    chain = draft()
    chain.add(stage("top_a"), 0)
    assert chain.text.startswith("top_a | top_k")


@pytest.mark.parametrize(
    ("at", "name", "text", "written"),
    [
        (0, "k", "7", "top_k(7)"),
        (1, "p", " 0.5 ", "top_p(0.5)"),
        (1, "min_keep", "3", "top_p(0.9, min_keep=3)"),
        (3, "seed", "5", "dist(5)"),
        (3, "seed", "None", "dist"),
    ],
)
def test_a_value_is_typed_as_the_chain_writes_it(at: int, name: str, text: str, written: str) -> None:
    chain = draft()
    chain.type(at, name, text)
    assert str(chain.slots[at].spec) == {"top_p(0.9, min_keep=3)": "top_p(min_keep=3)"}.get(written, written)


@pytest.mark.parametrize("text", ["0", "-1", "many", "", "3) | greedy", "2.5"])
def test_a_value_that_cannot_be_leaves_the_draft_alone(text: str) -> None:
    chain = draft()
    with pytest.raises(edgellm.SamplerError):
        chain.type(0, "k", text)
    assert chain.text == CHAIN


def test_lists_texts_and_truth_values_are_typed_too() -> None:
    chain = draft("dry | dist")
    chain.type(0, "breakers", '["x", "y"]')
    assert dict(chain.slots[0].spec.args)["breakers"] == ("x", "y")


def test_sliders_stop_at_the_ends_of_the_range() -> None:
    chain = draft()
    chain.nudge(1, "p", 1000)
    assert chain.slots[1].spec.complete_args["p"] == 1.0
    chain.nudge(1, "p", -1000)
    assert chain.slots[1].spec.complete_args["p"] == 0.01
    chain.nudge(0, "k", -1000)
    assert chain.slots[0].spec.complete_args["k"] == 1


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_whatever_keys_do_to_numbers_the_chain_stays_valid(data: st.DataObject) -> None:
    native = [info for info in edgellm.sampler_stages() if info.source == "llama.cpp" and not info.chooses]
    info = data.draw(st.sampled_from(native))
    numbers = [param for param in info.params if param.kind in ("int", "float")]
    chain = draft()
    at = chain.add(info, 0)
    for by in data.draw(st.lists(st.sampled_from([-1000, -10, -1, 1, 10, 1000]), max_size=8)):
        if numbers:
            chain.nudge(at, data.draw(st.sampled_from(numbers)).name, by)
        assert str(edgellm.ChainSpec.parse(chain.text)) == chain.text
        for param in numbers:
            part = share(param, chain.slots[at].spec.complete_args[param.name])
            assert part is None or 0 <= part <= 1


def test_a_step_is_fine_in_a_narrow_range_and_coarse_in_a_wide_one() -> None:
    p, k = stage("top_p").param("p"), stage("top_k").param("k")
    assert p is not None and k is not None
    assert stepped(p, 0.9, 1) == 0.91
    assert stepped(k, 40, 1) == 42
    assert stepped(k, 2, 1) == 3


# -- the preview --------------------------------------------------------------------------------------------------


def test_the_preview_tells_what_each_chain_leaves_and_who_cut() -> None:
    chat = ScriptedRuntime().chat()
    step = chat.step_for(5, Draw(" warm", 0.6, ((" cold", 0.3), (" wet", 0.05), (" dry", 0.04))))
    assert step.distribution is not None
    rows = {row.token: row for row in preview_rows(step, step, 10)}
    assert rows[step.token].now == rows[step.token].draft
    cut = chat.runtime.vocabulary.id_of(" dry")
    assert rows[cut].now is None and rows[cut].cut_now == "top_k"
    assert cut_by(step.distribution, step.token) == ""


# -- the page -----------------------------------------------------------------------------------------------------


async def opened(app: EdgeApp, pilot: Pilot[int]) -> SamplerPage:
    await said(pilot, "How warm is the sea?")
    await pilot.press("f7")
    await wait_until(pilot, lambda: isinstance(app.page, SamplerPage))
    await shown(pilot, "drawn with the draft")
    page = app.page
    assert isinstance(page, SamplerPage)
    return page


async def fill(pilot: Pilot[int], text: str) -> None:
    entry = pilot.app.focused
    assert isinstance(entry, Input)
    entry.value = text
    await pilot.press("enter")
    await pilot.pause()


TURN = words("It is warm today, and the wind is low.", 0.6)


def test_keys_change_the_draft_and_nothing_else_until_it_is_used() -> None:
    async def play(app: EdgeApp, pilot: Pilot[int]) -> None:
        page = await opened(app, pilot)
        chat = app.talk.current.chat
        assert page.draft is not None
        await pilot.press("down", "right", "right")  # k of top_k(3)
        assert page.draft.text == "top_k(5) | temperature(0.5) | dist(7)"
        await pilot.press("down", "J")
        assert page.draft.text == "top_k(5) | temperature(0.5) | dist(7)"  # the last place but one already
        await pilot.press("K")
        assert page.draft.text == "temperature(0.5) | top_k(5) | dist(7)"
        await pilot.press("space")
        assert page.draft.text == "top_k(5) | dist(7)"
        assert "OFF temperature" in screen_text(app)
        await pilot.press("d")
        assert len(page.draft.slots) == 2
        await pilot.press("z", "z")
        assert page.draft.text == "temperature(0.5) | top_k(5) | dist(7)"
        assert str(chat.chain.spec) == "top_k(3) | temperature(0.5) | dist(7)"
        await pilot.press("u")
        await wait_until(pilot, lambda: str(chat.chain.spec) == "temperature(0.5) | top_k(5) | dist(7)")
        await shown(pilot, "in use")

    run(play, [TURN])


def test_a_stage_is_added_from_the_list_and_a_value_typed() -> None:
    async def play(app: EdgeApp, pilot: Pilot[int]) -> None:
        page = await opened(app, pilot)
        assert page.draft is not None
        await pilot.press("a")
        await shown(pilot, "choose with enter")
        names = [line.plain.split()[0] for line in page.rows.lines]
        assert {"min_p", "entropix"} <= set(names)
        await pilot.press(*["down"] * names.index("min_p"), "enter")
        assert page.draft.text == "top_k(3) | min_p | temperature(0.5) | dist(7)"
        await pilot.press("enter", "enter")
        await fill(pilot, "2")
        await shown(pilot, "must be a number from 0 to 1")
        await fill(pilot, "0.2")
        assert page.draft.text == "top_k(3) | min_p(0.2) | temperature(0.5) | dist(7)"
        await pilot.press("a", "escape")
        await shown(pilot, "a draft, u uses it")

    run(play, [TURN])


def test_a_preset_is_kept_and_loaded_and_a_chain_is_typed() -> None:
    async def play(app: EdgeApp, pilot: Pilot[int]) -> None:
        page = await opened(app, pilot)
        assert page.draft is not None
        await pilot.press("e")
        await fill(pilot, "top_k(")
        await shown(pilot, "Again:")
        await fill(pilot, "min_p(0.3) | dist")
        assert page.draft.text == "min_p(0.3) | dist"
        await pilot.press("s")
        await fill(pilot, "bold")
        await shown(pilot, "Saved as bold")
        assert load_settings().presets["bold"] == "min_p(0.3) | dist"
        await pilot.press("l")
        names = [line.plain.split()[0] for line in page.rows.lines]
        await pilot.press(*["down"] * names.index("exact"), "enter")
        assert page.draft.text == "greedy"

    run(play, [TURN])


def test_another_token_is_previewed() -> None:
    async def play(app: EdgeApp, pilot: Pilot[int]) -> None:
        await opened(app, pilot)
        last = max(app.talk.current.steps)
        await shown(pilot, f"preview: token {last}")
        await pilot.press("left_square_bracket")
        await shown(pilot, f"preview: token {last - 1}")
        await pilot.press("right_square_bracket", "right_square_bracket")
        await shown(pilot, f"preview: token {last}")

    run(play, [TURN])


def test_two_chains_answer_side_by_side_and_one_is_kept() -> None:
    async def play(app: EdgeApp, pilot: Pilot[int]) -> None:
        page = await opened(app, pilot)
        await pilot.press("down", "right", "x")
        await shown(pilot, "B: the draft")
        await settled(pilot)
        await shown(pilot, "Warm indeed")
        await shown(pilot, "Cold rather")
        chains = [str(strand.chat.chain.spec) for strand in page.race.strands]
        assert chains == [
            "top_k(3) | temperature(0.5) | dist(7)",
            "top_k(4) | temperature(0.5) | dist(7)",
        ]
        await pilot.press("2")
        await wait_until(pilot, lambda: app.page is None)
        assert str(app.talk.current.chat.chain.spec) == chains[1]
        assert "Cold rather" in screen_text(app) or "Warm indeed" in screen_text(app)

    run(play, [TURN, words("Warm indeed."), words("Cold rather.")], size=LARGE)


def test_a_race_is_left_without_keeping_anything() -> None:
    async def play(app: EdgeApp, pilot: Pilot[int]) -> None:
        page = await opened(app, pilot)
        before = app.talk.current
        await pilot.press("x")
        await shown(pilot, "B: the draft")
        await settled(pilot)
        await pilot.press("escape")
        assert app.page is page and app.talk.current is before
        assert list(app.talk.strands.values()) == [before]

    run(play, [TURN])


def test_before_anything_was_said_the_page_says_so() -> None:
    async def play(app: EdgeApp, pilot: Pilot[int]) -> None:
        await pilot.press("f7")
        await shown(pilot, "nothing is on the tape yet")
        await pilot.press("x")
        await shown(pilot, "Say something first")

    run(play)


def test_on_a_real_engine_the_preview_is_what_the_chain_would_draw(tiny_model: Callable[..., Path]) -> None:
    class Loading:
        def load(self, _model: str) -> Any:
            return edgellm.load(tiny_model("llama"))

    async def play(app: EdgeApp, pilot: Pilot[int]) -> None:
        await say(pilot, "the user and the assistant")
        await wait_until(pilot, lambda: len(app.talk.current.steps) > 5)
        await pilot.press("escape")
        await settled(pilot)
        await pilot.press("f7")
        await shown(pilot, "drawn with the draft")
        page = app.query_one(SamplerPage)
        await pilot.press("e")
        await fill(pilot, "greedy")
        await wait_until(pilot, lambda: (page.preview.shown_for or ("",))[0] == "greedy")
        assert page.preview.steps is not None
        now, then = page.preview.steps
        assert then.distribution is not None and then.token == int(then.distribution.raw.ids[0])
        assert now.token == app.talk.current.steps[now.position].token
        await pilot.press("u")
        await wait_until(pilot, lambda: str(app.talk.current.chat.chain.spec) == "greedy")

    # A model of noise ends its answer at any token: with this seed, not before the sixth.
    run(play, runtime=Loading(), settings=Settings(glyphs="box", sampler="top_k(40) | dist(seed=3)"))
