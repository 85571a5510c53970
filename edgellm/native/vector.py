"""Two vector functions of ggml, called with the GIL held.

numpy gives the GIL away around every operation on more than 500 elements; beside a busy Python thread each of
them may cost a switch interval (5 ms). ggml's own are vectorized as well and are at hand wherever llama.cpp is.
They are no public API: where they are not exported, numpy does the same.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from edgellm.native.library import lib

if TYPE_CHECKING:
    from numpy.typing import NDArray


@cache
def _functions() -> tuple[Any, Any] | None:
    # Any: foreign functions.
    module = lib()
    shared = ctypes.PyDLL(module._lib._name, handle=module._lib._handle)
    try:
        softmax, dot = shared.ggml_vec_soft_max_f32, shared.ggml_vec_dot_f32
    except AttributeError:
        return None
    softmax.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_float)
    softmax.restype = ctypes.c_double
    dot.argtypes = (
        ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_size_t,
        ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int,
    )  # fmt: skip
    dot.restype = None
    return softmax, dot


def softmax_weights(
    logits: NDArray[np.float32], maximum: float, out: NDArray[np.float32]
) -> tuple[float, float]:
    """Fills `out` with exp(logit - maximum); gives their sum, and the sum of each times its logit.

    logits, out: (n,), contiguous, of equal length, different memory. The second sum is nan where a logit is -inf.
    """
    n = len(logits)
    functions = _functions()
    if functions is None:
        np.exp(np.subtract(logits, np.float32(maximum), out=out), out=out)
        return float(out.sum()), float(np.dot(out, logits))
    softmax, dot = functions
    weights, source = out.ctypes.data, logits.ctypes.data
    total: float = softmax(n, weights, source, maximum)
    product = ctypes.c_float()
    dot(n, ctypes.addressof(product), 0, weights, 0, source, 0, 1)
    return total, product.value
