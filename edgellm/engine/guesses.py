"""Tokens that are computed before they are drawn: batch rows behind the tape, and the logits after them."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from edgellm.engine.engine import Engine
    from edgellm.engine.memory import Memory
    from edgellm.engine.speculation import Speculation
    from edgellm.engine.tape import Tape


class Guesses:
    """A session's guesses: planned, computed along with the next token, and used or cut away.

    They are never on the tape. The memory holds them behind it (`Memory.ahead`) until the chain draws something else,
    or until anybody else asks for the sequence. `speculation` None: there are none.
    """

    def __init__(self, engine: Engine, tape: Tape, memory: Memory, is_cancelled: Callable[[], bool]) -> None:
        self._engine = engine
        self._is_cancelled = is_cancelled
        self._is_planning = False
        self._tape = tape
        self._memory = memory
        self.speculation: Speculation | None = None
        self._planned: list[int] = []
        self._planned_at = -1
        # What the memory holds behind the tape: each token with the logits after it.
        self._held: deque[tuple[int, NDArray[np.float32]]] = deque()
        self._is_timed = False

    @property
    def count(self) -> int:
        """How many tokens the next decode takes along."""
        return len(self._planned)

    def take(self) -> NDArray[np.float32] | None:
        """The logits after the tape, where its last token was guessed: then no decode is needed."""
        memory, tape = self._memory, self._tape
        if not memory.ahead or memory.expected or memory.length != len(tape) - 1:
            return None
        token, logits = self._held.popleft()
        if tape.tokens[-1] != token:
            return None
        memory.guess_held()
        self._engine.governor.guess_held()
        if self.speculation is not None:
            self.speculation.held()
        return logits

    def plan(self) -> bool:
        """True where the next decode is to take guesses along; thought of once for each place of the tape."""
        length = len(self._tape)
        if self._planned_at != length:
            self._planned_at, self._planned = length, []
            model, context = self._engine.model, self._engine.context
            # What is wrong must be cut away again, and that has to be cheap.
            can_cut = not (model.is_recurrent or model.is_hybrid) and self._engine.options.swa_full
            if self.speculation is not None and can_cut and self._memory.length == length - 1:
                start = self._tape.take_change()
                if start is not None:
                    self.speculation.changed(start)
                room = min(context.n_ctx - length, context.n_batch - 1)
                self._planned = self._guess(self.speculation, room)
        return bool(self._planned)

    def _guess(self, speculation: Speculation, room: int) -> list[int]:
        # In this order a cancel is heard wherever it comes between.
        self._is_planning = True
        try:
            speculation.listen()
            return [] if self._is_cancelled() else speculation.guess(self._tape.tokens, room)
        finally:
            self._is_planning = False

    def abort(self) -> None:
        """The session was cancelled: a guess that is under way ends. Safe from any thread."""
        if self._is_planning and self.speculation is not None:
            self.speculation.abort()

    def drop(self) -> bool:
        """The plan is given up; false where there was none."""
        had, self._planned = bool(self._planned), []
        return had

    def rows(self, seq: int) -> list[tuple[int, int, int, bool]]:
        """The planned tokens as batch rows behind the tape's."""
        start = len(self._tape)
        return [(token, start + i, seq, True) for i, token in enumerate(self._planned)]

    def computed(self, row: int) -> None:
        """They are computed: the logits after the first one stand at `row` of the batch."""
        context = self._engine.context
        self._held = deque((token, context.logits(row + i).copy()) for i, token in enumerate(self._planned))
        self._memory.guessed(len(self._planned))
        self._planned = []

    def begin(self, pending: int) -> None:
        """A decode of so many tokens of the tape begins. Measured is what one costs, by itself and with guesses."""
        self._is_timed = self.speculation is not None and pending == 1
        if self.speculation is not None and self._is_timed:
            self.speculation.begin(len(self._planned))

    def end(self) -> None:
        """That decode is over."""
        self._planned_at = -1
        if self._is_timed and self.speculation is not None:
            self._is_timed = False
            self.speculation.end()
