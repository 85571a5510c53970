"""Tokens and probabilities as text: whitespace and partial characters can be seen, doubt has a mark."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from rich.cells import cell_len, set_cell_size

from edgellm_tui.plain import visible

if TYPE_CHECKING:
    from edgellm import Step

DOUBT = 0.5
MARKS_LEGEND = "- p<.90  = p<.50  * p<.10"


def token_text(piece: bytes) -> str:
    """A token's bytes in one line: `\\n` and `\\t` are written out, bytes that are no whole character as <e6 9d>."""
    try:
        text = piece.decode("utf-8")
    except UnicodeDecodeError:
        text = _with_bytes(piece)
    return visible(text.replace("\n", "\\n").replace("\t", "\\t").replace("\r", "\\r"))


def _with_bytes(piece: bytes) -> str:
    parts: list[str] = []
    rest = piece
    while rest:
        try:
            parts.append(rest.decode("utf-8"))
            break
        except UnicodeDecodeError as error:
            parts.append(rest[: error.start].decode("utf-8"))
            end = error.end if error.reason != "unexpected end of data" else len(rest)
            parts.append(f"<{rest[error.start : end].hex(' ')}>")
            rest = rest[end:]
    return "".join(parts)


def quoted(piece: bytes, width: int) -> str:
    """The same in quotes, so that spaces at its ends show, in exactly `width` cells."""
    text = token_text(piece)
    if cell_len(text) + 2 > width:
        text = set_cell_size(text, max(1, width - 4)).rstrip() + ".."
    return set_cell_size(f'"{text}"', width)


def probability(step: Step | None) -> float | None:
    """The model's own probability of the token, or None where it is not known (forced, or not traced)."""
    return math.exp(step.logprob) if step is not None and step.logprob is not None else None


def mark(p: float | None) -> str:
    """How doubtful a token was, as one character: `-` below .90, `=` below .50, `*` below .10."""
    if p is None or p >= 0.9:
        return " "
    return "-" if p >= DOUBT else "=" if p >= 0.1 else "*"


def band(p: float | None) -> str:
    """The role (of `drawn.styles_of`) of a token of that probability."""
    return {" ": "", "-": "likely", "=": "doubtful", "*": "unlikely"}[mark(p)]


def share(p: float) -> str:
    """A probability in four cells: .412, 1.00."""
    return "1.00" if p >= 0.9995 else f"{p:.3f}"[1:]


def bits(value: float) -> str:
    """An amount of information."""
    return f"{value:.2f}"
