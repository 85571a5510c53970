"""Copying: the terminal's own clipboard (OSC 52), a clipboard program, else a file; and a word on where it went."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from edgellm import private_dir, state_dir

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from textual.app import App

_WAIT_S = 2.0
# Terminals that swallow OSC 52 without a clipboard behind them.
_DEAF = ("linux", "vt100", "vt220", "dumb")


def clipboard_program(environ: Mapping[str, str]) -> list[str]:
    """The command that takes a text on its stdin, [] where there is none."""
    candidates: list[list[str]] = []
    if environ.get("WAYLAND_DISPLAY"):
        candidates.append(["wl-copy"])
    if environ.get("DISPLAY"):
        candidates += [["xclip", "-selection", "clipboard"], ["xsel", "--clipboard", "--input"]]
    if sys.platform == "darwin":
        candidates.append(["pbcopy"])
    candidates.append(["clip.exe"])
    return next((command for command in candidates if shutil.which(command[0])), [])


def copy_text(text: str, terminal: Callable[[str], None], environ: Mapping[str, str] | None = None) -> str:
    """Copies a text; says where it is now. `terminal` sends it as OSC 52. Raises OSError where nothing takes it."""
    environ = os.environ if environ is None else environ
    places: list[str] = []
    if environ.get("TERM", "dumb") not in _DEAF:
        terminal(text)
        places.append("the terminal")
    command = clipboard_program(environ)
    if command:
        try:
            subprocess.run(
                command,
                # What Windows' program takes other bytes for depends on the console's code page.
                input=text.encode("utf-16-le" if command[0] == "clip.exe" else "utf-8"),
                timeout=_WAIT_S,
                check=True,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            places.append(command[0])
        except (OSError, subprocess.SubprocessError):
            pass  # what else there is takes it; the words below name only what did
    if not places:
        path = private_dir(state_dir()) / "copied.txt"
        path.write_text(text, encoding="utf-8")
        places.append(str(path))
    return f"copied {len(text)} characters to {' and '.join(places)}"


async def copied(app: App[Any], text: str, hint: Callable[[str], None]) -> None:
    """Copies a text from an app, on a thread: a clipboard program may hang. `hint` is told where it went."""
    if not text:
        hint("there is nothing to copy")
        return

    def by_terminal(text: str) -> None:
        app.call_from_thread(app.copy_to_clipboard, text)

    try:
        told = await asyncio.to_thread(copy_text, text, by_terminal)
    except Exception as error:
        told = f"it could not be copied: {error}"
    hint(told)
