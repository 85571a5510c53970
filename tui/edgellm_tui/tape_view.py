"""A branch's tape as the inspector goes through it: one answer, or all of it as text or table; and a place in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgellm_tui.token_rows import Place, Rows, marked_rows, places_of, real_answers, span_rows, table_rows
from edgellm_tui.token_text import DOUBT, MARKS_LEGEND

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from edgellm import Span
    from edgellm_tui.glyphs import Glyphs
    from edgellm_tui.strand import Strand

_VIEWS = ("answer", "tape", "table")


class TapeView:
    """`view` is one of "answer", "tape" and "table". `position` is what was chosen, None: the newest token.

    `piece` gives a token's bytes. `read` comes before everything else.
    """

    def __init__(self, piece: Callable[[int], bytes], glyphs: Glyphs) -> None:
        self.view = "answer"
        self.position: int | None = None
        self.strand_key = -1
        self.tape: tuple[int, ...] = ()
        self._strand: Strand | None = None
        self._spans: list[Span] = []
        self._answers: list[tuple[int, int]] = []
        self._piece = piece
        self._glyphs = glyphs

    def read(self, strand: Strand) -> bool:
        """Takes up the tape as it is now. True: it is another branch's than before."""
        is_other = strand.key != self.strand_key
        if is_other:
            self.strand_key = strand.key
            self.tape, self._spans, self._answers = (), [], []
            if self.position is not None and self.position not in strand.steps:
                self.position = None
        self._strand = strand
        self._read_tape(strand)
        return is_other

    def _read_tape(self, strand: Strand) -> None:
        if strand.chat is None:
            self.tape, self._spans, self._answers = (), [], []
            return
        tape = strand.chat.tape
        if tape == self.tape:
            return
        try:
            spans = list(strand.chat.spans)
            count = sum(message.role == "assistant" for message in strand.chat.messages)
            self._spans, self._answers = spans, real_answers(spans, count, next(iter(strand.steps), None))
            self.tape = tape
        except IndexError:
            # The tape was cut on the engine's side while it was read: the next frame reads it again.
            return

    # -- the place ----------------------------------------------------------------------------------------

    @property
    def place(self) -> int | None:
        """The position under the cursor: the chosen one, else the newest token of an answer."""
        if self.position is not None:
            return self.position
        return self._answers[-1][1] - 1 if self._answers else None

    @property
    def token(self) -> int | None:
        """The token there; None where nothing is there yet."""
        place = self.place
        return self.tape[place] if place is not None and place < len(self.tape) else None

    def range(self) -> tuple[int, int]:
        """The positions that can be gone through: of this answer, or of the whole tape."""
        if self.view != "answer":
            return 0, len(self.tape)
        place = self.place
        answers = self._answers
        # The end token stands behind its answer.
        around = [each for each in answers if place is not None and each[0] <= place <= each[1]]
        start, end = around[-1] if around else answers[-1] if answers else (0, 0)
        last = self._strand.steps.get(end) if self._strand is not None else None
        # That the answer ended was drawn too: something else may be put there.
        return (start, end + 1) if last is not None and last.is_eog and end < len(self.tape) else (start, end)

    def moved(self, by: int) -> int | None:
        """The position that many tokens further, within the range; None where there is no token."""
        start, end = self.range()
        place = self.place if self.place is not None else end - 1
        return max(start, min(end - 1, place + by)) if end > start else None

    def doubtful(self, by: int) -> int | None:
        """The next position (`by` below 0: the last one) whose token was less likely than one half."""
        here = self.place if self.place is not None else -1
        places = self.places()
        ahead = [one for one in places if (one.position > here if by > 0 else one.position < here)]
        found = (one for one in (ahead if by > 0 else reversed(ahead)) if one.p is not None and one.p < DOUBT)
        return next((one.position for one in found), None)

    def answer_start(self, by: int) -> int | None:
        """Where the answer begins that is that many further; None where there is none."""
        answers = self._answers
        return answers[max(0, min(len(answers) - 1, self._number() + by))][0] if answers else None

    def _number(self) -> int:
        """Which of the answers is shown."""
        starts = [start for start, _ in self._answers]
        start, _ = self.range()
        return starts.index(start) if start in starts else len(starts) - 1

    # -- what is shown ------------------------------------------------------------------------------------

    @property
    def next_view(self) -> str:
        """The one behind `view`."""
        return _VIEWS[(_VIEWS.index(self.view) + 1) % len(_VIEWS)]

    def turn(self) -> None:
        """Shows the next view."""
        self.view = self.next_view
        place = self.place
        if self.view == "answer" and (
            place is None or not any(start <= place <= end for start, end in self._answers)
        ):
            self.position = None

    def places(self) -> Sequence[Place]:
        """The tokens of the range."""
        if not self.tape or self._strand is None:
            return []
        start, end = self.range()
        return places_of(self.tape, self._spans, self._strand.steps, self._piece, start, end)

    def text(self) -> str:
        """They as text."""
        start, end = self.range()
        return b"".join(map(self._piece, self.tape[start:end])).decode("utf-8", "backslashreplace")

    def rows(self, width: int) -> Rows:
        """They as lines to draw."""
        places = self.places()
        if not places:
            return Rows([[(" no answer yet: F2 goes back to the chat", "muted")]], {})
        if self.view == "answer":
            return marked_rows(places, width, self.place)
        if self.view == "tape":
            return span_rows(places, width, self.place, self._glyphs)
        return table_rows(places, width, self.place)

    def title(self) -> str:
        """What is shown, and where in it the place is."""
        start, end = self.range()
        place = self.place
        where = f"token {place - start + 1}/{end - start}" if place is not None else "no token"
        if self.view != "answer":
            return f"what the model sees: {len(self.tape)} tokens  {where}  (t: {self.next_view})"
        return f"answer {self._number() + 1}/{len(self._answers)}  {where}  {MARKS_LEGEND}  f forced"
