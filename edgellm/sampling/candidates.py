"""The view of the candidate rows that a Python stage works on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edgellm.errors import SamplerError
from edgellm.sampling.draw import top_rows, uniform

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from edgellm.native.samplers import CandidateBuffer
    from edgellm.sampling.stage import StageVocabulary

_CHEAP_TO_CHECK = 4096


@dataclass(frozen=True, slots=True)
class StageContext:
    """What a stage may know of the step: read-only.

    `position` is where the token will stand on the tape; `tokens` is the tape so far; `u` the number in [0, 1)
    the draw uses. `vocabulary` is None only in chains made without one.
    """

    position: int
    branch: int
    seed: int
    u: float
    tokens: Sequence[int]
    vocabulary: StageVocabulary | None

    def piece(self, token: int) -> bytes:
        """The token's own bytes."""
        if self.vocabulary is None:
            raise SamplerError(
                "this chain has no vocabulary.", hint="Give the chain one, as a loaded model's chain has."
            )
        return self.vocabulary.piece(token)

    def uniform(self, label: str) -> float:
        """Another number in [0, 1), of the stream `label`: the same again after rewind and replay."""
        return uniform(self.seed, self.branch, self.position, label)


class Candidates:
    """The rows left at this point of the chain. Dies when `apply` returns: keep copies, never views."""

    __slots__ = ("_buffer", "_context", "_handed_out", "_stage")

    def __init__(self, buffer: CandidateBuffer, context: StageContext, stage: str = "") -> None:
        self._buffer: CandidateBuffer | None = buffer
        self._context = context
        self._stage = stage
        self._handed_out: list[NDArray[Any]] = []

    def _live(self) -> CandidateBuffer:
        if self._buffer is None:
            raise SamplerError(
                f"sampler stage '{self._stage}' uses its candidates after apply() has returned.",
                hint="Copy what you need inside apply: candidates.ids.copy().",
            )
        return self._buffer

    @property
    def context(self) -> StageContext:
        """Position, tape, vocabulary, seed and `u` of this step."""
        self._live()
        return self._context

    @property
    def n(self) -> int:
        """Rows left, at least 1."""
        return self._live().n

    def __len__(self) -> int:
        return self.n

    @property
    def ids(self) -> NDArray[np.int32]:
        """Token ids, (n,), read-only view."""
        view = self._live().live_ids()
        view.flags.writeable = False
        return view

    @property
    def logits(self) -> NDArray[np.float32]:
        """Logits, (n,), a view that may be written: `candidates.logits[:] = ...`. -inf removes a row."""
        view = self._live().live_logits()
        self._handed_out.append(view)
        return view

    @logits.setter
    def logits(self, values: Any) -> None:
        # Any: whatever numpy can copy into a float32 array.
        view = self._live().live_logits()
        view[:] = values
        self._handed_out.append(view)

    @property
    def is_sorted(self) -> bool:
        """True where rows are known to be in descending order of logit."""
        return self._live().is_sorted

    def probs(self) -> NDArray[np.float32]:
        """Softmax of the logits, (n,), a new array that sums to 1."""
        return self._live().probs()

    def sort(self) -> None:
        """Put rows into descending order of logit, equal ones into ascending order of id."""
        buffer = self._live()
        buffer.cut(buffer.n)

    def keep(self, selection: int | Sequence[int] | NDArray[Any]) -> None:
        """Cut rows: a count keeps that many of the most probable, a boolean mask (n,) or indices the rows named.

        Views taken before are stale. Raises SamplerError where no row would be left or an index is wrong.
        """
        buffer = self._live()
        n = buffer.n
        if isinstance(selection, int | np.integer) and not isinstance(selection, bool):
            self._need(selection >= 1, f"keep({int(selection)})")
            if selection >= n:
                return
            if buffer.is_sorted:
                buffer.n = int(selection)
            else:
                rows = top_rows(buffer.live_ids(), buffer.live_logits(), int(selection))
                buffer.keep(rows, is_sorted=True)
            return
        chosen = np.asarray(selection)
        if chosen.dtype == np.bool_:
            self._need(chosen.shape == (n,), f"keep() with a mask of shape {chosen.shape} for {n} rows")
            self._need(bool(chosen.any()), "keep() with an empty mask")
            buffer.keep(chosen, is_sorted=buffer.is_sorted)
            return
        is_valid = chosen.ndim == 1 and len(chosen) > 0 and np.issubdtype(chosen.dtype, np.integer)
        is_valid = is_valid and int(chosen.min()) >= 0 and int(chosen.max()) < n
        is_valid = is_valid and len(np.unique(chosen)) == len(chosen)
        self._need(is_valid, f"keep() with indices that are not different row numbers from 0 to {n - 1}")
        buffer.keep(chosen, is_sorted=False)

    def choose(self, index: int) -> None:
        """Pick the row the token is taken from. Only for stages that declare `chooses = True`."""
        buffer = self._live()
        self._need(0 <= index < buffer.n, f"choose({index}) of {buffer.n} rows")
        self._need(bool(np.isfinite(buffer.live_logits()[index])), f"choose({index}), a row that was removed")
        buffer.selected = int(index)

    def _need(self, is_right: bool, what: str) -> None:
        if not is_right:
            raise SamplerError(
                f"sampler stage '{self._stage}': {what}.",
                hint="At least one row must be left, and row numbers count from 0.",
            )

    def retire(self) -> None:
        """End the view's life; the chain does it when `apply` has returned."""
        buffer = self._buffer
        self._buffer = None
        for view in self._handed_out:
            view.flags.writeable = False
        if buffer is not None and self._handed_out and buffer.is_sorted:
            logits = buffer.live_logits()
            # Whether the order still holds is cheaper to look at than to promise; on long arrays, it is given up.
            buffer.is_sorted = len(logits) <= _CHEAP_TO_CHECK and bool((logits[:-1] >= logits[1:]).all())
        self._handed_out = []
