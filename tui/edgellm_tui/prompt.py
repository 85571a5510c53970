"""The prompt: several lines, history, slash commands, files with @."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from textual.message import Message

from edgellm import ConfigError, private_dir, replacing, state_dir
from edgellm_tui.area import Area
from edgellm_tui.plain import visible

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from textual.events import Key
    from textual.timer import Timer

_ATTACHED = re.compile(r"(?<!\S)@(\S+)")
_MOST_BYTES = 256 * 1024
_MOST_HISTORY = 500
_PAUSE_S = 0.5
PROMPT_KEYS = {
    "prompt.send": "enter",
    "prompt.newline": "ctrl+j,shift+enter",
    "prompt.complete": "tab",
}


class Prompt(Area):
    """Enter sends, ctrl+j begins a new line, up on the first line brings earlier prompts, tab completes / and @."""

    DEFAULT_CSS = """
    Prompt { height: auto; max-height: 8; min-height: 1; border: none; padding: 0 1 0 2; background: transparent; }
    Prompt:focus { border: none; }
    """

    class Sent(Message):
        """The user sends a text."""

        def __init__(self, text: str) -> None:
            super().__init__()
            self.text = text

    class Paused(Message):
        """The user has stopped typing for a moment."""

        def __init__(self, text: str) -> None:
            super().__init__()
            self.text = text

    class Offered(Message):
        """What tab could complete to."""

        def __init__(self, choices: Sequence[str]) -> None:
            super().__init__()
            self.choices = choices

    def __init__(
        self,
        commands: Sequence[str],
        *,
        history: History | None = None,
        keys: Mapping[str, str] | None = None,
        id: str | None = None,
    ) -> None:
        super().__init__("", id=id, soft_wrap=True, show_line_numbers=False, compact=True, placeholder="> ")
        self.cursor_blink = False
        self.highlight_cursor_line = False
        self.commands = list(commands)
        self.earlier = history or History()
        self._actions: dict[str, Callable[[], None]] = {}
        self._pause: Timer | None = None
        self.set_keys(keys or {})

    def set_keys(self, keys: Mapping[str, str]) -> None:
        """Takes over the user's keys, by the ids of PROMPT_KEYS."""
        named = {"send": self.action_send, "newline": self.action_newline, "complete": self.action_complete}
        self._actions = {
            key.strip(): action
            for name, action in named.items()
            for key in keys.get(f"prompt.{name}", PROMPT_KEYS[f"prompt.{name}"]).split(",")
        }

    def action_send(self) -> None:
        """Sends the text and empties the prompt."""
        text = self.text.strip()
        if not text:
            return
        self.earlier.add(text)
        self.text = ""
        self.post_message(self.Sent(text))

    def on_text_area_changed(self) -> None:
        """Waits for a pause in the typing."""
        if self._pause is not None:
            self._pause.stop()
        self._pause = self.set_timer(_PAUSE_S, lambda: self.post_message(self.Paused(self.text)))

    def action_newline(self) -> None:
        """Begins a new line."""
        self.insert("\n")

    def action_cursor_up(self, select: bool = False) -> None:
        """Moves up; on the first line it brings the prompt before."""
        if self.cursor_location[0] == 0 and not select:
            self._recall(self.earlier.before(self.text))
        else:
            super().action_cursor_up(select)

    def action_cursor_down(self, select: bool = False) -> None:
        """Moves down; on the last line it brings the prompt behind."""
        if self.cursor_location[0] == self.document.line_count - 1 and not select:
            self._recall(self.earlier.after())
        else:
            super().action_cursor_down(select)

    def _recall(self, text: str | None) -> None:
        if text is not None:
            self.text = text
            self.move_cursor(self.document.end)

    def action_complete(self) -> None:
        """Completes a command or a file's name; elsewhere tab goes to the next part."""
        row, column = self.cursor_location
        before = self.document.get_line(row)[:column]
        word = before.rpartition(" ")[2]
        if row == 0 and before.startswith("/") and " " not in before:
            found = [f"/{name}" for name in self.commands if f"/{name}".startswith(before)]
        elif word.startswith("@"):
            found = ["@" + name for name in paths_like(word[1:])]
        else:
            self.screen.focus_next()
            return
        self.post_message(self.Offered(found))
        common = _common_start(found)
        if len(common) > len(word):
            self.insert(
                common[len(word) :] + (" " if len(found) == 1 and not common.endswith(os.sep) else "")
            )

    async def _on_key(self, event: Key) -> None:
        # Here and not as priority bindings: those would run before the letters typed just before them are taken.
        action = self._actions.get(event.key)
        if action is not None:
            event.stop()
            event.prevent_default()
            action()
            return
        self.earlier.leave(event.key)
        await super()._on_key(event)


class History:
    """Earlier prompts, kept in a file of the state folder; what cannot be kept lives as long as the app."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._lines: list[str] = []
        self._at: int | None = None
        self._draft = ""
        if path is not None and path.is_file():
            with suppress(OSError):
                self._lines = _kept_lines(path)

    @classmethod
    def of_user(cls) -> History:
        """The user's own."""
        return cls(state_dir() / "prompts")

    def add(self, text: str) -> None:
        """Remembers a prompt."""
        self._at = None
        if self._lines[-1:] == [text]:
            return
        self._lines = [*self._lines, text][-_MOST_HISTORY:]
        if self._path is None:
            return
        try:
            private_dir(self._path.parent)
            # Another app may have kept some since.
            kept = _kept_lines(self._path) if self._path.is_file() else []
            with replacing(self._path, is_synced=False) as file:
                file.write("\0".join([*kept, text][-_MOST_HISTORY:]).encode("utf-8", "replace"))
        except OSError:
            self._path = None

    def before(self, draft: str) -> str | None:
        """The prompt before the one shown."""
        if not self._lines or self._at == 0:
            return None
        if self._at is None:
            self._draft, self._at = draft, len(self._lines)
        self._at -= 1
        return self._lines[self._at]

    def after(self) -> str | None:
        """The prompt behind the one shown; at last what was being written."""
        if self._at is None:
            return None
        self._at += 1
        if self._at >= len(self._lines):
            self._at = None
            return self._draft
        return self._lines[self._at]

    def leave(self, key: str) -> None:
        """Any other key makes what is shown a new prompt."""
        if key not in ("up", "down"):
            self._at = None


def _kept_lines(path: Path) -> list[str]:
    return [line for line in path.read_text("utf-8", "replace").split("\0") if line][-_MOST_HISTORY:]


def _common_start(texts: Sequence[str]) -> str:
    """What all texts begin with."""
    if not texts:
        return ""
    first, last = min(texts), max(texts)
    same = (index for index, letter in enumerate(first) if letter != last[index : index + 1])
    return first[: next(same, len(first))]


def paths_like(start: str) -> list[str]:
    """Files and folders whose name begins as `start` does, folders with a slash behind them."""
    folder, _, beginning = start.rpartition("/")
    base = Path(folder or ("/" if start.startswith("/") else ".")).expanduser()
    prefix = f"{folder}/" if folder or start.startswith("/") else ""
    try:
        names = sorted(entry.name + ("/" if entry.is_dir() else "") for entry in os.scandir(base))
    except OSError:
        return []
    hidden = beginning.startswith(".")
    return [prefix + name for name in names if name.startswith(beginning) and (hidden or name[0] != ".")]


def with_attachments(text: str) -> str:
    """The text with each @file's content behind it. Raises ConfigError for a file that cannot be read as text."""
    parts: list[str] = []
    for name in dict.fromkeys(_ATTACHED.findall(text)):
        path = Path(name).expanduser()
        if not path.is_file() and not any(mark in name for mark in "./~"):
            continue  # a word such as @home
        try:
            if path.stat().st_size > _MOST_BYTES:
                raise ConfigError(
                    f"{path} holds more than {_MOST_BYTES // 1024} KiB.", hint="Attach a part of it."
                )
            content = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise ConfigError(f"{path} is no UTF-8 text.", hint="Attach a text file.") from None
        except OSError as error:
            raise ConfigError(f"{path} cannot be read: {error.strerror}.", hint="Check the path.") from None
        fence = "```"
        while fence in content:
            fence += "`"
        parts.append(f"\n\n{visible(path.name)}:\n{fence}\n{content.rstrip()}\n{fence}")
    return text + "".join(parts)
