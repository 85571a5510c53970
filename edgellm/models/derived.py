"""Copies of a catalogue's models that were made on this machine: files of the store, and entries of the user's own."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from edgellm.errors import ConfigError
from edgellm.models.catalogue import FILE_NAME, ModelEntry, config_folder
from edgellm.models.files import disk_errors, write_text

if TYPE_CHECKING:
    from pathlib import Path

    from edgellm.models.catalogue import Catalogue
    from edgellm.models.store import Store

_CARRIED = (
    *("licence", "licence_url", "context", "chat_format", "chat_template", "sampler", "tool_strategy"),
    "source_note",
)


def keep_derived(entry: ModelEntry | None, copy: Path, catalogue: Catalogue, store: Store) -> str:
    """Moves `copy` (NAME.TYPE.gguf) into the store and adds an entry NAME-type with the settings of `entry` to the
    user's catalogue; gives that name. Raises ConfigError, DownloadError for a full disk, ModelCorrupt.
    """
    if entry is None:
        raise ConfigError(
            "the model is a file, not a name of the catalogue.",
            hint="Keep the copy as a file: --output FILE.",
        )
    kind = copy.suffixes[-2].removeprefix(".") if len(copy.suffixes) > 1 else "copy"
    name = f"{entry.name}-{kind.lower()}"
    if name in catalogue.entries:
        raise ConfigError(
            f"there is a model {name} already.",
            hint=f"Remove its entry from {catalogue.entries[name].origin}.",
        )
    kept = store.root / "derived" / copy.name
    with disk_errors(kept):
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(copy, kept)
    _add_entry(entry, name, kind, kept)
    from edgellm.models.catalogue import load_catalogue

    store.pull(load_catalogue().find(name), accept=True)
    return name


def _add_entry(entry: ModelEntry, name: str, kind: str, kept: Path) -> None:
    import tomlkit
    from tomlkit.exceptions import TOMLKitError

    file = config_folder() / FILE_NAME
    try:
        document = tomlkit.parse(file.read_text(encoding="utf-8")) if file.is_file() else tomlkit.document()
    except (OSError, UnicodeDecodeError, TOMLKitError) as error:
        raise ConfigError(f"{file} cannot be read: {error}.", hint="Correct or remove the file.") from None
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


_PLAIN = ModelEntry("", "", "", (), "")
