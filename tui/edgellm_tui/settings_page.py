"""The settings page: every setting with its type, kept at once; themes with preview; keys that can be changed."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar

from textual.binding import Binding

from edgellm import CONTEXT_POLICIES, ChainSpec, ConfigError, context_policies, discover_policies
from edgellm_tui import glyphs
from edgellm_tui.footer import all_keys, keys_words
from edgellm_tui.list_page import ListPage
from edgellm_tui.plain import one_line, visible
from edgellm_tui.settings import SPECULATE, Settings, checked, save_settings, settings_path

if TYPE_CHECKING:
    from collections.abc import Iterable

    from edgellm_tui.footer import KeyInfo

_DOCS: dict[str, str] = {
    "theme": "Colours. Left and right show the themes one after the other; empty is the app's own choice.",
    "glyphs": "What lines and bars are drawn with: auto, ascii, box or full. From the next start on.",
    "model": "The model that is loaded at the start; empty is the catalogue's default.",
    "system": "The system prompt of new chats.",
    "sampler": "The chain of new chats: a preset's name or a chain; empty is the model's own.",
    "context_policy": "What gives way when the context fills: stop (nothing; the answer ends there), evict (the "
    "oldest turns), summarize (the same, summed up first), drop-results (old tool results, then turns). It counts from "
    "the next message on, in the open chat too, also where that is full.",
    "tools": "Tools that new chats get, separated by commas. The tools page (F8) has them all.",
    "trace_rows": "Rows kept of every token's distribution; 0 keeps none, and the panel has nothing to show.",
    "show_distribution": "Whether the distribution stands under the chat.",
    "approval_timeout_s": "How long a call waits for your yes before that is a no; 0 waits for ever.",
    "redraw_share": "How much of one core the screen may take.",
    "slow_link_bps": "At most so many bytes a second go to the terminal; 0 is no limit. From the next start on.",
    "compute_drafts": "Whether a message is computed while you type it. A near-tie may then be drawn otherwise.",
    "speculate": "How new chats guess ahead: likely tokens are computed along with the next one. off, auto (while that "
    "pays) or ngram (always: the same seed gives the same batches). The text stays what the chain draws. /speculate "
    "changes the open chat.",
    "saved_chats_mb": "Megabytes that saved chats may take; 0 is no limit. Beyond it the memory of those unused for "
    "longest goes: their messages stay, and are read again when you go on with one. Pinned chats (p on their page) "
    "keep it.",
    "presets": "Chains with a name. The sampler page (F7) saves them.",
    "keys": "Keys that you have changed; they stand below, each by its own.",
}


@dataclass(frozen=True, slots=True)
class Entry:
    """One row: a setting, or a binding's keys (`key` has it then)."""

    name: str
    key: KeyInfo | None = None
    part: str = ""


class SettingsPage(ListPage):
    """Enter changes the chosen setting, left and right go through what it may be; all is written at once."""

    BINDINGS: ClassVar = [
        Binding("left", "cycle(-1)", "other value", id="settings.before"),
        Binding("right", "cycle(1)", "other value", show=False, id="settings.after"),
        Binding("d,delete", "reset", "default", id="settings.reset"),
    ]
    heads: ClassVar = ("settings", "what it is")

    def __init__(self, id: str) -> None:
        super().__init__(id=id)
        self._entries: list[Entry] = []

    def refill(self) -> None:
        """Writes all rows anew."""
        settings, app = self.edge.settings, self.edge
        self.head(f"settings, kept in {settings_path()}")
        self._entries = [Entry(item.name) for item in fields(Settings)]
        lines = [
            f"{name:<20} {one_line(value_text(settings, name), 120)}"
            for name in (e.name for e in self._entries)
        ]
        for part, keys in all_keys(type(app)).items():
            for info in keys:
                if not info.id:
                    continue
                self._entries.append(Entry(info.id, info, part))
                now = info.changed(settings.keys)
                mark = "*" if now.keys != info.keys else " "
                lines.append(f"key {info.id:<22}{mark}{keys_words(now.keys) or 'no key':<22} {info.does}")
        self.rows.set(lines)
        self._describe()

    def on_rows_moved(self) -> None:
        """Another setting is described."""
        self._describe()

    @property
    def _chosen(self) -> Entry:
        return self._entries[self.rows.chosen]

    def _describe(self) -> None:
        entry = self._chosen
        if entry.key is not None:
            text = f"{entry.key.does} ({entry.part})\n\nby default: {entry.key.keys or 'no key'}"
            text += "\nWrite keys as ctrl+k, f12, shift+up or a letter, several with commas; empty takes the key away."
            self.pane.set(text)
            return
        default = value_text(Settings(), entry.name)
        kind = type(getattr(Settings(), entry.name)).__name__
        words = {"str": "text", "int": "whole number", "float": "number", "bool": "yes or no", "list": "list"}
        lines = (
            f"{_DOCS.get(entry.name, '')}\n",
            f"{words.get(kind, 'names and values')}, by default: {visible(default) or 'empty'}",
            f"now: {visible(value_text(self.edge.settings, entry.name)) or 'empty'}",
        )
        self.pane.set("\n".join(lines))

    def on_rows_picked(self) -> None:
        """Enter asks for another value; yes and no change places."""
        entry, settings = self._chosen, self.edge.settings
        if entry.key is not None:
            now = entry.key.changed(settings.keys).keys
            self.field.ask(f"keys of {entry.name}", now, lambda text: self._set_key(entry, text))
        elif isinstance(getattr(settings, entry.name), bool):
            self.action_cycle(1)
        elif entry.name in ("presets", "keys"):
            self.say("Each of them has a place of its own: presets on the sampler page, keys below.")
        else:
            value = value_text(settings, entry.name)
            self.field.ask(entry.name, value, lambda text: self._set_text(entry.name, text))

    def action_cycle(self, by: int) -> None:
        """The next of the values a setting may have; themes are shown at once."""
        entry, settings = self._chosen, self.edge.settings
        choices = self._choices(entry)
        if not choices:
            return
        now = getattr(settings, entry.name)
        index = choices.index(now) if now in choices else 0
        problem = self._set(entry.name, choices[(index + by) % len(choices)])
        if not problem and entry.name == "context_policy":
            problem = one_line(" ".join(_left_out()), 120)
        self.say(problem or "")

    def _choices(self, entry: Entry) -> list[Any]:
        # Any: values of the setting's type.
        if entry.key is not None:
            return []
        if entry.name == "theme":
            return ["", *sorted(self.edge.available_themes)]
        if entry.name == "glyphs":
            return ["auto", *glyphs.SETS]
        if entry.name == "context_policy":
            discover_policies()
            return list(context_policies())
        if entry.name == "speculate":
            return list(SPECULATE)
        if entry.name == "sampler":
            return ["", *self.edge.settings.presets]
        return [False, True] if isinstance(getattr(self.edge.settings, entry.name), bool) else []

    def action_reset(self) -> None:
        """Back to the default."""
        entry = self._chosen
        if entry.key is not None:
            self.say(self._set_key(entry, entry.key.keys) or "")
        else:
            self.say(self._set(entry.name, getattr(Settings(), entry.name)) or "")

    def _set_text(self, name: str, text: str) -> str | None:
        try:
            value = parsed(name, text)
        except ValueError as error:
            return str(error)
        return self._set(name, value)

    def _set(self, name: str, value: Any) -> str | None:
        """Checks, takes over and writes one setting; gives what is wrong."""
        # Any: a value of the setting's type.
        app = self.edge

        def change() -> None:
            checked({name: value})
            check_value(name, value, app.available_themes, app.settings)
            before = getattr(app.settings, name)
            setattr(app.settings, name, value)
            try:
                save_settings(app.settings)
            except ConfigError:
                setattr(app.settings, name, before)
                raise
            app.settings_changed()

        problem = self.tried(change)
        self.refill()
        return problem and one_line(problem, 120)

    def _set_key(self, entry: Entry, text: str) -> str | None:
        assert entry.key is not None
        keys = ",".join(part.strip() for part in text.split(",") if part.strip())
        everything = [info for part in all_keys(type(self.edge)).values() for info in part]
        problem = key_problem(entry.name, keys, everything, self.edge.settings)
        if problem:
            return problem
        changed = {id: value for id, value in self.edge.settings.keys.items() if id != entry.name}
        if keys != entry.key.keys:
            changed[entry.name] = keys
        return self._set("keys", changed)


def value_text(settings: Settings, name: str) -> str:
    """A setting as one types it."""
    value = getattr(settings, name)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(value)
    if isinstance(value, dict):
        return ", ".join(f"{key} = {each}" for key, each in value.items())
    return str(value)


def parsed(name: str, text: str) -> Any:
    """What a text spells as a setting's value. Raises ValueError, in words."""
    # Any: the setting's own type.
    default = getattr(Settings(), name)
    text = text.strip()
    if isinstance(default, list):
        return [part.strip() for part in text.split(",") if part.strip()]
    if isinstance(default, int | float):
        try:
            return type(default)(text)
        except ValueError:
            raise ValueError(
                "Give a whole number." if isinstance(default, int) else "Give a number."
            ) from None
    return text


def _left_out() -> list[str]:
    """Makes plugins' context policies known; gives what is wrong with those that cannot be taken."""
    return [f"Left out: {failure.error}" for failure in discover_policies()]


def check_value(name: str, value: Any, themes: Iterable[str], settings: Settings) -> None:
    """What a type alone does not tell. Raises ConfigError, SamplerError."""
    # Any: the setting's own type.
    if name == "theme" and value and value not in themes:
        raise ConfigError(f"there is no theme {value!r}.", hint="Left and right show what there is.")
    if name == "glyphs" and value not in ("auto", *glyphs.SETS):
        raise ConfigError(f"there are no glyphs {value!r}.", hint="Choose auto, ascii, box or full.")
    if name == "context_policy" and value not in CONTEXT_POLICIES:
        left_out = _left_out()
        if value not in context_policies():
            hint = " ".join((f"There are {', '.join(context_policies())}.", *left_out))
            raise ConfigError(f"there is no policy {value!r}.", hint=hint)
    if name == "speculate" and value not in SPECULATE:
        raise ConfigError(f"there is no way {value!r} to guess ahead.", hint="Choose off, auto or ngram.")
    if name == "sampler" and value:
        chain = replace(settings, sampler=value).sampler_chain()
        if chain:
            ChainSpec.parse(chain)
    if name == "redraw_share" and not 0.01 <= value <= 1:
        raise ConfigError("that is no share of a core.", hint="Give a number from 0.01 to 1.")
    if name in ("trace_rows", "approval_timeout_s", "slow_link_bps", "saved_chats_mb") and value < 0:
        raise ConfigError(f"{name} is below 0.", hint="Give 0 or more.")


def key_problem(id: str, keys: str, everything: Iterable[KeyInfo], settings: Settings) -> str | None:
    """Why a binding cannot have these keys, or None: a key does one thing in one part, and quitting keeps one."""
    if id == "app.quit" and not keys:
        return "Quitting needs a key."
    wanted = {key.strip() for key in keys.split(",") if key.strip()}
    for info in everything:
        if info.id == id or not info.id:
            continue
        is_near = info.id.split(".")[0] in (id.split(".")[0], "app") or id.startswith("app.")
        taken = wanted & {key.strip() for key in info.changed(settings.keys).keys.split(",")}
        if is_near and taken:
            return f"{', '.join(sorted(taken))} is taken by {info.id}."
    return None
