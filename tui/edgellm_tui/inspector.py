"""The inspector: the tokens of an answer, or the whole tape; how one was drawn; another one in its place."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, ClassVar

from textual.app import ComposeResult
from textual.binding import Binding

from edgellm import EdgeError
from edgellm_tui.ahead import look_ahead
from edgellm_tui.bias import amount_of, bias_of, biased
from edgellm_tui.commands import export
from edgellm_tui.distribution import candidates, draw_rows, stage_rows, summary, tail_words, why_none
from edgellm_tui.drawn import Row, RowsPane, RowsView, titled
from edgellm_tui.looks import with_token
from edgellm_tui.pages import PageView
from edgellm_tui.race import start_race
from edgellm_tui.rows import Field
from edgellm_tui.tape_view import TapeView
from edgellm_tui.token_rows import Rows
from edgellm_tui.token_text import quoted, share, token_text

if TYPE_CHECKING:
    from textual.events import Resize

    from edgellm_tui.looks import Look
    from edgellm_tui.strand import Strand

_MOST_SIDE_BY_SIDE = 4


class InspectorPage(PageView, can_focus=True):
    """Left and right choose a token, up and down a candidate; enter puts it there and lets the answer go on."""

    BINDINGS: ClassVar = [
        Binding("left", "move(-1)", "token before", id="inspect.before"),
        Binding("right", "move(1)", "next token", show=False, id="inspect.after"),
        Binding("n", "doubtful(1)", "next doubtful", id="inspect.next_doubtful"),
        Binding("N", "doubtful(-1)", "doubtful before", show=False, id="inspect.doubtful_before"),
        Binding("up", "choose(-1)", "candidate", id="inspect.candidate_up"),
        Binding("down", "choose(1)", "next candidate", show=False, id="inspect.candidate_down"),
        Binding("enter", "put", "put it here", id="inspect.put"),
        Binding("b", "branch", "branch here", id="inspect.branch"),
        Binding("l", "look_ahead", "look ahead", id="inspect.ahead"),
        Binding("space", "mark", "mark", show=False, id="inspect.mark"),
        Binding("s", "side_by_side", "side by side", id="inspect.race"),
        Binding("w", "ask", "ask the model", id="inspect.ask"),
        Binding("t", "view", "tape", id="inspect.tape"),
        Binding("g", "bias", "bias", show=False, id="inspect.bias"),
        Binding("c", "copy", "copy", show=False, id="inspect.copy"),
        Binding("ctrl+s", "save_trace", "save the trace", show=False, id="inspect.save"),
        Binding("left_square_bracket", "answer(-1)", "answer before", show=False, id="inspect.answer_before"),
        Binding("right_square_bracket", "answer(1)", "next answer", show=False, id="inspect.answer_after"),
        Binding("home", "move(-1000000)", "first token", show=False, id="inspect.first"),
        Binding("end", "move(1000000)", "last token", show=False, id="inspect.last"),
        *(
            Binding(
                str(number), f"pick({number})", f"candidate {number}", show=False, id=f"inspect.pick{number}"
            )
            for number in range(1, 10)
        ),
    ]
    DEFAULT_CSS = """
    InspectorPage #inspect-title { height: 1; }
    InspectorPage #inspect-tokens { height: 1fr; }
    InspectorPage #inspect-detail { height: 15; }
    """

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.choice = 0
        self.marked: set[int] = set()
        self.note = ""
        self._ahead: dict[tuple[int, int, int], str] = {}
        self._tape = TapeView(self._piece, self.edge.glyphs)
        self._drawn_for: object = None
        self._shown = Rows([], {})

    def compose(self) -> ComposeResult:
        """A title, the tokens, the chosen one in detail, and a field for a number."""
        yield RowsPane(id="inspect-title")
        tokens = RowsView(id="inspect-tokens")
        tokens.can_focus = False
        yield tokens
        yield RowsPane(id="inspect-detail")
        yield Field()

    # -- what is shown ------------------------------------------------------------------------------------

    @property
    def strand(self) -> Strand:
        """The branch in front."""
        return self.edge.talk.current

    def show(self) -> None:
        """Begins at the token that was asked for, else at the newest."""
        self.focus()
        if self.edge.inspect_at is not None:
            self._go(self.edge.inspect_at)
            self.edge.inspect_at = None
        elif self.strand.key != self._tape.strand_key:
            self._tape.position = None
        self.frame()

    def on_resize(self, _event: Resize) -> None:
        """Lays everything out anew."""
        self._drawn_for = None
        self.frame()

    def frame(self) -> None:
        """Takes up what has changed."""
        strand = self.strand
        tape = self._tape
        if tape.read(strand):
            self.marked, self.choice = set(), 0
        title = self.query_one("#inspect-title", RowsPane)
        tokens = self.query_one("#inspect-tokens", RowsView)
        detail = self.query_one("#inspect-detail", RowsPane)
        width = tokens.text_width
        if width < 20:
            return
        title.set([titled(tape.title(), title.size.width, self.edge.glyphs)])
        now = (strand.key, tape.view, width, tape.tape, tape.position, len(strand.steps))
        if now != self._drawn_for:
            self._drawn_for = now
            self._shown = tape.rows(width)
            tokens.set(self._shown.rows)
            if tape.place is not None and tape.place in self._shown.at:
                # With the line before it: the title of its span, or what leads up to it.
                tokens.reveal(max(0, self._shown.at[tape.place] - 1), 3)
        detail.set(self._detail(detail.size.width, detail.size.height))

    def _piece(self, token: int) -> bytes:
        return self.edge.talk.piece_bytes(token)

    def _look(self) -> Look | None:
        place = self._tape.place
        return self.edge.looks.look(self.strand, place, self._tape.token) if place is not None else None

    def _candidate_count(self) -> int:
        return max(4, min(9, self.query_one("#inspect-detail", RowsPane).size.height - 9))

    def _detail(self, width: int, height: int) -> list[Row]:
        place, look = self._tape.place, self._look()
        glyphs = self.edge.glyphs
        if place is None:
            return self._note_rows()
        if look is None or look.step.distribution is None:
            token = self._tape.token or 0
            why = (
                why_none(look.step) if look is not None else "it was not drawn here, or is of an earlier day"
            )
            rows: list[Row] = [
                titled("this token", width, glyphs),
                [(f" {quoted(self._piece(token), 24)} id {token}", "")],
                [(f" {why}", "muted")],
                [(" w asks the model what it would have drawn here", "muted")],
            ]
            return [*rows, *self._note_rows()]
        step = look.step
        note = f"  ({look.note})" if look.note else ""
        count = self._candidate_count()
        self.choice = min(self.choice, count - 1)
        rows = [titled(f"candidates at this token{note}", width, glyphs)]
        table = stage_rows(step, self._piece, width, count, selected=self.choice)
        found = candidates(step, count)
        # The head of the table are three lines.
        for index, each in enumerate(found):
            if each.token in self.marked and table[3 + index]:
                text, role = table[3 + index][0]
                table[3 + index] = [(text[:1] + "+" + text[2:], role)]
        rows += table
        rows.append([(tail_words(step), "muted")])
        rows.append([(" " + summary(step), "muted")])
        rows += draw_rows(step, self._piece, width)
        rows += self._note_rows()
        return rows[:height]

    def _note_rows(self) -> list[Row]:
        chosen = self._chosen_token()
        place = self._tape.place
        if self.note:
            return [[(f" {self.note}", "accent")]]
        if chosen is not None and place is not None:
            ahead = self._ahead.get((self.strand.key, place, chosen))
            if ahead is not None:
                return [[(f' look ahead: "{token_text(self._piece(chosen))}{ahead}', "accent")]]
        return []

    def _chosen_token(self) -> int | None:
        look = self._look()
        found = candidates(look.step, self._candidate_count()) if look is not None else []
        return found[min(self.choice, len(found) - 1)].token if found else None

    # -- moving -------------------------------------------------------------------------------------------

    def _go(self, position: int) -> None:
        self._tape.position, self.choice, self.note = position, 0, ""
        self.marked = set()
        look = self.edge.looks.look(self.strand, position)
        if look is not None:
            # The cursor begins at what was drawn.
            found = candidates(look.step, 9)
            self.choice = next((index for index, each in enumerate(found) if each.is_drawn), 0)

    def action_move(self, by: int) -> None:
        """To another token."""
        self._go_where(self._tape.moved(by))

    def _go_where(self, position: int | None) -> None:
        if position is not None:
            self._go(position)
            self.frame()

    def action_doubtful(self, by: int) -> None:
        """To the next (or last) token that was less likely than one half."""
        self._go_where(self._tape.doubtful(by))

    def action_answer(self, by: int) -> None:
        """To another answer of this branch."""
        self._go_where(self._tape.answer_start(by))

    def action_choose(self, by: int) -> None:
        """To another candidate."""
        look = self._look()
        count = len(candidates(look.step, self._candidate_count())) if look is not None else 0
        if count:
            self.choice = max(0, min(count - 1, self.choice + by))
            self.note = ""
            self.frame()

    def action_pick(self, number: int) -> None:
        """To the candidate of that number."""
        self.choice = 0
        self.action_choose(number - 1)

    def action_view(self) -> None:
        """The answer; the whole tape as text; the whole tape as a table."""
        self._tape.turn()
        self.frame()

    # -- steering -----------------------------------------------------------------------------------------

    def _busy(self, what: str) -> bool:
        """Says so where a turn is open."""
        if self.edge.looks.can_ask(self.strand):
            return False
        self.note = f"{what} when the answer is over (esc stops it)"
        self.frame()
        return True

    def action_put(self) -> None:
        """Puts the chosen candidate here, in a branch, and lets the answer go on behind it."""
        place, token, look = self._tape.place, self._chosen_token(), self._look()
        if place is None or token is None or look is None:
            return
        self._branch(place, token, look)

    def action_branch(self) -> None:
        """A branch from here in which this token is drawn anew."""
        place = self._tape.place
        if place is not None:
            self._branch(place, None, None)

    def _branch(self, place: int, token: int | None, look: Look | None) -> None:
        talk = self.edge.talk
        # A running answer ends here; the branch is made once it has.
        talk.worker.stop()

        def made(strand: Strand) -> None:
            if token is not None and look is not None:
                strand.keep(with_token(look.step, token, talk.runtime.vocabulary))
            talk.show(strand)
            self._go(place)
            if strand.chat.is_answer_open:
                talk.send(None, strand)
            self._drawn_for = None
            self.frame()

        talk.branch(place, token, made, why="put" if token is not None else "again")

    def action_look_ahead(self) -> None:
        """Runs the chosen candidate on, on a scratch fork, while the model is certain."""
        place, token = self._tape.place, self._chosen_token()
        if place is None or token is None or self._busy("looks ahead"):
            return
        strand = self.strand
        self.note = "looking ahead ..."
        self.frame()

        def done(found: tuple[str, int, float]) -> None:
            text, count, p = found
            words = f'{text}"  ({count} tokens were certain; then the best has p {share(p)})'
            self._ahead[(strand.key, place, token)] = words
            self.note = ""
            self.frame()

        self.edge.talk.worker.submit(partial(look_ahead, strand.chat, place, token), done, self._failed)

    def _failed(self, error: Exception) -> None:
        self.note = f"! {error}"
        self.frame()

    def action_mark(self) -> None:
        """Marks the chosen candidate for a start side by side."""
        token = self._chosen_token()
        if token is not None:
            self.marked ^= {token}
            self.frame()

    def action_side_by_side(self) -> None:
        """Starts the marked candidates (none marked: the first three) as branches that are decoded together."""
        place, look = self._tape.place, self._look()
        if place is None or look is None or self._busy("starts branches"):
            return
        found = [each.token for each in candidates(look.step, self._candidate_count())]
        tokens = [token for token in found if token in self.marked] or found[:3]
        start_race(self.edge, place, tokens[:_MOST_SIDE_BY_SIDE], look.step)

    def leave(self) -> bool:
        """Esc puts the field away first."""
        return self.query_one(Field).put_away()

    def action_bias(self) -> None:
        """Asks how much more or less likely the chosen candidate is to be from here on."""
        token, chat = self._chosen_token(), self.strand.chat
        if token is None or self._busy("changes the chain"):
            return
        label = f"add to the logit of {quoted(self._piece(token), 16).rstrip()} (-inf: never, 0: nothing)"
        now = f"{bias_of(chat.chain.spec, token):g}"
        self.query_one(Field).ask(label, now, partial(self._bias, token))

    def _bias(self, token: int, text: str) -> str | None:
        chat = self.strand.chat
        try:
            spec = biased(chat.chain.spec, token, amount_of(text))
        except ValueError as error:
            return str(error)

        def done(_: object) -> None:
            self.note = f"the chat draws from {spec} now"
            self.frame()

        self.edge.talk.worker.submit(lambda: chat.set_sampler(spec), done, self._failed)
        return None

    def action_copy(self) -> None:
        """Copies the text that is shown: of the answer, or of the whole tape."""
        start, end = self._tape.range()
        self.edge.copy(self._tape.text())
        self.note = f"{end - start} tokens copied as text"
        self.frame()

    def action_save_trace(self) -> None:
        """Writes how each remembered token was drawn to a file in the working folder."""

        def done(text: str) -> None:
            self.note = text
            self.frame()

        try:
            export(self.edge, "jsonl", then=done)
        except EdgeError as error:
            self._failed(error)

    def action_ask(self) -> None:
        """Recomputes the token's distribution."""
        place = self._tape.place
        if place is None or place < 1 or self._busy("asks the model"):
            return
        self.note = "asking ..."
        self.frame()

        def done() -> None:
            self.note = ""
            self.frame()

        self.edge.looks.ask(self.strand, place, done, self._failed)
