"""Two chains answer the same message side by side, in shared batches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical

from edgellm_tui.answer import ConversationView
from edgellm_tui.rows import Rule

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from edgellm import ChainSpec
    from edgellm_tui.glyphs import Glyphs
    from edgellm_tui.strand import Strand
    from edgellm_tui.talk import Talk

_NAMES = ("A: the chain in use", "B: the draft")
_SIDES = "ab"


class Race(Horizontal):
    """The two answers. `start` forks the current branch twice; `keep` or `end` puts away what is not kept."""

    DEFAULT_CSS = """
    Race { height: 1fr; display: none; }
    Race.-on { display: block; }
    Race .side { width: 1fr; height: 1fr; }
    """

    def __init__(self, glyphs: Glyphs) -> None:
        super().__init__()
        self._glyphs = glyphs
        self.strands: list[Strand] = []

    def compose(self) -> ComposeResult:
        """A title and an answer for each."""
        for side in _SIDES:
            with Vertical(classes="side"):
                yield Rule(self._glyphs, id=f"{side}-head")
                answer = ConversationView(id=f"{side}-answer", glyphs=self._glyphs)
                answer.can_focus = False
                yield answer

    @property
    def is_on(self) -> bool:
        """Branches were made and not put away yet."""
        return bool(self.strands)

    def start(
        self,
        talk: Talk,
        keep: int,
        specs: Sequence[ChainSpec],
        begun: Callable[[], None],
        failed: Callable[[Exception], None],
    ) -> None:
        """Two branches that keep the first `keep` messages, each with its chain; `begun` is called as they set off."""

        def forked(strand: Strand) -> None:
            spec, number = specs[len(self.strands)], len(self.strands)
            strand.name = _NAMES[number]
            self.strands.append(strand)
            talk.worker.submit(lambda: strand.chat.set_sampler(spec), None, failed)
            if len(self.strands) < len(specs):
                talk.fork(forked, keep=keep, why="A/B", redraw=True)
            else:
                # Behind the jobs that set the chains.
                talk.worker.submit(lambda: None, go)

        def go(_: Any) -> None:
            # Any: a job that gives nothing.
            self.add_class("-on")
            talk.race(self.strands)
            for view, strand in zip(self.query(ConversationView), self.strands, strict=True):
                view.show(strand.blocks)
            begun()

        talk.fork(forked, keep=keep, why="A/B", redraw=True)

    def frame(self) -> None:
        """The answers have grown."""
        for side, view, strand in zip(_SIDES, self.query(ConversationView), self.strands, strict=False):
            head = f"{strand.name}  {strand.state} {strand.turn_tokens} tok"
            self.query_one(f"#{side}-head", Rule).set(head)
            view.sync()

    def keep(self, talk: Talk, which: int) -> None:
        """Makes one of them the current branch, and puts the other away."""
        talk.show(self.strands.pop(which))
        self.end(talk)

    def end(self, talk: Talk) -> None:
        """Puts away what is left."""
        for strand in self.strands:
            talk.close_strand(strand)
        self.strands = []
        self.remove_class("-on")
