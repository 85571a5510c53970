"""The draw: a counter-based uniform number and an inverse CDF, so that no random generator has state.

`uniform(seed, branch, position)` is, exactly: the first 8 bytes of BLAKE2b over the three numbers as unsigned
64-bit little-endian integers (negative ones modulo 2**64) followed by the label in UTF-8, personalised with
`edgellm-draw`; read as a little-endian integer, shifted right by 11 and multiplied by 2**-53.

`pick` lays the rows out by descending logit, equal logits by ascending id, and takes the first row whose
cumulated probability exceeds `u`. That order depends on the rows alone and not on how a sampler left them; and
cutting the tail of a distribution only stretches what is left, as a reader of `u` expects.
"""

from __future__ import annotations

import struct
import sys
import threading
from hashlib import blake2b
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_MASK = (1 << 64) - 1
_PERSON = b"edgellm-draw"
_HEAD = 256
_SMALL = 1024
_SHORT_SWITCH_S = 0.001
_TINY = 512
_AHEAD = 32


def uniform(seed: int, branch: int, position: int, label: str = "") -> float:
    """The uniform number in [0, 1) for one tape position of one branch. `label` names an independent stream."""
    packed = struct.pack("<QQQ", seed & _MASK, branch & _MASK, position & _MASK) + label.encode()
    digest = blake2b(packed, digest_size=8, person=_PERSON).digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53


class Uniforms:
    """`uniform`, made for some positions at a time: while its code is in the caches, one more is cheap."""

    def __init__(self) -> None:
        self._seed, self._branch, self._start = 0, 0, 0
        self._made: tuple[float, ...] = ()

    def at(self, seed: int, branch: int, position: int, label: str = "") -> float:
        """The number of a place on the tape."""
        if label:
            return uniform(seed, branch, position, label)
        place = position - self._start
        if not 0 <= place < len(self._made) or branch != self._branch or seed != self._seed:
            made = tuple(uniform(seed, branch, position + ahead) for ahead in range(_AHEAD))
            # Behind the last thing that a Ctrl-C could end.
            self._seed, self._branch, self._start, self._made, place = seed, branch, position, made, 0
        return self._made[place]


def derived_seed(seed: int, branch: int, position: int, label: str) -> int:
    """A 32-bit seed for a generator that lives for one step."""
    return int(uniform(seed, branch, position, label) * 0xFFFFFFFF)


def others_run_python() -> bool:
    """Are there other Python threads? Then every release of the GIL may cost a switch interval: 5 ms, where nobody has
    made it short (sys.setswitchinterval). A short one costs less than ways around a release do."""
    return threading.active_count() > 1 and sys.getswitchinterval() > _SHORT_SWITCH_S


def ordered(ids: NDArray[np.int32], logits: NDArray[np.float32]) -> NDArray[np.intp]:
    """Indices that put rows into descending logit, equal logits into ascending id. Both (n,)."""
    if len(ids) <= _TINY and others_run_python():
        # numpy gives the GIL away even for a sort of forty rows.
        values, names = logits.tolist(), ids.tolist()
        order = sorted(range(len(names)), key=lambda row: (-values[row], names[row]))
        return np.array(order, dtype=np.intp)
    return np.lexsort((ids, -logits))


def top_rows(ids: NDArray[np.int32], logits: NDArray[np.float32], n: int) -> NDArray[np.intp]:
    """Indices of the first `n` rows of that order, without sorting all of a long array."""
    if len(logits) > max(_SMALL, 4 * n):
        threshold = np.partition(logits, len(logits) - n)[len(logits) - n]
        above = np.flatnonzero(logits >= threshold)
        return above[ordered(ids[above], logits[above])[:n]]
    return ordered(ids, logits)[:n]


def pick(ids: NDArray[np.int32], logits: NDArray[np.float32], u: float, *, is_sorted: bool = False) -> int:
    """Index of the row drawn by `u` in [0, 1) from softmax(logits). Both (n,), n ≥ 1, the largest logit finite.

    `is_sorted`: the logits are known to be in descending order.
    """
    n = len(logits)
    if n == 1:
        return 0
    if n <= _SMALL:
        if is_sorted and not (logits[1:] == logits[:-1]).any():
            return _invert(logits, u)
        order = ordered(ids, logits)
        return int(order[_invert(logits[order], u)])
    weights = np.exp(logits - logits.max())
    target = u * float(weights.sum(dtype=np.float64))
    order = top_rows(ids, logits, _HEAD)
    cumulated = np.cumsum(weights[order], dtype=np.float64)
    if target < cumulated[-1]:
        return int(order[np.searchsorted(cumulated, target, side="right")])
    # Sorting the values alone is five times quicker than sorting indices; equal values are told apart by id.
    values = np.sort(logits)[::-1]
    place = _invert(values, u)
    equal = np.flatnonzero(logits == values[place])
    first = int(np.searchsorted(-values, -values[place], side="left"))
    return int(equal[np.argsort(ids[equal], kind="stable")[place - first]])


def _invert(logits: NDArray[np.float32], u: float) -> int:
    """Place of `u` in the cumulated softmax of logits that are in descending order."""
    weights = np.exp(logits.astype(np.float64) - float(logits[0]))
    cumulated = weights.cumsum()
    place = int(cumulated.searchsorted(u * cumulated[-1], side="right"))
    if place < len(weights) and weights[place] > 0:
        return place
    # u * total may round up to the total itself; the last row with any weight takes it.
    return int(cumulated.searchsorted(cumulated[-1], side="left"))


def best(ids: NDArray[np.int32], logits: NDArray[np.float32]) -> int:
    """Index of the largest logit; among equal ones, of the smallest id."""
    top = logits.max()
    equal = np.flatnonzero(logits == top)
    return int(equal[0]) if len(equal) == 1 else int(equal[np.argmin(ids[equal])])
