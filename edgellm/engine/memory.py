"""The mirror of a tape in llama.cpp's memory: which tokens it holds, where, and what becomes of it when it is cut."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from edgellm.engine.checkpoints import Checkpoint, Checkpoints
from edgellm.errors import ContextFull, SessionError
from edgellm.native.overlay import key_of

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Sequence

    from edgellm.engine.engine import Engine
    from edgellm.engine.tape import Tape
    from edgellm.native.context import State
    from edgellm.native.overlay import Overlay


class Memory:
    """A prefix of the tape, in a sequence of the context or parked outside of it.

    `length` tokens of the tape are held. Where the memory cannot be cut (recurrent models, a dropped sliding
    window) it goes back to the nearest checkpoint, or is emptied, and the next decode computes what is missing
    again: `rebuilt_tokens` counts that.
    `is_unsure`: it was being changed, and nobody has seen yet that it went well.
    """

    def __init__(self, engine: Engine, tape: Tape, overlay: Overlay) -> None:
        self.engine = engine
        self.tape = tape
        # The adapters it is computed with: under others it would be another memory.
        self.overlay = overlay
        self.seq: int | None = None
        self.last_use = 0
        self.length = 0
        self.is_unsure = False
        # Positions behind those, of tokens that were guessed: whoever asks for the sequence has them cut away first.
        self.ahead = 0
        # Of tokens that were put there in the expectation that the tape will go on with them: which ones they are.
        self.expected: list[int] = []
        self.ahead_tokens = 0
        self.prefilled_tokens = 0
        self.rebuilt_tokens = 0
        self.snapshot_tokens = 0
        self._rebuild_until = 0
        self._parked: State | None = None
        self.checkpoints = Checkpoints(engine.options.checkpoints)
        self._is_kept = engine.options.checkpoints > 0 and not engine.context.can_always_cut

    # -- the sequence ----------------------------------------------------------------------------------

    def own_seq(self) -> int:
        """The sequence in the context, with the memory in it. Raises ContextFull, ConfigError where none is free."""
        if self.seq is None:
            with self.engine.kept(self):
                self.is_unsure = True
                self.seq = self.engine.take_seq()
                self._unpark()
                self.is_unsure = False
        elif self.is_unsure:
            self.drop_ahead()
        assert self.seq is not None
        return self.seq

    def park(self) -> int:
        """Takes the memory out of the context into ours; returns the sequence that is free now."""
        assert self.seq is not None
        if self.is_unsure:
            self.drop_ahead()
        seq = self.seq
        self._parked = self.engine.context.state(seq) if self.length else None
        self.engine.context.remove(seq, -1)
        self.seq = None
        return seq

    def _unpark(self) -> None:
        state, self._parked = self._parked, None
        assert self.seq is not None
        while self.length and state is not None:
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
            if self.check():
                return
            break
        if self.length:
            self.forget()

    def check(self) -> bool:
        """Does llama.cpp's memory hold exactly the positions believed in, and all the next decode needs?"""
        if self.seq is None:
            return True
        context = self.engine.context
        _, high = context.position_range(self.seq)
        return high == self.length + self.ahead - 1 and context.has_window(self.seq, self.length + self.ahead)

    # -- changes ---------------------------------------------------------------------------------------

    def decoded(self, end: int) -> int:
        """It now holds the tape up to `end`; returns how many of these tokens it had held before."""
        again = 0
        if self._rebuild_until:
            again = max(0, min(self._rebuild_until, end) - self.length)
            self.rebuilt_tokens += again
            if end >= self._rebuild_until:
                self._rebuild_until = 0
        self.length = end
        self.is_unsure = False
        if self._is_kept and self.checkpoints.is_due(end):
            self.keep()
        return again

    def guessed(self, count: int) -> None:
        """The last decode has computed so many guessed tokens behind the tape."""
        self.ahead = count
        self.is_unsure = count > 0

    def guess_held(self) -> None:
        """The first of the guessed tokens is on the tape now: it is held without a decode."""
        left = self.ahead - 1
        self.decoded(self.length + 1)
        self.guessed(left)

    # -- ahead of the tape -------------------------------------------------------------------------------

    @property
    def can_expect(self) -> bool:
        """What turns out to be wrong can be cut away again, at no cost."""
        return self.engine.context.can_always_cut

    def expect(self, tokens: Sequence[int]) -> int:
        """The sequence, made ready to compute what `tokens`, which follow those held, have beyond what is expected
        already. What was expected otherwise is cut away."""
        if not self.expected:
            return self.own_seq()
        del self.expected[_common(self.expected, tokens) :]
        self.restore()
        return self.own_seq() if self.seq is None else self.seq

    def expects(self, tokens: Sequence[int]) -> None:
        """These tokens are computed as well, behind what was expected before."""
        self.expected += tokens
        self.ahead = len(self.expected)
        self.is_unsure = True

    def expect_beginning(self, tokens: Sequence[int]) -> bool:
        """Takes the state behind the first tokens of a tape to come from disk, where it was kept."""
        prefixes = self.engine.prefixes
        state = prefixes.get(tokens, key_of(self.overlay.parts)) if prefixes is not None else None
        if state is None:
            return False
        seq = self.own_seq()
        self.is_unsure = True
        try:
            self.engine.context.set_state(seq, state)
        except SessionError:
            self.restore()
            return False
        self.expects(tokens)
        if self.check():
            return True
        self.drop_ahead()
        return False

    def keep_expected(self) -> None:
        """Puts on disk what is expected of an empty tape, for other chats that begin with the same tokens."""
        if self.engine.prefixes is not None and self.seq is not None and not self.length:
            self.engine.prefixes.put(
                self.expected, key_of(self.overlay.parts), self.engine.context.state(self.seq)
            )

    def take_expected(self) -> None:
        """What was expected and is on the tape now is held without a decode, but for the tape's last token, whose
        logits are wanted; the rest is cut away."""
        if not self.expected:
            return
        same = _common(self.expected, self.tape.tokens[self.length : len(self.tape) - 1])
        del self.expected[same:]
        self.restore()
        # Where it could not be cut there, nothing is left of it.
        same = len(self.expected)
        self.expected.clear()
        self.ahead = 0
        if same:
            self.ahead_tokens += same - self.decoded(self.length + same)

    def keep(self) -> None:
        """Takes a checkpoint, where the memory cannot be cut and there is none at this place yet."""
        if self._is_kept and self.length and not self.checkpoints.has(self.length):
            state = self.engine.context.state(self.own_seq(), is_partial=True)
            if self.engine.make_checkpoint_room(self, len(state)):
                self.checkpoints.add(Checkpoint(self.length, state))

    def cut(self, length: int) -> None:
        """Holds at most the first `length` tokens; less, where it cannot be cut there."""
        self.checkpoints.cut(length)
        if self.length <= length:
            return
        self.own_seq()
        if self.length <= length:
            return
        self.is_unsure = True
        self.length = length
        self.restore()

    def restore(self) -> None:
        """Cuts away what it holds beyond what it should, such as the rest of a failed decode."""
        self.ahead = len(self.expected)
        end = self.length + self.ahead
        if self.seq is not None and not (self.engine.context.remove(self.seq, end) and self.check()):
            self.expected.clear()
            self.ahead = 0
            self._go_back()
        self.is_unsure = self.ahead > 0

    def drop_ahead(self) -> None:
        """Cuts away what stands behind the tape's tokens."""
        self.expected.clear()
        self.restore()

    def _go_back(self) -> None:
        """To the nearest checkpoint; without one, to nothing."""
        assert self.seq is not None
        context, wanted = self.engine.context, self.length
        while (point := self.checkpoints.nearest(wanted)) is not None:
            try:
                with self.engine.kept(self):
                    self._load_checkpoint(point)
            except SessionError:
                self.checkpoints.drop(point)
                continue
            self.length = point.length
            if context.remove(self.seq, self.length) and self.check():
                self._rebuild_until = max(self._rebuild_until, wanted)
                return
            self.checkpoints.drop(point)
        self.length = wanted
        self.forget()

    def _load_checkpoint(self, point: Checkpoint) -> None:
        assert self.seq is not None
        while True:
            try:
                self.engine.context.set_state(self.seq, point.state, is_partial=True)
            except SessionError:
                if not self.engine.make_room():
                    raise
            else:
                return

    def forget(self) -> None:
        """Empties it; the next decode computes the tape again."""
        self._rebuild_until = max(self._rebuild_until, self.length)
        self.length = self.ahead = 0
        self.expected.clear()
        # They are no more than a part: what they stand on is gone.
        self.checkpoints.clear()
        if self.seq is not None:
            self.engine.context.remove(self.seq, -1)
        self.is_unsure = False

    def use(self, overlay: Overlay) -> None:
        """Is computed with these adapters from here on: what it holds is of no use any more."""
        self._parked = None
        self.forget()
        self.overlay = overlay

    @property
    def lost_tokens(self) -> int:
        """How many tokens that it held once the next decode computes again."""
        return max(0, self._rebuild_until - self.length)

    def tape_was_cut(self, length: int) -> None:
        """The tape has `length` tokens left: what is beyond is not there to be computed again."""
        self._rebuild_until = min(self._rebuild_until, length)

    @property
    def is_movable(self) -> bool:
        """The memory has cells with positions, which can be moved up behind a cut."""
        model = self.engine.model
        # A recurrent state has no positions to cut: llama.cpp says it did, and what was read stays in the state.
        return self.engine.context.can_shift and not (model.is_recurrent or model.is_hybrid)

    def excise(self, start: int, end: int) -> bool:
        """Takes tokens [start, end) out of tape and memory. True where the memory behind them was moved up, false
        where it will be computed anew."""
        context = self.engine.context
        # Cells that other sessions share have one position for all of them.
        can_move = self.length > start and self.is_movable and not self.engine.holds_others(self)
        if can_move:
            seq = self.own_seq()
            gone = min(end, self.length) - start
            self.is_unsure = True
            can_move = context.remove(seq, start, start + gone)
            if can_move and self.length > end:
                context.shift(seq, end, start - end)
        if can_move:
            self.length -= min(end, self.length) - start
        else:
            self.cut(min(self.length, start))
        self.checkpoints.cut(start)
        self.tape.remove(start, end)
        self._rebuild_until = min(self._rebuild_until, start)
        self.is_unsure = self.ahead > 0
        if can_move and not self.check():
            self.forget()
            can_move = False
        return can_move

    # -- copies ----------------------------------------------------------------------------------------

    def share(self, source: Memory) -> None:
        """Holds what `source` holds, as far as this tape goes, without computing anything."""
        if not source.length:
            return
        seq = source.own_seq()
        self.checkpoints.take_from(source.checkpoints, len(self.tape))
        self.length, self._rebuild_until = source.length, min(source._rebuild_until, len(self.tape))
        with self.engine.kept(source):
            self.seq = self.engine.find_seq()
        if self.seq is None:
            self._parked = self.engine.context.state(seq)
        else:
            self.engine.context.copy(seq, self.seq)
        self.cut(len(self.tape))

    def state(self) -> State:
        """What it holds, as bytes: empty where that is nothing."""
        if self._parked is not None:
            return self._parked
        return self.engine.context.state(self.own_seq()) if self.length else b""

    def state_size(self) -> int:
        """How many bytes `state` gives."""
        if self._parked is not None:
            return len(self._parked)
        return self.engine.context.state_size(self.own_seq()) if self.length else 0

    @contextmanager
    def trial(self) -> Generator[int]:
        """What is decoded in the block, on the sequence that it gives, is taken back at its end."""
        seq = self.own_seq()
        point: Checkpoint | None = None
        if not self.engine.context.can_always_cut and not self.checkpoints.has(self.length):
            point = Checkpoint(self.length, self.engine.context.state(seq, is_partial=True))
            self.checkpoints.add(point, is_bounded=False)
        self.is_unsure = True
        try:
            yield seq
        finally:
            self.restore()
            if point is not None:
                self.checkpoints.drop(point)

    def load(self, length: int, state: State) -> None:
        """Holds the first `length` tokens by a saved state, which is put into the context when it is needed.

        An empty state is memory that was lost: it is computed again, and counted.
        """
        self.length = length
        if state:
            self._parked = state
        else:
            self.forget()

    def begin_with(self, tokens: Sequence[int]) -> bool:
        """Takes the state behind the first tokens of the tape from disk, where it was kept; nothing is held yet."""
        prefixes = self.engine.prefixes
        state = prefixes.get(tokens, key_of(self.overlay.parts)) if prefixes is not None else None
        if state is None:
            return False
        if self.seq is not None:
            self.engine.give_back(self)
        self.load(len(tokens), state)
        self.own_seq()
        if not self.length:
            # Nothing of this tape was ever held: computing it is no rebuilding.
            self._rebuild_until = 0
            return False
        self.snapshot_tokens += len(tokens)
        self.keep()
        return True

    def keep_beginning(self) -> None:
        """Puts on disk what it holds, for other chats that begin with the same tokens."""
        if self.engine.prefixes is not None:
            tokens = self.tape.tokens[: self.length]
            self.engine.prefixes.put(tokens, key_of(self.overlay.parts), self.state())
            self.keep()

    def take_checkpoints(self, points: Iterable[tuple[int, State]]) -> None:
        """Has saved checkpoints, (length, partial state): no longer than what it holds itself."""
        for length, state in points if self._is_kept else ():
            if length <= self.length and self.engine.make_checkpoint_room(self, len(state)):
                self.checkpoints.add(Checkpoint(length, state))

    def drop(self) -> None:
        """Called once the engine has its sequence back: nothing is held any more."""
        self._parked = None
        self.checkpoints.clear()
        self.expected.clear()
        self.length = self.ahead = 0


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens both begin with."""
    count = 0
    for one, other in zip(first, second, strict=False):
        if one != other:
            break
        count += 1
    return count
