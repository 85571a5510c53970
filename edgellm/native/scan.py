"""What a draw needs of a whole vocabulary: its largest logits and the mass of its softmax, and the draw from the rows.

Compiled from scan.c when edgellm is installed; where there was no C compiler, numpy gives the same, several times
slower. All calls but `step`, which decodes, keep the GIL, as those in samplers.py do.
"""

from __future__ import annotations

import ctypes
import math
import os
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgellm.errors import SamplerError

if TYPE_CHECKING:
    from numpy.typing import NDArray

VERSION = 5
"""Goes up whenever scan.c changes what its functions take or give: a library of another version is not used."""

LIBRARY = Path(__file__).with_name("_scan.dll" if os.name == "nt" else "_scan.so")
"""Where the compiled library stands."""

ROW = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])
"""One candidate row, laid out as llama_token_data."""

_BLOCK = 64  # BLOCK of scan.c

MOST_ROWS = 1024
"""The compiled draw takes at most so many rows."""


class Functions:
    """The compiled functions, as scan.c has them."""

    def __init__(self, library: ctypes.PyDLL) -> None:
        self.scratch_floats = library.edgellm_scratch_floats
        self.scratch_floats.argtypes, self.scratch_floats.restype = (ctypes.c_int64,), ctypes.c_int64
        self.top = library.edgellm_top
        self.top.argtypes = (
            ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p, ctypes.c_int64,
            ctypes.c_void_p, ctypes.c_void_p,
        )  # fmt: skip
        self.top.restype = ctypes.c_int64
        self.mass = library.edgellm_mass
        self.mass.argtypes = (ctypes.c_void_p, ctypes.c_int64, ctypes.c_float, ctypes.c_void_p)
        self.mass.restype = None
        self.close_holes = library.edgellm_close_holes
        self.close_holes.argtypes, self.close_holes.restype = (
            (ctypes.c_void_p, ctypes.c_int64),
            ctypes.c_int64,
        )
        self.sample = library.edgellm_sample
        self.sample.argtypes, self.sample.restype = (ctypes.c_void_p,), ctypes.c_int32
        self.step = ctypes.CDLL(library._name, handle=library._handle).edgellm_step
        self.step.argtypes = (
            ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int32, ctypes.c_int32, ctypes.c_int32,
        )  # fmt: skip
        self.step.restype = ctypes.c_int32
        self.highest = library.edgellm_highest
        self.highest.argtypes, self.highest.restype = (ctypes.c_void_p, ctypes.c_int64), ctypes.c_float
        self.probs = library.edgellm_probs
        self.probs.argtypes, self.probs.restype = (ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p), None
        self.cut = library.edgellm_cut
        self.cut.argtypes, self.cut.restype = (
            (ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64),
            ctypes.c_int64,
        )
        self.draw = library.edgellm_draw
        self.draw.argtypes, self.draw.restype = (
            (ctypes.c_void_p, ctypes.c_int64, ctypes.c_double),
            ctypes.c_int32,
        )


@cache
def compiled() -> Functions | None:
    """The compiled functions, or None where there are none."""
    try:
        library = ctypes.PyDLL(str(LIBRARY))
        return Functions(library) if library.edgellm_scan_version() == VERSION else None
    except (OSError, AttributeError):
        return None


def is_compiled() -> bool:
    """False where numpy does the work: nothing was compiled at installation, or for another version."""
    return compiled() is not None


def finds_top(k: int, n_vocab: int) -> bool:
    """Whether the compiled functions look for the `k` largest of so many: edgellm_top leaves the rest to numpy."""
    return 4 * k <= n_vocab // _BLOCK


class Addresses:
    """Where arrays' data lies. numpy takes longer to say so than the compiled functions to run, and a loop asks for the
    same array time and again."""

    def __init__(self) -> None:
        self._last: tuple[NDArray[Any] | None, int] = (None, 0)

    def of(self, array: NDArray[Any]) -> int:
        # The array is held, so nobody else can have its place. Compiled code reads it as it lies.
        last, address = self._last
        if last is not array:
            if not array.flags.c_contiguous or array.dtype not in (np.float32, ROW):
                raise SamplerError(f"an array of {array.dtype} where contiguous float32 logits are read.")
            address = array.ctypes.data
            self._last = array, address
        return address


class VocabularyScan:
    """Looks through arrays of up to `n_vocab` logits. Owns scratch memory: for one thread at a time.

    `is_compiled` False: with numpy, also where the compiled library is there.
    """

    def __init__(self, n_vocab: int, *, is_compiled: bool = True) -> None:
        found = self._functions = compiled() if is_compiled else None
        if found is not None:
            self._logits_at, self._rows_at = Addresses(), Addresses()
            # ctypes objects whose addresses are asked for once: that takes longer than the functions themselves.
            self._scratch = (ctypes.c_float * found.scratch_floats(n_vocab))()
            self._maximum, self._sums = ctypes.c_float(), (ctypes.c_double * 2)()
            self._scratch_at = ctypes.addressof(self._scratch)
            self._maximum_at, self._sums_at = ctypes.addressof(self._maximum), ctypes.addressof(self._sums)

    def top(self, logits: NDArray[np.float32], k: int, rows: NDArray[np.void]) -> tuple[int, float]:
        """Writes the `k` largest (and what equals them; a few more may come along) into `rows`; gives how many, and the
        largest.

        logits: (n,), contiguous; rows: (at least n,) of ROW, contiguous. Where the largest is not finite, nothing is
        written and the first number is 0; one NaN makes the largest NaN.
        """
        n = len(logits)
        if self._functions is not None:
            count: int = self._functions.top(
                self._logits_at.of(logits),
                n,
                k,
                self._rows_at.of(rows),
                len(rows),
                self._scratch_at,
                self._maximum_at,
            )
            maximum = self._maximum.value
            if count >= 0:
                return count, maximum
        else:
            maximum = float(logits.max())
        if not math.isfinite(maximum):
            return 0, maximum
        if k >= n:
            found = np.flatnonzero(logits > -math.inf)
        else:
            bound = np.partition(logits, n - k)[n - k]
            found = np.flatnonzero(logits >= bound if bound > -math.inf else logits > bound)
        rows["id"][: len(found)] = found
        rows["logit"][: len(found)] = logits[found]
        return len(found), maximum

    def mass(self, logits: NDArray[np.float32], maximum: float) -> tuple[float, float]:
        """Sums of w = exp(logit - maximum) and of w * (logit - maximum). logits: (n,), contiguous, no NaN."""
        if self._functions is not None:
            self._functions.mass(self._logits_at.of(logits), len(logits), maximum, self._sums_at)
            return self._sums[0], self._sums[1]
        shifted = logits - np.float32(maximum)
        weights = np.exp(shifted)
        # Rows at -inf weigh nothing; 0 * -inf has to be told so.
        return float(weights.sum(dtype=np.float64)), float(
            np.dot(weights, np.maximum(shifted, np.float32(-1e30)))
        )


def close_holes(address: int, n: int) -> int:
    """Takes rows at -inf (and NaN) out of `n` rows of ROW at `address`, in place, in order; gives how many are left."""
    found = compiled()
    if found is not None:
        return found.close_holes(address, n)
    rows = _rows_at(address, n)
    alive = rows["logit"] > -math.inf
    left = int(alive.sum())
    if left < n:
        rows[:left] = rows[alive]
    return left


def highest(address: int, n: int) -> float:
    """The largest logit of `n` rows of ROW at `address`, NaN where one is NaN."""
    found = compiled()
    return found.highest(address, n) if found is not None else float(_rows_at(address, n)["logit"].max())


def probs(address: int, n: int) -> NDArray[np.float32]:
    """Softmax of the logits of `n` rows of ROW at `address`, (n,), a new array."""
    found = compiled()
    if found is None:
        logits = _rows_at(address, n)["logit"]
        weights = np.exp(logits - logits.max())
        return weights / weights.sum()
    out = np.empty(n, dtype=np.float32)
    found.probs(address, n, out.ctypes.data)
    return out


def cut(address: int, n: int, k: int) -> int:
    """Puts `n` rows of ROW at `address` into descending order of logit, equal ones into ascending order of id, and
    keeps the first `k`; gives how many are left."""
    found = compiled()
    if found is not None:
        return found.cut(address, n, k)
    rows = _rows_at(address, n)
    rows[:] = rows[np.lexsort((rows["id"], -rows["logit"]))]
    return min(n, k)


def _rows_at(address: int, n: int) -> NDArray[Any]:
    # Any: structured rows.
    return np.ctypeslib.as_array((ctypes.c_uint8 * (n * ROW.itemsize)).from_address(address)).view(ROW)


def draw(address: int, n: int, u: float) -> int:
    """The token that `u` in [0, 1) draws from `n` rows of ROW at `address`, as edgellm/sampling/draw.py says; -1 where
    the rows are too many (MOST_ROWS), the largest is not finite, or nothing is compiled."""
    found = compiled()
    return found.draw(address, n, u) if found is not None else -1


def rows_of(data: bytes) -> NDArray[Any]:
    """Rows of ROW that were copied as bytes, read-only."""
    # Any: structured rows.
    return np.frombuffer(data, dtype=ROW)
