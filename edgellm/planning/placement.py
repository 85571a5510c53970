"""Where a model's weights lie: in main memory, or on a GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgellm.models.gguf_info import GGUFInfo
    from edgellm.planning.demand import Machine
    from edgellm.types import LoadOptions


def placed_weights(info: GGUFInfo, options: LoadOptions) -> tuple[int, int]:
    """(main memory, GPU) bytes of weights."""
    weights = info.weights
    host, gpu = _summed(info, options, experts_share=1.0)
    host += weights.embedding
    if weights.is_tied and is_on_gpu(info, options, info.layers):
        gpu += weights.embedding  # the output has a copy of its own there
    return int(host), int(gpu)


def read_weights(info: GGUFInfo, options: LoadOptions) -> tuple[float, float]:
    """(main memory, GPU) bytes of weights that one token reads: of the input table no more than a row, unless the
    output is made with it, and of the experts those that are used."""
    share = info.experts_used / info.experts if info.experts else 1.0
    host, gpu = _summed(info, options, experts_share=share)
    tied = info.weights.embedding if info.weights.is_tied else 0
    return (host, gpu + tied) if is_on_gpu(info, options, info.layers) else (host + tied, gpu)


def _summed(info: GGUFInfo, options: LoadOptions, *, experts_share: float) -> tuple[float, float]:
    """(main memory, GPU) bytes of all but the input table."""
    weights, sizes = info.weights, [0.0, 0.0]
    for layer, (size, experts) in enumerate(zip(weights.layers, weights.experts, strict=True)):
        sizes[is_on_gpu(info, options, layer)] += size - experts
        sizes[is_on_gpu(info, options, layer, is_expert=True)] += experts * experts_share
    sizes[is_on_gpu(info, options, info.layers)] += weights.rest
    return sizes[0], sizes[1]


def is_on_gpu(info: GGUFInfo, options: LoadOptions, layer: int, *, is_expert: bool = False) -> bool:
    """Whether a layer (counted from 0; the output is the one behind the last), or its experts, lie on a GPU."""
    count = layers_on_gpu(info, options)
    if is_expert and layer < _layers_with_experts_at_home(info, options):
        return False
    # llama.cpp fills the GPU from the last layer on.
    return count > 0 and layer >= info.layers + 1 - count


def layers_on_gpu(info: GGUFInfo, options: LoadOptions) -> int:
    """How many layers go to a GPU, the output as one of them; "auto" and "all" mean all."""
    count = options.n_gpu_layers
    return info.layers + 1 if isinstance(count, str) or count < 0 else min(count, info.layers + 1)


def gpu_notes(options: LoadOptions, machine: Machine) -> tuple[str, ...]:
    """What to tell where layers are meant for a GPU and there is none."""
    count = options.n_gpu_layers
    if machine.gpus or count in (0, "auto"):
        return ()
    layers = "all layers" if count == "all" else "1 layer" if count == 1 else f"{count} layers"
    return (f"This llama.cpp has no GPU for {layers} to lie on: the processor computes them.",)


def _layers_with_experts_at_home(info: GGUFInfo, options: LoadOptions) -> int:
    moved = options.cpu_moe
    return info.layers if moved == "all" else 0 if moved == "auto" else moved
