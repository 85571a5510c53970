"""One drawn token as rows: candidates before and after each stage, who was cut by which, and the draw."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.cells import cell_len, set_cell_size

from edgellm_tui.drawn import Row, bar
from edgellm_tui.token_text import bits, quoted, share

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from edgellm import Distribution, Rows, Step
    from edgellm_tui.glyphs import Glyphs

# Of steps that are kept in short, the last rows go by this name: which stage cut what is not known any more.
FINAL = "final"
# Stages that may take out what is probable, and leave the logits of the rest as they are.
_REMOVES = ("constraint", "ban", "typical", "xtc")
_SHORT = {
    "temperature": "temp",
    "temperature_ext": "temp",
    "penalties": "penal.",
    "constraint": "grammar",
    "logit_bias": "bias",
}


@dataclass(frozen=True, slots=True)
class Candidate:
    """A token that could have come. `after[i]` is its probability after stage i, None where it is not among the rows.

    `cut_by` names the stage that took it out, "" where none did or where that cannot be told; `cut_at` is its index.
    """

    token: int
    raw: float
    after: tuple[float | None, ...]
    cut_by: str
    cut_at: int | None
    is_drawn: bool

    @property
    def final(self) -> float | None:
        """Its probability in the draw."""
        return self.after[-1] if self.after else self.raw


def candidates(step: Step, count: int) -> list[Candidate]:
    """The most probable tokens before any stage, at most `count`, the drawn one among them."""
    seen = step.distribution
    if seen is None:
        return []
    raw = seen.raw
    tables = [dict(zip(rows.ids.tolist(), rows.probs.tolist(), strict=True)) for rows in seen.stages]
    ids, probs = raw.ids.tolist(), raw.probs.tolist()
    chosen = list(zip(ids, probs, strict=True))[:count]
    if step.token not in ids[:count]:
        p = math.exp(step.logprob) if step.logprob is not None else 0.0
        chosen = [*chosen[: max(0, count - 1)], (step.token, p)]
    found: list[Candidate] = []
    for token, p in chosen:
        after = tuple(table.get(token) for table in tables)
        cut_at = _cut_at(token, seen, tables)
        cut_by = seen.stages[cut_at].stage if cut_at is not None else ""
        found.append(Candidate(token, p, after, cut_by, cut_at, token == step.token))
    return found


def _cut_at(token: int, seen: Distribution, tables: Sequence[dict[int, float]]) -> int | None:
    before = seen.raw
    for index, (rows, table) in enumerate(zip(seen.stages, tables, strict=True)):
        # Rows that were not kept may be there all the same.
        if token not in table and (rows.n_left == len(table) or _is_passed_over(token, before, rows)):
            return index
        before = rows
    return None


def _is_passed_over(token: int, before: Rows, rows: Rows) -> bool:
    """Less probable rows were kept, behind a stage that changes none of those it leaves."""
    if rows.stage not in _REMOVES or not len(rows.ids):
        return False
    at = before.ids.tolist().index(token) if token in before.ids else None
    return at is not None and bool(before.logits[at] > rows.logits[-1])


def short(stage: str) -> str:
    """A stage's name in few cells."""
    name = stage.partition("(")[0]
    return _SHORT.get(name, name)


def summary(step: Step, sees_all: bool = True) -> str:
    """What is left of the vocabulary, entropy before and after, the random number, the surprisal."""
    seen = step.distribution
    if seen is None:
        return ""
    raw, final = seen.raw, seen.final
    words = f"kept {final.n_left} of {raw.n_left}" if sees_all else f"kept {final.n_left}"
    words += f"  H {bits(raw.entropy_bits)}>{bits(final.entropy_bits)} bit"
    words += f"  u={share(seen.u)}" if not math.isnan(seen.u) else "  u: none"
    if step.logprob is not None:
        words += f"  surprisal {bits(-step.logprob / math.log(2))} bit"
    if step.is_constrained:
        words += "  grammar on"
    return words


def packed(parts: Sequence[str], width: int) -> list[str]:
    """Parts side by side, in as few lines of `width` cells as they need."""
    lines: list[str] = []
    for part in parts:
        if lines and cell_len(lines[-1]) + 2 + cell_len(part) <= width:
            lines[-1] += "  " + part
        else:
            lines.append(part)
    return lines


def why_none(step: Step | None) -> str:
    """Why there is no distribution."""
    if step is None:
        return "nothing was drawn here"
    if step.is_forced:
        return "nothing was drawn: the grammar left no choice, or the runtime wrote it"
    return "this token's distribution was not kept"


def bar_rows(
    step: Step, text_of: Callable[[int], bytes], width: int, count: int, glyphs: Glyphs
) -> list[Row]:
    """The candidates with bars of their raw probabilities, for a narrow place."""
    found = candidates(step, count)
    name_width = max(10, min(22, width // 5))
    room = width - name_width - 7 - 30
    rows: list[Row] = []
    for rank, each in enumerate(found, 1):
        number = "x" if each.cut_by else str(rank)
        lead = f" {'>' if each.is_drawn else ' '} {number:>2}  "
        end = f"cut: {short(each.cut_by)}" if each.cut_by and each.cut_by != FINAL else "cut"
        if not each.cut_by:
            end = f"final {share(each.final)}" if each.final is not None else "final  .."
        role = "accent" if each.is_drawn else "muted" if each.cut_by else ""
        rows.append(
            [
                (lead + quoted(text_of(each.token), name_width) + " ", role),
                (bar(each.raw, max(4, room), glyphs), role),
                (f"  raw {share(each.raw)}  {end:<18}", role),
            ]
        )
    return rows


def stage_rows(
    step: Step,
    text_of: Callable[[int], bytes],
    width: int,
    count: int,
    *,
    selected: int | None = None,
    cell: int = 9,
    name_width: int = 16,
    is_compact: bool = False,
) -> list[Row]:
    """The candidates as a table, one column a stage; `selected` is the index of the one under the cursor.

    `is_compact` leaves out the lines of rows kept and entropy, and marks the drawn token with `>`.
    """
    seen = step.distribution
    if seen is None:
        return [[(why_none(step), "muted")]]
    found = candidates(step, count)
    lead = name_width + 5
    room = max(1, (width - lead - cell - (0 if is_compact else 10)) // cell)
    # Where not all stages have room, the last ones rather than the first.
    stages = list(enumerate(seen.stages))[-room:]
    points = [("raw", seen.raw), *((short(rows.stage), rows) for _, rows in stages)]
    table: list[Row] = [
        [(f"{' stage':<{lead}}" + "".join(_column(name, cell) for name, _ in points), "muted")]
    ]
    if not is_compact:
        kept = "".join(f"{rows.n_left:>{cell}}" for _, rows in points)
        entropy = "".join(f"{bits(rows.entropy_bits):>{cell}}" for _, rows in points)
        table += [[(f"{' kept':<{lead}}{kept}", "muted")], [(f"{' entropy':<{lead}}{entropy} bit", "muted")]]
    for rank, each in enumerate(found, 1):
        is_pointed = each.is_drawn if is_compact else rank - 1 == selected
        line = f"{'>' if is_pointed else ' '}{rank:>2} {quoted(text_of(each.token), name_width)}"
        line = f"{line:<{lead}}{share(each.raw):>{cell}}"
        is_cut = False
        for index, _ in stages:
            p = each.after[index]
            if p is not None:
                line += f"{share(p):>{cell}}"
            elif not is_cut and each.cut_at is not None and each.cut_at <= index:
                line += f"{'cut':>{cell}}"
                is_cut = True
            else:
                line += f"{'' if is_cut else '..':>{cell}}"
        if each.is_drawn and not is_compact:
            line += "  << drawn"
        role = "chosen" if rank - 1 == selected else "accent" if each.is_drawn else "muted" if is_cut else ""
        table.append([(line, role)])
    return table


def _column(name: str, cell: int) -> str:
    return (set_cell_size(name, cell - 1) if cell_len(name) >= cell else name).rjust(cell)


def tail_words(step: Step) -> str:
    """What the rows do not show, and the token itself in bytes."""
    seen = step.distribution
    words = f" id {step.token}   bytes {step.piece[:16].hex(' ')}{'..' if len(step.piece) > 16 else ''}"
    if seen is None:
        return words
    raw = seen.raw
    left = max(0.0, 1.0 - float(raw.probs.sum()))
    return f" tail {share(left)} in {raw.n_left - len(raw.ids)} tokens  " + words


def draw_rows(step: Step, text_of: Callable[[int], bytes], width: int) -> list[Row]:
    """The final probabilities side by side on one line, and where the random number fell."""
    seen = step.distribution
    if seen is None or math.isnan(seen.u):
        return []
    final, room = seen.final, width - 4
    line, at = "", 0.0
    for token, p in zip(final.ids.tolist(), final.probs.tolist(), strict=True):
        end = round((at + p) * room)
        cells = end - cell_len(line)
        at += p
        if cells < 1:
            continue
        name = quoted(text_of(token), max(3, min(cells - 1, 14))).strip()
        line += set_cell_size((name if cells > 4 else "") + " " * cells, cells - 1) + "|"
    line = set_cell_size(line, room)
    pointer = " " * (2 + min(room - 1, int(seen.u * room))) + "^ u=" + share(seen.u)
    return [[(" 0" + line + " 1", "")], [(set_cell_size(pointer, width), "accent")]]
