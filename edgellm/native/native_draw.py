"""A whole draw in one call, for chains that llama.cpp's own stages make up: top, stages, copies for a trace, token."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

import numpy as np

from edgellm.native.samplers import apply_address
from edgellm.native.scan import MOST_ROWS, ROW, Addresses, compiled

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from edgellm.native.samplers import NativeSampler


class _Task(ctypes.Structure):
    # draw_task of scan.c; pointers as integer addresses, which are quick to write.
    _fields_ = (
        ("logits", ctypes.c_void_p),
        ("n_vocab", ctypes.c_int64),
        ("k", ctypes.c_int64),
        ("kept", ctypes.c_int64),
        ("u", ctypes.c_double),
        ("rows", ctypes.c_void_p),
        ("scratch", ctypes.c_void_p),
        ("apply", ctypes.c_void_p),
        ("samplers", ctypes.c_void_p),
        ("n_samplers", ctypes.c_int64),
        ("leaves_holes", ctypes.c_void_p),
        ("copies", ctypes.c_void_p),
        ("room", ctypes.c_int64),
        ("sizes", ctypes.c_void_p),
        ("sums", ctypes.c_double * 2),
        ("maximum", ctypes.c_float),
        ("logit", ctypes.c_float),
    )


class NativeDraw:
    """Draws from the `k` largest logits, put through some `stretches` of stages.

    A stretch is (sampler, whether its last stage leaves rows at -inf, which are taken out then). The draws are those
    that the parts of a chain make one after the other.
    """

    def __init__(self, stretches: Sequence[tuple[NativeSampler, bool]], n_vocab: int, k: int) -> None:
        functions = compiled()
        assert functions is not None, "without compiled code there is nothing to be quick with"
        self._call = functions.sample
        self._k = k
        members: list[int] = []
        holes: list[bool] = []
        for sampler, leaves_holes in stretches:
            members += sampler.member_addresses()
            holes += [False] * (len(members) - len(holes))
            holes[-1] = leaves_holes
        # All that the task points to is held here, also where the chain is closed while it draws.
        self._owned = [sampler.owned for sampler, _ in stretches]
        self._members = (ctypes.c_void_p * len(members))(*members)
        self._holes = (ctypes.c_bool * len(members))(*holes)
        self._scratch = (ctypes.c_float * functions.scratch_floats(n_vocab))()
        self._rows = np.zeros(MOST_ROWS, dtype=ROW)
        self._copies: Any = None
        self._sizes = (ctypes.c_int64 * (len(members) + 1))()
        self._addresses = Addresses()
        self._task = _Task(
            n_vocab=n_vocab,
            kept=k,
            rows=self._rows.ctypes.data,
            scratch=ctypes.addressof(self._scratch),
            apply=apply_address(),
            samplers=ctypes.addressof(self._members),
            n_samplers=len(members),
            leaves_holes=ctypes.addressof(self._holes),
            sizes=ctypes.addressof(self._sizes),
        )
        self.address = ctypes.addressof(self._task)

    def prepare(self, u: float, trace: int = 0) -> None:
        """The next draw is that of `u` in [0, 1). With `trace` the rows at each point are copied, from at least so
        many."""
        task = self._task
        task.u = u
        task.k = self._k if trace < self._k else trace
        if not trace:
            task.copies = None
        else:
            if self._copies is None:
                task.room = MOST_ROWS * len(self._sizes)
                self._copies = (ctypes.c_char * (task.room * ROW.itemsize))()
                self._copies_at = ctypes.addressof(self._copies)
            task.copies = self._copies_at

    def draw(self, logits: NDArray[np.float32]) -> int:
        """The token that is drawn, or -1 where it has to be drawn step by step, which says why.

        logits: (n_vocab,), contiguous.
        """
        self._task.logits = self._addresses.of(logits)
        return self._call(self.address)

    @property
    def logit(self) -> float:
        """The logit of the token that was drawn last."""
        return self._task.logit

    @property
    def maximum(self) -> float:
        """The largest logit, with a trace or without."""
        return self._task.maximum

    def mass(self) -> tuple[float, float]:
        """With a trace: the sums that `VocabularyScan.mass` gives."""
        sums = self._task.sums
        return sums[0], sums[1]

    def copies(self) -> list[bytes]:
        """With a trace: the rows at first, and behind each stage, as bytes of ROW."""
        sizes = self._sizes[:]
        data = ctypes.string_at(self._copies_at, sum(sizes) * ROW.itemsize)
        found: list[bytes] = []
        start = 0
        for size in sizes:
            end = start + size * ROW.itemsize
            found.append(data[start:end])
            start = end
        return found
