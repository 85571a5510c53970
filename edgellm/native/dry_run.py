"""What llama.cpp would allocate for a model: a rehearsal that reads the header and reserves nothing (`no_alloc`)."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from edgellm.native.context import Context
from edgellm.native.library import captured_log
from edgellm.native.model import Model

if TYPE_CHECKING:
    from pathlib import Path

    from edgellm.types import LoadOptions

_MIB = 1024 * 1024
_KV = re.compile(r"llama_kv_cache\w*: size = +([\d.]+) MiB")
_STATE = re.compile(r"llama_memory_recurrent: size = +([\d.]+) MiB")
_OUTPUT = re.compile(r"(\S+) +output buffer size = +([\d.]+) MiB")
_COMPUTE = re.compile(r"(\S+) compute buffer size = +([\d.]+) MiB")


@dataclass(frozen=True, slots=True)
class Buffers:
    """Bytes, to a hundredth of a MiB each, as llama.cpp prints them.

    `kv_bytes`: keys and values; `state_bytes`: recurrent state; `output_bytes`: room for logits.
    `compute_bytes`: by buffer type ("CPU", "Vulkan0", "Vulkan_Host" ...).
    """

    kv_bytes: int = 0
    state_bytes: int = 0
    output_bytes: int = 0
    compute_bytes: dict[str, int] = field(default_factory=dict[str, int])


def read_buffers(log: str) -> Buffers:
    """The sizes in llama.cpp's log of a context that was made."""
    compute: dict[str, int] = {}
    for name, size in _COMPUTE.findall(log):
        # It is printed anew when flash attention is settled and the graph is laid out again: the last one holds.
        compute[name] = _bytes(size)
    return Buffers(
        kv_bytes=sum(map(_bytes, _KV.findall(log))),
        state_bytes=sum(map(_bytes, _STATE.findall(log))),
        output_bytes=sum(_bytes(size) for _, size in _OUTPUT.findall(log)),
        compute_bytes=compute,
    )


def _bytes(mebibytes: str) -> int:
    return round(float(mebibytes) * _MIB)


class DryRun:
    """A model without weights, on which contexts are tried for their size: 10 to 50 ms each."""

    def __init__(self, path: Path, options: LoadOptions) -> None:
        """Reads header and vocabulary. Raises what `Model.load` raises."""
        self._model = Model.load(path, options, is_rehearsal=True)

    @property
    def has_rope(self) -> bool:
        """The model rotates positions."""
        return self._model.has_rope

    def buffers(self, options: LoadOptions) -> Buffers:
        """What a context with these options takes. Layers and devices are those given to the constructor.

        Raises ConfigError where llama.cpp refuses the options.
        """
        with captured_log(is_kept=False) as log:
            Context(self._model, options).close()
        return read_buffers(log.text)

    def close(self) -> None:
        """Frees it. A second call does nothing."""
        self._model.close()

    def __enter__(self) -> DryRun:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()
