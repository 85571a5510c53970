"""The help page: the keys of the part that had the focus, then all of them, as they are now."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.style import Style
from rich.text import Text

from edgellm_tui.commands import COMMANDS
from edgellm_tui.footer import KeyInfo, all_keys, keys_around, keys_words
from edgellm_tui.pages import PageView
from edgellm_tui.rows import Pane, Rule

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from textual.app import ComposeResult

_BOLD = Style(bold=True)


class HelpPage(PageView):
    """Made anew each time it is shown."""

    def compose(self) -> ComposeResult:
        """A title and the text."""
        rule = Rule(self.edge.glyphs, id="left-head")
        rule.set("keys and commands")
        yield rule
        yield Pane()

    def show(self) -> None:
        """Takes up the part that had the focus."""
        app = self.edge
        pane = self.query_one(Pane)
        pane.set(
            help_text(keys_around(app.pager.came_from, type(app)), all_keys(type(app)), app.settings.keys)
        )
        pane.focus()


def help_text(
    near: Iterable[KeyInfo], everything: Mapping[str, list[KeyInfo]], changed: Mapping[str, str]
) -> Text:
    """All of it as one text."""
    text = Text()
    near = [info for info in near if info.does]
    if near:
        _section(text, "where you were", near, changed)
    for title, keys in everything.items():
        _section(text, title, keys, changed)
    text.append("commands of the prompt\n", _BOLD)
    for name, (_, form, summary) in COMMANDS.items():
        text.append(f"  /{f'{name} {form}':<18} {summary}\n")
    text.append("\nKeys are changed in the settings (F9). Ids stand in brackets.\n")
    return text


def _section(text: Text, title: str, keys: Iterable[KeyInfo], changed: Mapping[str, str]) -> None:
    text.append(f"{title}\n", _BOLD)
    for info in keys:
        now = info.changed(changed)
        text.append(
            f"  {keys_words(now.keys) or 'no key':<19} {info.does}" + (f"  [{info.id}]" if info.id else "")
        )
        text.append(" (changed)\n" if info.keys != now.keys else "\n")
    text.append("\n")
