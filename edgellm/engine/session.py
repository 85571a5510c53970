"""A session: one tape, its mirror in the KV cache, and the sampler chain that extends it."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from edgellm.engine.session_file import SessionRecord, model_fingerprint, write_session
from edgellm.engine.tape import Tape
from edgellm.errors import Cancelled, ConfigError, ContextFull, EdgeError, SessionError
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

    # -- state ---------------------------------------------------------------------------------------

    @property
    def kv_length(self) -> int:
        """How many tokens of the tape the KV memory holds."""
        return self._kv

    @property
    def has_logits(self) -> bool:
        """True where the distribution after the tape's last token is at hand."""
        return self._logits is not None

    def check_memory(self) -> bool:
        """Does llama.cpp's memory hold exactly the positions this session believes in?"""
        if self.seq is None:
            return True
        low, high = self.engine.context.position_range(self.seq)
        return high == self._kv - 1 and (self._kv == 0 or low >= 0)

    def own_seq(self) -> int:
        """The session's sequence in the context, with its memory in it."""
        if self.seq is None:
            with self.engine.kept(self):
                self.seq = self.engine.take_seq()
            self._unpark()
        return self.seq

    def park(self) -> int:
        """Takes the KV memory out of the context into ours; returns the sequence that is free now."""
        assert self.seq is not None
        seq = self.seq
        self._parked = self.engine.context.state(seq) if self._kv else None
        self.engine.context.remove(seq, -1)
        self.seq = None
        return seq

    def _unpark(self) -> None:
        state, self._parked = self._parked, None
        if self._kv == 0:
            return
        assert self.seq is not None
        try:
            if state is None:
                raise SessionError("no saved memory.")
            self.engine.context.set_state(self.seq, state)
            if not self.check_memory():
                raise SessionError("the saved memory does not match the tape.")
        except SessionError:
            self._forget_memory()

    def _forget_memory(self) -> None:
        """Empties the memory; the next decode computes the tape again."""
        self._rebuild_until = max(self._rebuild_until, self._kv)
        if self.seq is not None:
            self.engine.context.remove(self.seq, -1)
        self._kv = 0

    def _cut_memory(self, length: int) -> None:
        if self._kv <= length:
            return
        seq = self.own_seq()
        if self._kv <= length:
            return
        self._kv = length
        if not (self.engine.context.remove(seq, length) and self.check_memory()):
            self._forget_memory()

    def restore_memory(self) -> None:
        """After a failed decode: cuts away what part of it may have left behind."""
        if self.seq is not None and not (
            self.engine.context.remove(self.seq, self._kv) and self.check_memory()
        ):
            self._forget_memory()

    # -- prefill ---------------------------------------------------------------------------------------

    def prefill(self, entries: Sequence[tuple[int, SpanKind]]) -> Iterator[tuple[int, int]]:
        """Adds (token, kind) pairs to the tape and computes them; yields (done, total) after each chunk.

        Closing the iterator early, a cancel, or a failure leaves tape and memory as before.
        Raises ContextFull, Cancelled, DecodeError.
        """
        from edgellm.engine.engine import PREFILL_CHUNK

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
        finally:
            if not is_complete:
                self.tape.cut(length_before)
                self._cut_memory(kv_before)
                self._logits = logits_before if self._kv == length_before else None

    def _accept_prompt(self, start: int) -> None:
        self.chain.replay(self.tape.tokens[start:])

    def extend(self, entries: Sequence[tuple[int, SpanKind]]) -> None:
        """`prefill` without progress."""
        for _ in self.prefill(entries):
            pass

    def _decode_chunk(self, size: int) -> None:
        seq = self.own_seq()
        self.engine.touch(self)
        start = self._kv
        end = min(start + size, len(self.tape))
        is_last = end == len(self.tape)
        rows = [(self.tape.tokens[i], i, seq, is_last and i == end - 1) for i in range(start, end)]
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
        while not self._ready:
            self.is_waiting = True
            self.engine.step()
            if self._failure is not None:
                failure, self._failure = self._failure, None
                self.is_cancelled = False if isinstance(failure, Cancelled) else self.is_cancelled
                raise failure
        return self._ready.popleft()

    def request(self) -> None:
        """Joins the engine's next batch, so that several sessions share one decode."""
        if not self._ready:
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

    def pending_rows(self) -> list[tuple[int, int, int, bool]]:
        """Called by the engine: batch rows for the tokens that the memory lacks."""
        assert self.seq is not None
        last = len(self.tape) - 1
        self.engine.touch(self)
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
            # The step can be tried again: the logits must survive other sessions' decodes.
            if self._logits is not None:
                self._logits = self._logits.copy()
            self.fail_step(error)

    def _draw(self) -> None:
        assert self._logits is not None
        position = len(self.tape)
        draw = self.chain.sample(
            self._logits,
            StepContext(position, self.branch, self.tape.tokens),
            trace=self.trace,
            constraint=self.constraint,
        )
        token = draw.token
        if self.constraint is not None:
            self.constraint.consume(token)
        self._logits = None
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
        for token in forced:
            self.constraint.consume(token)
            self._logits = None
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
        self.tape.append(step.token, SpanKind.TEXT)
        self._held.append(step)
        rewind = self.chain.accept(step.token)
        if rewind is not None and rewind.tokens <= len(self._held) and self.constraint is None:
            self._rewind_for_stage(rewind.tokens)
        lookback = 0 if self.constraint is not None else self.chain.pending_tokens
        is_flush = bool(self._held) and self._held[-1].is_eog
        while self._held and (is_flush or len(self._held) > lookback):
            self._ready.append(self._held.popleft())
        self.is_waiting = False

    def _rewind_for_stage(self, count: int) -> None:
        """A stage takes back the last `count` tokens, which no reader has seen yet."""
        for _ in range(count):
            self._held.pop()
        length = len(self.tape) - count
        self.tape.cut(length)
        self._logits = None
        self._cut_memory(length)
        self.chain.rewind(self.tape.tokens)

    def hold_last(self) -> None:
        """Computes all of the tape but its last token, and no more: the state from which texts are scored."""
        self.settle()
        if self._kv < len(self.tape) - 1:
            self.extend(())
        self._logits = None
        self._cut_memory(len(self.tape) - 1)
        self.own_seq()

    def settle(self) -> None:
        """Takes back tokens that were drawn ahead of the reader (a stage may hold some back)."""
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
        self._held.clear()
        self._ready.clear()
        if length == len(self.tape):
            return
        self.tape.cut(length)
        self._logits = None
        self._cut_memory(min(self._kv, length))
        self.chain.rewind(self.tape.tokens)

    def fork(self) -> Session:
        """A session with an equal tape that shares this one's memory without computing anything."""
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
            other._kv, other._rebuild_until = self._kv, self._rebuild_until
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

    def cancel(self) -> None:
        """Stops the running or the next step or prefill with Cancelled. Safe from any thread."""
        self.is_cancelled = True
        self.engine.abort(self)

    def save(self, path: Path, *, extra: dict[str, Any] | None = None) -> None:
        """Writes tape, KV memory and chain to a file, by renaming: a crash leaves the old file or the new one.

        `extra` is the caller's own JSON object. Raises ConfigError where the file cannot be written.
        """
        self.settle()
        engine = self.engine
        memory = engine.context.state(self.own_seq()) if self._kv else b""
        record = SessionRecord(
            model=model_fingerprint(engine.model),
            model_name=engine.model.path.name,
            n_ctx=engine.context.n_ctx,
            kv_types=(engine.options.kv_type_k, engine.options.kv_type_v),
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
        session._kv = record.kv_length
        engine.adopt(session)
        if fits and memory:
            session._parked = memory
        else:
            session._forget_memory()
        return session

    def close(self) -> None:
        """Gives the sequence back and frees the chain."""
        self.engine.release(self)
        self._parked = None
        self.chain.close()
