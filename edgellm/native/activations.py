"""What flows into the weight matrices while a context decodes: the sums an importance matrix is made of."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

import numpy as np

from edgellm.native.devices import ggml
from edgellm.native.library import lib

if TYPE_CHECKING:
    from numpy.typing import NDArray

_MAX_DIMS, _MAX_SRC, _MAX_NAME, _OP_PARAMS = 4, 10, 64, 64  # GGML_MAX_* (ggml.h)
_F32, _I32 = 0, 26  # ggml_type


class _Tensor(ctypes.Structure):
    """ggml_tensor (ggml.h), as far as it is read here."""


_Tensor._fields_ = [
    ("type", ctypes.c_int),
    ("buffer", ctypes.c_void_p),
    ("ne", ctypes.c_int64 * _MAX_DIMS),
    ("nb", ctypes.c_size_t * _MAX_DIMS),
    ("op", ctypes.c_int),
    ("op_params", ctypes.c_int32 * (_OP_PARAMS // 4)),
    ("flags", ctypes.c_int32),
    ("src", ctypes.POINTER(_Tensor) * _MAX_SRC),
    ("view_src", ctypes.c_void_p),
    ("view_offs", ctypes.c_size_t),
    ("data", ctypes.c_void_p),
    ("name", ctypes.c_char * _MAX_NAME),
]


class ActivationSums:
    """Adds up the squares of the inputs of each weight matrix, for all tokens that a context decodes.

    Hand `callback` to the context as its eval callback. Memory that is not the CPU's is asked of its owner.
    """

    def __init__(self) -> None:
        llama = lib()
        self.sums: dict[str, NDArray[np.float32]] = {}
        self.counts: dict[str, NDArray[np.float32]] = {}
        self.failure: BaseException | None = None
        library = ggml()
        self._op_name = library.ggml_op_name
        self._op_name.argtypes, self._op_name.restype = (ctypes.c_int,), ctypes.c_char_p
        self._get = library.ggml_backend_tensor_get
        self._get.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t)
        self._get.restype = None
        # Must live as long as the context.
        self.callback: Any = llama.ggml_backend_sched_eval_callback(self._on_node)

    def _on_node(self, address: int, is_question: bool, _user: object) -> bool:
        """llama.cpp asks whether we want to see a node, and then shows it; false ends the decode."""
        try:
            node = _Tensor.from_address(address)
            operation = self._op_name(node.op)
            is_wanted = operation in (b"MUL_MAT", b"MUL_MAT_ID") and self._is_weight(
                node.src[0].contents.name
            )
            if is_question or not is_wanted:
                return is_wanted if is_question else True
            if operation == b"MUL_MAT":
                self._add(node)
            else:
                self._add_experts(node)
        except BaseException as error:  # it must not travel through C
            self.failure = error
            return False
        return True

    @staticmethod
    def _is_weight(name: bytes) -> bool:
        # The output matrix sees only rows whose logits are asked for: too few to tell anything.
        return name.startswith(b"blk.") and name.endswith(b".weight")

    def _add(self, node: _Tensor) -> None:
        source = node.src[1].contents
        if source.type != _F32:
            return
        inputs = self._read(source).reshape(-1, source.ne[0])
        name = node.src[0].contents.name.decode()
        self._begin(name, 1, source.ne[0])
        self.sums[name][0] += np.square(inputs).sum(axis=0)
        self.counts[name][0] += len(inputs)

    def _add_experts(self, node: _Tensor) -> None:
        """Of each token only the experts that were chosen for it: ids are (experts used, tokens)."""
        weight, source, ids = (node.src[index].contents for index in range(3))
        if source.type != _F32 or ids.type != _I32:
            return
        inputs = self._read(source)[0]  # (tokens, 1 or experts used, columns)
        chosen = self._read(ids, np.int32)[0, 0]  # (tokens, experts used)
        inputs = np.broadcast_to(inputs, (*chosen.shape, inputs.shape[-1]))
        name, experts = weight.name.decode(), int(weight.ne[2])
        self._begin(name, experts, inputs.shape[-1])
        for expert in range(experts):
            rows = inputs[chosen == expert]
            self.sums[name][expert] += np.square(rows).sum(axis=0)
            self.counts[name][expert] += len(rows)

    def _begin(self, name: str, matrices: int, columns: int) -> None:
        if name not in self.sums:
            self.sums[name] = np.zeros((matrices, columns), np.float32)
            self.counts[name] = np.zeros(matrices, np.float32)

    def _read(self, tensor: _Tensor, dtype: Any = np.float32) -> NDArray[Any]:
        """A tensor's numbers, (ne3, ne2, ne1, ne0). Any: a numpy dtype of four bytes."""
        ne, nb = list(tensor.ne), list(tensor.nb)
        length = 4 + sum((count - 1) * step for count, step in zip(ne, nb, strict=True))
        buffer = ctypes.create_string_buffer(length)
        self._get(ctypes.addressof(tensor), buffer, 0, length)
        return np.ndarray(tuple(reversed(ne)), dtype, buffer.raw, strides=tuple(reversed(nb)))
