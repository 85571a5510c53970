"""What the user has chosen, in `app.toml` of the configuration folder: theme, keys, model, tools, samplers."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, cast

from edgellm import ConfigError, config_dir, replacing

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_FILE = "app.toml"
SPECULATE: tuple[str, ...] = ("off", "auto", "ngram")
"""How a chat may guess ahead; a draft model is not loaded here."""


@dataclass(slots=True)
class Settings:
    """Every setting with its default.

    `glyphs`: auto, ascii, box or full. `model` "" is the catalogue's default. `tools` are offered in new chats.
    `sampler` "" is the model's own chain, else a preset's name or a chain. `context_policy`: what gives way when
    the context fills: stop, evict, summarize or drop-results. `trace_rows`: rows kept of every token's distribution,
    0 keeps none. `keys` maps a binding's id to keys, such as "app.quit" = "ctrl+q,f12".
    `redraw_share`: how much of one core the screen may take. `slow_link_bps`: at most so many bytes a second are
    sent to the terminal, 0 means no limit. `compute_drafts`: what is settled of a message is computed while it is
    typed. `speculate`: how new chats guess ahead: off, auto or ngram. `saved_chats_mb`: at most so many megabytes are
    kept of the memory of saved chats, 0 means no limit.
    """

    theme: str = ""
    glyphs: str = "auto"
    model: str = ""
    system: str = ""
    sampler: str = ""
    context_policy: str = "stop"
    tools: list[str] = field(default_factory=lambda: ["calculator", "clock"])
    trace_rows: int = 20
    show_distribution: bool = True
    approval_timeout_s: int = 600
    # On two cores that both decode, what the screen takes is lost to the decode.
    redraw_share: float = 0.04
    slow_link_bps: int = 0
    compute_drafts: bool = True
    speculate: str = "off"
    saved_chats_mb: int = 2000
    presets: dict[str, str] = field(default_factory=lambda: dict(PRESETS))
    keys: dict[str, str] = field(default_factory=dict[str, str])

    def sampler_chain(self) -> str | None:
        """The chain that `sampler` stands for; None leaves it to the model."""
        return self.presets.get(self.sampler, self.sampler) or None


PRESETS = {
    "exact": "greedy",
    "balanced": "top_k(40) | top_p(0.95) | min_p(0.05) | temperature(0.7) | dist",
    "inventive": "min_p(0.05) | temperature(1.1) | dist",
}


def settings_path() -> Path:
    """The file they are kept in."""
    return config_dir() / _FILE


def load_settings() -> Settings:
    """The settings; defaults where there is no file. Raises ConfigError for a broken one, naming the key."""
    return checked(_written(), str(settings_path()))


def usable_settings() -> tuple[Settings, list[ConfigError]]:
    """The settings as far as they can be read, defaults for the rest; and what is wrong with the file."""
    try:
        found = _written()
    except ConfigError as error:
        return Settings(), [error]
    good: dict[str, Any] = {}
    wrong: list[ConfigError] = []
    for key, value in found.items():
        try:
            checked({key: value}, str(settings_path()))
        except ConfigError as error:
            wrong.append(error)
        else:
            good[key] = value
    return checked(good), wrong


def _written() -> dict[str, Any]:
    """What the file holds; nothing where there is none. Raises ConfigError."""
    # Any: TOML values.
    import tomllib

    path = settings_path()
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path} cannot be read: {error}.", hint="Correct that place, or remove the file."
        ) from None


def checked(found: Mapping[str, Any], where: str = "the settings") -> Settings:
    """Settings from plain values. Raises ConfigError for an unknown key or a value of another type."""
    # Any: TOML values.
    settings = Settings()
    known = {item.name for item in fields(Settings)}
    for key, value in found.items():
        if key not in known:
            raise ConfigError(f"{where}: {key!r} is unknown.", hint=f"There are: {', '.join(sorted(known))}.")
        default = getattr(settings, key)
        is_number = isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool)
        if not is_number and type(value) is not type(default):
            raise ConfigError(f"{where}: {key} is {value!r}.", hint=f"Give a {type(default).__name__}.")
        if isinstance(value, dict | list):
            entries = cast("list[Any]", list(value.values()) if isinstance(value, dict) else value)
            if not all(isinstance(entry, str) for entry in entries):
                raise ConfigError(f"{where}: {key} holds more than texts.", hint="Give texts only.")
        setattr(settings, key, float(cast("float", value)) if is_number else value)
    return settings


def save_settings(settings: Settings) -> Path:
    """Writes what differs from the defaults; comments and order of the file stay. Raises ConfigError."""
    import tomlkit

    path = settings_path()
    defaults = Settings()
    try:
        document = tomlkit.parse(path.read_text(encoding="utf-8")) if path.exists() else tomlkit.document()
        for item in fields(Settings):
            value = getattr(settings, item.name)
            if value != getattr(defaults, item.name):
                if document.get(item.name) != value:
                    document[item.name] = value
            elif item.name in document:
                del document[item.name]
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with replacing(path) as file:
            file.write(tomlkit.dumps(document).encode())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be written: {error}.", hint="Check its permissions.") from None
    return path
