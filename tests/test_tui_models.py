"""The first start, and the page of models: fetch, load, accept a licence, delete."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from edgellm_tui import model_page
from edgellm_tui.app import EdgeApp
from edgellm_tui.model_fit import fits, megabytes, plan_of
from edgellm_tui.settings import load_settings
from textual.pilot import Pilot
from textual.widgets import Input
from tui_harness import compare_screen, run, said, screen_text, shown, wait_until
from tui_scripted import ScriptedRuntime, words

import edgellm

CATALOGUE = """\
default = "little"

[models.little]
description = "A tiny model."
licence = "Apache-2.0"
file = "little.gguf"
size_bytes = {size}
sources = [{{ kind = "path", path = "{path}" }}]

[models.guarded]
description = "Wants its licence accepted."
licence = "Guarded Terms"
licence_url = "https://example.org/terms"
needs_acceptance = true
file = "little.gguf"
sources = [{{ kind = "path", path = "{path}" }}]

[models.lost]
description = "Its source is gone."
licence = "MIT"
file = "lost.gguf"
about_mb = 12
sources = [{{ kind = "path", path = "{path}.lost" }}]
"""


class Shelf(ScriptedRuntime):
    """Loads what is in the store, as the real one does."""

    def load(self, model: str) -> ScriptedRuntime:
        edgellm.inspect(model)
        return super().load(model)


@pytest.fixture
def little(tmp_path: Path, tiny_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A catalogue of the user with a model that is fetched from a file."""
    path = tmp_path / "little.gguf"
    shutil.copyfile(tiny_model("llama"), path)
    config = tmp_path / "config"
    config.mkdir()
    (config / "models.toml").write_text(CATALOGUE.format(size=path.stat().st_size, path=path))
    shipped = tmp_path / "empty.toml"
    shipped.write_text('default = ""\n')
    monkeypatch.setattr("edgellm.models.catalogue.shipped_file", lambda: shipped)
    monkeypatch.setattr("edgellm.models.sources.PathSource.__str__", lambda _source: "path little.gguf")
    monkeypatch.setattr(model_page, "available_bytes", lambda: 4_000_000_000)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return path


def page_of(app: EdgeApp) -> model_page.ModelPage:
    assert isinstance(app.page, model_page.ModelPage)
    return app.page


async def choose(app: EdgeApp, pilot: Pilot[Any], name: str) -> None:
    """Puts the cursor on a model."""
    page = page_of(app)
    page._list.highlighted = next(i for i, row in enumerate(page.rows) if row.load == name)
    await pilot.pause()


def test_the_first_start_offers_the_default_fetches_it_and_begins(little: Path) -> None:
    async def play(app: EdgeApp, pilot: Pilot[Any]) -> None:
        await shown(pilot, "little is not on this machine yet.")
        await shown(pilot, "fits    Apache-2.0")
        await pilot.pause()
        compare_screen(app, "first-run-80x24")
        await pilot.press("enter")
        await wait_until(pilot, lambda: app.talk.is_ready and app.page is None, "the chat")
        await said(pilot, "hello")
        assert "  hi there" in screen_text(app)
        assert load_settings().model == "little"

    run(play, runtime=Shelf([words("hi there")], name="little"), waits_for_chat=False)


def test_a_message_written_before_there_is_a_model_is_sent_once_there_is(little: Path) -> None:
    async def play(app: EdgeApp, pilot: Pilot[Any]) -> None:
        await shown(pilot, "little is not on this machine yet.")
        await pilot.press("f2")
        await said(pilot, "early")
        assert "1 waiting to be sent" in screen_text(app)
        await pilot.press("f5")
        await pilot.press("enter")
        await shown(pilot, "answered")

    run(play, runtime=Shelf([words("answered")], name="little"), waits_for_chat=False)


def test_a_licence_is_accepted_by_its_own_key_before_anything_is_fetched(little: Path) -> None:
    async def play(app: EdgeApp, pilot: Pilot[Any]) -> None:
        await shown(pilot, "not on this machine")
        await choose(app, pilot, "guarded")
        await pilot.press("enter")
        await shown(pilot, "guarded is under the Guarded Terms: https://example.org/terms. a accepts it.")
        await pilot.press("enter", "y")
        assert page_of(app).fetching is None and not edgellm.stored_models()
        await pilot.press("a")
        await wait_until(pilot, lambda: app.talk.is_ready)
        (stored,) = edgellm.stored_models()
        assert stored.name == "guarded" and stored.licence_accepted

    run(play, runtime=Shelf(name="guarded"), waits_for_chat=False)


def test_a_download_that_fails_says_what_to_do(little: Path) -> None:
    async def play(app: EdgeApp, pilot: Pilot[Any]) -> None:
        await shown(pilot, "not on this machine")
        await choose(app, pilot, "lost")
        await pilot.press("enter")
        await shown(pilot, "does not exist.")
        assert "Correct it in" in " ".join(screen_text(app).split())
        assert app.page is not None and not app.talk.is_ready

    run(play, runtime=Shelf(), waits_for_chat=False, size=(200, 50))


def test_a_download_shows_how_far_it_is_and_stops_at_escape(
    little: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = threading.Event()

    def slow(name: str, *, accept_licence: bool, progress: Callable[[int, int, str], None]) -> None:
        progress(34, 100, f"fetching {name}")
        started.set()
        while True:
            progress(34, 100, f"fetching {name}")
            threading.Event().wait(0.01)

    monkeypatch.setattr(edgellm, "pull", slow)

    async def play(app: EdgeApp, pilot: Pilot[Any]) -> None:
        await shown(pilot, "not on this machine")
        await pilot.press("enter")
        await wait_until(pilot, started.is_set)
        await shown(pilot, "little  34 %  fetching little   (esc stops)")
        await pilot.press("escape")
        await shown(pilot, "Fetching little was stopped. What has come is kept")
        assert app.page is not None
        await pilot.press("escape")
        await wait_until(pilot, lambda: app.page is None)

    run(play, runtime=Shelf(), waits_for_chat=False)


def test_models_are_switched_and_deleted_but_not_the_loaded_one(little: Path) -> None:
    edgellm.pull("little")
    edgellm.pull("guarded", accept_licence=True)
    runtime = Shelf()

    async def play(app: EdgeApp, pilot: Pilot[Any]) -> None:
        await pilot.press("f5")
        await shown(pilot, "guarded")
        await choose(app, pilot, "guarded")
        await pilot.press("enter")
        await wait_until(pilot, lambda: app.talk.model == "guarded" and app.talk.is_ready)
        assert runtime.loaded == ["", "guarded"]
        await pilot.press("f5")
        await shown(pilot, "loaded")
        await choose(app, pilot, "guarded")
        await pilot.press("d")
        await shown(pilot, "It is loaded: load another model first.")
        await choose(app, pilot, "little")
        await pilot.press("d", "x", "d")
        await shown(pilot, "d once more deletes little")
        assert len(edgellm.stored_models()) == 2
        await pilot.press("d")
        await shown(pilot, "are free again")
        assert [model.name for model in edgellm.stored_models()] == ["guarded"]

    run(play, runtime=runtime)


def test_a_file_is_opened_by_its_path(little: Path, tmp_path: Path) -> None:
    runtime = Shelf()

    async def play(app: EdgeApp, pilot: Pilot[Any]) -> None:
        await shown(pilot, "not on this machine")
        await pilot.press("o", *"absent.gguf")
        await shown(pilot, " absent.gguf")
        await pilot.press("enter")
        await shown(pilot, "There is no file")
        page_of(app).query_one(Input).value = str(little)
        await pilot.press("enter")
        await wait_until(pilot, lambda: app.talk.is_ready)
        assert runtime.loaded == [str(little)]

    run(play, runtime=runtime, waits_for_chat=False)


def test_what_only_looks_like_a_model_of_this_folder_does_not_empty_the_page(little: Path) -> None:
    Path("gone.gguf").symlink_to("nowhere")
    Path("folder.gguf").mkdir()
    shutil.copyfile(little, "real.gguf")
    rows = model_page.model_rows()
    assert [Path(row.load).name for row in rows if row.is_file] == ["real.gguf"]
    assert "little" in [row.load for row in rows]


def test_only_a_model_that_was_loaded_is_the_one_to_begin_with(little: Path) -> None:
    edgellm.pull("little")

    class Breaks(Shelf):
        def load(self, model: str) -> ScriptedRuntime:
            if Path(model).name == "broken.gguf":
                raise edgellm.ModelCorrupt("it ends too early", hint="Fetch it again.")
            return super().load(model)

    async def play(app: EdgeApp, pilot: Pilot[Any]) -> None:
        shutil.copyfile(little, "broken.gguf")
        await pilot.press("f5")
        await choose(app, pilot, str(Path("broken.gguf").absolute()))
        await pilot.press("enter")
        await shown(pilot, "it ends too early")
        assert load_settings().model == ""
        await pilot.press("f5")
        await choose(app, pilot, "little")
        await pilot.press("enter")
        await wait_until(pilot, lambda: app.talk.is_ready)
        assert load_settings().model == "little"

    run(play, runtime=Breaks())


def test_what_is_here_is_planned_as_load_would_once_the_cursor_rests(
    little: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edgellm.pull("little")
    asked: list[str] = []
    plan = edgellm.plan(str(little), is_measured=False)
    plan = replace(plan, machine=replace(plan.machine, room_bytes=2_000_000_000), speed=None)
    words = f"takes {megabytes(plan.demand.host_bytes)} of 2,000 MB free"

    def plan_of(model: str) -> Any:
        asked.append(model)
        return plan if len(asked) == 1 else replace(plan, refusal="It needs more than there is.")

    monkeypatch.setattr(model_page, "plan_of", plan_of)

    async def play(app: EdgeApp, pilot: Pilot[Any]) -> None:
        await pilot.press("f5")
        await choose(app, pilot, "guarded")
        await choose(app, pilot, "little")
        await shown(pilot, words)
        # What is free is asked anew the next time.
        await pilot.press("escape", "f5")
        await choose(app, pilot, "little")
        await shown(pilot, "does not fit: It needs more than there is.")
        assert "too big" in screen_text(app)
        assert asked == ["little", "little"]

    run(play, runtime=Shelf())


def test_a_model_that_cannot_be_read_has_no_plan(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF?")
    assert plan_of(str(broken)) is None


@pytest.mark.parametrize(
    ("size", "free", "word"), [(0, 1, "?"), (10**9, 2 * 10**9, "fits"), (10**9, 10**9, "too big")]
)
def test_a_word_says_whether_a_model_fits(size: int, free: int, word: str) -> None:
    assert fits(size, free) == word
