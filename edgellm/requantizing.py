"""Other quantizations of a model: written, planned, calibrated, compared, and kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgellm.offline import catalog, inspect

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from edgellm.errors import ModelCorrupt
    from edgellm.native.importance import ImportanceMatrix
    from edgellm.native.quantizer import QuantizePlan
    from edgellm.weights.compare import Comparison
    from edgellm.weights.optimize import Optimization


def quantize(
    source: str | Path,
    target: str | Path,
    kind: str,
    *,
    importance: str | Path = "",
    calibrate_text: str | None = None,
    tensors: Mapping[str, str] | None = None,
    pure: bool = False,
    threads: int = 0,
    progress: Callable[[int, int, str], bool | None] | None = None,
) -> Path:
    """Writes `source` in another quantization ("Q4_0", "Q8_0" ...) to `target`, with llama.cpp's quantizer.

    `importance` is a file with an importance matrix; or one is made of `calibrate_text` on the way, a text like
    those the model is for. `tensors` gives tensors whose name matches a regular expression a type of their own,
    `pure` all the same. `progress` gets steps done, in all, and what is going on; where it returns False,
    Cancelled is raised. Whatever ends it early, no file is left. Raises ConfigError, ModelNotFound, ModelCorrupt.
    """
    import tempfile

    from edgellm.native.quantizer import QuantizeOptions, check_quantization, quantize_file

    path, target = inspect(source).path, Path(target).expanduser()
    matrix = str(Path(importance).expanduser()) if importance else ""
    options = QuantizeOptions(matrix, dict(tensors or {}), pure, threads)
    with tempfile.TemporaryDirectory(prefix="edgellm-") as folder:
        if calibrate_text is not None:
            check_quantization(path, target, kind, options, has_importance=True)
            file = Path(folder) / "importance.gguf"
            calibrate(path, calibrate_text, threads=threads, progress=progress).save(file)
            options = replace(options, importance=str(file))
        return quantize_file(path, target, kind, options, progress=progress)


def plan_quantize(
    source: str | Path, kind: str, *, tensors: Mapping[str, str] | None = None, pure: bool = False
) -> QuantizePlan:
    """What `quantize` would write: each tensor's type and size, and their sum; nothing is computed or written.

    Raises ConfigError, ModelNotFound, ModelCorrupt.
    """
    from edgellm.native.quantizer import QuantizeOptions, plan_quantization

    options = QuantizeOptions(tensors=dict(tensors or {}), pure=pure)
    return plan_quantization(inspect(source).path, kind, options)


def plan_every_quantize(source: str | Path) -> dict[str, QuantizePlan | ModelCorrupt]:
    """The plans of all quantizations by name, finest first; an error where llama.cpp refuses one for this model.

    Raises ModelNotFound, ModelCorrupt.
    """
    from edgellm.native.quantizer import plan_every_kind

    return plan_every_kind(inspect(source).path)


def calibrate(
    model: str | Path,
    text: str,
    *,
    source: str = "",
    threads: int = 0,
    progress: Callable[[int, int, str], bool | None] | None = None,
) -> ImportanceMatrix:
    """How strongly each weight of a model is used while it reads a text: what low quantizations are steered by.

    `.save(path)` writes it as llama.cpp's tools do. `source` names the text in it; `progress` as for `quantize`.
    Raises ConfigError for a text of under 64 tokens, ModelNotFound, ModelCorrupt, OutOfMemory.
    """
    from edgellm.weights.calibrate import calibrate

    def tell(done: int, total: int) -> bool | None:
        return progress(done, total, "reading the text") if progress is not None else None

    return calibrate(inspect(model).path, text, source=source, threads=threads, progress=tell)


def compare(
    models: Sequence[str | Path],
    text: str | None = None,
    *,
    windows: int = 4,
    rounds: int = 3,
    threads: int = 0,
    progress: Callable[[int, int, str], bool | None] | None = None,
) -> Comparison:
    """Quantizations of one model beside each other: size, speed here, and how far their predictions are from the
    largest's on `text` (a short text of ours where none is given; see `compare_files`).

    Raises ConfigError for files of different vocabularies or a short text, OutOfMemory with the sum where they do not
    fit beside each other, Cancelled, and what loading raises.
    """
    from edgellm.weights.compare import compare_files
    from edgellm.weights.sample_text import SAMPLE_TEXT

    return compare_files(
        [inspect(model).path for model in models],
        SAMPLE_TEXT if text is None else text,
        windows=windows,
        rounds=rounds,
        threads=threads,
        progress=progress,
    )


def optimize(
    model: str | Path,
    folder: str | Path,
    text: str | None = None,
    *,
    kinds: Sequence[str] = (),
    bound: float | None = None,
    windows: int = 4,
    rounds: int = 3,
    threads: int = 0,
    progress: Callable[[int, int, str], bool | None] | None = None,
) -> Optimization:
    """Copies of a model in types with fast kernels, written to `folder` and measured beside it; the model itself stays
    as it is. `best` is the quickest whose mean divergence from the original is at most `bound` nats a token.

    Raises ConfigError, Cancelled, ModelNotFound, ModelCorrupt, and what loading raises.
    """
    from edgellm.weights.optimize import FAST_KINDS, LOSS_BOUND, optimize_file
    from edgellm.weights.sample_text import SAMPLE_TEXT

    return optimize_file(
        inspect(model).path,
        Path(folder).expanduser(),
        SAMPLE_TEXT if text is None else text,
        kinds=kinds or FAST_KINDS,
        bound=LOSS_BOUND if bound is None else bound,
        windows=windows,
        rounds=rounds,
        threads=threads,
        progress=progress,
    )


def check_keep(model: str | Path, kinds: Sequence[str] = ()) -> None:
    """Raises ConfigError where `keep_copy` could not keep a copy in one of the types (all that `optimize` tries, where
    none is named)."""
    from edgellm.models.derived import derived_name
    from edgellm.models.resolve import resolve
    from edgellm.models.store import Store
    from edgellm.weights.optimize import FAST_KINDS

    catalogue = catalog()
    entry = resolve(model, catalogue, Store()).entry
    for kind in kinds or FAST_KINDS:
        derived_name(entry, kind, catalogue)


def keep_copy(model: str | Path, copy: str | Path) -> str:
    """Makes a copy of a model that `optimize` wrote the user's own: the file moves into the store, and the user's
    catalogue gets an entry with the original's settings. Gives its name; the original stays what its name means.

    Raises ConfigError where the name is taken, or where the model is none of the catalogue's.
    """
    from edgellm.models.derived import keep_derived
    from edgellm.models.resolve import resolve
    from edgellm.models.store import Store

    catalogue, store = catalog(), Store()
    return keep_derived(resolve(model, catalogue, store).entry, Path(copy).expanduser(), catalogue, store)
