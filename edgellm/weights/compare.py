"""Quantizations of one model against each other: speed here, and what each loses of the largest."""

from __future__ import annotations

import statistics
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgellm.engine.prefill import CHUNK
from edgellm.errors import Cancelled, ConfigError
from edgellm.models.gguf_info import inspect_gguf
from edgellm.native.context import Context
from edgellm.native.model import Model
from edgellm.planning.together import Wanted, check_together
from edgellm.types import LoadOptions
from edgellm.weights.windows import SCORED_ROWS, WINDOW, run_window, scored_rows, windows_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

PREFILL_TOKENS = 500
DECODE_TOKENS = 100
_DECODED = 24  # tokens a round and model


@dataclass(frozen=True, slots=True)
class Measured:
    """One file: speed in tokens a second, medians over the rounds, and its predictions against the reference's.

    `perplexity` is exp of the mean negative log probability (nats) of the text's tokens. `kl` is the mean
    Kullback-Leibler divergence of its next-token distributions from the reference's, in nats, `kl_error` the standard
    error of that mean, `kl_99` the 99th percentile; `same_top` the share of tokens where both find the same token most
    likely. Of the reference itself they are 0, 0, 0 and 1.
    """

    path: Path
    size_bytes: int
    prefill_tok_s: float
    decode_tok_s: float
    perplexity: float
    kl: float
    kl_error: float
    kl_99: float
    same_top: float

    def turn_s(self, prefill: int = PREFILL_TOKENS, decode: int = DECODE_TOKENS) -> float:
        """Seconds that a turn of so many new and so many answered tokens takes."""
        return prefill / self.prefill_tok_s + decode / self.decode_tok_s


@dataclass(frozen=True, slots=True)
class Comparison:
    """Files measured beside each other, in the order given. `scored_tokens` is how many predictions were compared."""

    files: tuple[Measured, ...]
    reference: Measured
    scored_tokens: int
    rounds: int
    threads: int

    def best(self, bound: float) -> Measured:
        """The quickest turn among those that lose at most `bound` nats, surely (two standard errors above the mean)."""
        fit = [file for file in self.files if file.kl + 2 * file.kl_error <= bound]
        return min(fit, key=lambda file: file.turn_s())


def compare_files(
    paths: Sequence[Path],
    text: str,
    *,
    reference: Path | None = None,
    windows: int = 4,
    rounds: int = 3,
    threads: int = 0,
    progress: Callable[[int, int, str], bool | None] | None = None,
) -> Comparison:
    """Loads all files beside each other and measures them in turn.

    Predictions are compared on the second halves of the first `windows` windows of 512 tokens of `text` (0: all). The
    reference is the largest model, or `reference`. Raises ConfigError for one file, files of different vocabularies and
    a text that is too short; OutOfMemory with the sum before anything is loaded; Cancelled where `progress` (steps
    done, in all, what) returns False; what loading raises.
    """
    check_measuring(windows, rounds)
    if len(paths) < 2:
        raise ConfigError(
            "there is nothing to compare: give two files or more.", hint="See edgellm compare --help."
        )
    infos = [inspect_gguf(path) for path in paths]
    paths = [info.path for info in infos]
    base = reference if reference is not None else max(infos, key=lambda info: info.size_bytes).path
    if base not in paths:
        raise ConfigError(f"the reference {base} is not among the files.", hint="Name it as one of them.")
    check_room([Wanted(info, info.path.name) for info in infos], "Compare fewer files at a time")
    options = _options(threads)
    steps = _Steps(len(paths) * (1 + rounds), progress)
    with ExitStack() as opened:
        contexts: list[Context] = []
        for path in paths:
            steps.next(f"loading {path.name}")
            model = Model.load(path, options)
            opened.callback(model.close)
            context = Context(model, options)
            opened.callback(context.close)
            contexts.append(context)
        first = contexts[paths.index(base)]
        _check_vocabularies(first, contexts)
        cut = windows_of(first.model, text, most=windows)
        steps.total += len(cut)
        losses = [_Loss() for _ in paths]
        for window in cut:
            steps.next("comparing predictions")
            _score(contexts, paths.index(base), window, losses)
        speeds: list[list[tuple[float, float]]] = [[] for _ in paths]
        for number in range(rounds):
            order = range(len(paths)) if number % 2 == 0 else range(len(paths) - 1, -1, -1)
            for index in order:
                steps.next(f"timing {paths[index].name}")
                speeds[index].append(_time(contexts[index], cut[0]))
        used = first.n_threads
    files = tuple(
        _measured(path, info.size_bytes, loss, speed)
        for path, info, loss, speed in zip(paths, infos, losses, speeds, strict=True)
    )
    return Comparison(files, files[paths.index(base)], losses[0].count, rounds, used)


def check_measuring(windows: int, rounds: int) -> None:
    """Raises ConfigError for counts that nothing can be measured with."""
    if rounds < 1 or windows < 0:
        raise ConfigError(
            f"rounds={rounds}, windows={windows}: there is nothing to measure.",
            hint="Take one round or more, and windows=0 for all of the text.",
        )


def check_room(models: Sequence[Wanted], remedy: str) -> None:
    """Raises OutOfMemory with the sum where the models cannot be measured beside each other."""
    check_together(models, _options(), logit_rows=SCORED_ROWS, hint=f"{remedy}, or close other programs.")


def _options(threads: int = 0) -> LoadOptions:
    return LoadOptions(n_ctx=WINDOW, n_seq_max=1, n_batch=CHUNK, n_ubatch=CHUNK, threads=threads)


class _Steps:
    """Counts steps for whoever watches."""

    def __init__(self, total: int, progress: Callable[[int, int, str], bool | None] | None) -> None:
        self.total = total
        self._done = 0
        self._progress = progress

    def next(self, what: str) -> None:
        self._done += 1
        if self._progress is not None and self._progress(self._done, self.total, what) is False:
            raise Cancelled("the comparison was cancelled.")


class _Loss:
    """What one file's predictions add up to."""

    def __init__(self) -> None:
        self.negative_logs: list[float] = []
        self.divergences: list[float] = []
        self.same = 0

    @property
    def count(self) -> int:
        return len(self.divergences)


def _check_vocabularies(first: Context, contexts: Sequence[Context]) -> None:
    known = first.model.vocabulary
    sample = (0, known.size // 3, known.size // 2, known.size - 1)
    for context in contexts:
        other = context.model.vocabulary
        if other.size != known.size or any(other.piece(token) != known.piece(token) for token in sample):
            raise ConfigError(
                f"{context.model.path.name} has another vocabulary than {first.model.path.name}.",
                hint="Compare quantizations of one model.",
            )


def _score(contexts: Sequence[Context], base: int, window: Sequence[int], losses: Sequence[_Loss]) -> None:
    # In lockstep: the logits of a row are looked at while all contexts hold them, and never kept.
    for rows in zip(*(scored_rows(context, window) for context in contexts), strict=True):
        token = rows[0][1]
        reference = _log_softmax(rows[base][0])
        weights = np.exp(reference)
        top = int(reference.argmax())
        for index, (logits, _) in enumerate(rows):
            loss = losses[index]
            found = reference if index == base else _log_softmax(logits)
            loss.negative_logs.append(-float(found[token]))
            divergence = 0.0 if index == base else float(np.dot(weights, reference - found))
            loss.divergences.append(max(0.0, divergence))
            loss.same += index == base or int(found.argmax()) == top


def _log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    shifted = logits - logits.max()
    return shifted - np.log(np.exp(shifted).sum(dtype=np.float64)).astype(np.float32)


def _time(context: Context, window: Sequence[int]) -> tuple[float, float]:
    """Tokens a second in prefill of the window, and in decoding behind it."""
    prompt = window[: max(1, min(len(window), context.n_ctx - _DECODED))]
    started = time.perf_counter()
    run_window(context, prompt[:-1])
    middle = time.perf_counter()
    token, position = prompt[-1], len(prompt) - 1
    for _ in range(_DECODED):
        if not context.decode_one(token, position, 0):
            raise ConfigError(f"{context.model.path.name} does not decode.", hint="Check the file.")
        token = int(context.logits(0).argmax())
        position += 1
    ended = time.perf_counter()
    return (len(prompt) - 1) / (middle - started), _DECODED / (ended - middle)


def _measured(path: Path, size_bytes: int, loss: _Loss, speeds: Sequence[tuple[float, float]]) -> Measured:
    divergences = np.array(loss.divergences)
    return Measured(
        path,
        size_bytes,
        statistics.median(prefill for prefill, _ in speeds),
        statistics.median(decode for _, decode in speeds),
        float(np.exp(np.mean(loss.negative_logs))),
        float(divergences.mean()),
        float(divergences.std() / np.sqrt(len(divergences))),
        float(np.quantile(divergences, 0.99)),
        loss.same / len(divergences),
    )
