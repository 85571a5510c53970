"""Slash commands of the prompt."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

from edgellm import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgellm_tui.app import EdgeApp


def obey(app: EdgeApp, line: str) -> None:
    """Runs one command. Raises ConfigError for an unknown one, and what the command raises."""
    name, _, rest = line[1:].strip().partition(" ")
    found = COMMANDS.get(name)
    if found is None:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        raise ConfigError(
            f"There is no command /{name[:40]}.",
            hint=f"Did you mean /{near[0]}?" if near else "/help lists them.",
        )
    found[0](app, rest.strip())


def _help(app: EdgeApp, _rest: str) -> None:
    app.talk.current.note("\n".join(f"/{name:<9} {summary}" for name, (_, summary) in COMMANDS.items()))


def _new(app: EdgeApp, _rest: str) -> None:
    app.action_new_chat()


def _quit(app: EdgeApp, _rest: str) -> None:
    app.run_worker(app.action_quit())


COMMANDS: dict[str, tuple[Callable[[EdgeApp, str], None], str]] = {
    "help": (_help, "these lines"),
    "new": (_new, "begin a new chat"),
    "quit": (_quit, "leave"),
}
