"""How a session's tokens come about: the chain, the constraint, and tokens that were drawn ahead of the reader."""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING

from edgellm.distribution import Step
from edgellm.errors import SamplerError
from edgellm.sampling.chain import StepContext
from edgellm.types import SpanKind

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from edgellm.engine.tape import Tape
    from edgellm.native.native_draw import NativeDraw
    from edgellm.native.vocabulary import Vocabulary
    from edgellm.sampling.chain import Chain, Draw
    from edgellm.sampling.constraint import Constraint


class Drawing:
    """Draws tokens for a tape, and keeps the chain told of all of it.

    `is_checked`: draw freely, and mask only where the token drawn is refused; else mask always. `trace`: rows of
    the distribution that each step carries.
    """

    def __init__(self, chain: Chain, tape: Tape, vocabulary: Vocabulary, branch: int) -> None:
        self.chain = self._prepared = chain
        self.tape = tape
        self.vocabulary = vocabulary
        self.branch = branch
        self.trace = 0
        self.constraint: Constraint | None = None
        self.is_checked = False
        self._ready: deque[Step] = deque()
        self._held: deque[Step] = deque()
        # All stages of the chain know of all tokens of the tape.
        self._is_told = True

    # -- what the reader has not seen ------------------------------------------------------------------

    @property
    def has_ready(self) -> bool:
        """True where a step can be read without decoding."""
        return bool(self._ready)

    @property
    def unread(self) -> int:
        """How many tokens at the tape's end the reader has not seen: a stage may still take some back."""
        return len(self._held) + len(self._ready)

    def give(self, step: Step) -> None:
        """Lets the reader have a step that was taken, before all others."""
        self._ready.appendleft(step)

    def read(self) -> Step:
        """The next step that was not read yet."""
        return self._ready.popleft()

    def drop_unread(self) -> None:
        """Forgets steps that were not read; their tokens stay on the tape."""
        self._held.clear()
        self._ready.clear()

    # -- telling the chain -----------------------------------------------------------------------------

    def tell(self, length: int) -> None:
        """Makes up for it where telling the chain of the first `length` tokens has failed or was broken off."""
        if not self._is_told:
            self.chain.rewind(self.tape.tokens[:length])
            self._is_told = True

    def tell_prompt(self, start: int) -> None:
        """Tells the chain of all tokens from `start` on: a prompt or a result. Raises SamplerError."""
        self.tell(start)
        self._is_told = False
        self.chain.replay(self.tape.tokens[start:])
        self._is_told = True

    def tell_anew(self) -> None:
        """The tape was cut: builds up what the stages know. Where one fails, the next use tries again and says so."""
        self._is_told = False
        with suppress(SamplerError):
            self.tell(len(self.tape))

    # -- drawing ---------------------------------------------------------------------------------------

    def draw(self, logits: NDArray[np.float32]) -> Step:
        """The token after the tape, from its logits (n_vocab,): not yet on the tape. Raises SamplerError."""
        position = len(self.tape)
        self.tell(position)
        context = StepContext(position, self.branch, self.tape.tokens)
        constraint = self.constraint
        mask = None if self.is_checked else constraint
        draw = self.chain.sample(logits, context, trace=self.trace, constraint=mask)
        if constraint is not None and not constraint.consume(draw.token) and self.is_checked:
            # Together with the free draw this is a draw from what is allowed, if the second one is independent.
            context = StepContext(position, self.branch, self.tape.tokens, "again")
            draw = self.chain.sample(logits, context, trace=self.trace, constraint=constraint)
            constraint.consume(draw.token)
        return self._step(draw.token, draw=draw, is_constrained=constraint is not None)

    def prepare(self) -> NativeDraw | None:
        """What draws the token after the tape in one call, where that can be; what it draws goes to `take`."""
        if self.constraint is not None or not self._is_told or self._held or self._ready:
            return None
        chain = self._prepared = self.chain
        return chain.prepare(self.branch, len(self.tape.tokens), trace=self.trace)

    def take(self, token: int) -> Step:
        """Puts a token that was drawn so on the tape, and tells the chain; no stage can take it back."""
        # Trace and chain as they were when it was drawn: another thread may have changed them meanwhile.
        step = self._step(token, draw=self._prepared.drawn(token))
        self.tape.append(token, SpanKind.TEXT)
        self._is_told = False
        self.chain.accept(token)
        self._is_told = True
        return step

    def forced_tokens(self) -> Sequence[int]:
        """The tokens that the constraint leaves no choice about."""
        return self.constraint.forced_tokens() if self.constraint is not None else ()

    def force(self, token: int) -> Step:
        """The next of the forced tokens as a step: not yet on the tape."""
        assert self.constraint is not None
        self.tell(len(self.tape))
        self.constraint.consume(token)
        return self._step(token, is_forced=True, is_constrained=True)

    def explain(self, logits: NDArray[np.float32], branch: int, rows: int) -> Step:
        """How `branch` draws the token after the tape, with `rows` rows of the distribution; nothing is changed."""
        draw = self.chain.sample(logits, StepContext(len(self.tape), branch, self.tape.tokens), trace=rows)
        return self._step(draw.token, draw=draw)

    def _step(
        self, token: int, *, draw: Draw | None = None, is_forced: bool = False, is_constrained: bool = False
    ) -> Step:
        piece, is_eog, is_control = self.vocabulary.traits(token)
        return Step(
            token=token,
            piece=piece,
            position=len(self.tape),
            is_eog=is_eog,
            is_control=is_control,
            is_forced=is_forced,
            is_constrained=is_constrained,
            logprob=draw.logprob if draw is not None else None,
            distribution=draw.distribution if draw is not None else None,
        )

    # -- committing ------------------------------------------------------------------------------------

    def append(self, step: Step) -> int:
        """Puts a step's token on the tape and tells the chain; returns how many tokens a stage wants taken back."""
        self.tape.append(step.token, SpanKind.TEXT)
        self._held.append(step)
        self._is_told = False
        wish = self.chain.accept(step.token)
        self._is_told = True
        if wish is None or wish.tokens > len(self._held) or self.constraint is not None:
            return 0
        return wish.tokens

    def take_back(self, count: int) -> None:
        """Drops the last `count` steps, which no reader has seen yet, for a stage that asked for it."""
        for _ in range(count):
            self._held.pop()
        self._is_told = False

    def release(self) -> None:
        """Lets the reader have the steps that no stage can take back any more."""
        lookback = 0 if self.constraint is not None else self.chain.pending_tokens
        is_flush = bool(self._held) and self._held[-1].is_eog
        while self._held and (is_flush or len(self._held) > lookback):
            self._ready.append(self._held.popleft())

    def undo(self) -> None:
        """A commit has failed, and the tape was cut to where it began: chain and constraint follow."""
        self._is_told = False
        for steps in (self._held, self._ready):
            while steps and steps[-1].position >= len(self.tape):
                steps.pop()
        if self.constraint is not None:
            self.constraint.rollback(1)

    def fork_chain(self, tape: Tape) -> Chain:
        """A chain for `tape`, which is this one without the tokens that its reader has not seen."""
        self.tell(len(self.tape))
        chain = self.chain.fork(self.tape.tokens)
        if self.unread:
            chain.rewind(tape.tokens)
        return chain
