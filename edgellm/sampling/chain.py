"""A runnable sampler chain: logits in, a token out, and on request what each stage did."""

from __future__ import annotations

import math
import secrets
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edgellm.errors import SamplerError
from edgellm.native.samplers import CandidateBuffer, NativeSampler, make_native, native_seed
from edgellm.sampling.candidates import Candidates, StageContext
from edgellm.sampling.draw import best, derived_seed, pick, uniform
from edgellm.sampling.spec import ChainLike, ChainSpec, StageSpec
from edgellm.sampling.stage import Rewind
from edgellm.sampling.tap import Tap, VocabularyTop
from edgellm.types import Distribution, Rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from edgellm.sampling.constraint import Constraint
    from edgellm.sampling.stage import StageVocabulary

_NAN = float("nan")


@dataclass(frozen=True, slots=True)
class StepContext:
    """Where a token is drawn: its `position` on the tape, the branch's id, and the tape so far."""

    position: int
    branch: int = 0
    tokens: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
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


class _Native:
    """Neighbouring llama.cpp stages that run as one."""

    def __init__(self, specs: Sequence[StageSpec], sampler: NativeSampler) -> None:
        self.specs = specs
        self.sampler = sampler
        self.wants_accept = any(spec.info.is_stateful for spec in specs)
        self.leaves_holes = specs[-1].info.leaves_holes


class _Reseeded:
    """xtc: its generator is made anew for each step from seed, branch and position, so it has no state."""

    def __init__(self, spec: StageSpec) -> None:
        self.spec = spec
        self.args = spec.complete_args


class _Python:
    """A plugin's stage."""

    def __init__(self, spec: StageSpec, vocabulary: StageVocabulary | None) -> None:
        self.spec = spec
        self.name = spec.name
        assert spec.info.make is not None, "native stages are not made here"
        try:
            self.stage: Any = spec.info.make(**dict(spec.args))
            bind = getattr(self.stage, "bind", None)
            if bind is not None:
                if vocabulary is None:
                    raise SamplerError(
                        f"sampler stage '{spec.name}' needs a vocabulary.", hint="Use it with a loaded model."
                    )
                bind(vocabulary)
        except SamplerError:
            raise
        except Exception as error:
            raise _stage_error(spec.name, error) from error
        self.accept: Any = getattr(self.stage, "accept", None)
        self.reset: Any = getattr(self.stage, "reset", None)
        self.pending: Any = getattr(self.stage, "pending", None)


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
        self.n_vocab = n_vocab
        self._vocabulary = vocabulary
        self._buffer = CandidateBuffer(n_vocab)
        self._tap: Tap | None = None
        self._parts: list[_Native | _Reseeded | _Python] = []
        self._build()
        self._forget()

    def _build(self) -> None:
        stages = list(self.spec.stages)
        self._choosing = stages[-1]
        self._chooses_by = self._choosing.name if self._choosing.name in ("greedy", "dist") else "stage"
        if self._chooses_by != "stage":
            stages.pop()
        self._leading_k = stages[0].complete_args["k"] if stages and stages[0].name == "top_k" else 0
        run: list[StageSpec] = []
        for spec in stages:
            if spec.info.make is not None or spec.name == "xtc":
                self._add_native(run)
                run = []
                is_plugin = spec.info.make is not None
                self._parts.append(_Python(spec, self._vocabulary) if is_plugin else _Reseeded(spec))
                continue
            run.append(spec)
            if spec.info.leaves_holes:
                self._add_native(run)
                run = []
        self._add_native(run)
        self._index_parts()

    def _index_parts(self) -> None:
        self._python = [part for part in self._parts if isinstance(part, _Python)]
        self._told = [
            part
            for part in self._parts
            if (part.wants_accept if isinstance(part, _Native) else isinstance(part, _Python) and part.accept)
        ]

    def _add_native(self, run: Sequence[StageSpec]) -> None:
        if not run:
            return
        pointer = getattr(self._vocabulary, "pointer", None)
        pointers = [
            make_native(
                spec.name, spec.complete_args, n_vocab=self.n_vocab, seed=self.seed, vocab_pointer=pointer
            )
            for spec in run
        ]
        self._parts.append(_Native(tuple(run), NativeSampler([spec.name for spec in run], pointers)))

    def _forget(self) -> None:
        self._length = 0
        self._drawn: list[int] = []
        self._bans: dict[int, frozenset[int]] = {}

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
        if len(logits) != self.n_vocab:
            raise SamplerError(f"{len(logits)} logits for a vocabulary of {self.n_vocab}.")
        top: VocabularyTop | None = None
        taps: list[Rows] | None = None
        raw: Rows | None = None
        log_total = 0.0
        if trace > 0:
            tap = self._tap = self._tap or Tap(self.n_vocab)
            top = VocabularyTop(logits)
            _check_logits(top.maximum)
            raw, log_total = tap.raw(logits, top, trace)
            taps = []
        self._enter(logits, context, constraint, top, taps, trace)
        needs_u = self._chooses_by == "dist" or self._python
        u = uniform(self.seed, context.branch, context.position) if needs_u else _NAN
        for part in self._parts:
            if isinstance(part, _Native):
                self._run_native(part, taps, trace)
            elif isinstance(part, _Python):
                self._run_python(part, context, u)
                self._tap_rows(part.name, taps, trace)
            else:
                self._run_reseeded(part, context)
                self._tap_rows(part.spec.name, taps, trace)
        token, u = self._choose(u)
        if raw is None or taps is None:
            return Draw(token, u, self._choosing.name, is_constrained=constraint is not None)
        return Draw(
            token,
            u,
            self._choosing.name,
            Distribution(raw, tuple(taps), u),
            float(logits[token]) - log_total,
            constraint is not None,
        )

    def _enter(
        self,
        logits: NDArray[np.float32],
        context: StepContext,
        constraint: Constraint | None,
        top: VocabularyTop | None,
        taps: list[Rows] | None,
        trace: int,
    ) -> None:
        """Fill the buffer with the rows that the first stage has to see."""
        buffer = self._buffer
        banned = self._bans.get(context.position)
        if constraint is None and not banned:
            if self._leading_k or (not self._parts and self._chooses_by == "greedy"):
                # Rows that top_k would cut need not be written: the set it keeps is the same.
                top = top or VocabularyTop(logits)
                _check_logits(top.maximum)
                ids = top.ids(self._leading_k or 1)
                buffer.fill_rows(ids, logits[ids])
                return
            _check_logits(float(logits.max()))
            buffer.fill(logits)
            return
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

    def _run_native(self, part: _Native, taps: list[Rows] | None, trace: int) -> None:
        buffer = self._buffer
        if taps is None:
            part.sampler.apply(buffer)
            self._close_holes(part.leaves_holes, part.specs[-1].name)
            return
        last = len(part.specs) - 1
        for index, spec in enumerate(part.specs):
            part.sampler.apply_member(index, buffer)
            if index == last:
                self._close_holes(part.leaves_holes, spec.name)
            self._tap_rows(spec.name, taps, trace)

    def _run_reseeded(self, part: _Reseeded, context: StepContext) -> None:
        own = part.args["seed"]
        seed = derived_seed(self.seed if own is None else own, context.branch, context.position, "xtc")
        args = {**part.args, "seed": native_seed(seed)}
        pointer = make_native(part.spec.name, args, n_vocab=self.n_vocab, seed=0)
        sampler = NativeSampler((part.spec.name,), (pointer,))
        try:
            sampler.apply(self._buffer)
        finally:
            sampler.close()

    def _close_holes(self, leaves_holes: bool, name: str) -> None:
        buffer = self._buffer
        if leaves_holes:
            alive = buffer.live_logits() > -math.inf
            if not alive.all():
                if not alive.any():
                    raise SamplerError(f"sampler stage '{name}' left no token.", hint="Loosen its arguments.")
                buffer.keep(alive, is_sorted=buffer.is_sorted)
        if buffer.n < 1:
            raise SamplerError(f"sampler stage '{name}' left no token.", hint="Loosen its arguments.")

    def _run_python(self, part: _Python, context: StepContext, u: float) -> None:
        buffer = self._buffer
        view = Candidates(
            buffer,
            StageContext(context.position, context.branch, self.seed, u, context.tokens, self._vocabulary),
            part.name,
        )
        try:
            part.stage.apply(view)
        except Exception as error:
            raise _stage_error(part.name, error) from error
        finally:
            view.retire()
        highest = float(buffer.live_logits().max())
        if not math.isfinite(highest):
            what = "only -inf" if highest < 0 else "NaN" if math.isnan(highest) else "+inf"
            raise SamplerError(
                f"sampler stage '{part.name}' left {what} among its logits.", hint="One row must stay finite."
            )
        if part.spec.info.chooses:
            if buffer.selected < 0:
                raise SamplerError(
                    f"sampler stage '{part.name}' is to choose the token and did not.",
                    hint="Call candidates.choose(index) last in apply; keep() and sort() forget a choice.",
                )
            return
        if buffer.selected >= 0:
            raise SamplerError(
                f"sampler stage '{part.name}' chose a token without saying that it does.",
                hint="Give its class chooses = True, and let it be the last stage.",
            )
        self._close_holes(True, part.name)

    def _choose(self, u: float) -> tuple[int, float]:
        buffer = self._buffer
        ids, logits = buffer.live_ids(), buffer.live_logits()
        if self._chooses_by == "dist":
            return int(ids[pick(ids, logits, u)]), u
        if self._chooses_by == "greedy":
            return int(ids[best(ids, logits)]), _NAN
        selected = buffer.selected
        if not 0 <= selected < len(ids):
            raise SamplerError(f"sampler stage '{self._choosing.name}' chose no token.")
        return int(ids[selected]), _NAN

    def _tap_rows(self, stage: str, taps: list[Rows] | None, trace: int) -> None:
        if taps is not None and self._tap is not None:
            taps.append(self._tap.rows(stage, self._buffer.live_ids(), self._buffer.live_logits(), trace))

    # -- the tape

    def accept(self, token: int) -> RewindRequest | None:
        """Tell all stages of one token that was drawn or forced and is on the tape.

        A stage may answer with the wish to take tokens back: cut the tape to the request's `position`, then
        call `rewind` with the tape that is left. Wishes that reach beyond the last `replay`, or that repeat a
        ban without effect, are dropped.
        """
        self._length += 1
        if not self._told:
            return None
        self._drawn.append(token)
        request: RewindRequest | None = None
        for part in self._told:
            if isinstance(part, _Native):
                part.sampler.accept(token)
                continue
            wish = self._tell(part, token)
            if isinstance(wish, Rewind) and request is None:
                request = self._granted(part.name, wish)
        return request

    def _tell(self, part: Any, token: int) -> Any:
        # Any: `part` is a _Python, and what a plugin returns is looked at by the caller.
        try:
            return part.accept(token)
        except Exception as error:
            raise _stage_error(part.name, error) from error

    def _granted(self, stage: str, wish: Rewind) -> RewindRequest | None:
        if wish.tokens < 1:
            raise SamplerError(f"sampler stage '{stage}' asks to rewind {wish.tokens} tokens.")
        if wish.tokens > len(self._drawn):
            return None
        position = self._length - wish.tokens
        ban = wish.ban or (self._drawn[-wish.tokens],)
        known = self._bans.get(position, frozenset())
        if known.issuperset(ban):
            return None
        self._bans[position] = known.union(ban)
        return RewindRequest(stage, wish.tokens, position, ban, wish.reason)

    def replay(self, tokens: Sequence[int]) -> None:
        """Tell all stages of tokens that were not drawn here: a prompt, a tool's result, a loaded tape.

        Wishes to rewind are ignored, and later ones cannot reach into these tokens.
        """
        self._length += len(tokens)
        self._drawn.clear()
        for part in self._told:
            if isinstance(part, _Native):
                accept = part.sampler.accept
                for token in tokens:
                    accept(token)
            else:
                for token in tokens:
                    self._tell(part, token)

    def reset(self) -> None:
        """Forget all tokens and bans, as if nothing had been drawn. mirostat and adaptive_p start again."""
        self._forget()
        self._reset_parts()

    def _reset_parts(self) -> None:
        for part in self._parts:
            if isinstance(part, _Native):
                part.sampler.reset()
            elif isinstance(part, _Python) and part.reset is not None:
                try:
                    part.reset()
                except Exception as error:
                    raise _stage_error(part.name, error) from error

    def rewind(self, tokens: Sequence[int]) -> None:
        """The tape was cut back to `tokens`: rebuild the stages' state from them.

        Bans at or before the cut stay (what they were made for stands in front of them); later ones go.
        """
        drawn = self._drawn[: max(0, len(self._drawn) - (self._length - len(tokens)))]
        bans = {position: ids for position, ids in self._bans.items() if position <= len(tokens)}
        self.reset()
        self.replay(tokens)
        self._drawn, self._bans = drawn, bans

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
        return max((int(part.pending()) for part in self._python if part.pending is not None), default=0)

    def fork(self, tokens: Sequence[int] = ()) -> Chain:
        """A chain for a branch of the tape, which is `tokens` so far.

        llama.cpp's stages are cloned with their state; each plugin stage is a new object that is told of
        `tokens`. Bans are copied.
        """
        twin = Chain.__new__(Chain)
        twin.spec, twin.seed, twin.n_vocab = self.spec, self.seed, self.n_vocab
        twin._vocabulary, twin._buffer, twin._tap = self._vocabulary, self._buffer, self._tap
        twin._choosing, twin._chooses_by, twin._leading_k = self._choosing, self._chooses_by, self._leading_k
        twin._parts = []
        for part in self._parts:
            if isinstance(part, _Native):
                twin._parts.append(_Native(part.specs, part.sampler.clone()))
            elif isinstance(part, _Python):
                twin._parts.append(_Python(part.spec, self._vocabulary))
            else:
                twin._parts.append(part)
        twin._index_parts()
        for part in twin._python:
            if part.accept is not None:
                for token in tokens:
                    twin._tell(part, token)
        twin._length = self._length
        twin._drawn = list(self._drawn)
        twin._bans = dict(self._bans)
        return twin

    def close(self) -> None:
        """Free native memory. May be called twice."""
        for part in self._parts:
            if isinstance(part, _Native):
                part.sampler.close()


def _check_logits(maximum: float) -> None:
    if not math.isfinite(maximum):
        raise SamplerError(
            f"the model's logits hold {maximum}.",
            hint="The file may be damaged (`edgellm models verify`), or a KV type too coarse for this model.",
        )


def _stage_error(name: str, error: Exception) -> SamplerError:
    detail = f"{type(error).__name__}: {error}" if not isinstance(error, SamplerError) else error.message
    return SamplerError(
        f"sampler stage '{name}' failed: {detail}".rstrip(": "),
        hint="The plugin's traceback is in the error's log.",
        log="".join(traceback.format_exception(error)),
    )
