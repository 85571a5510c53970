"""A text cut into windows of tokens, each decoded from an empty memory: how weights are measured and calibrated."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgellm.errors import ConfigError, DecodeError
from edgellm.native.context import DecodeStatus

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from edgellm.native.context import Context
    from edgellm.native.model import Model

WINDOW = 512
SCORED_ROWS = 64  # logits of this many rows are held at a time: 67 MB at a vocabulary of 262,144


def windows_of(model: Model, text: str, *, most: int = 0, length: int = WINDOW) -> list[list[int]]:
    """The text's tokens in windows of at most `length`, the last one as long as what is left.

    Each begins with BOS where the model wants one. `most` 0 is all of them. Raises ConfigError for a text too
    short to say anything.
    """
    vocabulary = model.vocabulary
    tokens = vocabulary.tokenize(text)
    head = [vocabulary.bos] if vocabulary.adds_bos and vocabulary.bos is not None else []
    step = length - len(head)
    windows = [head + tokens[start : start + step] for start in range(0, len(tokens), step)]
    if len(windows) > 1 and len(windows[-1]) < length // 2:
        windows.pop()
    if len(tokens) < SCORED_ROWS:
        raise ConfigError(
            f"the text has {len(tokens)} tokens; at least {SCORED_ROWS} are needed.",
            hint="Give a longer text.",
        )
    return windows[:most] if most else windows


def run_window(context: Context, tokens: Sequence[int], *, wants_logits: bool = False) -> None:
    """Decodes a window from an empty memory. Raises DecodeError.

    Rows whose logits nobody wants end before the last layer's feed-forward part.
    """
    context.remove(0, -1)
    for start in range(0, len(tokens), context.n_batch):
        part = tokens[start : start + context.n_batch]
        _decode(context, [(token, start + i, 0, wants_logits) for i, token in enumerate(part)])


def scored_rows(context: Context, tokens: Sequence[int]) -> Iterator[tuple[NDArray[np.float32], int]]:
    """Logits (n_vocab,) and the token that came next, for the second half of a window: there is context for those.

    The rows are valid until the next one. Raises DecodeError.
    """
    half = len(tokens) // 2
    run_window(context, tokens[:half])
    for start in range(half, len(tokens) - 1, SCORED_ROWS):
        part = tokens[start : min(start + SCORED_ROWS, len(tokens) - 1)]
        _decode(context, [(token, start + i, 0, True) for i, token in enumerate(part)])
        for i in range(len(part)):
            yield context.logits(i), tokens[start + i + 1]


def _decode(context: Context, rows: list[tuple[int, int, int, bool]]) -> None:
    status = context.decode(rows)
    if status is not DecodeStatus.DONE:
        raise DecodeError(
            f"llama.cpp failed to decode a window of {context.model.path.name} ({status.name.lower()}).",
            hint="Check the file (edgellm inspect).",
        )
