"""The decode of one token and the draw of the next in one call, so that nothing of Python runs between the two."""

from __future__ import annotations

import ctypes
from typing import Any

from edgellm.native.scan import compiled

NOT_DECODED = -2
"""What is drawn where llama_decode refused, failed or was aborted."""

_NAMES = ("n_tokens", "token", "embd", "pos", "n_seq_id", "seq_id", "logits")


class _Batch(ctypes.Structure):
    # llama_batch (llama.h), pointers as integer addresses.
    _fields_ = ((_NAMES[0], ctypes.c_int32), *((name, ctypes.c_void_p) for name in _NAMES[1:]))


class _Task(ctypes.Structure):
    # step_task of scan.c.
    _fields_ = (
        ("decode", ctypes.c_void_p),
        ("logits_ith", ctypes.c_void_p),
        ("context", ctypes.c_void_p),
        ("batch", _Batch),
    )


class LoneStep:
    """Steps of one context, through a batch of its that has room for a row. Both must outlive it.

    `call(address, draw.address, token, position, seq)` decodes `token` and gives the one that `draw`, a NativeDraw that
    is prepared, draws after it; -1 where that has to be drawn step by step from the logits of row 0, NOT_DECODED where
    nothing was decoded. It gives the GIL away, as llama_decode does.
    """

    def __init__(self, call: Any, llama: Any, context: Any, batch: Any) -> None:
        # Any: a ctypes function, the module llama_cpp.llama_cpp, and its llama_context pointer and llama_batch.
        self.call = call
        fields = {name: _address(getattr(batch, name)) for name in _NAMES[1:]}
        self._task = _Task(
            decode=_address(llama._lib.llama_decode),
            logits_ith=_address(llama._lib.llama_get_logits_ith),
            context=_address(context),
            batch=_Batch(n_tokens=1, **fields),
        )
        self.address = ctypes.addressof(self._task)

    @classmethod
    def of(cls, llama: Any, context: Any, batch: Any) -> LoneStep | None:
        """None where nothing was compiled, or where this llama.cpp has another llama_batch than scan.c knows."""
        functions = compiled()
        is_known = [name for name, *_ in type(batch)._fields_] == list(_NAMES)
        if functions is None or not is_known or ctypes.sizeof(batch) != ctypes.sizeof(_Batch):
            return None
        return cls(functions.step, llama, context, batch)


def _address(pointer: Any) -> int | None:
    # Any: a ctypes pointer or function.
    return ctypes.cast(pointer, ctypes.c_void_p).value
