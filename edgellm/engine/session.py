"""A session: one tape, its mirror in the KV cache, and the sampler chain that extends it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgellm.distribution import Step
from edgellm.engine.drawing import Drawing
from edgellm.engine.guesses import Guesses
from edgellm.engine.memory import Memory
from edgellm.engine.prefill import decode_chunk, prefill, prefill_ahead
from edgellm.engine.tape import Tape
from edgellm.errors import Cancelled, ConfigError, ContextFull, EdgeError, SamplerError
from edgellm.types import SpanKind

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from edgellm.engine.engine import Engine
    from edgellm.engine.speculation import Speculation
    from edgellm.native.overlay import Overlay
    from edgellm.sampling.chain import Chain
    from edgellm.sampling.constraint import Constraint


class Session:
    """A tape and its KV memory, kept equal whatever fails.

    The memory always holds a prefix of the tape: all of it, or all but the tokens that are still pending
    (the last one drawn, tokens forced by a grammar), which the next decode takes along. `memory` keeps that
    mirror, `drawing` the chain and what it has drawn ahead of the reader; a session moves both in step.
    """

    def __init__(
        self,
        engine: Engine,
        chain: Chain,
        *,
        branch: int,
        tape: Tape | None = None,
        overlay: Overlay | None = None,
    ) -> None:
        self.engine = engine
        overlay = overlay or engine.adapters.default
        self.tape = tape or Tape()
        self.tape.adapters = overlay.chosen
        self.memory = Memory(engine, self.tape, overlay)
        self.drawing = Drawing(self._fitting(chain), self.tape, engine.vocabulary, branch)
        self.guesses = Guesses(engine, self.tape, self.memory, lambda: self.is_cancelled)
        self.is_waiting = False
        self.is_cancelled = False
        self._logits: NDArray[np.float32] | None = None
        self._failure: EdgeError | None = None
        self._is_closed = False

    # -- state ---------------------------------------------------------------------------------------

    @property
    def seq(self) -> int | None:
        """The sequence of the context that holds the memory; None while it holds nothing or is parked."""
        return self.memory.seq

    @property
    def overlay(self) -> Overlay:
        """The adapters that the tape is computed with."""
        return self.memory.overlay

    def use_adapters(self, overlay: Overlay) -> None:
        """Goes on with other adapters. The memory was computed with the old ones: the next prefill or step computes
        the tape again, and `rebuilt_tokens` counts that.
        """
        self.check_open()
        if overlay is self.memory.overlay:
            return
        self.settle()
        self._logits = None
        self.guesses.drop()
        self.memory.use(overlay)
        self.tape.adapters = overlay.chosen

    @property
    def kv_length(self) -> int:
        """How many tokens of the tape the KV memory holds."""
        return self.memory.length

    @property
    def prefilled_tokens(self) -> int:
        """How many tokens were computed for the first time that were not drawn one by one."""
        return self.memory.prefilled_tokens

    @property
    def rebuilt_tokens(self) -> int:
        """How many tokens were computed again, because the memory of them was lost."""
        return self.memory.rebuilt_tokens

    @property
    def snapshot_tokens(self) -> int:
        """How many tokens were taken from disk instead of being computed."""
        return self.memory.snapshot_tokens

    @property
    def ahead_tokens(self) -> int:
        """How many tokens had been computed before they were put on the tape."""
        return self.memory.ahead_tokens

    @property
    def speculation(self) -> Speculation | None:
        """What decides on guessing ahead; None: tokens are computed one at a time."""
        return self.guesses.speculation

    @speculation.setter
    def speculation(self, speculation: Speculation | None) -> None:
        self.guesses.speculation = speculation

    @property
    def free_tokens(self) -> int:
        """How many drawn tokens needed no decode of their own, because they had been guessed."""
        return self.speculation.free_tokens if self.speculation is not None else 0

    @property
    def has_logits(self) -> bool:
        """True where the distribution after the tape's last token is at hand."""
        return self._logits is not None

    @property
    def chain(self) -> Chain:
        """The chain that draws. One that is put in its place must have been told of the tape."""
        return self.drawing.chain

    @chain.setter
    def chain(self, chain: Chain) -> None:
        self.drawing.chain = self._fitting(chain)

    def _fitting(self, chain: Chain) -> Chain:
        if chain.n_vocab != self.engine.vocabulary.size:
            raise SamplerError(
                f"a chain for {chain.n_vocab} tokens does not fit a vocabulary of {self.engine.vocabulary.size}.",
                hint="Make it with Runtime.make_chain.",
            )
        return chain

    @property
    def branch(self) -> int:
        """The number that is part of each draw."""
        return self.drawing.branch

    @branch.setter
    def branch(self, branch: int) -> None:
        self.drawing.branch = branch

    @property
    def trace(self) -> int:
        """How many rows of the distribution each step carries; 0 for none."""
        return self.drawing.trace

    @trace.setter
    def trace(self, rows: int) -> None:
        self.drawing.trace = rows

    @property
    def constraint(self) -> Constraint | None:
        """What restricts the tokens that are drawn."""
        return self.drawing.constraint

    @constraint.setter
    def constraint(self, constraint: Constraint | None) -> None:
        self.drawing.constraint = constraint

    @property
    def is_checked(self) -> bool:
        """Draw freely, and mask only where the token drawn is refused; else mask always."""
        return self.drawing.is_checked

    @is_checked.setter
    def is_checked(self, is_checked: bool) -> None:
        self.drawing.is_checked = is_checked

    @property
    def is_closed(self) -> bool:
        """Nothing can be done with it any more."""
        return self._is_closed

    def check_open(self) -> None:
        """Raises ConfigError once the session is closed."""
        if self._is_closed:
            raise ConfigError("the chat is closed.", hint="Open another one on a loaded model.")

    def check_memory(self) -> bool:
        """Does llama.cpp's memory hold exactly the positions this session believes in, and all the next needs?"""
        return self.memory.check()

    def own_seq(self) -> int:
        """The session's sequence in the context, with its memory in it."""
        self.check_open()
        return self.memory.own_seq()

    def cut_tape(self, length: int) -> None:
        """Cuts the tape alone: the memory, the logits and the draws are the caller's to bring in step."""
        self.tape.cut(length)
        self.memory.tape_was_cut(length)

    # -- prefill ---------------------------------------------------------------------------------------

    def prefill(
        self, entries: Sequence[tuple[int, SpanKind]], *, head: int = 0
    ) -> Generator[tuple[int, int], None, None]:
        """Adds (token, kind) pairs to the tape and computes them; yields (done, total) after each chunk.

        The first `head` entries of an empty tape, where other chats begin with them too, are taken from disk, or
        kept there once they are computed: `snapshot_tokens` counts what was taken.
        Closing the iterator early, a cancel, or a failure leaves tape and memory as before; when the last chunk
        is done, it is too late for that. Raises ContextFull, Cancelled, SamplerError, DecodeError.
        """
        return prefill(self, entries, head=head)

    def extend(self, entries: Sequence[tuple[int, SpanKind]], *, head: int = 0) -> None:
        """`prefill` without progress."""
        for _ in self.prefill(entries, head=head):
            pass

    def prefill_ahead(self, tokens: Sequence[int], *, head: int = 0) -> Iterator[int]:
        """Computes what a tape to come, `tokens`, has beyond this one; yields how many tokens are ahead, after each
        chunk.

        Tape and draws stay as they are. A prefill that then appends these tokens has them without computing them
        (`ahead_tokens` counts those); whatever else is done cuts them away. A cancel, or a failure, keeps the chunks
        that are done. Where memory cannot be cut, or the tape to come differs from what is held, nothing is done.
        `head` as for `prefill`. Raises ContextFull, Cancelled, DecodeError.
        """
        return prefill_ahead(self, tokens, head=head)

    def decoded(self, end: int, *, logits: NDArray[np.float32] | None) -> int:
        """The memory now holds the tape up to `end`; returns how many of these tokens it had held before."""
        self._logits = logits
        self.guesses.end()
        return self.memory.decoded(end)

    def logits(self) -> NDArray[np.float32]:
        """Logits (n_vocab,) after the tape's last token, computed if they are not at hand."""
        self.settle()
        if self._logits is None:
            if not len(self.tape):
                raise ConfigError("there is nothing to score: the tape is empty.", hint="Extend it first.")
            self.memory.cut(len(self.tape) - 1)
            self.extend(())
        assert self._logits is not None
        return self._logits

    def check_room(self, count: int) -> None:
        """Raises ContextFull where `count` more tokens do not fit the context."""
        n_ctx = self.engine.context.n_ctx
        if len(self.tape) + count > n_ctx:
            raise ContextFull(
                f"{len(self.tape)} tokens on the tape and {count} new ones exceed the context of {n_ctx}.",
                hint="Start a new chat, rewind, load the model with a larger n_ctx, or let old turns go "
                "(context_policy; in the line chat /when-full evict).",
            )

    # -- decode ----------------------------------------------------------------------------------------

    def write_pending(self, token: int, kind: SpanKind) -> None:
        """Puts one token on the tape that the next decode computes, as if it had been drawn. Raises ContextFull."""
        self.check_room(1)
        self.tape.append(token, kind)
        self._logits = None
        self.chain.replay((token,))

    def step(self) -> Step:
        """The next token: drawn, or forced by the constraint. It is on the tape when this returns.

        Raises ContextFull, Cancelled, SamplerError, ConstraintError, DecodeError; tape and memory are then
        as before.
        """
        self.check_open()
        while not self.drawing.has_ready:
            # Another session's step may have made ours fail already.
            if self._failure is not None:
                failure, self._failure = self._failure, None
                self.is_cancelled = False if isinstance(failure, Cancelled) else self.is_cancelled
                raise failure
            self.is_waiting = True
            length = len(self.tape.tokens)
            try:
                step = self.engine.step_alone(self)
                if step is not None:
                    return step
                if self.is_waiting:
                    self.engine.step_together()
            except BaseException:
                self.is_waiting = False
                if len(self.tape.tokens) > length and not self.drawing.unread and not self._is_closed:
                    # It is on the tape and was to be returned.
                    self.rewind(length)
                raise
            self.check_open()
        return self.drawing.read()

    def request(self) -> None:
        """Joins the engine's next batch, so that several sessions share one decode."""
        if not self.drawing.has_ready and self._failure is None:
            self.is_waiting = True

    def prepare_step(self, *, is_alone: bool = True) -> None:
        """Called by the engine: makes sure that something is to be decoded, and that it fits one batch.

        Only who is alone in it guesses ahead: others would wait for the guesses' rows.
        """
        if self.is_cancelled:
            raise Cancelled("decoding was cancelled.")
        if not len(self.tape):
            raise ConfigError("there is nothing to continue: the tape is empty.", hint="Extend it first.")
        if self._force_tokens():
            return
        if self.has_logits:
            return
        self.check_room(0)
        self._logits = self.guesses.take()
        if self._logits is not None:
            return
        self.own_seq()
        if self.memory.length == len(self.tape):
            self.memory.cut(len(self.tape) - 1)
        chunk = self.engine.context.n_batch
        while len(self.tape) - self.memory.length > chunk:
            decode_chunk(self, chunk)
        if not is_alone or not self.guesses.plan():
            self.guesses.drop()

    @property
    def is_simple(self) -> bool:
        """Called by the engine: all that is to be done is to decode the last token and to draw one freely."""
        memory, context = self.memory, self.engine.context
        length = len(self.tape.tokens)
        return (
            self._logits is None
            and self.drawing.constraint is None
            and memory.length == length - 1
            and length < context.n_ctx
            and memory.seq is not None
            and not memory.is_unsure
            and memory.overlay is context.overlay
            and not self.is_cancelled
            and not self._is_closed
            and (self.guesses.speculation is None or not self.guesses.plan())
        )

    def pending_rows(self) -> list[tuple[int, int, int, bool]]:
        """Called by the engine: batch rows for the tokens that the memory lacks, and then for what is guessed."""
        assert self.seq is not None
        last = len(self.tape) - 1
        self.engine.touch(self.memory)
        self.memory.is_unsure = True
        rows = [
            (self.tape.tokens[i], i, self.seq, i == last) for i in range(self.memory.length, len(self.tape))
        ]
        self.guesses.begin(len(rows))
        return rows + self.guesses.rows(self.seq)

    def fail_step(self, error: EdgeError) -> None:
        """Called by the engine: this session's step has failed."""
        self.is_waiting = False
        self._failure = error

    def finish_step(self) -> None:
        """Called by the engine: samples from the logits at hand and appends the token."""
        if not self.is_waiting:
            return
        try:
            self.check_room(1)
            assert self._logits is not None
            self._commit(self.drawing.draw(self._logits))
        except EdgeError as error:
            self.keep_logits()
            self.fail_step(error)

    def take(self, token: int) -> Step:
        """Called by the engine: the same for a token that was drawn along with the decode."""
        position = len(self.tape.tokens)
        try:
            step = self.drawing.take(token)
        except BaseException:
            self.cut_tape(position)
            raise
        self.is_waiting = False
        return step

    def keep_logits(self) -> None:
        """The step can be tried again: its logits must survive other sessions' decodes."""
        if self._logits is not None and not self._logits.flags.owndata:
            self._logits = self._logits.copy()

    def _force_tokens(self) -> bool:
        """Appends what the constraint leaves no choice about; true where there was something."""
        forced = self.drawing.forced_tokens() if self.is_waiting else ()
        if not forced:
            return False
        self.check_room(len(forced))
        for token in forced:
            self._commit(self.drawing.force(token))
        return True

    def _commit(self, step: Step) -> None:
        """Puts a token on the tape and tells the chain of it. Where a stage raises, all is as before."""
        logits, self._logits = self._logits, None
        drawing = self.drawing
        try:
            count = drawing.append(step)
            if count:
                drawing.take_back(count)
                length = len(self.tape) - count
                self.cut_tape(length)
                self.memory.cut(length)
                drawing.tell(length)
            drawing.release()
        except BaseException:
            if len(self.tape) > step.position:
                self.cut_tape(step.position)
                self._logits = logits
            drawing.undo()
            raise
        self.is_waiting = False

    def hold_last(self) -> None:
        """Computes all of the tape but its last token, and no more: the state from which texts are scored."""
        self.settle()
        end = len(self.tape) - 1
        # The sequence first: memory that was parked may turn out to be lost, and some cannot be cut by one token.
        self.own_seq()
        self._logits = None
        self.memory.cut(end)
        while self.memory.length < end:
            with self.engine.in_use():
                decode_chunk(self, self.engine.context.n_batch, end)

    def settle(self) -> None:
        """Ends a run of steps: takes back tokens that were drawn ahead of the reader (a stage may hold some back),
        and leaves the engine's next batch."""
        self.is_waiting = False
        self._failure = None
        count = self.drawing.unread
        if count:
            self.rewind(len(self.tape) - count)

    # -- rewind, fork, end --------------------------------------------------------------------------------

    def rewind(self, length: int) -> None:
        """Keeps the first `length` tokens of the tape and the memory of them. Never fails for a length in range."""
        if not 0 <= length <= len(self.tape):
            raise ConfigError(
                f"cannot rewind to {length}: the tape has {len(self.tape)} tokens.",
                hint="Give a length from 0 to that.",
            )
        self.check_open()
        self.drawing.drop_unread()
        if length == len(self.tape):
            return
        self.cut_tape(length)
        self._logits = None
        self.memory.cut(length)
        self.drawing.tell_anew()

    def fork(self, *, branch: int | None = None) -> Session:
        """A session with an equal tape that shares this one's memory without computing anything.

        `branch` None: it draws with random numbers of its own.
        """
        self.check_open()
        # Tokens that this session's reader has not seen yet belong to this session alone.
        unseen = self.drawing.unread
        tape = self.tape.copy()
        tape.cut(len(tape) - unseen)
        chain = self.drawing.fork_chain(tape)
        branch = self.engine.next_branch() if branch is None else branch
        other = Session(self.engine, chain, branch=branch, tape=tape, overlay=self.overlay)
        other.trace = self.trace
        other.speculation = self.speculation.fork() if self.speculation is not None else None
        self.engine.adopt(other)
        other.memory.share(self.memory)
        if unseen == 0 and self._logits is not None:
            other._logits = self._logits.copy()
        return other

    @property
    def held_logits(self) -> NDArray[np.float32] | None:
        """Logits (n_vocab,) after the tape's last token, where they are at hand."""
        return self._logits

    def hold_logits(self, logits: NDArray[np.float32] | None) -> None:
        """Takes kept logits for those after the tape's last token; None: they are not at hand."""
        self._logits = logits

    def peek(self, token: int) -> NDArray[np.float32]:
        """Logits (n_vocab,) after `token` behind what the memory holds; all stays as it is.

        Raises ContextFull, Cancelled, DecodeError.
        """
        self.settle()
        self.check_open()
        with self.engine.in_use(), self.engine.kept(self.memory), self.memory.trial() as seq:
            self.engine.decode([(token, self.memory.length, seq, True)], (self,))
            return self.engine.context.logits(0).copy()

    def explain(self, position: int, rows: int, chain: Chain | None = None) -> Step:
        """How the token at `position` is drawn by this session's chain, or by `chain` (closed here), with `rows` rows.

        Computed on a fork: this session stays as it is. Raises ContextFull, Cancelled, SamplerError, DecodeError.
        """
        # Under this branch's number: looking uses none up, and later forks draw what they would have drawn.
        try:
            fork = self.fork(branch=self.branch)
        except BaseException:
            if chain is not None:
                chain.close()
            raise
        try:
            if chain is not None:
                fork.chain.close()
                fork.chain = chain
                chain.replay(fork.tape.tokens)
            fork.rewind(position)
            return fork.drawing.explain(fork.logits(), self.branch, rows)
        finally:
            fork.close()

    def cancel(self) -> None:
        """Stops the running or the next step or prefill with Cancelled. Safe from any thread."""
        self.is_cancelled = True
        self.engine.abort(self)
        self.guesses.abort()

    def close(self) -> None:
        """Gives the sequence back and frees the chain. A second call does nothing."""
        self.engine.release(self)
        self.shut()

    def shut(self) -> None:
        """Called by the engine: from here on every use raises ConfigError."""
        self._is_closed = True
        self.drawing.drop_unread()
        self._logits = None
        self.memory.drop()
        self.chain.close()
