"""What one can ask without a model in memory: the catalogue, a file's own words, what would fit, this machine."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgellm.errors import ConfigError
from edgellm.load_check import check_options
from edgellm.types import LoadOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from edgellm.examination import DoctorReport
    from edgellm.models.catalogue import Catalogue, ModelEntry
    from edgellm.models.gguf_info import GGUFInfo
    from edgellm.models.merges import Merges
    from edgellm.models.store import StoredModel
    from edgellm.native.vocabulary import Vocabulary
    from edgellm.planning.plan import Plan


def catalog() -> Catalogue:
    """The shipped catalogue of models, with the user's own on top and those of trusted folders beside it.

    Trusted folders count when they are the working directory or above it. Raises ConfigError for a broken file.
    """
    from edgellm.models.catalogue import FILE_NAME, load_catalogue
    from edgellm.trust import FOLDER, Trust

    here, trust = Path.cwd(), Trust()
    files = [folder / FOLDER / FILE_NAME for folder in (here, *here.parents)]
    return load_catalogue(
        [file for file in files if file.is_file() and trust.state(file.parents[1]) == "trusted"]
    )


def inspect(model: str | Path) -> GGUFInfo:
    """What a GGUF says of itself, without loading it. Raises ModelNotFound, ModelCorrupt."""
    from edgellm.models.gguf_info import inspect_gguf
    from edgellm.models.resolve import resolve
    from edgellm.models.store import Store

    return inspect_gguf(resolve(model, catalog(), Store()).path)


def plan(
    model: str | Path = "",
    *,
    options: LoadOptions | None = None,
    is_measured: bool = True,
    is_measured_again: bool = False,
    has_tools: bool = False,
    **overrides: Any,
) -> Plan:
    """What a model would take of this machine, setting by setting, and what `load` would choose; nothing is loaded.

    `overrides` are fields of LoadOptions, as for `load`. `is_measured` measures this machine's speed where that has
    not been done yet, or while other programs were busy (two seconds, kept in the cache folder), `is_measured_again`
    whether it has or not; `has_tools` adds what spoils tool calls to the notes.
    Raises ModelNotFound, ModelCorrupt, ModelUnsupported, ConfigError; where nothing fits, `Plan.refusal` says so.
    """
    from edgellm.models.gguf_info import inspect_gguf
    from edgellm.models.resolve import resolve
    from edgellm.models.store import Store
    from edgellm.planning.plan import make_plan

    found = resolve(model, catalog(), Store())
    chosen = merged_options(options, found.entry, overrides)
    return make_plan(
        inspect_gguf(found.path),
        chosen,
        draft=inspect_draft(chosen),
        model=found.entry.name if found.entry is not None else found.path.name,
        is_measured=is_measured,
        is_measured_again=is_measured_again,
        has_tools=has_tools,
    )


def inspect_draft(options: LoadOptions) -> GGUFInfo | None:
    """What the draft model that the options name says of itself; None where they name none.

    Raises ModelNotFound, ModelCorrupt.
    """
    return inspect(options.draft_model) if options.draft_model else None


def merged_options(
    options: LoadOptions | None, entry: ModelEntry | None, overrides: Mapping[str, Any]
) -> LoadOptions:
    """Load options as given, else as the catalogue has them for the model, with single fields replaced.

    Raises ConfigError for a field that does not exist, and for a value that it cannot have.
    """
    known = [item.name for item in fields(LoadOptions)]
    for name in overrides:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise ConfigError(
                f"load option {name!r} is unknown.",
                hint=f"Did you mean {near[0]!r}?" if near else f"There are: {', '.join(known)}.",
            )
    hints = entry.load.changes() if entry is not None else {}
    merged = replace(options or LoadOptions(**hints), **overrides)
    check_options(merged)
    return merged


def stored_models() -> tuple[StoredModel, ...]:
    """The models that are whole on this machine, by name."""
    from edgellm.models.store import Store

    return Store().list()


def pull(
    name: str = "", *, accept_licence: bool = False, progress: Callable[[int, int, str], None] | None = None
) -> Path:
    """Fetches a model of the catalogue ("" is the default one), unless it is here; gives the file's path.

    `progress` gets bytes done, bytes in all (0: unknown) and what is going on; what it raises ends the pull, and
    the next one goes on from there. Raises ModelNotFound, DownloadError (also for a licence that is not accepted).
    """
    from edgellm.models.files import silent
    from edgellm.models.store import Store

    catalogue = catalog()
    entry = catalogue.find(name or catalogue.default)
    return Store().pull(entry, accept=accept_licence, progress=progress or silent).path


def remove_model(name: str) -> int:
    """Removes a fetched model and what there is of an unfinished download; of a copy that `keep_copy` kept also its
    entry in the user's catalogue. Gives the bytes freed.

    Raises ModelNotFound, and ConfigError for a kept copy that is the default model.
    """
    from edgellm.models import derived
    from edgellm.models.store import Store

    return derived.remove_model(name, catalog(), Store())


@contextmanager
def read_vocabulary(model: str | Path) -> Generator[Vocabulary]:
    """A model's vocabulary, without its weights: in milliseconds, whatever its size.

    Raises ModelNotFound, ModelCorrupt, ModelUnsupported.
    """
    from edgellm.native.model import Model

    loaded = Model.load(inspect(model).path, LoadOptions(), vocabulary_only=True)
    try:
        yield loaded.vocabulary
    finally:
        loaded.close()


def read_merges(model: str | Path) -> Merges:
    """How the tokens of a byte-level BPE vocabulary are put together from bytes: `read_merges(name).steps(b" the")`.

    Raises ModelNotFound, ModelCorrupt, and ConfigError for vocabularies of another kind.
    """
    from edgellm.models import merges

    return merges.read_merges(inspect(model).path)


def native_log(*, min_level: int = 0) -> str:
    """What llama.cpp has logged of late (the last 400 lines). Levels: 1 debug, 2 info, 3 warning, 4 error."""
    from edgellm.native.library import log_text

    return log_text(min_level=min_level)


def doctor() -> DoctorReport:
    """What this machine and installation offer and what is wrong with them: a `DoctorReport`."""
    from edgellm.examination import examine

    return examine()
