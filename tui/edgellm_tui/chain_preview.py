"""What a changed chain would have done with a token that is there: two drawings of it side by side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.cells import set_cell_size

from edgellm_tui.plain import one_line
from edgellm_tui.tokenizer_page import piece_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgellm import Distribution, Rows, Step
    from edgellm_tui.glyphs import Glyphs
    from edgellm_tui.strand import Strand
    from edgellm_tui.worker import EngineWorker

_ROWS = 40


@dataclass(frozen=True, slots=True)
class PreviewRow:
    """One candidate: its raw probability, what is left of it now and with the draft; "" or the stage that cut it."""

    token: int
    raw: float | None
    now: float | None
    draft: float | None
    cut_now: str
    cut_draft: str


def preview_rows(now: Step, draft: Step, count: int) -> list[PreviewRow]:
    """The candidates that either drawing leaves the most probability, then those that only one of them cuts."""
    before, after = now.distribution, draft.distribution
    if before is None or after is None:
        return []
    tables = [_probs(before.raw), _probs(before.final), _probs(after.final)]
    raw, first, second = tables
    drawn = {now.token: None, draft.token: None}
    order = sorted(
        raw.keys() | first.keys() | second.keys(),
        key=lambda token: (-max(first.get(token, 0.0), second.get(token, 0.0)), -raw.get(token, 0.0), token),
    )
    chosen = dict.fromkeys([*order[: max(0, count - len(drawn))], *drawn, *order])
    kept = sorted(list(chosen)[:count], key=order.index) if set(drawn) <= set(order) else list(chosen)[:count]
    return [
        PreviewRow(
            token,
            raw.get(token),
            first.get(token),
            second.get(token),
            "" if token in first else cut_by(before, token),
            "" if token in second else cut_by(after, token),
        )
        for token in kept
    ]


def _probs(rows: Rows) -> dict[int, float]:
    return {int(token): float(p) for token, p in zip(rows.ids, rows.probs, strict=True)}


def cut_by(distribution: Distribution, token: int) -> str:
    """The stage behind which a token is not there any more; "" where too few rows were kept to tell."""
    for rows in distribution.stages:
        if token not in rows.ids.tolist() and rows.n_left <= len(rows.ids):
            return rows.stage.partition("(")[0]
    return ""


def preview_text(
    now: Step, draft: Step, piece: Callable[[int], bytes], glyphs: Glyphs, width: int, height: int
) -> str:
    """Both drawings as lines of at most `width` cells."""
    before, after = now.distribution, draft.distribution
    if before is None or after is None:
        return "This token was not drawn: nothing to compare."
    bar = max(4, min(24, (width - 62) // 2 + 8))
    lines = [f"    {'token':<16} {'raw':>5}  {set_cell_size('now', bar + 11)}  with the draft"]
    for row in preview_rows(now, draft, max(3, height - 4)):
        mark = ("=" if row.token == now.token else " ") + (">" if row.token == draft.token else " ")
        raw = f"{row.raw:.3f}" if row.raw is not None else "    -"
        left = _cell(row.now, row.cut_now, bar, glyphs)
        right = _cell(row.draft, row.cut_draft, bar, glyphs)
        name = set_cell_size(piece_text(piece(row.token)), 16)
        lines.append(f" {mark} {name} {raw}  {set_cell_size(left, bar + 11)}  {right}".rstrip())
    lines += [
        f"    kept {before.final.n_left} > {after.final.n_left}   "
        f"entropy {before.final.entropy_bits:.2f} > {after.final.entropy_bits:.2f} bit   {_drawn_by(after)}",
        f"    = drawn now: {piece_text(now.piece)}   > drawn with the draft: {piece_text(draft.piece)}"
        + ("   (the same)" if now.token == draft.token else ""),
    ]
    return "\n".join(lines)


def _drawn_by(distribution: Any) -> str:
    # Any: a Distribution; u is nan where nothing was thrown.
    return f"u {distribution.u:.3f}" if distribution.u == distribution.u else "no random number"


def _cell(p: float | None, cut: str, bar: int, glyphs: Glyphs) -> str:
    if p is None:
        return f"cut: {cut}" if cut else "not among the first"
    return f"{p:.3f} {glyphs.eighths[-1] * round(p * bar)}"


class Preview:
    """Asks a chat how two chains draw a token, one question at a time; the newest one counts.

    `steps` are the two drawings that `shown_for` (draft, position) asked for, or None; `problem` says why not.
    `position` is the place on the tape that was chosen, or None.
    """

    def __init__(self) -> None:
        self.steps: tuple[Step, Step] | None = None
        self.shown_for: tuple[str, int] | None = None
        self.problem = ""
        self.is_asking = False
        self.position: int | None = None

    def target(self, strand: Strand, used: int) -> int | None:
        """The position that is previewed: the one chosen, else the newest token's, else the next one's (`used`)."""
        if self.position is not None:
            return self.position
        drawn = [at for at, step in list(strand.steps.items())[-2:] if not step.is_eog]
        return drawn[-1] if drawn else used or None

    def move(self, strand: Strand, used: int, by: int) -> bool:
        """Chooses another token that was drawn. False: there is none."""
        positions = list(strand.steps)
        now = self.target(strand, used)
        if not positions or now is None:
            return False
        index = positions.index(now) if now in positions else len(positions) - 1
        self.position = positions[max(0, min(len(positions) - 1, index + by))]
        return True

    def text(
        self, piece: Callable[[int], bytes], glyphs: Glyphs, width: int, height: int, *, is_busy: bool
    ) -> str:
        """What there is to see: both drawings, or why there are none."""
        if self.problem:
            return f"The draft does not work here: {self.problem}"
        if self.steps is not None:
            return preview_text(*self.steps, piece, glyphs, width, height)
        if is_busy:
            return "The preview comes when the answer has ended."
        return "Say something first: a preview needs a token that was drawn."

    def forget(self) -> None:
        """What was shown is not so any more."""
        self.steps = None

    def ask(
        self, worker: EngineWorker, chat: Any, applied: str, wanted: tuple[str, int], over: Callable[[], None]
    ) -> None:
        """Both drawings, computed on the engine's side; `over` is called when they are there, or cannot be."""
        # Any: a Chat, or what plays one in tests.
        if self.is_asking or worker.is_busy or (self.steps is not None and self.shown_for == wanted):
            return
        self.is_asking = True
        text, at = wanted

        def job() -> tuple[Step, Step]:
            now = chat.explain(at, sampler=applied, rows=_ROWS)
            return now, now if text == applied else chat.explain(at, sampler=text, rows=_ROWS)

        def done(steps: tuple[Step, Step] | None, problem: str = "") -> None:
            self.is_asking, self.steps, self.shown_for, self.problem = False, steps, wanted, problem
            over()

        worker.submit(job, done, lambda error: done(None, one_line(str(error))))
