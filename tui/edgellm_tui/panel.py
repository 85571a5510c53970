"""The window into the decode: how the newest token, or any earlier one, was drawn; live under or beside the chat."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, ClassVar, cast

from textual.binding import Binding

from edgellm_tui.distribution import bar_rows, draw_rows, packed, short, stage_rows, summary, why_none
from edgellm_tui.drawn import Row, RowsPane, bar, sparkline, titled
from edgellm_tui.looks import chain_of
from edgellm_tui.token_text import DOUBT, bits, probability, quoted, token_text

if TYPE_CHECKING:
    from textual.events import Resize

    from edgellm import Step
    from edgellm_tui.app import EdgeApp
    from edgellm_tui.looks import Look, Looks
    from edgellm_tui.strand import Strand

_NARROW_ROWS = 5
_TREND = 240


class DistributionPanel(RowsPane, can_focus=True):
    """Shows one token. Left and right go through the tokens; end goes back to the newest, which it follows then."""

    BINDINGS: ClassVar = [
        Binding("left", "scrub(-1)", "token before", id="panel.before"),
        Binding("right", "scrub(1)", "next token", id="panel.after"),
        Binding("home", "scrub(-1000000)", "first token", show=False, id="panel.first"),
        Binding("end", "live", "newest token", id="panel.live"),
        Binding("n", "doubtful(1)", "next doubtful", id="panel.next_doubtful"),
        Binding("N", "doubtful(-1)", "doubtful before", show=False, id="panel.doubtful_before"),
        Binding("w", "ask", "ask the model", id="panel.ask"),
        Binding("enter", "inspect", "inspect", id="panel.inspect"),
    ]
    DEFAULT_CSS = "DistributionPanel { height: 9; width: 1fr; }"

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.position: int | None = None
        self.note = ""
        self._strand_key = -1
        self._entropies: deque[float] = deque(maxlen=_TREND)
        self._last_seen = -1

    # -- what is shown ------------------------------------------------------------------------------------

    @property
    def edge(self) -> EdgeApp:
        """The app."""
        return cast("EdgeApp", self.app)

    @property
    def strand(self) -> Strand:
        """The branch in front."""
        return self.edge.talk.current

    @property
    def looks(self) -> Looks:
        """What is known of its tokens."""
        return self.edge.looks

    def frame(self) -> None:
        """Something may have changed: takes it up where the panel can be seen."""
        strand = self.strand
        if strand.key != self._strand_key:
            self._strand_key, self.position, self.note = strand.key, None, ""
            self._entropies.clear()
            self._last_seen = -1
        if not self.display or self.size.width < 20:
            return
        self._follow_entropy(strand)
        self.set(self._rows(strand))

    def on_resize(self, _event: Resize) -> None:
        """Lays everything out anew."""
        self.frame()

    def on_focus(self) -> None:
        """Its keys are shown."""
        self.frame()

    def on_blur(self) -> None:
        """Its keys are not shown any more."""
        self.frame()

    def _follow_entropy(self, strand: Strand) -> None:
        fresh: list[float] = []
        newest = self._last_seen
        for position in reversed(strand.steps):
            if position <= self._last_seen or len(fresh) >= _TREND:
                break
            newest = max(newest, position)
            seen = strand.steps[position].distribution
            if seen is not None:
                fresh.append(seen.entropy_bits)
        self._entropies.extend(reversed(fresh))
        last = next(reversed(strand.steps), -1)
        self._last_seen = newest if newest <= last else last

    def _shown(self, strand: Strand) -> Look | None:
        if self.position is None:
            last = strand.last_step
            return self.looks.look(strand, last.position) if last is not None else None
        return self.looks.look(strand, self.position)

    def _rows(self, strand: Strand) -> list[Row]:
        width, height = self.size.width, self.size.height
        look = self._shown(strand)
        if look is None:
            empty = "no token has been drawn yet" if strand.chat is not None else "no model yet"
            return [titled("next token (p hides)", width, self.edge.glyphs), [(f" {empty}", "muted")]]
        is_narrow = height <= _NARROW_ROWS + 4
        rows = [
            titled(
                self._title(strand, look), width, self.edge.glyphs, "accent" if self.has_focus else "muted"
            )
        ]
        if look.step.distribution is None:
            rows.append([(f" {quoted(look.step.piece, 20)} {why_none(look.step)}", "")])
        elif is_narrow:
            rows += bar_rows(look.step, self._piece, width, _NARROW_ROWS, self.edge.glyphs)
            rows.append([(" " + summary(look.step), "muted")])
            rows.append([(" " + self._without_words(strand, look.step), "")])
        else:
            rows += self._column(strand, look.step, width, height)
        if self.note:
            rows.append([(" " + self.note, "accent")])
        trend = self._trend_rows(strand, width, is_narrow)
        room = height - len(trend)
        rows = rows[:room] + [[] for _ in range(room - len(rows))] if not is_narrow else rows[:room]
        return rows + trend

    def _title(self, strand: Strand, look: Look) -> str:
        chain = chain_of(strand)
        names = " > ".join(short(spec.name) for spec in chain.stages) if chain is not None else ""
        if self.position is None:
            return f"next token (p hides)  {names}"
        places = list(strand.steps)
        number = places.index(self.position) + 1 if self.position in strand.steps else 0
        note = f", {look.note}" if look.note else ""
        return f"token {number} of {len(places)}{note} (end: newest)  {names}"

    def _column(self, strand: Strand, step: Step, width: int, height: int) -> list[Row]:
        seen = step.distribution
        assert seen is not None
        glyphs = self.edge.glyphs
        rows: list[Row] = [[(f" {'stage':<12}{'kept':>9}{'H bit':>8}", "muted")]]
        most = max(seen.raw.entropy_bits, 0.01)
        for name, each in (("raw", seen.raw), *((short(one.stage), one) for one in seen.stages)):
            line = f" {name:<12}{each.n_left:>9}{bits(each.entropy_bits):>8} "
            rows.append([(line, ""), (bar(each.entropy_bits / most, width - 32, glyphs), "muted")])
        rows.append([])
        withouts = self.looks.withouts(strand, step)
        room = max(3, height - len(rows) - len(withouts) - 14)
        rows += stage_rows(step, self._piece, width, min(room, 20), cell=7, name_width=14, is_compact=True)
        rows.append([])
        rows += draw_rows(step, self._piece, width)
        rows += [[(" " + line, "muted")] for line in packed(summary(step).split("  "), width - 1)]
        rows += [
            [(f" without {one.stage:<12} {self._without(step, one.token, one.is_asked)}", "")]
            for one in withouts
        ]
        return rows

    def _without_words(self, strand: Strand, step: Step) -> str:
        words = [
            f"{short(one.stage)}: {self._without(step, one.token, one.is_asked)}"
            for one in self.looks.withouts(strand, step)
        ]
        return "without  " + "   ".join(words) if words else ""

    def _without(self, step: Step, token: int | None, is_asked: bool) -> str:
        if token is None:
            return "grammar" if step.is_constrained else "? (w)"
        text = "the same" if token == step.token else f'"{token_text(self._piece(token))}"'
        return text + (" (asked)" if is_asked else "")

    def _trend_rows(self, strand: Strand, width: int, is_narrow: bool) -> list[Row]:
        glyphs = self.edge.glyphs
        entropies = list(self._entropies)
        rates = list(strand.rates)
        if is_narrow:
            room = max(8, (width - 24) // 2)
            line = f" H {sparkline(entropies, room, glyphs, 1.0)}  tok/s {sparkline(rates, room, glyphs)}"
            return [[(line, "muted")]]
        room = width - 18
        now = entropies[-1] if entropies else 0.0
        return [
            titled("over the answer", width, glyphs),
            [(f" entropy {bits(now):>6}  {sparkline(entropies, room, glyphs, 1.0)}", "")],
            [(f" tok/s   {strand.tok_s:>6.1f}  {sparkline(rates, room, glyphs)}", "")],
        ]

    def _piece(self, token: int) -> bytes:
        return self.edge.talk.piece_bytes(token)

    # -- keys ---------------------------------------------------------------------------------------------

    def action_scrub(self, by: int) -> None:
        """Goes to an earlier or a later token; behind the newest, it follows again."""
        places = list(self.strand.steps)
        if not places:
            return
        at = len(places) - 1 if self.position not in self.strand.steps else places.index(self.position or 0)
        if self.position is not None and at + by >= len(places):
            self.action_live()
            return
        self._go(places[max(0, min(len(places) - 1, at + by))])

    def action_live(self) -> None:
        """Follows the newest token."""
        self.position, self.note = None, ""
        self.frame()

    def action_doubtful(self, by: int) -> None:
        """Goes to the next (or last) token with a probability below one half."""
        places = list(self.strand.steps)
        last = self.strand.last_step
        here = self.position if self.position is not None else last.position if last is not None else 0
        ahead = [place for place in places if (place > here if by > 0 else place < here)]
        for place in ahead if by > 0 else reversed(ahead):
            p = probability(self.strand.steps[place])
            if p is not None and p < DOUBT:
                self._go(place)
                return

    def _go(self, position: int) -> None:
        self.position, self.note = position, ""
        self.frame()

    def action_ask(self) -> None:
        """Asks the model again how this token is drawn, and what would have been drawn without each stage."""
        look = self._shown(self.strand)
        if look is None:
            return
        if not self.looks.can_ask(self.strand):
            self.note = "the model can be asked when the answer is over"
            self.frame()
            return
        self._go(look.step.position)
        self.note = "asking ..."
        self.frame()

        def done() -> None:
            self.note = ""
            self.frame()

        self.looks.ask(self.strand, look.step.position, done, self.edge.report)

    async def action_inspect(self) -> None:
        """Opens the inspector at this token."""
        look = self._shown(self.strand)
        self.edge.inspect_at = look.step.position if look is not None else None
        await self.edge.action_page("inspect")
