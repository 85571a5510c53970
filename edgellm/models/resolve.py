"""From what a user types after `--model` to a file that can be loaded."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from edgellm.errors import ModelCorrupt, ModelNotFound
from edgellm.models.catalogue import Catalogue, ModelEntry
from edgellm.models.files import Progress, silent
from edgellm.models.gguf_info import split_parts
from edgellm.models.store import Store


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    """A file to load (a split model's first part), and its catalogue entry if it has one."""

    path: Path
    entry: ModelEntry | None


def resolve(
    name_or_path: str | Path,
    catalogue: Catalogue,
    store: Store,
    *,
    pull: bool = False,
    accept: bool = False,
    progress: Progress = silent,
) -> ResolvedModel:
    """The file that a catalogue name, or a path to a .gguf, stands for; "" is the default model.

    A name of the catalogue wins over a file of that name (write ./NAME for the file). With `pull` a model that is
    not there is fetched; `accept` says that its licence is accepted. Raises ModelNotFound, and what
    `Store.pull` raises.
    """
    text = os.fspath(name_or_path) or catalogue.default
    entry = catalogue.entries.get(text)
    if entry is not None:
        return ResolvedModel(_path_of(entry, store, pull, accept, progress), entry)
    path = Path(text).expanduser()
    if path.is_file():
        first = split_parts(path)[0]
        name = store.entry_name(first)
        return ResolvedModel(first, catalogue.entries.get(name) if name else None)
    if path.is_dir():
        raise ModelNotFound(f"{path} is a folder.", hint=_files_in(path))
    if text.endswith(".gguf") or os.sep in text or (os.altsep and os.altsep in text):
        raise ModelNotFound(
            f"There is no file {path}.", hint="Check the path, or see `edgellm models list` for names."
        )
    stored = store.find(text) if not text.startswith(".") else None
    if stored is not None:
        # Pulled from a catalogue that is no longer read (a trusted folder's, perhaps): the file is still good.
        return ResolvedModel(stored.path, None)
    return ResolvedModel(path, catalogue.find(text))


def _path_of(entry: ModelEntry, store: Store, pull: bool, accept: bool, progress: Progress) -> Path:
    try:
        stored = store.find(entry.name)
    except ModelCorrupt:
        if not pull:
            raise
        stored = None
    if stored is not None:
        return stored.path
    if not pull:
        size = f" ({entry.expected_bytes / 1e6:,.0f} MB)" if entry.expected_bytes else ""
        flag = " --accept-licence" if entry.needs_acceptance else ""
        raise ModelNotFound(
            f"{entry.name} has not been fetched yet{size}.",
            hint=f"Run: edgellm models pull {entry.name}{flag}",
        )
    return store.pull(entry, accept=accept, progress=progress).path


def _files_in(folder: Path) -> str:
    names = sorted(path.name for path in folder.glob("*.gguf"))[:3]
    return f"Name a file in it: {', '.join(names)}." if names else "It holds no .gguf file."
