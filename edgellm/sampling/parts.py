"""The running parts of a chain: a stretch of llama.cpp's stages, or one plugin stage, over the candidate rows."""

from __future__ import annotations

import math
import traceback
from typing import TYPE_CHECKING, Any

from edgellm.errors import SamplerError
from edgellm.native.samplers import NativeSampler, make_native, native_seed
from edgellm.sampling.candidates import Candidates, StageContext
from edgellm.sampling.draw import derived_seed

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from edgellm.native.samplers import CandidateBuffer
    from edgellm.sampling.spec import StageSpec
    from edgellm.sampling.stage import StageVocabulary


class NativePart:
    """Neighbouring llama.cpp stages that run as one."""

    def __init__(self, specs: Sequence[StageSpec], sampler: NativeSampler) -> None:
        self.specs = specs
        self.sampler = sampler
        self.wants_tokens = any(spec.info.is_stateful for spec in specs)
        # Only the last may leave holes: the next stage must not see them (typical makes NaN of rows at -inf).
        self.leaves_holes = specs[-1].info.leaves_holes

    @classmethod
    def make(
        cls, specs: Sequence[StageSpec], n_vocab: int, seed: int, vocabulary: StageVocabulary | None
    ) -> NativePart:
        """Native samplers for these stages."""
        pointer = getattr(vocabulary, "pointer", None)
        made = [
            make_native(spec.name, spec.complete_args, n_vocab=n_vocab, seed=seed, vocab_pointer=pointer)
            for spec in specs
        ]
        return cls(tuple(specs), NativeSampler([spec.name for spec in specs], made))

    def run(self, buffer: CandidateBuffer) -> None:
        """All stages at once."""
        self.sampler.apply(buffer)
        close_holes(buffer, self.leaves_holes, self.specs[-1].name)

    def run_one_by_one(self, buffer: CandidateBuffer) -> Iterator[str]:
        """The same, pausing behind each stage with its name."""
        last = len(self.specs) - 1
        for index, spec in enumerate(self.specs):
            self.sampler.apply_member(index, buffer)
            close_holes(buffer, self.leaves_holes and index == last, spec.name)
            yield spec.name

    def tell(self, token: int) -> None:
        """A token is on the tape."""
        self.sampler.accept(token)

    def forget(self) -> None:
        """Forget all tokens."""
        self.sampler.reset()

    def clone(self) -> NativePart:
        """A copy with the state of now."""
        return NativePart(self.specs, self.sampler.clone())

    def close(self) -> None:
        """Free native memory."""
        self.sampler.close()


class ReseededPart:
    """xtc: its generator is made anew for each step from seed, branch and position, so it has no state."""

    wants_tokens = False

    def __init__(self, spec: StageSpec, n_vocab: int) -> None:
        self.name = spec.name
        self._args = spec.complete_args
        self._n_vocab = n_vocab

    def run(self, buffer: CandidateBuffer, seed: int, branch: int, position: int) -> None:
        """One step's generator, used and thrown away."""
        own = self._args["seed"]
        derived = derived_seed(seed if own is None else own, branch, position, self.name)
        args = {**self._args, "seed": native_seed(derived)}
        sampler = NativeSampler((self.name,), (make_native(self.name, args, n_vocab=self._n_vocab, seed=0),))
        try:
            sampler.apply(buffer)
        finally:
            sampler.close()

    def tell(self, token: int) -> None:
        """Nothing depends on tokens."""

    def forget(self) -> None:
        """There is nothing to forget."""

    def close(self) -> None:
        """There is nothing to free."""


class PythonPart:
    """A plugin's stage, an object of its own for each chain."""

    def __init__(self, spec: StageSpec, vocabulary: StageVocabulary | None) -> None:
        self.spec = spec
        self.name = spec.name
        assert spec.info.make is not None, "native stages are not made here"
        try:
            # Any: an object of a plugin's class; which methods it has is looked up below.
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
            raise stage_error(spec.name, error) from error
        self._accept: Any = getattr(self.stage, "accept", None)
        self._reset: Any = getattr(self.stage, "reset", None)
        self._pending: Any = getattr(self.stage, "pending", None)
        self.wants_tokens = self._accept is not None

    def run(self, buffer: CandidateBuffer, context: StageContext) -> None:
        """Calls `apply` and checks what it left behind."""
        view = Candidates(buffer, context, self.name)
        try:
            self.stage.apply(view)
        except Exception as error:
            raise stage_error(self.name, error) from error
        finally:
            view.retire()
        highest = buffer.highest()
        if not math.isfinite(highest):
            what = "only -inf" if highest < 0 else "NaN" if math.isnan(highest) else "+inf"
            raise SamplerError(
                f"sampler stage '{self.name}' left {what} among its logits.", hint="One row must stay finite."
            )
        if self.spec.info.chooses:
            if buffer.selected < 0:
                raise SamplerError(
                    f"sampler stage '{self.name}' is to choose the token and did not.",
                    hint="Call candidates.choose(index) last in apply; keep() and sort() forget a choice.",
                )
            return
        if buffer.selected >= 0:
            raise SamplerError(
                f"sampler stage '{self.name}' chose a token without saying that it does.",
                hint="Give its class chooses = True, and let it be the last stage.",
            )
        close_holes(buffer, True, self.name)

    def tell(self, token: int) -> Any:
        """A token is on the tape; gives what the stage answers."""
        # Any: a plugin may return what it likes; the chain looks for a Rewind.
        if self._accept is None:
            return None
        try:
            return self._accept(token)
        except Exception as error:
            raise stage_error(self.name, error) from error

    def forget(self) -> None:
        """Forget all tokens."""
        if self._reset is not None:
            try:
                self._reset()
            except Exception as error:
                raise stage_error(self.name, error) from error

    def pending(self) -> int:
        """How many of the last tokens the stage may still take back."""
        if self._pending is None:
            return 0
        try:
            return int(self._pending())
        except Exception as error:
            raise stage_error(self.name, error) from error

    def close(self) -> None:
        """There is nothing to free."""


def close_holes(buffer: CandidateBuffer, has_holes: bool, name: str) -> None:
    """Takes rows at -inf out. Raises SamplerError where stage `name` left no row."""
    if has_holes:
        buffer.close_holes()
    if buffer.n < 1:
        raise SamplerError(f"sampler stage '{name}' left no token.", hint="Loosen its arguments.")


def stage_error(name: str, error: Exception) -> SamplerError:
    """What a plugin raised, as an error of the chain with the plugin's name and traceback."""
    detail = f"{type(error).__name__}: {error}" if not isinstance(error, SamplerError) else error.message
    return SamplerError(
        f"sampler stage '{name}' failed: {detail}".rstrip(": "),
        hint="The plugin's traceback is in the error's log.",
        log="".join(traceback.format_exception(error)),
    )
