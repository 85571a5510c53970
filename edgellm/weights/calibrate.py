"""An importance matrix from a text: the model reads it, and what flows into its weights is added up."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgellm.errors import Cancelled
from edgellm.models.gguf_info import inspect_gguf
from edgellm.native.activations import ActivationSums
from edgellm.native.context import Context
from edgellm.native.importance import ImportanceMatrix
from edgellm.native.model import Model
from edgellm.planning.together import Wanted, check_together
from edgellm.types import LoadOptions
from edgellm.weights.windows import WINDOW, run_window, windows_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_BATCH = 128  # every row's logits are computed, and held: 134 MB at a vocabulary of 262,144


def calibrate(
    path: Path,
    text: str,
    *,
    source: str = "",
    threads: int = 0,
    progress: Callable[[int, int], bool | None] | None = None,
) -> ImportanceMatrix:
    """The importance matrix of a model for a text, in windows of 512 tokens.

    `source` names the text in the file that is written. `progress` gets windows done and in all, and may return False
    to stop (raises Cancelled). Raises ConfigError for a short text, and what loading raises.
    """
    options = LoadOptions(n_ctx=WINDOW, n_seq_max=1, n_batch=_BATCH, threads=threads)
    check_together(
        [Wanted(inspect_gguf(path), path.name)],
        options,
        logit_rows=_BATCH,
        hint="Read the text with a smaller quantization (edgellm.calibrate), or close other programs.",
    )
    model = Model.load(path, options)
    try:
        windows = windows_of(model, text)
        sums = ActivationSums()
        context = Context(model, options, eval_callback=sums.callback)
        try:
            for number, window in enumerate(windows, 1):
                try:
                    run_window(context, window, wants_logits=True)
                except BaseException as error:
                    raise sums.failure or error from None
                if progress is not None and progress(number, len(windows)) is False:
                    raise Cancelled("reading the text was cancelled.")
        finally:
            context.close()
    finally:
        model.close()
    return ImportanceMatrix(sums.sums, sums.counts, len(windows), WINDOW, source)
