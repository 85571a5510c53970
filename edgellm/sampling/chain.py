"""A runnable sampler chain: logits in, a token out, and on request what each stage did."""

from __future__ import annotations

import math
import secrets
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edgellm.distribution import Distribution
from edgellm.errors import SamplerError
from edgellm.native.native_draw import NativeDraw
from edgellm.native.samplers import CandidateBuffer
from edgellm.native.scan import finds_top, is_compiled
from edgellm.sampling.candidates import StageContext
from edgellm.sampling.draw import Uniforms, best, pick
from edgellm.sampling.parts import NativePart, PythonPart, ReseededPart
from edgellm.sampling.spec import ChainLike, ChainSpec, StageSpec
from edgellm.sampling.stage import Rewind
from edgellm.sampling.tap import Snapshot, Tap, snapshots_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from edgellm.sampling.constraint import Constraint
    from edgellm.sampling.stage import StageVocabulary

_NAN = float("nan")
_MOST_REWINDS = 32  # to one place


@dataclass(slots=True)
class StepContext:
    """Where a token is drawn: its `position` on the tape, the branch's id, and the tape so far.

    `label` names another uniform number for the same place: for a token that is drawn a second time.
    """

    position: int
    branch: int = 0
    tokens: Sequence[int] = ()
    label: str = ""


@dataclass(slots=True)
class Draw:
    """A drawn token. `u` is nan where the draw was greedy or made inside a stage.

    `distribution` and `logprob` (natural log of the model's raw probability) are None without a trace.
    """

    token: int
    u: float
    chosen_by: str
    distribution: Distribution | None = None
    logprob: float | None = None
    is_constrained: bool = False


@dataclass(frozen=True, slots=True)
class RewindRequest:
    """Stage `stage` asks to cut the tape back to `position` (`tokens` tokens less).

    The chain forbids `ban` at that position by itself. After the cut, call `Chain.rewind`.
    """

    stage: str
    tokens: int
    position: int
    ban: tuple[int, ...]
    reason: str = ""


class Chain:
    """The stages of a `ChainSpec`, ready to run on one sequence.

    n_vocab: length of the logits. vocabulary: the model's (dry, infill and some plugins need it). seed: used
    where the chain's text has none; without either a random one is taken, once: read it from `seed`.
    Not thread-safe; forks share the scratch memory, so they belong to the same thread.

    Tell the chain of every token of the tape, once: `replay` for prompts and results, `accept` for what was
    drawn or forced.
    """

    def __init__(
        self,
        spec: ChainLike,
        *,
        n_vocab: int,
        vocabulary: StageVocabulary | None = None,
        seed: int | None = None,
    ) -> None:
        self.spec = ChainSpec.of(spec)
        written = self.spec.seed
        self.seed: int = (
            written if written is not None else seed if seed is not None else secrets.randbits(32)
        )
        self._uniforms = Uniforms()
        self.n_vocab = n_vocab
        self._vocabulary = vocabulary
        self._buffer = CandidateBuffer(n_vocab)
        self._tap: Tap | None = None
        self._parts: list[NativePart | ReseededPart | PythonPart] = []
        self._is_closed = False
        self._build()
        self._forget()

    def _build(self) -> None:
        stages = list(self.spec.stages)
        self._choosing = stages[-1]
        self._chooses_by = self._choosing.name if self._choosing.name in ("greedy", "dist") else "stage"
        if self._chooses_by != "stage":
            stages.pop()
        self._leading_k = stages[0].complete_args["k"] if stages and stages[0].name == "top_k" else 0
        self._needs_top = bool(self._leading_k) or (not stages and self._chooses_by == "greedy")
        run: list[StageSpec] = []
        for spec in stages:
            if spec.info.make is not None or spec.name == "xtc":
                self._add_native(run)
                run = []
                is_plugin = spec.info.make is not None
                self._parts.append(
                    PythonPart(spec, self._vocabulary) if is_plugin else ReseededPart(spec, self.n_vocab)
                )
                continue
            run.append(spec)
            if spec.info.leaves_holes:
                self._add_native(run)
                run = []
        self._add_native(run)
        self._index_parts()

    def _index_parts(self) -> None:
        # A stretch that is nothing but the leading top_k: a Python stage follows.
        first = self._parts[0] if self._parts else None
        is_alone = isinstance(first, NativePart) and len(first.specs) == 1 and self._leading_k > 0
        self._cuts_alone = first if is_alone else None
        self._quick: NativeDraw | None = None
        self._quick_u, self._quick_trace = _NAN, 0
        natives = [part for part in self._parts if isinstance(part, NativePart)]
        is_native = len(natives) == len(self._parts) and self._needs_top and self._chooses_by != "stage"
        if is_native and is_compiled() and finds_top(self._leading_k or 1, self.n_vocab):
            self._quick_names = [spec.name for part in natives for spec in part.specs]
            stretches = [(part.sampler, part.leaves_holes) for part in natives]
            self._quick = NativeDraw(stretches, self.n_vocab, self._leading_k or 1)
        self._python = [part for part in self._parts if isinstance(part, PythonPart)]
        self._told = [part for part in self._parts if part.wants_tokens]

    def _add_native(self, run: Sequence[StageSpec]) -> None:
        if run:
            self._parts.append(NativePart.make(run, self.n_vocab, self.seed, self._vocabulary))

    def _forget(self) -> None:
        self._length = 0
        self._drawn: list[int] = []
        self._bans: dict[int, frozenset[int]] = {}
        # How often there was a rewind to a place that has a ban.
        self._rewinds: dict[int, int] = {}

    # -- drawing

    def sample(
        self,
        logits: NDArray[np.float32],
        context: StepContext,
        *,
        trace: int = 0,
        constraint: Constraint | None = None,
    ) -> Draw:
        """Draw one token. logits: (n_vocab,), contiguous, not written to.

        `trace` above 0 adds a `Distribution` with that many rows a point; it never changes the token. With a
        `constraint` its mask comes before all stages; telling it of the token is the caller's. Raises
        SamplerError where a stage misbehaves; nothing of the tape's state has changed then.
        """
        if self._is_closed:
            raise SamplerError("the sampler chain is closed.")
        if len(logits) != self.n_vocab:
            raise SamplerError(f"{len(logits)} logits for a vocabulary of {self.n_vocab}.")
        if constraint is None:
            quick = self.prepare(context.branch, context.position, context.label, trace=trace)
            if quick is not None and (token := quick.draw(logits)) >= 0:
                return self.drawn(token)
        buffer = self._buffer
        taps: list[Snapshot] | None = None
        log_total = 0.0
        is_filled = False
        if trace > 0:
            maximum = buffer.fill_top(logits, max(trace, self._leading_k))
            _check_logits(maximum)
            tap = self._tap = self._tap or Tap(buffer)
            raw, log_total = tap.raw(logits, maximum)
            taps, is_filled = [raw], self._needs_top
        is_cut = self._enter(logits, context, constraint, taps, trace, is_filled=is_filled)
        needs_u = self._chooses_by == "dist" or self._python
        u = self._uniforms.at(self.seed, context.branch, context.position, context.label) if needs_u else _NAN
        for part in self._parts:
            if part is self._cuts_alone and is_cut:
                # Entering has done what it does.
                self._tap_rows("top_k", taps, trace)
                continue
            if isinstance(part, NativePart):
                if taps is None:
                    part.run(buffer)
                else:
                    for name in part.run_one_by_one(buffer):
                        self._tap_rows(name, taps, trace)
                continue
            if isinstance(part, PythonPart):
                step = StageContext(
                    context.position, context.branch, self.seed, u, context.tokens, self._vocabulary
                )
                part.run(buffer, step)
            else:
                part.run(buffer, self.seed, context.branch, context.position)
            self._tap_rows(part.name, taps, trace)
        token, u = self._choose(u)
        if taps is None:
            return Draw(token, u, self._choosing.name, is_constrained=constraint is not None)
        return Draw(
            token,
            u,
            self._choosing.name,
            Distribution(taps, trace, u),
            float(logits[token]) - log_total,
            constraint is not None,
        )

    def prepare(self, branch: int, position: int, label: str = "", *, trace: int = 0) -> NativeDraw | None:
        """What draws this place's token in one call, where nothing but llama.cpp's stages is in the way; else None.

        What it draws, if that is a token, goes to `drawn`.
        """
        quick = self._quick
        if quick is None or position in self._bans:
            return None
        self._quick_u = (
            _NAN if self._chooses_by == "greedy" else self._uniforms.at(self.seed, branch, position, label)
        )
        self._quick_trace = trace
        # 0 draws the first row there is: the most probable.
        quick.prepare(0.0 if self._chooses_by == "greedy" else self._quick_u, trace)
        return quick

    def drawn(self, token: int) -> Draw:
        """The draw that `prepare` was made for."""
        quick, u, trace = self._quick, self._quick_u, self._quick_trace
        if not trace or quick is None:
            return Draw(token, u, self._chooses_by)
        taps, log_total = snapshots_of(quick, self._quick_names, self.n_vocab)
        return Draw(token, u, self._chooses_by, Distribution(taps, trace, u), quick.logit - log_total)

    def _enter(
        self,
        logits: NDArray[np.float32],
        context: StepContext,
        constraint: Constraint | None,
        taps: list[Snapshot] | None,
        trace: int,
        *,
        is_filled: bool,
    ) -> bool:
        """Fill the buffer with the rows that the first stage has to see; `is_filled`: the top of all is in it.

        True where they are those that a leading top_k keeps.
        """
        buffer = self._buffer
        banned = self._bans.get(context.position)
        if constraint is None and not banned:
            if self._needs_top:
                # Rows that top_k would cut need not be written: the set it keeps is the same.
                if not is_filled:
                    _check_logits(buffer.fill_top(logits, self._leading_k or 1))
                # A trace looks at more rows, a scan may give some more: which of equal ones stay must not depend on it.
                buffer.cut(self._leading_k or 1)
                return True
            _check_logits(float(logits.max()))
            buffer.fill(logits)
            return False
        _check_logits(float(logits.max()))
        ids = constraint.allowed_ids() if constraint is not None else None
        if ids is not None and not len(ids):
            raise SamplerError(
                "the constraint allows no token here.", hint="It is complete: the turn should have ended."
            )
        if banned:
            all_ids = np.arange(self.n_vocab) if ids is None else ids
            left = all_ids[~np.isin(all_ids, list(banned))]
            # A ban that leaves nothing is void: the constraint wants that very token.
            ids = left if len(left) else all_ids
        assert ids is not None, "there is a constraint or a ban"
        values = logits[ids]
        if float(values.max()) == -math.inf:
            raise SamplerError("all tokens that are allowed here have probability 0.")
        buffer.fill_rows(ids, values)
        self._tap_rows("constraint" if constraint is not None else "ban", taps, trace)
        return False

    def _choose(self, u: float) -> tuple[int, float]:
        buffer = self._buffer
        if self._chooses_by != "stage":
            is_greedy = self._chooses_by == "greedy"
            # 0 draws the first row there is: the most probable.
            token = buffer.draw(0.0 if is_greedy else u)
            if token < 0:
                ids, logits = buffer.live_ids(), buffer.live_logits()
                row = best(ids, logits) if is_greedy else pick(ids, logits, u, is_sorted=buffer.is_sorted)
                token = int(ids[row])
            return token, _NAN if is_greedy else u
        ids = buffer.live_ids()
        selected = buffer.selected
        if not 0 <= selected < len(ids):
            raise SamplerError(f"sampler stage '{self._choosing.name}' chose no token.")
        return int(ids[selected]), _NAN

    def _tap_rows(self, stage: str, taps: list[Snapshot] | None, trace: int) -> None:
        if taps is not None and self._tap is not None:
            taps.append(self._tap.after(stage, trace))

    # -- the tape

    def accept(self, token: int) -> RewindRequest | None:
        """Tell all stages of one token that was drawn or forced and is on the tape.

        A stage may answer with the wish to take tokens back: cut the tape to the request's `position`, then
        call `rewind` with the tape that is left. Wishes that reach beyond the last `replay`, that repeat a
        ban without effect, or that come for the 33rd time at one place are dropped. Raises SamplerError for an
        impossible one.
        """
        self._length += 1
        if not self._told:
            return None
        self._drawn.append(token)
        request: RewindRequest | None = None
        for part in self._told:
            wish = part.tell(token)
            if request is None and isinstance(part, PythonPart) and isinstance(wish, Rewind):
                request = self._granted(part.name, wish)
        return request

    def _granted(self, stage: str, wish: Rewind) -> RewindRequest | None:
        if not _is_count(wish.tokens) or wish.tokens < 1:
            raise SamplerError(f"sampler stage '{stage}' asks to rewind {wish.tokens!r} tokens.")
        if not isinstance(wish.ban, Collection) or not all(map(_is_count, wish.ban)):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise SamplerError(f"sampler stage '{stage}' bans {wish.ban!r}, which are no token ids.")
        if wish.tokens > len(self._drawn):
            return None
        position = self._length - wish.tokens
        ban = wish.ban or (self._drawn[-wish.tokens],)
        known = self._bans.get(position, frozenset())
        count = self._rewinds.get(position, 0)
        if known.issuperset(ban) or count >= _MOST_REWINDS:
            return None
        self._bans[position] = known.union(ban)
        self._rewinds[position] = count + 1
        return RewindRequest(stage, wish.tokens, position, ban, wish.reason)

    def replay(self, tokens: Sequence[int]) -> None:
        """Tell all stages of tokens that were not drawn here: a prompt, a tool's result, a loaded tape.

        Wishes to rewind are ignored, and later ones cannot reach into these tokens.
        """
        self._length += len(tokens)
        self._drawn.clear()
        for part in self._told:
            tell = part.tell
            for token in tokens:
                tell(token)

    def reset(self) -> None:
        """Forget all tokens and bans, as if nothing had been drawn. mirostat and adaptive_p start again."""
        self._forget()
        for part in self._parts:
            part.forget()

    def rewind(self, tokens: Sequence[int]) -> None:
        """The tape was cut back to `tokens`: rebuild the stages' state from them.

        Bans at or before the cut stay (what they were made for stands in front of them); later ones go.
        """
        drawn = self._drawn[: max(0, len(self._drawn) - (self._length - len(tokens)))]
        bans = {position: ids for position, ids in self._bans.items() if position <= len(tokens)}
        rewinds = {position: self._rewinds[position] for position in bans}
        self.reset()
        self.replay(tokens)
        self._drawn, self._bans, self._rewinds = drawn, bans, rewinds

    @property
    def python_stages(self) -> tuple[object, ...]:
        """The objects of the plugin stages, in order."""
        return tuple(part.stage for part in self._python)

    @property
    def scratch_memory(self) -> tuple[NDArray[Any], ...]:
        """Arrays that are written anew at each step: nothing may keep a view of them."""
        # Any: structured rows.
        return (self._buffer.rows,)

    @property
    def pending_tokens(self) -> int:
        """How many of the last tokens a stage may still take back; a reader's text should wait for them."""
        return max((part.pending() for part in self._python), default=0) if self._python else 0

    def fork(self, tokens: Sequence[int] = ()) -> Chain:
        """A chain for a branch of the tape, which is `tokens` so far.

        llama.cpp's stages are cloned with their state; each plugin stage is a new object that is told of
        `tokens`. Bans are copied.
        """
        twin = Chain.__new__(Chain)
        twin.spec, twin.seed, twin.n_vocab = self.spec, self.seed, self.n_vocab
        twin._uniforms = Uniforms()
        twin._vocabulary, twin._buffer, twin._tap = self._vocabulary, self._buffer, self._tap
        twin._choosing, twin._chooses_by = self._choosing, self._chooses_by
        twin._leading_k, twin._needs_top = self._leading_k, self._needs_top
        twin._is_closed = False
        twin._parts = []
        for part in self._parts:
            if isinstance(part, NativePart):
                twin._parts.append(part.clone())
            elif isinstance(part, PythonPart):
                twin._parts.append(PythonPart(part.spec, self._vocabulary))
            else:
                twin._parts.append(part)
        twin._index_parts()
        for part in twin._python:
            for token in tokens:
                part.tell(token)
        twin._length = self._length
        twin._drawn = list(self._drawn)
        twin._bans, twin._rewinds = dict(self._bans), dict(self._rewinds)
        return twin

    def close(self) -> None:
        """Free native memory. May be called twice."""
        self._is_closed = True
        self._quick = None
        for part in self._parts:
            part.close()


def _is_count(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _check_logits(maximum: float) -> None:
    if not math.isfinite(maximum):
        raise SamplerError(
            f"the model's logits hold {maximum}.",
            hint="The file may be damaged (`edgellm models verify`), or a KV type too coarse for this model.",
        )
