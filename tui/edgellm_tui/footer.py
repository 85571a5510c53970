"""Keys in words: the line at the bottom, and the tables of the help page, made from the bindings themselves."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from rich.cells import cell_len, set_cell_size
from textual.binding import Binding
from textual.widget import Widget

from edgellm_tui.pages import PAGES, PageView
from edgellm_tui.prompt import PROMPT_KEYS, Prompt

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence


_NAMES = {
    "left_square_bracket": "[",
    "right_square_bracket": "]",
    "question_mark": "?",
    "slash": "/",
    "plus": "+",
    "minus": "-",
    "escape": "esc",
    "pageup": "pgup",
    "pagedown": "pgdn",
    "full_stop": ".",
    "comma": ",",
}


@dataclass(frozen=True, slots=True)
class KeyInfo:
    """One binding: its id ("" where it cannot be changed), its keys, what it does, whether the footer has it."""

    id: str
    keys: str
    does: str
    is_shown: bool = True

    def changed(self, keys: Mapping[str, str]) -> KeyInfo:
        """With the user's keys."""
        return KeyInfo(self.id, keys.get(self.id, self.keys), self.does, self.is_shown)


def key_word(key: str, *, is_short: bool = False) -> str:
    """A key as people write it; `is_short`: `^q` for ctrl+q, `F1` for f1."""
    parts = [_NAMES.get(part, part) for part in key.strip().split("+")]
    if is_short and parts[0] == "ctrl" and len(parts) == 2:
        return f"^{parts[1]}"
    if parts[-1][0] == "f" and parts[-1][1:].isdigit():
        parts[-1] = parts[-1].upper()
    return "+".join(parts)


def keys_words(keys: str) -> str:
    """All keys of a binding: `[ or alt+up`."""
    return " or ".join(key_word(key) for key in keys.split(",") if key.strip())


def keys_of(owner: type[object]) -> list[KeyInfo]:
    """The bindings that a class declares itself."""
    found: list[KeyInfo] = []
    for binding in owner.__dict__.get("BINDINGS", ()):
        if isinstance(binding, Binding):
            # A hidden alias of a shown key has no id of its own.
            found.append(KeyInfo(binding.id or "", binding.key, binding.description, binding.show))
    return found


def all_keys(app_class: type[object]) -> dict[str, list[KeyInfo]]:
    """All keys of the app by part, in the order of the pages: everything that help and settings list."""
    found = {"everywhere": keys_of(app_class), "prompt": _prompt_keys()}
    seen: set[type[object]] = {app_class}
    modules = {
        "answer": "chat",
        "panel": "distribution",
        "rows": "lists",
        **{info.home.partition(":")[0]: info.title for info in PAGES.values()},
    }
    for module, title in modules.items():
        for _, owner in inspect.getmembers(import_module(f"edgellm_tui.{module}"), inspect.isclass):
            if owner not in seen and owner.__module__.startswith("edgellm_tui."):
                seen.add(owner)
                keys = keys_of(owner)
                if keys:
                    found.setdefault(title, []).extend(keys)
    return found


def _prompt_keys() -> list[KeyInfo]:
    words = {"send": "send", "newline": "new line", "complete": "complete a /command or an @file"}
    return [KeyInfo(id, keys, words.get(id.partition(".")[2], id), False) for id, keys in PROMPT_KEYS.items()]


def keys_around(widget: Widget | None, app_class: type[object]) -> list[KeyInfo]:
    """The keys that work while a widget has the focus: its own, then those of what it is in; not the app's."""
    found: list[KeyInfo] = []
    while widget is not None:
        if isinstance(widget, Prompt):
            found += _prompt_keys()
        for owner in type(widget).__mro__:
            if owner.__module__.startswith("edgellm_tui.") and owner is not app_class:
                found += [info for info in keys_of(owner) if info not in found]
        parent = widget.parent
        widget = parent if isinstance(parent, Widget) else None
    return found


def _place(page: str) -> tuple[int, str]:
    """Where a page stands among others: by the number of its F key, those with another key last."""
    number = PAGES[page].key[1:]
    return (int(number) if number.isdigit() else 99, page)


def fitted(keys: Iterable[tuple[str, str]], ends: Iterable[tuple[str, str]], width: int) -> str:
    """As many `key word` pairs as fit in a line, the first ones first; `ends` always stand at its end."""
    end = "".join(f"  {key} {word}" for key, word in ends)
    line = ""
    for key, word in keys:
        pair = f"  {key} {word}"
        if cell_len(line) + cell_len(pair) + cell_len(end) > width:
            break
        line += pair
    return set_cell_size((line + end)[1:], width).rstrip()


def foot_line(
    page: PageView | None, everywhere: Sequence[KeyInfo], changed: Mapping[str, str], width: int
) -> str:
    """The line of keys: those of the page, those of the other pages, the rest; help and quit at the end."""
    own: list[KeyInfo] = []
    for owner in type(page).__mro__ if page is not None else ():
        if issubclass(owner, PageView):
            own += keys_of(owner)
    pages = [f"app.{name}" for name in ("palette", "chat", *sorted(PAGES, key=_place))]
    ends = ("app.help", "app.quit")
    rank = {id: at for at, id in enumerate(pages)}
    others = sorted(everywhere, key=lambda info: rank.get(info.id, len(rank)))
    words = {
        info.id or info.keys: (key_word(info.keys.split(",")[0], is_short=True), info.does)
        for info in (each.changed(changed) for each in (*own, *others))
        if info.is_shown and info.keys
    }
    first = list(page.foot) or [("esc", "chat")] if page is not None else []
    return fitted(
        [*first, *(pair for id, pair in words.items() if id not in ends)],
        [words[id] for id in ends if id in words],
        width,
    )
