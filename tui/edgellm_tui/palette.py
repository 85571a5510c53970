"""What the command palette (ctrl+p) offers: everything the app does, by name."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from textual.app import SystemCommand

import edgellm
from edgellm_tui.adapters import entry_words
from edgellm_tui.adapters_page import AdaptersPage
from edgellm_tui.export import KINDS
from edgellm_tui.pages import PAGES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgellm_tui.adapters import Entry
    from edgellm_tui.app import EdgeApp


def palette(app: EdgeApp) -> Iterator[SystemCommand]:
    """The actions, those of the chat first."""
    yield from (
        SystemCommand("Chat: new", "Begin a new chat", app.action_new_chat),
        SystemCommand("Chat: retry", "Another answer to the last message", app.action_retry),
        SystemCommand("Chat: edit", "Change the last message and send it again", app.action_edit_last),
        SystemCommand("Chat: continue", "Let a stopped answer go on", app.action_resume),
        SystemCommand(
            "Chat: pin",
            "Keep the chosen turn when the context fills, or no longer",
            partial(app.command, "/pin"),
        ),
        SystemCommand("Chat: stop", "Stop the answer", app.worker.stop),
        SystemCommand("Chat: copy the last answer", "To the clipboard", app.action_copy_answer),
        SystemCommand("Chat: search", "In the titles and texts of all chats", app.action_search),
    )
    for kind, name in KINDS.items():
        told = "Coloured by probability" if kind == "html" else "Into the working folder"
        yield SystemCommand(f"Chat: export as {name}", told, partial(app.command, f"/export {kind}"))
    for preset, chain in app.settings.presets.items():
        yield SystemCommand(f"Sampler: preset {preset}", chain, partial(app.command, f"/sampler {preset}"))
    yield SystemCommand(
        "Adapters: load one from a file", "A LoRA or a control vector", partial(_add_adapter, app)
    )
    for entry in app.adapters.used():
        yield SystemCommand(
            f"Adapters: take {entry.name} off", entry_words(entry), partial(_take_off, app, entry)
        )
    for stored in edgellm.stored_models():
        switch = partial(app.open_model, stored.name)
        yield SystemCommand(f"Model: switch to {stored.name}", "A new chat on it", switch)
    for name, info in PAGES.items():
        yield SystemCommand(f"Page: {info.title}", f"Show it ({info.key})", partial(app.action_page, name))
    yield SystemCommand("Distribution: show or hide", "Under or beside the chat (p)", app.action_toggle_panel)
    yield SystemCommand("App: quit", "Stop, save and leave", app.action_quit)


async def _add_adapter(app: EdgeApp) -> None:
    await app.action_page("adapters")
    if isinstance(app.page, AdaptersPage):
        app.page.action_add()


def _take_off(app: EdgeApp, entry: Entry) -> None:
    try:
        app.adapters.set_scale(entry, 0.0, app.hint, app.report)
    except edgellm.EdgeError as error:
        app.hint(str(error))
