"""Tokens as rows: an answer with marks under it, and the whole tape by its spans or as a table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.cells import cell_len, set_cell_size

from edgellm import SpanKind
from edgellm_tui.drawn import Row, titled
from edgellm_tui.token_text import band, mark, probability, share, token_text

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from edgellm import Span, Step
    from edgellm_tui.glyphs import Glyphs

_ANSWER_KINDS = (SpanKind.TEXT, SpanKind.REASONING, SpanKind.TOOL_CALL)


@dataclass(frozen=True, slots=True)
class Place:
    """A token on the tape, and how it was drawn if that was seen."""

    position: int
    token: int
    text: str
    kind: SpanKind
    p: float | None = None
    is_forced: bool = False


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of tokens; `at` says in which row a position stands."""

    rows: list[Row]
    at: dict[int, int]


def places_of(
    tape: Sequence[int],
    spans: Sequence[Span],
    steps: Mapping[int, Step],
    piece: Callable[[int], bytes],
    start: int = 0,
    end: int | None = None,
) -> list[Place]:
    """The tokens from `start` to `end` of a tape."""
    found: list[Place] = []
    end = len(tape) if end is None else min(end, len(tape))
    for span in spans:
        for position in range(max(span.start, start), min(span.end, end)):
            step = steps.get(position)
            token = tape[position]
            step = step if step is not None and step.token == token else None
            is_forced = step is not None and step.is_forced
            text = token_text(piece(token))
            found.append(Place(position, token, text, span.kind, probability(step), is_forced))
    return found


def answers_of(spans: Sequence[Span]) -> list[tuple[int, int]]:
    """(start, end) of each answer on the tape: text, reasoning and calls without a break."""
    found: list[tuple[int, int]] = []
    for span in spans:
        if span.kind not in _ANSWER_KINDS:
            continue
        if found and found[-1][1] == span.start:
            found[-1] = (found[-1][0], span.end)
        else:
            found.append((span.start, span.end))
    return found


def real_answers(spans: Sequence[Span], count: int, first_drawn: int | None) -> list[tuple[int, int]]:
    """The same without worked examples, which stand in the prompt in front of the conversation.

    `count` is how many answers the conversation has; the one that is being written is not among them, but it is not
    in front of `first_drawn`, the first position that was seen when it was drawn.
    """
    found = answers_of(spans)
    drawn = next(
        (i for i, (_, end) in enumerate(found) if first_drawn is not None and end > first_drawn), len(found)
    )
    return found[min(drawn, max(0, len(found) - count)) :]


def marked_rows(places: Sequence[Place], width: int, selected: int | None) -> Rows:
    """Text that is wrapped between tokens; under each line, its marks: doubt, and `^` under the selected token."""
    rows: list[Row] = []
    at: dict[int, int] = {}
    line: Row = []
    marks = ""

    def end_line() -> None:
        nonlocal line, marks
        if line:
            rows.append([(" ", ""), *line])
            rows.append([(" " + marks.rstrip(), "muted")])
        line, marks = [], ""

    for place in places:
        is_selected = place.position == selected
        symbol = "^" if is_selected else "f" if place.is_forced else mark(place.p)
        role = "chosen" if is_selected else "muted" if place.is_forced else band(place.p)
        for part in _parts(place.text, width - 2):
            size = cell_len(part)
            if len(marks) + size > width - 2:
                end_line()
            at.setdefault(place.position, len(rows))
            line.append((part, role))
            marks += symbol * size
        if place.text.endswith("\\n"):
            end_line()
    end_line()
    return Rows(rows, at)


def _parts(text: str, width: int) -> list[str]:
    if cell_len(text) <= width:
        return [text] if text else []
    parts: list[str] = []
    while text:
        part = text[:1]
        while len(part) < len(text) and cell_len(text[: len(part) + 1]) <= width:
            part = text[: len(part) + 1]
        parts.append(part)
        text = text[len(part) :]
    return parts


def span_rows(places: Sequence[Place], width: int, selected: int | None, glyphs: Glyphs) -> Rows:
    """The tape as running text, each span under a line that names its owner."""
    rows: list[Row] = []
    at: dict[int, int] = {}
    start = 0
    while start < len(places):
        end = start
        while end < len(places) and places[end].kind == places[start].kind:
            end += 1
        run = places[start:end]
        title = f"{run[0].kind.value}  {run[0].position} to {run[-1].position}, {len(run)} tokens"
        rows.append(titled(title, width, glyphs))
        line: Row = []
        used = 0
        for place in run:
            role = "chosen" if place.position == selected else band(place.p)
            for part in _parts(place.text, width - 2):
                if used + cell_len(part) > width - 2:
                    rows.append([(" ", ""), *line])
                    line, used = [], 0
                at.setdefault(place.position, len(rows))
                line.append((part, role))
                used += cell_len(part)
            if place.text.endswith("\\n") and line:
                rows.append([(" ", ""), *line])
                line, used = [], 0
        if line:
            rows.append([(" ", ""), *line])
        start = end
    return Rows(rows, at)


def table_rows(places: Sequence[Place], width: int, selected: int | None) -> Rows:
    """One token a row: position, id, owner, probability, text."""
    head = f"  {'#':>6} {'id':>7}  {'owner':<12} {'p':>6}   token"
    rows: list[Row] = [[(set_cell_size(head, width), "muted")]]
    at: dict[int, int] = {}
    for place in places:
        is_selected = place.position == selected
        p = "forced" if place.is_forced else share(place.p) if place.p is not None else ""
        line = f"{'>' if is_selected else ' '} {place.position:>6} {place.token:>7}  {place.kind.value:<12} {p:>6} "
        line += f'{mark(place.p)} "{place.text}"'
        at[place.position] = len(rows)
        rows.append([(set_cell_size(line, width), "chosen" if is_selected else band(place.p))])
    return Rows(rows, at)
