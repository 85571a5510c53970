"""Copies of a catalogue's models that were made on this machine: files of the store, and entries of the user's own."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from edgellm.errors import ConfigError, ModelNotFound
from edgellm.models.catalogue import FILE_NAME, ModelEntry, config_folder, is_model_name, load_catalogue
from edgellm.models.files import disk_errors, write_text
from edgellm.models.sources import PathSource

if TYPE_CHECKING:
    from tomlkit import TOMLDocument

    from edgellm.models.catalogue import Catalogue
    from edgellm.models.store import Store

_FOLDER = "derived"  # below the store's root
_CARRIED = (
    *("licence", "licence_url", "context", "chat_format", "chat_template", "sampler", "tool_strategy"),
    "source_note",
)


def derived_name(entry: ModelEntry | None, kind: str, catalogue: Catalogue) -> str:
    """The name that a copy of a model in a type is kept under: NAME-type. Raises ConfigError where it cannot be."""
    if entry is None:
        raise ConfigError(
            "the model is a file, not a name of the catalogue.",
            hint="Keep the copy as a file: --output FILE.",
        )
    name = f"{entry.name}-{kind.lower()}"
    if name in catalogue.entries:
        raise ConfigError(
            f"there is a model {name} already.",
            hint=f"Remove it (edgellm models remove {name}), try other types (--types), or keep the copy as a file"
            " (--output FILE).",
        )
    if not is_model_name(name):
        raise ConfigError(
            f"{name!r} cannot be a model's name, which has 64 letters, digits, '.', '_' and '-' at most.",
            hint="Keep the copy as a file: --output FILE.",
        )
    return name


def keep_derived(entry: ModelEntry | None, copy: Path, catalogue: Catalogue, store: Store) -> str:
    """Moves `copy` (NAME.TYPE.gguf) into the store and adds an entry NAME-type with the settings of `entry` to the
    user's catalogue; gives that name. Raises ConfigError, DownloadError for a full disk, ModelCorrupt.
    """
    kind = copy.suffixes[-2].removeprefix(".") if len(copy.suffixes) > 1 else "copy"
    name = derived_name(entry, kind, catalogue)
    assert entry is not None  # else it had no name
    kept = store.root / _FOLDER / f"{name}.gguf"
    with disk_errors(kept):
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(copy, kept)
    try:
        _add_entry(entry, name, kind, kept)
    except BaseException:
        shutil.move(kept, copy)
        raise
    store.pull(load_catalogue().find(name), accept=True)
    return name


def remove_model(name: str, catalogue: Catalogue, store: Store) -> int:
    """Removes a model from the store; with a copy that was kept go its file and its entry in the user's catalogue.

    Gives the bytes freed. Raises ModelNotFound, ConfigError for a kept copy that is the default model.
    """
    kept = _kept_file(catalogue.entries.get(name), store)
    if kept is None:
        return store.remove(name)
    file = config_folder() / FILE_NAME
    document = _read(file)
    if document.get("default") == name:
        raise ConfigError(
            f"{name} is the default model of {file}.", hint="Name another one as `default` there first."
        )
    freed = 0
    with suppress(ModelNotFound):  # what is left of one whose link was removed before
        freed += store.remove(name)
    with disk_errors(kept):
        if kept.is_file():
            freed += kept.stat().st_size
            kept.unlink()
        if name in (models := document.get("models", {})):
            del models[name]
            write_text(file, document.as_string())
    return freed


def _kept_file(entry: ModelEntry | None, store: Store) -> Path | None:
    """The file of a copy that was kept; None for other models, and for what the user has changed since."""
    if entry is None or len(entry.sources) != 1 or entry.origin != str(config_folder() / FILE_NAME):
        return None
    source = entry.sources[0]
    if not isinstance(source, PathSource):
        return None
    path = Path(source.path)
    return path if path.parent == (store.root / _FOLDER).resolve() else None


def _add_entry(entry: ModelEntry, name: str, kind: str, kept: Path) -> None:
    import tomlkit

    file = config_folder() / FILE_NAME
    document = _read(file)
    table = tomlkit.table()
    table["description"] = f"{entry.name} as {kind}, made on this machine."
    table["file"] = kept.name
    for key in _CARRIED:
        value = getattr(entry, key)
        if value != getattr(_PLAIN, key):
            table[key] = value
    hints = entry.load.changes()
    if hints:
        load = tomlkit.table()
        load.update({key: list(value) if isinstance(value, tuple) else value for key, value in hints.items()})
        table["load"] = load
    source = tomlkit.table()
    source["kind"], source["path"] = "path", str(kept)
    sources = tomlkit.aot()
    sources.append(source)
    table["sources"] = sources
    models = document.setdefault("models", tomlkit.table(is_super_table=True))
    models[name] = table
    with disk_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, tomlkit.dumps(document))


def _read(file: Path) -> TOMLDocument:
    import tomlkit
    from tomlkit.exceptions import TOMLKitError

    try:
        return tomlkit.parse(file.read_text(encoding="utf-8")) if file.is_file() else tomlkit.document()
    except (OSError, UnicodeDecodeError, TOMLKitError) as error:
        raise ConfigError(f"{file} cannot be read: {error}.", hint="Correct or remove the file.") from None


_PLAIN = ModelEntry("", "", "", (), "")
