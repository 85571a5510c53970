"""LoRA adapters and control vectors in the app: the page, the command, the palette, and what is kept of them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_models
from edgellm_tui.adapters_page import AdaptersPage
from edgellm_tui.app import EdgeApp
from edgellm_tui.footer import all_keys
from edgellm_tui.palette import palette
from edgellm_tui.saved_chats import chat_index, recorded_branches
from edgellm_tui.settings import Settings
from textual.binding import Binding
from textual.pilot import Pilot
from textual.widgets import Input
from tui_harness import SMALL, run, said, say, screen_text, settled, shown, wait_until
from tui_scripted import Gate, ScriptedRuntime, words

import edgellm

TURNS = [words("Cold."), words("Warm.")]


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pirate.gguf, a LoRA, and calm.gguf, a control vector, in the working folder."""
    folder = tmp_path / "here"
    folder.mkdir()
    tiny_models.build_lora(folder / "pirate.gguf")
    tiny_models.build_control_vector(folder / "calm.gguf")
    monkeypatch.chdir(folder)


def used(app: EdgeApp) -> list[tuple[str, float]]:
    """What the chat decodes with."""
    chosen = app.talk.current.chat.adapters
    return [(os.path.basename(one.path), one.scale) for one in (*chosen.lora, *chosen.control)]


async def fill(pilot: Pilot[Any], text: str) -> None:
    """Writes a text into the open field and sends it."""
    entry = pilot.app.focused
    assert isinstance(entry, Input)
    entry.value = text
    await pilot.press("enter")
    await settled(pilot)


async def open_page(app: EdgeApp, pilot: Pilot[Any]) -> None:
    await pilot.press("ctrl+g")
    await wait_until(pilot, lambda: app.page is not None and app.page.id == "adapters")


def test_an_adapter_is_loaded_scaled_and_taken_off_by_keys() -> None:
    async def play(app: EdgeApp, pilot: Pilot[Any]) -> None:
        await said(pilot, "How warm is Oslo?")
        tokens = len(app.talk.current.chat.tape)
        await open_page(app, pilot)
        await shown(pilot, "no adapters: a loads one from a file")
        await pilot.press("a")
        await fill(pilot, "nowhere.gguf")
        assert "there is no LoRA adapter at nowhere.gguf" in screen_text(app)
        await fill(pilot, "pirate.gguf:0.5")
        assert used(app) == [("pirate.gguf", 0.5)]
        # The scripted runtime computes 50 tokens a second.
        assert (
            f"The next message computes {tokens} tokens of this chat again (about {tokens / 50:.1f} s)."
            in (screen_text(app))
        )
        await pilot.press("a")
        await fill(pilot, "calm.gguf")
        assert "adapters: 2 loaded, 2 in use by this chat" in screen_text(app)
        await pilot.press("right", "right", "right", "left")
        await settled(pilot)
        assert used(app) == [("pirate.gguf", 0.7), ("calm.gguf", 1.0)]
        await pilot.press("down", "enter")
        await fill(pilot, "much")
        assert "is no number" in screen_text(app)
        await fill(pilot, "-1,5")
        assert used(app) == [("pirate.gguf", 0.7), ("calm.gguf", -1.5)]
        await pilot.press("space")
        await settled(pilot)
        assert used(app) == [("pirate.gguf", 0.7)]
        assert "[ ]  -1.50  control vector" in screen_text(app)
        await pilot.press("space", "d")
        await settled(pilot)
        assert used(app) == [("pirate.gguf", 0.7)]
        await pilot.press("d")
        await pilot.pause()
        assert "adapters: 1 loaded, 1 in use" in screen_text(app) and "calm" not in screen_text(app)

    run(play, TURNS, size=SMALL)


def test_all_of_what_is_wrong_with_a_file_can_be_read_and_another_can_be_typed() -> None:
    Path("bad.gguf").write_bytes(b"GGUF?")

    async def play(app: EdgeApp, pilot: Pilot[Any]) -> None:
        await open_page(app, pilot)
        await pilot.press("a")
        await fill(pilot, str(Path("bad.gguf").absolute()))
        page = app.page
        assert isinstance(page, AdaptersPage)
        with pytest.raises(edgellm.ConfigError) as problem:
            edgellm.adapter_set(str(Path("bad.gguf").absolute()))
        text = "".join(screen_text(app).split())
        assert "".join(problem.value.message.split()) in text
        assert page.field.query_one(Input).size.width >= 20

    run(play)


def test_loading_a_file_again_sets_its_scale() -> None:
    async def play(app: EdgeApp, pilot: Pilot[Any]) -> None:
        await open_page(app, pilot)
        for text in ("pirate.gguf", f"{Path.cwd()}/pirate.gguf:0.25"):
            await pilot.press("a")
            await fill(pilot, text)
        assert used(app) == [("pirate.gguf", 0.25)]
        assert "adapters: 1 loaded, 1 in use" in screen_text(app)
        assert "Nothing has to be computed again." in screen_text(app)

    run(play)


def test_the_command_goes_on_with_what_it_names_and_says_the_price() -> None:
    async def play(app: EdgeApp, pilot: Pilot[Any]) -> None:
        await said(pilot, "How warm is Oslo?")
        await said(pilot, "/adapters pirate.gguf:0.5 calm.gguf")
        await shown(pilot, "LoRA adapter pirate.gguf, scale 0.5")
        assert "control vector calm.gguf, scale 1" in screen_text(app)
        assert "of this chat again (about" in screen_text(app)
        await said(pilot, "/adapters none")
        await shown(pilot, "no adapters")
        assert used(app) == []
        await said(pilot, "/adapters 'pirate.gguf")
        await shown(pilot, "Close the quotation.")
        await said(pilot, "/adapters")
        await wait_until(pilot, lambda: app.page is not None and app.page.id == "adapters")
        # Both stay loaded.
        await shown(pilot, "adapters: 2 loaded, 0 in use by this chat")

    run(play, TURNS)


def test_adapters_are_not_changed_while_an_answer_is_written() -> None:
    gate = Gate()

    async def play(app: EdgeApp, pilot: Pilot[Any]) -> None:
        await say(pilot, "one")
        await wait_until(pilot, gate.reached.is_set)
        await say(pilot, "/adapters pirate.gguf")
        await shown(pilot, "An answer is being written.")
        gate.open()
        await settled(pilot)
        assert used(app) == []

    run(play, [[gate, *words("I")]])


def test_the_palette_loads_and_takes_off() -> None:
    async def play(app: EdgeApp, pilot: Pilot[Any]) -> None:
        commands = {command.title: command.callback for command in palette(app)}
        await commands["Adapters: load one from a file"]()  # type: ignore[misc]
        await wait_until(pilot, lambda: isinstance(app.focused, Input))
        await fill(pilot, "pirate.gguf")
        await pilot.press("escape")
        {command.title: command.callback for command in palette(app)}["Adapters: take pirate.gguf off"]()
        await settled(pilot)
        assert used(app) == []

    run(play)


def test_a_branch_has_its_own_and_a_new_chat_none() -> None:
    async def play(app: EdgeApp, pilot: Pilot[Any]) -> None:
        await said(pilot, "one")
        await said(pilot, "/adapters pirate.gguf")
        await settled(pilot)
        await said(pilot, "/fork")
        await wait_until(pilot, lambda: len(app.talk.strands) == 2)
        assert used(app) == [("pirate.gguf", 1.0)]
        await said(pilot, "/adapters none")
        await said(pilot, "/branch main")
        assert used(app) == [("pirate.gguf", 1.0)]
        await pilot.press("ctrl+n")
        await wait_until(pilot, lambda: not app.talk.current.blocks)
        await settled(pilot)
        await open_page(app, pilot)
        await shown(pilot, "adapters: 1 loaded, 0 in use by this chat")

    run(play, TURNS)


@pytest.mark.parametrize("is_there", [True, False])
def test_a_kept_chat_goes_on_with_its_adapters_or_says_that_they_are_gone(is_there: bool) -> None:
    runtime = ScriptedRuntime(TURNS)

    async def before(app: EdgeApp, pilot: Pilot[Any]) -> None:
        await said(pilot, "one")
        await said(pilot, "/adapters pirate.gguf:0.5")
        await settled(pilot)
        await pilot.press("ctrl+q")

    run(before, runtime=runtime)
    (row,) = chat_index().list()
    (branch,) = recorded_branches(chat_index(), row.id)
    path = str(Path("pirate.gguf").absolute())
    assert branch.adapters == edgellm.AdapterSet(lora=(edgellm.LoraAdapter(path, 0.5),))
    if not is_there:
        Path("pirate.gguf").unlink()

    async def after(app: EdgeApp, pilot: Pilot[Any]) -> None:
        await pilot.press("ctrl+o")
        await shown(pilot, "1 chat")
        await pilot.press("enter")
        await wait_until(pilot, lambda: app.page is None and app.talk.kept.title == "one")
        await settled(pilot)
        assert used(app) == ([("pirate.gguf", 0.5)] if is_there else [])
        assert ("goes on without adapters" in " ".join(screen_text(app).split())) is not is_there

    run(after, runtime=runtime)


def test_keys_of_the_page_stand_in_the_help_and_esc_goes_back() -> None:
    listed = {info.id for part in all_keys(EdgeApp).values() for info in part}
    assert {binding.id for binding in AdaptersPage.BINDINGS if isinstance(binding, Binding)} <= listed

    async def play(app: EdgeApp, pilot: Pilot[Any]) -> None:
        await open_page(app, pilot)
        await pilot.press("a", "escape")
        await pilot.pause()
        assert app.page is not None
        await pilot.press("escape")
        await wait_until(pilot, lambda: app.page is None)
        assert app.focused is app.prompt

    run(play)


def test_on_a_real_engine_the_next_message_computes_what_the_page_has_said(
    tiny_model: Callable[..., Path],
) -> None:
    class Loading:
        def load(self, _model: str) -> Any:
            return edgellm.load(tiny_model("llama"), threads=1)

    async def play(app: EdgeApp, pilot: Pilot[Any]) -> None:
        async def ask(text: str) -> edgellm.Usage:
            await app.action_page("chat")
            await said(pilot, text)
            return app.talk.current.chat.usage

        await ask("the user")
        chat = app.talk.current.chat
        before, tokens = chat.usage.rebuilt_tokens, len(chat.tape)
        raw = chat.explain(tokens - 1).distribution.raw
        await open_page(app, pilot)
        await pilot.press("a")
        await fill(pilot, "pirate.gguf:3")
        # The last token drawn may not have been computed yet.
        told = re.search(r"The next message computes (\d+) tokens of this chat again", screen_text(app))
        assert told is not None and int(told[1]) in (tokens - 1, tokens), screen_text(app)
        usage = await ask("and the assistant")
        assert usage.rebuilt_tokens - before == int(told[1])
        now = chat.explain(tokens - 1).distribution.raw
        assert set(now.ids[:10].tolist()) != set(raw.ids[:10].tolist())
        # Taken off again, the engine finds what it found before.
        await open_page(app, pilot)
        await pilot.press("space")
        await settled(pilot)
        await ask("again")
        assert used(app) == []
        again = chat.explain(tokens - 1).distribution.raw
        # In another batch sums differ in their last bits: near-equal rows may change places.
        first, second = (
            [*zip(rows.ids.tolist(), rows.logits.tolist(), strict=True)] for rows in (raw, again)
        )
        for token, logit in first[:10]:
            assert dict(second)[token] == pytest.approx(logit, abs=0.05)

    # A model of noise: without the bias its answers fill the context.
    run(play, runtime=Loading(), settings=Settings(glyphs="box", sampler="logit_bias({2: 7}) | dist(seed=3)"))
