"""A session: one tape, its mirror in the KV cache, and the sampler chain that extends it."""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from edgellm.engine.session_file import SessionRecord, computed_with, model_fingerprint, write_session
from edgellm.engine.tape import Tape
from edgellm.errors import Cancelled, ConfigError, ContextFull, EdgeError, SamplerError, SessionError
from edgellm.sampling.chain import StepContext
from edgellm.types import SpanKind, Step

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from edgellm.engine.engine import Engine
    from edgellm.sampling.chain import Chain
    from edgellm.sampling.constraint import Constraint


class Session:
    """A tape and its KV memory, kept equal whatever fails.

    The memory always holds a prefix of the tape: all of it, or all but the tokens that are still pending
    (the last one drawn, tokens forced by a grammar), which the next decode takes along. Where the memory
    cannot be cut (recurrent models, a dropped sliding window), a rewind empties it and the next decode
    computes the tape again: `rebuilt_tokens` counts that.
    """

    def __init__(self, engine: Engine, chain: Chain, *, branch: int, tape: Tape | None = None) -> None:
        self.engine = engine
        self.chain = chain
        self.branch = branch
        self.tape = tape or Tape()
        self.seq: int | None = None
        self.last_use = 0
        self.trace = 0
        self.constraint: Constraint | None = None
        # Draw freely, and mask only where the token drawn is refused; else mask always.
        self.is_checked = False
        self.prefilled_tokens = 0
        self.rebuilt_tokens = 0
        self.is_waiting = False
        self.is_cancelled = False
        self._kv = 0
        self._rebuild_until = 0
        self._parked: bytes | None = None
        self._logits: NDArray[np.float32] | None = None
        self._ready: deque[Step] = deque()
        self._held: deque[Step] = deque()
        self._failure: EdgeError | None = None
        self._is_closed = False
        # The memory was being changed, and nobody has seen yet that it went well.
        self._is_unsure = False
        # All stages of the chain know of all tokens of the tape.
        self._is_told = True

    # -- state ---------------------------------------------------------------------------------------

    @property
    def kv_length(self) -> int:
        """How many tokens of the tape the KV memory holds."""
        return self._kv

    @property
    def has_logits(self) -> bool:
        """True where the distribution after the tape's last token is at hand."""
        return self._logits is not None

    def check_open(self) -> None:
        """Raises ConfigError once the session is closed."""
        if self._is_closed:
            raise ConfigError("the chat is closed.", hint="Open another one on a loaded model.")

    def check_memory(self) -> bool:
        """Does llama.cpp's memory hold exactly the positions this session believes in, and all the next needs?"""
        if self.seq is None:
            return True
        context = self.engine.context
        _, high = context.position_range(self.seq)
        return high == self._kv - 1 and context.has_window(self.seq, self._kv)

    def own_seq(self) -> int:
        """The session's sequence in the context, with its memory in it."""
        self.check_open()
        if self.seq is None:
            with self.engine.kept(self):
                self._is_unsure = True
                self.seq = self.engine.take_seq()
                self._unpark()
                self._is_unsure = False
        elif self._is_unsure:
            self.restore_memory()
        assert self.seq is not None
        return self.seq

    def park(self) -> int:
        """Takes the KV memory out of the context into ours; returns the sequence that is free now."""
        assert self.seq is not None
        if self._is_unsure:
            self.restore_memory()
        seq = self.seq
        self._parked = self.engine.context.state(seq) if self._kv else None
        self.engine.context.remove(seq, -1)
        self.seq = None
        return seq

    def _unpark(self) -> None:
        state, self._parked = self._parked, None
        assert self.seq is not None
        while self._kv and state is not None:
            try:
                self.engine.context.set_state(self.seq, state)
            except SessionError:
                if self.engine.make_room():
                    continue
                if self.engine.holds_others(self):
                    # It may fit once those are done: computing it again now would be for nothing.
                    self._parked = state
                    self.engine.give_back(self)
                    raise ContextFull(
                        f"the context of {self.engine.context.n_ctx} tokens is full of other chats.",
                        hint="Close a chat, or load the model with a larger n_ctx.",
                    ) from None
                break
            if self.check_memory():
                return
            break
        if self._kv:
            self._forget_memory()

    def _forget_memory(self) -> None:
        """Empties the memory; the next decode computes the tape again."""
        self._rebuild_until = max(self._rebuild_until, self._kv)
        self._kv = 0
        if self.seq is not None:
            self.engine.context.remove(self.seq, -1)
        self._is_unsure = False

    def _cut_memory(self, length: int) -> None:
        if self._kv <= length:
            return
        self.own_seq()
        if self._kv <= length:
            return
        self._is_unsure = True
        self._kv = length
        self.restore_memory()

    def restore_memory(self) -> None:
        """Cuts away what the memory holds beyond what it should, such as the rest of a failed decode."""
        if self.seq is not None and not (
            self.engine.context.remove(self.seq, self._kv) and self.check_memory()
        ):
            self._forget_memory()
        self._is_unsure = False

    def _cut_tape(self, length: int) -> None:
        self.tape.cut(length)
        self._rebuild_until = min(self._rebuild_until, length)

    # -- prefill ---------------------------------------------------------------------------------------

    def prefill(self, entries: Sequence[tuple[int, SpanKind]]) -> Iterator[tuple[int, int]]:
        """Adds (token, kind) pairs to the tape and computes them; yields (done, total) after each chunk.

        Closing the iterator early, a cancel, or a failure leaves tape and memory as before; when the last chunk
        is done, it is too late for that. Raises ContextFull, Cancelled, SamplerError, DecodeError.
        """
        from edgellm.engine.engine import PREFILL_CHUNK

        self.check_open()
        self.settle()
        self._check_room(len(entries))
        length_before, kv_before, logits_before = len(self.tape), self._kv, self._logits
        self.tape.extend(entries)
        self._logits = logits_before if not entries else None
        is_complete = False
        try:
            start, total = self._kv, len(self.tape) - self._kv
            if total == 0:
                self._accept_prompt(length_before)
            while self._kv < len(self.tape):
                with self.engine.in_use():
                    self._decode_chunk(min(PREFILL_CHUNK, self.engine.context.n_batch))
                if self._kv == len(self.tape):
                    self._accept_prompt(length_before)
                    is_complete = True
                yield self._kv - start, total
            is_complete = True
        except Cancelled:
            self.is_cancelled = False
            raise
        finally:
            if not is_complete and not self._is_closed:
                self._cut_tape(length_before)
                self._cut_memory(kv_before)
                self._logits = logits_before if self._kv == length_before else None

    def _accept_prompt(self, start: int) -> None:
        self._tell(start)
        self._is_told = False
        self.chain.replay(self.tape.tokens[start:])
        self._is_told = True

    def _tell(self, length: int) -> None:
        """Makes up for it where telling the chain of the first `length` tokens has failed or was broken off."""
        if not self._is_told:
            self.chain.rewind(self.tape.tokens[:length])
            self._is_told = True

    def extend(self, entries: Sequence[tuple[int, SpanKind]]) -> None:
        """`prefill` without progress."""
        for _ in self.prefill(entries):
            pass

    def _decode_chunk(self, size: int, limit: int | None = None) -> None:
        seq = self.own_seq()
        self.engine.touch(self)
        start = self._kv
        end = min(start + size, len(self.tape) if limit is None else limit)
        is_last = end == len(self.tape)
        rows = [(self.tape.tokens[i], i, seq, is_last and i == end - 1) for i in range(start, end)]
        self._is_unsure = True
        self.engine.decode(rows, (self,))
        # The logits are copied: another session's decode would overwrite them before ours is sampled.
        logits = self.engine.context.logits(len(rows) - 1).copy() if is_last else None
        again = self.decoded(end, logits=logits)
        self.prefilled_tokens += len(rows) - again

    def decoded(self, end: int, *, logits: NDArray[np.float32] | None) -> int:
        """The memory now holds the tape up to `end`; returns how many of these tokens it had held before."""
        again = max(0, min(self._rebuild_until, end) - self._kv)
        self.rebuilt_tokens += again
        if end >= self._rebuild_until:
            self._rebuild_until = 0
        self._kv = end
        self._is_unsure = False
        self._logits = logits
        return again

    def logits(self) -> NDArray[np.float32]:
        """Logits (n_vocab,) after the tape's last token, computed if they are not at hand."""
        self.settle()
        if self._logits is None:
            if not len(self.tape):
                raise ConfigError("there is nothing to score: the tape is empty.", hint="Extend it first.")
            self._cut_memory(len(self.tape) - 1)
            self.extend(())
        assert self._logits is not None
        return self._logits

    def _check_room(self, count: int) -> None:
        n_ctx = self.engine.context.n_ctx
        if len(self.tape) + count > n_ctx:
            raise ContextFull(
                f"{len(self.tape)} tokens on the tape and {count} new ones exceed the context of {n_ctx}.",
                hint="Start a new chat, rewind, or load the model with a larger n_ctx.",
            )

    # -- decode ----------------------------------------------------------------------------------------

    def write_pending(self, token: int, kind: SpanKind) -> None:
        """Puts one token on the tape that the next decode computes, as if it had been drawn. Raises ContextFull."""
        self._check_room(1)
        self.tape.append(token, kind)
        self._logits = None
        self.chain.replay((token,))

    def step(self) -> Step:
        """The next token: drawn, or forced by the constraint. It is on the tape when this returns.

        Raises ContextFull, Cancelled, SamplerError, ConstraintError, DecodeError; tape and memory are then
        as before.
        """
        self.check_open()
        while not self._ready:
            # Another session's step may have made ours fail already.
            if self._failure is not None:
                failure, self._failure = self._failure, None
                self.is_cancelled = False if isinstance(failure, Cancelled) else self.is_cancelled
                raise failure
            self.is_waiting = True
            try:
                self.engine.step()
            except BaseException:
                self.is_waiting = False
                raise
            self.check_open()
        return self._ready.popleft()

    def request(self) -> None:
        """Joins the engine's next batch, so that several sessions share one decode."""
        if not self._ready and self._failure is None:
            self.is_waiting = True

    def prepare_step(self) -> None:
        """Called by the engine: makes sure that something is to be decoded, and that it fits one batch."""
        if self.is_cancelled:
            raise Cancelled("decoding was cancelled.")
        if not len(self.tape):
            raise ConfigError("there is nothing to continue: the tape is empty.", hint="Extend it first.")
        if self._force_tokens():
            return
        if self.has_logits:
            return
        self._check_room(0)
        self.own_seq()
        if self._kv == len(self.tape):
            self._cut_memory(len(self.tape) - 1)
        chunk = self.engine.context.n_batch
        while len(self.tape) - self._kv > chunk:
            self._decode_chunk(chunk)

    @property
    def is_simple(self) -> bool:
        """Called by the engine: all that is to be done is to decode the last token and to draw one freely."""
        return (
            self._logits is None
            and self.constraint is None
            and not self.is_cancelled
            and not self._is_unsure
            and self.seq is not None
            and self._kv == len(self.tape.tokens) - 1
            and self._kv + 1 < self.engine.context.n_ctx
            and not self._is_closed
        )

    def pending_row(self) -> tuple[int, int, int]:
        """Called by the engine: (token, position, sequence) of the one token that the memory lacks."""
        assert self.seq is not None
        self._is_unsure = True
        return self.tape.tokens[-1], self._kv, self.seq

    def pending_rows(self) -> list[tuple[int, int, int, bool]]:
        """Called by the engine: batch rows for the tokens that the memory lacks."""
        assert self.seq is not None
        last = len(self.tape) - 1
        self.engine.touch(self)
        self._is_unsure = True
        return [(self.tape.tokens[i], i, self.seq, i == last) for i in range(self._kv, len(self.tape))]

    def fail_step(self, error: EdgeError) -> None:
        """Called by the engine: this session's step has failed."""
        self.is_waiting = False
        self._failure = error

    def finish_step(self) -> None:
        """Called by the engine: samples from the logits at hand and appends the token."""
        if not self.is_waiting:
            return
        try:
            self._check_room(1)
            self._draw()
        except EdgeError as error:
            self.keep_logits()
            self.fail_step(error)

    def keep_logits(self) -> None:
        """The step can be tried again: its logits must survive other sessions' decodes."""
        if self._logits is not None and not self._logits.flags.owndata:
            self._logits = self._logits.copy()

    def _draw(self) -> None:
        assert self._logits is not None
        position = len(self.tape)
        self._tell(position)
        context = StepContext(position, self.branch, self.tape.tokens)
        constraint = self.constraint
        mask = None if self.is_checked else constraint
        draw = self.chain.sample(self._logits, context, trace=self.trace, constraint=mask)
        if constraint is not None and not constraint.consume(draw.token) and self.is_checked:
            # Together with the free draw this is a draw from what is allowed, if the second one is independent.
            context = StepContext(position, self.branch, self.tape.tokens, "again")
            draw = self.chain.sample(self._logits, context, trace=self.trace, constraint=constraint)
            constraint.consume(draw.token)
        token = draw.token
        self._commit(
            Step(
                token=token,
                piece=self.engine.vocabulary.piece(token),
                position=position,
                is_eog=self.engine.vocabulary.is_eog(token),
                is_control=self.engine.vocabulary.is_control(token),
                is_constrained=self.constraint is not None,
                logprob=draw.logprob,
                distribution=draw.distribution,
            )
        )

    def _force_tokens(self) -> bool:
        """Appends what the constraint leaves no choice about; true where there was something."""
        if self.constraint is None or not self.is_waiting:
            return False
        forced = self.constraint.forced_tokens()
        if not forced:
            return False
        self._check_room(len(forced))
        vocabulary = self.engine.vocabulary
        self._tell(len(self.tape))
        for token in forced:
            self.constraint.consume(token)
            self._commit(
                Step(
                    token=token,
                    piece=vocabulary.piece(token),
                    position=len(self.tape),
                    is_eog=vocabulary.is_eog(token),
                    is_control=vocabulary.is_control(token),
                    is_forced=True,
                    is_constrained=True,
                )
            )
        return True

    def _commit(self, step: Step) -> None:
        """Puts a token on the tape and tells the chain of it. Where a stage raises, all is as before."""
        logits, self._logits = self._logits, None
        try:
            self._append(step)
        except BaseException:
            if len(self.tape) > step.position:
                self._cut_tape(step.position)
                self._logits = logits
                self._is_told = False
            for steps in (self._held, self._ready):
                while steps and steps[-1].position >= len(self.tape):
                    steps.pop()
            if self.constraint is not None:
                self.constraint.rollback(1)
            raise
        self.is_waiting = False

    def _append(self, step: Step) -> None:
        self.tape.append(step.token, SpanKind.TEXT)
        self._held.append(step)
        self._is_told = False
        rewind = self.chain.accept(step.token)
        self._is_told = True
        if rewind is not None and rewind.tokens <= len(self._held) and self.constraint is None:
            self._rewind_for_stage(rewind.tokens)
        lookback = 0 if self.constraint is not None else self.chain.pending_tokens
        is_flush = bool(self._held) and self._held[-1].is_eog
        while self._held and (is_flush or len(self._held) > lookback):
            self._ready.append(self._held.popleft())

    def _rewind_for_stage(self, count: int) -> None:
        """A stage takes back the last `count` tokens, which no reader has seen yet."""
        for _ in range(count):
            self._held.pop()
        length = len(self.tape) - count
        self._cut_tape(length)
        self._cut_memory(length)
        self._is_told = False
        self._tell(length)

    def hold_last(self) -> None:
        """Computes all of the tape but its last token, and no more: the state from which texts are scored."""
        self.settle()
        end = len(self.tape) - 1
        # The sequence first: memory that was parked may turn out to be lost, and some cannot be cut by one token.
        self.own_seq()
        self._logits = None
        self._cut_memory(end)
        while self._kv < end:
            with self.engine.in_use():
                self._decode_chunk(self.engine.context.n_batch, end)

    def settle(self) -> None:
        """Ends a run of steps: takes back tokens that were drawn ahead of the reader (a stage may hold some back),
        and leaves the engine's next batch."""
        self.is_waiting = False
        self._failure = None
        count = len(self._held) + len(self._ready)
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
        self._held.clear()
        self._ready.clear()
        if length == len(self.tape):
            return
        self._cut_tape(length)
        self._logits = None
        self._cut_memory(min(self._kv, length))
        self._is_told = False
        with suppress(SamplerError):  # the next step or prefill tries again, and says so
            self._tell(length)

    def excise(self, start: int, end: int) -> bool:
        """Takes tokens [start, end) out of the middle of the tape. True where the memory of what stands behind was
        moved up (it was computed with them in view: approximate), false where it will be computed anew.
        """
        self.check_open()
        self.settle()
        if not 0 <= start <= end <= len(self.tape):
            raise ConfigError(
                f"cannot take out tokens {start} to {end} of a tape of {len(self.tape)}.",
                hint="Give two positions on the tape, in order.",
            )
        if start == end:
            return True
        context = self.engine.context
        # Cells that other sessions share have one position for all of them.
        can_move = self._kv > start and context.can_shift and not self.engine.holds_others(self)
        if can_move:
            seq = self.own_seq()
            gone = min(end, self._kv) - start
            self._is_unsure = True
            can_move = context.remove(seq, start, start + gone)
            if can_move and self._kv > end:
                context.shift(seq, end, start - end)
        if can_move:
            self._kv -= min(end, self._kv) - start
        else:
            self._cut_memory(min(self._kv, start))
        self.tape.remove(start, end)
        self._rebuild_until = 0
        self._logits = None
        self._is_unsure = False
        if can_move and not self.check_memory():
            self._forget_memory()
            can_move = False
        self._is_told = False
        with suppress(SamplerError):
            self._tell(len(self.tape))
        return can_move

    def fork(self) -> Session:
        """A session with an equal tape that shares this one's memory without computing anything."""
        self.check_open()
        self._tell(len(self.tape))
        # Tokens that this session's reader has not seen yet belong to this session alone.
        unseen = len(self._held) + len(self._ready)
        tape = self.tape.copy()
        tape.cut(len(tape) - unseen)
        chain = self.chain.fork(self.tape.tokens)
        if unseen:
            chain.rewind(tape.tokens)
        other = Session(self.engine, chain, branch=self.engine.next_branch(), tape=tape)
        other.trace = self.trace
        self.engine.adopt(other)
        if self._kv:
            source = self.own_seq()
            other._kv, other._rebuild_until = self._kv, min(self._rebuild_until, len(tape))
            with self.engine.kept(self):
                other.seq = self.engine.find_seq()
            if other.seq is None:
                other._parked = self.engine.context.state(source)
            else:
                self.engine.context.copy(source, other.seq)
            other._cut_memory(len(other.tape))
            if unseen == 0 and self._logits is not None:
                other._logits = self._logits.copy()
        return other

    def explain(self, position: int, rows: int, chain: Chain | None = None) -> Step:
        """How the token at `position` is drawn by this session's chain, or by `chain` (closed here), with `rows` rows.

        Computed on a fork: this session stays as it is. Raises ContextFull, Cancelled, SamplerError, DecodeError.
        """
        fork = self.fork()
        try:
            if chain is not None:
                fork.chain.close()
                fork.chain = chain
                chain.replay(fork.tape.tokens)
            fork.rewind(position)
            context = StepContext(position, self.branch, fork.tape.tokens)
            draw = fork.chain.sample(fork.logits(), context, trace=rows)
            vocabulary = self.engine.vocabulary
            return Step(
                token=draw.token,
                piece=vocabulary.piece(draw.token),
                position=position,
                is_eog=vocabulary.is_eog(draw.token),
                is_control=vocabulary.is_control(draw.token),
                logprob=draw.logprob,
                distribution=draw.distribution,
            )
        finally:
            fork.close()

    def cancel(self) -> None:
        """Stops the running or the next step or prefill with Cancelled. Safe from any thread."""
        self.is_cancelled = True
        self.engine.abort(self)

    def save(self, path: Path, *, extra: dict[str, Any] | None = None) -> None:
        """Writes tape, KV memory and chain to a file, by renaming: a crash leaves the old file or the new one.

        `extra` is the caller's own JSON object. Raises ConfigError where the file cannot be written.
        """
        self.check_open()
        self.settle()
        engine = self.engine
        memory = engine.context.state(self.own_seq()) if self._kv else b""
        record = SessionRecord(
            model=model_fingerprint(engine.model),
            model_name=engine.model.path.name,
            n_ctx=engine.context.n_ctx,
            kv_types=(engine.options.kv_type_k, engine.options.kv_type_v),
            setup=computed_with(engine.options),
            branch=self.branch,
            tokens=self.tape.tokens,
            kinds=[kind.value for kind in self.tape.kinds],
            kv_length=self._kv,
            sampler=str(self.chain.spec),
            seed=self.chain.seed,
            extra=extra or {},
        )
        write_session(path, record, memory)

    @classmethod
    def restore(cls, engine: Engine, chain: Chain, record: SessionRecord, memory: bytes) -> Session:
        """A session as it was saved. Memory that does not fit this context is computed again from the tape.

        Raises SessionError for another model, ContextFull for a tape longer than the context.
        """
        if record.model != model_fingerprint(engine.model):
            raise SessionError(
                f"the chat was saved with another model ({record.model_name}).",
                hint=f"Load that model; this one is {engine.model.path.name}.",
            )
        tape = Tape(record.tokens, [SpanKind(kind) for kind in record.kinds])
        session = cls(engine, chain, branch=record.branch, tape=tape)
        session._check_room(0)
        chain.replay(tape.tokens)
        fits = record.kv_types == (engine.options.kv_type_k, engine.options.kv_type_v)
        fits = fits and record.setup == computed_with(engine.options)
        session._kv = record.kv_length
        engine.adopt(session)
        if fits and memory:
            session._parked = memory
        else:
            session._forget_memory()
        return session

    def close(self) -> None:
        """Gives the sequence back and frees the chain. A second call does nothing."""
        self.engine.release(self)
        self.shut()

    def shut(self) -> None:
        """Called by the engine: from here on every use raises ConfigError."""
        self._is_closed = True
        self._held.clear()
        self._ready.clear()
        self._parked = self._logits = None
        self._kv = 0
        self.chain.close()
