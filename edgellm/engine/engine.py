"""The engine: one context, many sessions, one batch a step for all that wait for a token."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from time import perf_counter
from typing import TYPE_CHECKING, TypeVar, cast

from edgellm.engine.adapters import Adapters
from edgellm.engine.governor import Governor
from edgellm.engine.prefixes import Prefixes, PrefixStore, prefix_limit_bytes
from edgellm.engine.session import Session
from edgellm.errors import Cancelled, ConfigError, ContextFull, DecodeError, EdgeError
from edgellm.machine import all_cores
from edgellm.native.context import Context, DecodeStatus, settled
from edgellm.native.library import captured_log
from edgellm.native.lone_step import NOT_DECODED
from edgellm.types import AdapterSet

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Sequence

    from edgellm.distribution import Step
    from edgellm.engine.memory import Memory
    from edgellm.native.model import Model
    from edgellm.native.overlay import Overlay
    from edgellm.sampling.chain import Chain
    from edgellm.types import LoadOptions

_CLOSE_WAIT_S = 30.0

StepT = TypeVar("StepT")
ResultT = TypeVar("ResultT")


class Engine:
    """Owns a context and its sequences. Not for two threads at once: see `edgellm.engine_thread`."""

    def __init__(self, model: Model, options: LoadOptions) -> None:
        self.model = model
        self.options = settled(options)
        self.vocabulary = model.vocabulary
        self.adapters = Adapters(model, AdapterSet(options.lora, options.control_vectors))
        self.context = Context(model, self.options)
        self._free_seqs = list(range(self.context.n_seq_max - 1, -1, -1))
        self._sessions: list[Session] = []
        self._clock = 0
        self._branches = 0
        self._use = threading.Lock()
        self._user = 0
        self._brief = 0
        self._brief_lock = threading.Lock()
        # A signal handler may call `abort` on the very thread that is about to decode.
        self._abort_lock = threading.RLock()
        self._running: tuple[Session, ...] = ()
        self._served: tuple[Session, ...] = ()
        self._kept: tuple[Memory, ...] = ()
        limit = prefix_limit_bytes(options)
        self.prefixes = Prefixes(PrefixStore(limit), model, options) if limit > 0 else None
        self.governor = Governor(
            self.context, is_active=not (options.threads or options.threads_batch), cores=all_cores()
        )

    def begin_turn(self) -> None:
        """A turn begins: threads may follow the load, unless they would change another answer that is under way."""
        if not any(session.is_waiting for session in self._sessions):
            self.governor.begin_turn()

    # -- sessions ---------------------------------------------------------------------------------

    def session(self, chain: Chain, overlay: Overlay | None = None) -> Session:
        """A new session with an empty tape. It takes a sequence of the context when it first decodes.

        `overlay` are its adapters; None: those that the model was loaded with.
        """
        session = Session(self, chain, branch=self.next_branch(), overlay=overlay)
        self._sessions.append(session)
        return session

    def adopt(self, session: Session) -> None:
        """Takes a session made by a fork into the engine's books."""
        self._sessions.append(session)

    def next_branch(self) -> int:
        """A number that no session of this engine has had: part of each session's random draws."""
        self._branches += 1
        return self._branches - 1

    def reserve_branches(self, numbers: Iterable[int]) -> None:
        """These numbers are taken: sessions that come later get others, and so draws of their own."""
        self._branches = max(self._branches, *(number + 1 for number in numbers))

    def release(self, session: Session) -> None:
        """Forgets a session and frees its sequence, once another thread's step is over."""
        if session.seq is not None:
            # First what may be refused, from within a step: the session stays whole then.
            with self.in_use(wait_s=_CLOSE_WAIT_S):
                self.give_back(session.memory)
        if session in self._sessions:
            self._sessions.remove(session)

    def give_back(self, memory: Memory) -> None:
        """Frees the sequence of a memory."""
        if memory.seq is not None:
            seq, memory.seq = memory.seq, None
            self.context.remove(seq, -1)
            self._free_seqs.append(seq)

    def find_seq(self) -> int | None:
        """A free sequence; the session that was idle longest is parked where there is none."""
        if not self._free_seqs and not self.make_room():
            return None
        return self._free_seqs.pop()

    def take_seq(self) -> int:
        """A free sequence. Raises ConfigError where all of them are decoding."""
        seq = self.find_seq()
        if seq is None:
            raise ConfigError(
                f"all {self.context.n_seq_max} sequences of the context are decoding.",
                hint="Load the model with a larger n_seq_max, or close a chat.",
            )
        return seq

    @contextmanager
    def kept(self, *memories: Memory) -> Generator[None]:
        """These memories are not parked inside the block."""
        before = self._kept
        self._kept = (*before, *memories)
        try:
            yield
        finally:
            self._kept = before

    def touch(self, memory: Memory) -> None:
        """Notes that a memory was used just now."""
        self._clock += 1
        memory.last_use = self._clock

    def holds_others(self, memory: Memory) -> bool:
        """True where the context holds the memory of others."""
        return any(
            other.seq is not None and other.kv_length
            for other in self._sessions
            if other.memory is not memory
        )

    def make_room(self) -> bool:
        """Moves the idle memory that was unused for longest out of the context; false where none is idle."""
        idle = [s.memory for s in self._sessions if s.seq is not None and s.memory not in self._kept]
        if not idle:
            return False
        seq = min(idle, key=lambda memory: memory.last_use).park()
        self._free_seqs.append(seq)
        return True

    def make_checkpoint_room(self, memory: Memory, size: int) -> bool:
        """Thins out checkpoints, of the memory unused for longest first, until one of `size` bytes has its place."""
        limit = self.options.checkpoint_mb * 1_000_000
        if size > limit:
            return False
        memories = sorted((s.memory for s in self._sessions), key=lambda one: (one is memory, one.last_use))
        while True:
            # Forks share states: each counts once.
            held = {id(point.state): len(point.state) for one in memories for point in one.checkpoints}
            if sum(held.values()) + size <= limit:
                return True
            if not any(one.checkpoints.thin() for one in memories):
                return True

    # -- scratch sequences --------------------------------------------------------------------------

    @contextmanager
    def scratch(self, source: Session, count: int) -> Generator[list[int]]:
        """Sequences that share the memory of `source`, for scoring; gone after the block.

        Gives at least one and at most `count`: what is free, after parking idle sessions.
        """
        with self.kept(source.memory):
            # Before others are taken: a source that was parked needs one too.
            own = source.own_seq()
            while len(self._free_seqs) < count and self.make_room():
                pass
        taken = [self._free_seqs.pop() for _ in range(min(count, len(self._free_seqs)))]
        if not taken:
            raise ConfigError(
                "no sequence is free for scoring.",
                hint="Load the model with a larger n_seq_max, or close a chat.",
            )
        try:
            for seq in taken:
                self.context.copy(own, seq)
            yield taken
        finally:
            for seq in taken:
                self.context.remove(seq, -1)
            self._free_seqs += taken

    # -- decoding -------------------------------------------------------------------------------------

    @contextmanager
    def in_use(self, *, wait_s: float = 0.0) -> Generator[None]:
        """Refuses a second thread while one is inside.

        With `wait_s` it waits for the end of that one's step; those who hold it so are brief, and waited for.
        """
        is_brief = wait_s > 0
        if is_brief:
            # Said before the lock is taken: nobody may find it taken and not know by whom.
            with self._brief_lock:
                self._brief += 1
        try:
            if not self._use.acquire(blocking=False):
                is_own = self._user == threading.get_ident()
                patience_s = max(wait_s, _CLOSE_WAIT_S if self._brief else 0.0)
                if is_own or patience_s <= 0 or not self._use.acquire(timeout=patience_s):
                    raise ConfigError(
                        "the engine is in use by another thread.",
                        hint="Use Chat.asend, or one thread for all chats of a runtime.",
                    )
            try:
                self._user = threading.get_ident()
                yield
            finally:
                self._user = 0
                self._use.release()
        finally:
            if is_brief:
                with self._brief_lock:
                    self._brief -= 1

    def step(self) -> None:
        """Decodes one batch for every session that waits for a token and samples all of them; one batch for each set
        of adapters among them.

        A failure is stored in its own session, and raised by that session's `step`.
        """
        waiting = [session for session in self._sessions if session.is_waiting]
        if len(waiting) == 1:
            try:
                step = self.step_alone(waiting[0])
            except EdgeError as error:
                waiting[0].fail_step(error)
                return
            if step is not None:
                waiting[0].drawing.give(step)
                return
        self.step_together()

    def step_together(self) -> None:
        """`step` where somebody waits for whom `step_alone` has done nothing."""
        with self.in_use():
            waiting = [session for session in self._sessions if session.is_waiting]
            waiting.sort(key=lambda session: session.memory.last_use)
            batch = waiting[: self.context.n_seq_max]
            crowded: list[Session] = []
            with self.kept(*(session.memory for session in batch)):
                for group in self._by_adapters(batch):
                    crowded += self._step(group, is_alone=len(batch) == 1)
            for session in crowded:
                with self.kept(session.memory):
                    self._step((session,), is_alone=True)

    def _by_adapters(self, sessions: Sequence[Session]) -> list[list[Session]]:
        """The sessions, each set of adapters for itself. First those whose set is in use: to change it takes time."""
        groups: dict[Overlay, list[Session]] = {}
        for session in sessions:
            groups.setdefault(session.overlay, []).append(session)
        return sorted(groups.values(), key=lambda group: group[0].overlay is not self.context.overlay)

    def step_alone(self, session: Session) -> Step | None:
        """The next token of the only session that waits for one, with as little around the decode as can be: a decode
        leaves the caches cold, and each function that is called in between takes 3 µs.

        None where something is not as it mostly is: `step_together` deals with that, if the session still waits.
        """
        for other in self._sessions:
            if other.is_waiting and other is not session:
                return None
        if self._served or not self._use.acquire(blocking=False):
            return None
        try:
            self._user = threading.get_ident()
            if not session.is_simple:
                return None
            context, memory, tokens = self.context, session.memory, session.tape.tokens
            draw = session.drawing.prepare() if context.can_draw else None
            drawn = -1
            position, seq = memory.length, memory.seq
            assert seq is not None
            self._clock += 1
            memory.last_use = self._clock
            memory.is_unsure = True
            guesses = session.guesses if session.guesses.speculation is not None else None
            if guesses is not None:
                guesses.begin(1)
            try:
                with self._abort_lock:
                    # In this order a cancel is heard wherever it comes between.
                    self._running = (session,)
                    context.clear_abort()
                started = perf_counter()
                if session.is_cancelled:
                    is_done = False
                elif draw is None:
                    is_done = context.decode_one(tokens[position], position, seq)
                else:
                    drawn = context.decode_and_draw(tokens[position], position, seq, draw)
                    is_done = drawn != NOT_DECODED
                taken_s = perf_counter() - started
            except BaseException:
                memory.restore()
                raise
            finally:
                self._running = ()
            if not is_done:
                memory.restore()
                return None
            try:
                self.governor.decoded(taken_s)
                memory.decoded(position + 1)
                if guesses is not None:
                    guesses.end()
                if drawn >= 0:
                    return session.take(drawn)
                session.hold_logits(context.logits(0))
                session.finish_step()
            except BaseException:
                # It can be tried again from the logits that were drawn from, if tape and memory end where they do.
                is_there = memory.length == len(tokens) == position + 1
                session.hold_logits(context.logits(0).copy() if is_there else None)
                raise
            return session.drawing.read() if session.drawing.has_ready else None
        finally:
            self._user = 0
            self._use.release()

    def _step(self, batch: Sequence[Session], *, is_alone: bool) -> list[Session]:
        """Gives those that found no room in the context beside the others: each has to step alone.

        All of them have the same adapters. `is_alone`: nobody else waits, with other adapters neither.
        """
        ready: list[Session] = []
        crowded: list[Session] = []
        for session in batch:
            try:
                session.prepare_step(is_alone=is_alone)
            except ContextFull as error:
                if not is_alone:
                    crowded.append(session)
                else:
                    session.fail_step(error)
            except EdgeError as error:
                session.fail_step(error)
            else:
                if session.is_waiting:
                    ready.append(session)
        pending = [session for session in ready if not session.has_logits]
        try:
            if pending:
                crowded += self._decode_pending(pending, is_alone=is_alone)
            for session in ready:
                if session.has_logits:
                    session.finish_step()
        except BaseException:
            for session in ready:
                session.keep_logits()
            raise
        return crowded

    def _decode_pending(self, sessions: list[Session], *, is_alone: bool) -> list[Session]:
        """One decode for the pending tokens of all given sessions that fit into a batch; gives those without room."""
        rows: list[tuple[int, int, int, bool]] = []
        placed: list[tuple[Session, int]] = []
        for session in sessions:
            new = session.pending_rows()
            if placed and len(rows) + len(new) > self.context.n_batch:
                break  # the rest waits for the next step
            rows += new
            placed.append((session, len(rows) - 1 - session.guesses.count))
        batch = [session for session, _ in placed]
        try:
            guesses = sum(session.guesses.count for session in batch)
            self.decode(rows, batch, tokens=len(batch) if len(rows) - guesses == len(batch) else 0)
        except EdgeError as error:
            if isinstance(error, ContextFull) and any([session.guesses.drop() for session in batch]):
                return self._decode_pending(sessions, is_alone=is_alone)
            if isinstance(error, ContextFull) and not is_alone:
                return batch
            for session in batch:
                # Only the session that was cancelled is told; the others try again in their next step.
                if not isinstance(error, Cancelled) or session.is_cancelled:
                    session.fail_step(error)
            return []
        for session, row in placed:
            session.decoded(len(session.tape), logits=self.context.logits(row))
            if session.guesses.count:
                session.guesses.computed(row + 1)
        return []

    def decode(
        self,
        rows: Sequence[tuple[int, int, int, bool]],
        sessions: Sequence[Session],
        *,
        tokens: int | None = None,
    ) -> None:
        """Decodes rows of (token, position, sequence, wants_logits) on behalf of sessions, with their adapters: all of
        them have the same.

        It is prefill; with `tokens` a step of answers, as `Governor.decoded` has it.
        On failure their memory is cut back to what it held before. Raises ContextFull, Cancelled, DecodeError.
        """
        try:
            overlay = sessions[0].overlay
            assert all(session.overlay is overlay for session in sessions)
            self.context.use(overlay)
            with self._abort_lock:
                # In this order a cancel is heard wherever it comes between.
                self._running = (*sessions, *self._served)
                self.context.clear_abort()
                if any(session.is_cancelled for session in self._running):
                    raise Cancelled("decoding was cancelled.")
            while True:
                started = perf_counter()
                with captured_log() as log:
                    status = self.context.decode(rows)
                if status is not DecodeStatus.NO_ROOM:
                    break
                with self.kept(*(session.memory for session in sessions)):
                    if not self.make_room():
                        break
        except BaseException:
            for session in sessions:
                session.memory.restore()
            raise
        finally:
            with self._abort_lock:
                self._running = ()
        if status is DecodeStatus.DONE:
            taken_s = perf_counter() - started
            if tokens is None:
                self.governor.prefilled(len(rows), taken_s)
            else:
                self.governor.decoded(taken_s, len(rows), tokens)
            return
        for session in sessions:
            session.memory.restore()
        if status is DecodeStatus.ABORTED:
            raise Cancelled("decoding was cancelled.")
        if status is DecodeStatus.NO_ROOM:
            raise ContextFull(
                f"the context of {self.context.n_ctx} tokens has no room for {len(rows)} more.",
                hint="Start a new chat, rewind, or load the model with a larger n_ctx.",
            )
        raise DecodeError(
            f"llama.cpp failed to decode: {log.reason or 'no reason given'}.",
            hint="The tape is as before; try again, or reload the model.",
            log=log.text,
        )

    def serving(
        self, session: Session, steps: Generator[StepT, None, ResultT]
    ) -> Generator[StepT, None, ResultT]:
        """Runs `steps`; what they decode, in sessions of whomever, is stopped by a cancel of `session` as well.

        Only between two of their yields: what others decode meanwhile is none of its business.
        """
        try:
            while True:
                with self._abort_lock:
                    self._served = (session,)
                try:
                    item = next(steps)
                except StopIteration as end:
                    return cast("ResultT", end.value)
                finally:
                    with self._abort_lock:
                        self._served = ()
                yield item
        finally:
            steps.close()

    def abort(self, session: Session) -> None:
        """Stops the running decode if it serves this session. Safe from any thread."""
        with self._abort_lock:
            if session in self._running:
                self.context.abort()

    def close(self) -> None:
        """Stops what runs, frees the context and all sessions' chains. The weights stay.

        Raises ConfigError from within a step, and where another thread's step does not end.
        """
        for session in self._sessions:
            session.cancel()
        with self.in_use(wait_s=_CLOSE_WAIT_S):
            for session in self._sessions:
                session.memory.seq = None
                session.shut()
            self._sessions.clear()
            self.context.close()
