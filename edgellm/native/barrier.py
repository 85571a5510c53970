"""The barrier at which llama.cpp's threads meet: barrier.c in the place of libgomp's, where it was compiled."""

from __future__ import annotations

import ctypes
import os
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgellm.machine import usable_cores

if TYPE_CHECKING:
    from collections.abc import Mapping

VERSION = 1
"""Goes up whenever barrier.c changes what its functions take: a library of another version is not used."""

LIBRARY = Path(__file__).with_name("_barrier.so")
"""Where the compiled library stands: on Linux alone."""

SPIN_COUNT = 2000
"""Turns that a thread waits before it sleeps, where the user has not said how threads wait."""

_MOST = 2**32 - 1  # over a minute
_UNITS = {"k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}  # of GOMP_SPINCOUNT (libgomp's manual)

is_installed = False
"""Whether llama.cpp's threads meet there."""


def spins_of(environment: Mapping[str, str]) -> int | None:
    """Turns that a thread waits before it sleeps, as OMP_WAIT_POLICY and GOMP_SPINCOUNT say; None where libgomp is to
    be left as it is: the one that counts is set to nothing, or says what cannot be read here."""
    policy = environment.get("OMP_WAIT_POLICY")
    given = environment.get("GOMP_SPINCOUNT")
    if given is not None:
        words = given.strip().lower()
        if words in ("infinite", "infinity"):
            return _MOST
        number, unit = (words[:-1], _UNITS[words[-1]]) if words[-1:] in _UNITS else (words, 1)
        if not (number.isascii() and number.isdecimal()) or len(number) > 20 or int(number) >= 2**64:
            return None
        return min(int(number) * unit, _MOST)
    if policy is None:
        return SPIN_COUNT
    return {"passive": 0, "active": _MOST}.get(policy.strip().lower())


def install(llama: Any) -> None:  # Any: it has no types
    """Lets the threads of a loaded llama.cpp meet there, from their next graph on. `llama`: the module
    llama_cpp.llama_cpp.

    Where nothing was compiled, or ggml was built without libgomp, they go on as they are.
    """
    global is_installed
    spins = spins_of(os.environ)
    library = compiled()
    if library is None or spins is None:
        return
    try:
        inside = ctypes.cast(llama._lib.ggml_graph_compute, ctypes.c_void_p)
    except AttributeError:
        return
    is_installed = bool(library.edgellm_barrier_install(inside, spins, usable_cores()))


@cache
def compiled() -> ctypes.CDLL | None:
    """The compiled library, or None where there is none."""
    try:
        library = ctypes.CDLL(str(LIBRARY))
        library.edgellm_barrier_install.argtypes = (ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint32)
        library.edgellm_barrier_install.restype = ctypes.c_int32
        return library if library.edgellm_barrier_version() == VERSION else None
    except (OSError, AttributeError):
        return None
