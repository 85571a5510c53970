"""Branches decoded side by side, in shared batches, and shown in columns until one is kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from edgellm_tui.drawn import Row, plain, titled
from edgellm_tui.looks import with_token
from edgellm_tui.plain import visible
from edgellm_tui.token_text import probability, share, token_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from edgellm import Step
    from edgellm_tui.app import EdgeApp
    from edgellm_tui.glyphs import Glyphs
    from edgellm_tui.strand import Strand

NARROWEST = 26
_GAP = 2


def start_race(edge: EdgeApp, position: int, tokens: Sequence[int], step: Step) -> None:
    """Makes a branch for each token at `position`, lets them all go on together, and shows them."""
    talk = edge.talk
    made: list[Strand] = []

    def one(token: int, strand: Strand) -> None:
        strand.keep(with_token(step, token, talk.runtime.vocabulary))
        made.append(strand)
        if len(made) == len(tokens):
            race(edge, made)

    for token in tokens:
        talk.branch(position, token, lambda strand, token=token: one(token, strand), why="side")


def race(edge: EdgeApp, strands: Sequence[Strand]) -> None:
    """Lets these branches go on together, and shows them side by side."""
    edge.racing = [strand.key for strand in strands]
    runners = [strand for strand in strands if strand.chat.is_answer_open]
    if runners:
        edge.talk.race(runners)
    edge.run_worker(edge.action_page("branches"))


def label(strand: Strand) -> str:
    """The token a branch began with, and how likely it was."""
    origin = strand.origin
    if origin is None or not origin.token:
        return strand.name
    at = origin.position if origin.position is not None else -1
    p = probability(strand.steps.get(at))
    return f'"{token_text(origin.token.encode())[:16]}"' + (f" p {share(p)}" if p is not None else "")


def race_rows(
    strands: Sequence[Strand], width: int, height: int, console: Console, glyphs: Glyphs
) -> list[Row]:
    """The branches in columns; below each other where columns would be too narrow."""
    count = max(1, len(strands))
    column = (width - _GAP * (count - 1)) // count
    if column >= NARROWEST:
        parts = [_one(index, each, column, height, console, glyphs) for index, each in enumerate(strands, 1)]
        return [_beside([part[y] if y < len(part) else [] for part in parts], column) for y in range(height)]
    rows: list[Row] = []
    for index, each in enumerate(strands, 1):
        share_of = height // count
        part = _one(index, each, width, share_of, console, glyphs)
        rows += part + [[] for _ in range(share_of - len(part))]
    return rows


def _one(index: int, strand: Strand, width: int, height: int, console: Console, glyphs: Glyphs) -> list[Row]:
    state = f"{strand.state} {strand.turn_tokens} tok"
    rows = [titled(f"{index}  {label(strand)}  {state}", width, glyphs, "accent")]
    room = height - 1
    # What is out of sight is not laid out.
    text = visible(strand.last_answer)[-room * width :]
    lines: list[str] = []
    for line in text.split("\n"):
        wrapped = Text(line).wrap(console, max(8, width - 1)) if line else [Text()]
        lines += [part.plain.rstrip() for part in wrapped]
    return rows + [[(" " + line, "")] for line in lines[-room:]]


def _beside(parts: Sequence[Row], width: int) -> Row:
    row: Row = []
    for index, part in enumerate(parts):
        if index:
            row.append((" " * _GAP, ""))
        cells = Text(plain(part))
        cells.truncate(width, pad=True)
        row.append((cells.plain, part[0][1] if part else ""))
    return row
