"""Files that are laid over a model's weights: LoRA adapters and control vectors, as llama.cpp writes them in GGUF."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from edgellm.errors import ConfigError, EdgeError
from edgellm.models.gguf_file import GGUFFile, read_gguf
from edgellm.types import ControlVector

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

    from edgellm.types import LoraAdapter

AdapterKind = Literal["LoRA adapter", "control vector"]

_DIRECTION = "direction."
_DIGEST_BYTES = 16


@dataclass(frozen=True, slots=True)
class AdapterFile:
    """The header of one, checked. `architecture` is the model's that it was made for, "" where it does not say."""

    kind: AdapterKind
    path: Path
    architecture: str
    header: GGUFFile

    def digest(self) -> str:
        """Tells one file's content from another's."""
        found = hashlib.blake2b(digest_size=_DIGEST_BYTES)
        with self.path.open("rb") as file:
            while part := file.read(1 << 20):
                found.update(part)
        return found.hexdigest()

    def check_architecture(self, architecture: str) -> None:
        """Raises ConfigError where it was made for a model of another architecture."""
        if self.architecture and self.architecture != architecture:
            raise ConfigError(
                f"the {self.kind} {self.path.name} was made for a {self.architecture} model, "
                f"this one is {architecture}.",
                hint=f"Use a {self.kind} made for this model.",
            )


def read_adapter(path: str | Path, kind: AdapterKind) -> AdapterFile:
    """The header of an adapter file. Raises ConfigError where it is missing, damaged or something else."""
    path = Path(path).expanduser()
    if not path.is_file():
        raise ConfigError(f"there is no {kind} at {path}.", hint="Check the path.")
    path = path.absolute()
    try:
        header = read_gguf(path)
    except EdgeError as error:
        raise _no_adapter(path, kind, str(error)) from error
    metadata = header.metadata
    if kind == "control vector":
        if not any(tensor.name.startswith(_DIRECTION) for tensor in header.tensors):
            raise _no_adapter(path, kind, "it has no direction tensors")
        # controlvector.model_hint is in other libraries' words now and then: the sizes tell what does not fit.
        architecture = ""
    else:
        # llama.cpp ends the process over keys of another type than it expects.
        if metadata.get("general.type") != "adapter" or metadata.get("adapter.type") != "lora":
            raise _no_adapter(path, kind, 'general.type "adapter" and adapter.type "lora" are not there')
        if not isinstance(metadata.get("adapter.lora.alpha", 0.0), float):
            raise _no_adapter(path, kind, "adapter.lora.alpha is not a number with a fraction")
        if "adapter.alora.invocation_tokens" in header.array_lengths:
            raise ConfigError(
                f"{path.name} is an activated LoRA: it holds from its invocation tokens on only.",
                hint="Use a plain LoRA adapter; those hold for all of a chat.",
            )
        architecture = metadata.get("general.architecture", "")
    return AdapterFile(kind, path, str(architecture), header)


def check_use(one: LoraAdapter | ControlVector, layers: int) -> None:
    """Raises ConfigError for a scale that is no number, and for layers that a model of so many does not have."""
    if not math.isfinite(one.scale):
        raise ConfigError(f"the scale of {one.path} is {one.scale}.", hint="Give a number.")
    last = layers - 1
    if isinstance(one, ControlVector) and not 1 <= one.first_layer <= (one.last_layer or last) <= last:
        raise ConfigError(
            f"there are no layers {one.first_layer} to {one.last_layer or last} for {Path(one.path).name}.",
            hint=f"Give a first and a last layer from 1 to {last}.",
        )


def check_matrices(file: AdapterFile, weights: Mapping[str, tuple[int, ...]]) -> None:
    """Raises ConfigError where a LoRA's matrices do not fit a model with weights of these shapes (the input dimension
    first), as llama.cpp would when it loads them."""
    found = {tensor.name: (*tensor.shape, 1) for tensor in file.header.tensors}  # at least two
    for name, a in found.items():
        weight, suffix = name.removesuffix(".lora_a"), ".lora_b"
        b = found.get(weight + suffix)
        if weight == name or b is None:
            continue
        shape = weights.get(weight)
        why = f"it has no {weight}"
        if shape is not None:
            why = f"{weight} is {_by(shape)}, the matrices are {_by(a[:2])} and {_by(b[:2])}"
            # The input table is read row by row: there the matrices lie the other way round.
            is_table = weight == "token_embd.weight"
            inner = (b[1], a[1]) if is_table else (a[0], b[1])
            if inner == (*shape, 1)[:2] and (is_table or a[1] == b[0]):
                continue
        raise ConfigError(
            f"the LoRA adapter {file.path.name} does not fit this model: {why}.",
            hint="Use an adapter made for this model, converted to GGUF.",
        )


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def adapter_kind(path: str | Path) -> AdapterKind:
    """What a file is by its tensors; a LoRA adapter where it is neither: `read_adapter` then says what is wrong."""
    path = Path(path).expanduser()
    try:
        tensors = read_gguf(path).tensors if path.is_file() else ()
    except EdgeError:
        tensors = ()
    is_vector = any(tensor.name.startswith(_DIRECTION) for tensor in tensors)
    return "control vector" if is_vector else "LoRA adapter"


def read_directions(file: AdapterFile, n_layer: int, n_embd: int) -> NDArray[np.float32]:
    """What a control vector adds, float32 (n_layer, n_embd): row N is added behind layer N, counted from 0.

    Layer 0 has none. Raises ConfigError where it was made for a model of other sizes.
    """
    import numpy as np

    directions = np.zeros((n_layer, n_embd), dtype=np.float32)
    for tensor in file.header.tensors:
        layer = tensor.name.removeprefix(_DIRECTION)
        if not tensor.name.startswith(_DIRECTION) or not layer.isdecimal():
            raise _no_adapter(file.path, file.kind, f"the tensor {tensor.name!r} is no direction")
        if tensor.type != "F32" or len([size for size in tensor.shape if size != 1]) > 1:
            raise _no_adapter(file.path, file.kind, f"{tensor.name!r} is not one row of F32 values")
        if not 1 <= int(layer) < n_layer or tensor.parameters != n_embd:
            raise ConfigError(
                f"the control vector {file.path.name} does not fit this model: {tensor.name} has {tensor.parameters} "
                f"values; the model has layers 1 to {n_layer - 1} of {n_embd}.",
                hint="Use a control vector made for this model.",
            )
        offset = file.header.data_start + tensor.offset
        directions[int(layer)] = np.fromfile(file.path, dtype="<f4", count=n_embd, offset=offset)
    return directions


def _no_adapter(path: Path, kind: AdapterKind, why: str) -> ConfigError:
    return ConfigError(
        f"{path} is no {kind}: {why.rstrip('.')}.",
        hint=f"Give a {kind} in GGUF"
        + (" (llama.cpp's convert_lora_to_gguf.py makes one)." if kind == "LoRA adapter" else "."),
    )
