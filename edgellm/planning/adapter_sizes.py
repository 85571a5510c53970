"""What LoRA adapters and control vectors take beside a model, by their files' headers."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from edgellm.models.adapter_file import check_matrices, check_use, read_adapter, read_directions
from edgellm.models.gguf_file import read_gguf
from edgellm.planning.placement import is_on_gpu

if TYPE_CHECKING:
    from edgellm.models.adapter_file import AdapterFile
    from edgellm.models.gguf_file import TensorEntry
    from edgellm.models.gguf_info import GGUFInfo
    from edgellm.types import LoadOptions

_LAYER = re.compile(r"blk\.(\d+)\.")
_VALUE_BYTES = 4
_SUMS = 2  # of all control vectors: one here, one in llama.cpp's buffers


class AdapterSizes:
    """The adapters that options name. Raises ConfigError where one is missing, made for another model, or given a scale
    that is no number."""

    def __init__(self, info: GGUFInfo, options: LoadOptions) -> None:
        self._info = info
        lora = [read_adapter(one.path, "LoRA adapter") for one in options.lora]
        vectors = [read_adapter(one.path, "control vector") for one in options.control_vectors]
        for file in (*lora, *vectors):
            file.check_architecture(info.architecture)
        for one in (*options.lora, *options.control_vectors):
            check_use(one, info.layers)
        for file in vectors:
            read_directions(file, info.layers, info.embedding_length)
        if lora:
            tensors = [tensor for part in info.parts for tensor in read_gguf(part).tensors]
            weights = {tensor.name: tensor.shape for tensor in tensors}
            for file in lora:
                check_matrices(file, weights)
        # The same file twice is loaded once, with the sum of the scales.
        self._tensors = [tensor for file in _each_once(lora) for tensor in file.header.tensors]
        self._vectors = len(_each_once(vectors))

    def bytes(self, options: LoadOptions) -> tuple[int, int]:
        """(main memory, GPU): a LoRA's matrices lie where the weights lie that they change, the few values of control
        vectors are counted in main memory."""
        on_gpu = sum(tensor.size_bytes for tensor in self._tensors if self._is_on_gpu(tensor, options))
        everything = sum(tensor.size_bytes for tensor in self._tensors)
        rows = _VALUE_BYTES * self._info.embedding_length * self._info.layers
        kept = rows * (self._vectors + _SUMS) if self._vectors else 0
        return everything - on_gpu + kept, on_gpu

    def _is_on_gpu(self, tensor: TensorEntry, options: LoadOptions) -> bool:
        found = _LAYER.match(tensor.name)
        if found is not None:
            return is_on_gpu(self._info, options, int(found[1]), is_expert="_exps." in tensor.name)
        return not tensor.name.startswith("token_embd.") and is_on_gpu(self._info, options, self._info.layers)


def _each_once(files: list[AdapterFile]) -> list[AdapterFile]:
    return list({file.path.resolve(): file for file in files}.values())
