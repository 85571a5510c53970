"""What is laid over the weights while a batch is decoded: LoRA adapters and a control vector."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from edgellm.errors import ConfigError
from edgellm.native.library import captured_log, lib
from edgellm.types import AdapterSet, ControlVector, LoraAdapter

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from edgellm.native.model import Model


_NONE = AdapterSet()


@dataclass(frozen=True, slots=True)
class AdapterPart:
    """One file of a set. `digest` is of its content; `first_layer` and `last_layer` are a control vector's."""

    kind: Literal["LoRA adapter", "control vector"]
    path: str
    digest: str
    scale: float
    first_layer: int = 0
    last_layer: int = 0

    @property
    def what(self) -> tuple[str, str, int, int]:
        """What it is, whatever its scale and wherever it lies."""
        return (self.kind, self.digest, self.first_layer, self.last_layer)


def key_of(parts: tuple[AdapterPart, ...]) -> str:
    """Tells sets apart by what they do, also in another process: "" for none."""
    return repr(sorted((*part.what, part.scale) for part in parts)) if parts else ""


def set_of(parts: tuple[AdapterPart, ...]) -> AdapterSet:
    """The set as one asks for it."""
    return AdapterSet(
        tuple(LoraAdapter(part.path, part.scale) for part in parts if part.kind == "LoRA adapter"),
        tuple(
            ControlVector(part.path, part.scale, part.first_layer, part.last_layer)
            for part in parts
            if part.kind == "control vector"
        ),
    )


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Overlay:
    """A set of adapters, ready for a context. Two are the same set where they are the same object.

    `lora` are (llama_adapter_lora pointer, scale) pairs; `directions` float32 (n_layer, n_embd) or None: row N is added
    behind layer N, the first row is not used. `chosen` is the set as one asks for it.
    """

    parts: tuple[AdapterPart, ...] = ()
    chosen: AdapterSet = _NONE
    lora: tuple[tuple[Any, float], ...] = ()  # Any: an opaque pointer
    directions: NDArray[np.float32] | None = None


PLAIN = Overlay()
"""The weights as they are."""


def load_lora(model: Model, path: Path) -> Any:
    """Loads a LoRA adapter's tensors beside the model's: an opaque pointer, freed with the model.

    Not while the model decodes. Raises ConfigError where llama.cpp refuses it.
    """
    with captured_log() as log:
        adapter = lib().llama_adapter_lora_init(model.live_pointer(), str(path).encode())
    if not adapter:
        raise ConfigError(
            f"the LoRA adapter {path.name} does not fit this model: {log.reason or 'llama.cpp refuses it'}.",
            hint="Use an adapter made for this model, converted to GGUF.",
            log=log.text,
        )
    return adapter
