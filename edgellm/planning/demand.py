"""What a model with given settings takes of main memory and of each GPU's, and what there is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgellm.machine import memory, usable_cores
from edgellm.planning.placement import layers_on_gpu, placed_weights

if TYPE_CHECKING:
    from edgellm.models.gguf_info import GGUFInfo
    from edgellm.native.dry_run import Buffers
    from edgellm.planning.cache_shape import CacheShape
    from edgellm.types import LoadOptions

_RESERVE_SHARE = 0.05
_RESERVE_MIN, _RESERVE_MAX = 64_000_000, 512_000_000
# llama.cpp keeps each token as text and in a hash table, and each merge; measured on vocabularies of 49k and 262k.
_BYTES_A_TOKEN = 230


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU and its memory. `is_shared`: it is the machine's main memory."""

    name: str
    free_bytes: int
    total_bytes: int
    is_shared: bool = False


@dataclass(frozen=True, slots=True)
class Machine:
    """What there is. `room_bytes` is what this process may still take, None where the system does not say."""

    room_bytes: int | None
    total_bytes: int
    cores: int
    limit_bytes: int = 0
    gpus: tuple[Gpu, ...] = ()

    @property
    def reserve_bytes(self) -> int:
        """What a plan leaves free for everybody else."""
        share = int(_RESERVE_SHARE * (self.limit_bytes or self.total_bytes))
        # Of a small room in a large machine (`ulimit -v`), its own size is the measure.
        return max(_RESERVE_MIN, min(_RESERVE_MAX, share, (self.room_bytes or 0) // 4))

    @property
    def usable_bytes(self) -> int:
        """Main memory that a plan may use; 0 where nobody knows."""
        return max(0, (self.room_bytes or 0) - self.reserve_bytes)

    @property
    def gpu_usable_bytes(self) -> int:
        """Memory of all GPUs that a plan may use."""
        return sum(gpu.free_bytes - min(_RESERVE_MAX, gpu.total_bytes // 20) for gpu in self.gpus)


def this_machine(devices: tuple[str, ...] = ()) -> Machine:
    """This machine as it is now; `devices` are the GPUs that may be used (all of them, where none is named)."""
    from edgellm.native.devices import devices as all_devices

    found = memory()
    gpus = [
        Gpu(one.name, one.free_bytes, one.total_bytes, one.kind == "igpu")
        for one in all_devices()
        if one.kind in ("gpu", "igpu") and (not devices or one.name in devices)
    ]
    if not devices and any(not gpu.is_shared for gpu in gpus):
        gpus = [gpu for gpu in gpus if not gpu.is_shared]  # as llama.cpp chooses
    return Machine(
        found.room_bytes, found.total_bytes, usable_cores(), limit_bytes=found.limit_bytes, gpus=tuple(gpus)
    )


@dataclass(frozen=True, slots=True)
class Demand:
    """Bytes in main memory, part by part, and what lies on GPUs (`gpu_*`).

    `other_bytes` are the vocabulary and the book of the cache's cells. `draft_bytes` is all that a draft model takes,
    `adapter_bytes` all adapters.
    """

    weights_bytes: int
    kv_bytes: int
    state_bytes: int = 0
    compute_bytes: int = 0
    other_bytes: int = 0
    gpu_weights_bytes: int = 0
    gpu_kv_bytes: int = 0
    gpu_state_bytes: int = 0
    gpu_compute_bytes: int = 0
    draft_bytes: int = 0
    gpu_draft_bytes: int = 0
    adapter_bytes: int = 0
    gpu_adapter_bytes: int = 0

    @property
    def host_bytes(self) -> int:
        """All of it in main memory."""
        own = self.weights_bytes + self.kv_bytes + self.state_bytes + self.compute_bytes + self.other_bytes
        return own + self.draft_bytes + self.adapter_bytes

    @property
    def gpu_bytes(self) -> int:
        """All of it on GPUs."""
        own = self.gpu_weights_bytes + self.gpu_kv_bytes + self.gpu_state_bytes + self.gpu_compute_bytes
        return own + self.gpu_draft_bytes + self.gpu_adapter_bytes

    @property
    def context_bytes(self) -> int:
        """Keys, values and recurrent state, wherever they are."""
        return self.kv_bytes + self.state_bytes + self.gpu_kv_bytes + self.gpu_state_bytes

    @property
    def all_bytes(self) -> int:
        """Everything."""
        return self.host_bytes + self.gpu_bytes

    def fits(self, machine: Machine) -> bool:
        """True where there is room, or where the system does not say how much there is."""
        on_host, on_gpu = self.host_bytes, self.gpu_bytes
        if any(gpu.is_shared for gpu in machine.gpus):
            on_host += on_gpu
        if on_gpu and on_gpu > machine.gpu_usable_bytes:
            return False
        return machine.room_bytes is None or on_host <= machine.usable_bytes


def measure_demand(
    info: GGUFInfo, shape: CacheShape, options: LoadOptions, buffers: Buffers | None, *, sequences: int
) -> Demand:
    """The demand of settled options. Without `buffers` (llama.cpp's rehearsal), compute memory is estimated, high."""
    gpu_layers = layers_on_gpu(info, options)
    host, on_gpu = placed_weights(info, options)
    window_cells = _window_cells(shape, options, sequences)
    kv = shape.kv_bytes(options.n_ctx, options.kv_type_k, options.kv_type_v, window_cells=window_cells)
    state = shape.state_bytes(sequences)
    if buffers is not None and buffers.kv_bytes:
        kv = buffers.kv_bytes
    if buffers is not None and buffers.state_bytes:
        state = buffers.state_bytes
    kept = min(max(0, gpu_layers - 1), info.layers)
    gpu_share = kept / info.layers if info.layers else 0.0
    gpu_kv, gpu_state = int(kv * gpu_share), int(state * gpu_share)
    compute, gpu_compute = _compute(info, options, buffers)
    outputs = buffers.output_bytes if buffers is not None else 4 * info.tokenizer.vocabulary_size * sequences
    return Demand(
        weights_bytes=host,
        kv_bytes=kv - gpu_kv,
        state_bytes=state - gpu_state,
        compute_bytes=compute + outputs,
        other_bytes=_BYTES_A_TOKEN * info.tokenizer.vocabulary_size
        + shape.cells_bytes(options.n_ctx, window_cells=window_cells),
        gpu_weights_bytes=on_gpu,
        gpu_kv_bytes=gpu_kv,
        gpu_state_bytes=gpu_state,
        # Also without a layer there, large batches are computed on the GPU: the rehearsal knows.
        gpu_compute_bytes=gpu_compute if gpu_layers or buffers is not None else 0,
    )


def _window_cells(shape: CacheShape, options: LoadOptions, sequences: int) -> int | None:
    # One window for each sequence, since all share the cells, and a batch on top.
    return None if options.swa_full else shape.window * sequences + options.n_ubatch


def _compute(info: GGUFInfo, options: LoadOptions, buffers: Buffers | None) -> tuple[int, int]:
    """(main memory, GPU) bytes of compute buffers."""
    if buffers is None:
        size = rough_compute_bytes(info, options)
        return size, size
    host = sum(
        size for name, size in buffers.compute_bytes.items() if name.startswith("CPU") or "Host" in name
    )
    return host, sum(buffers.compute_bytes.values()) - host


def rough_compute_bytes(info: GGUFInfo, options: LoadOptions) -> int:
    """More than a compute buffer takes: logits of a whole batch, mask, and activations."""
    rows = min(options.n_ubatch, options.n_ctx)
    feed_forward = info.metadata.get(f"{info.architecture}.feed_forward_length", 0)
    if isinstance(feed_forward, tuple):
        feed_forward = max((size for size in feed_forward if isinstance(size, int)), default=0)
    width = 8 * info.embedding_length + 3 * (feed_forward if isinstance(feed_forward, int) else 0)
    scores = options.n_ctx * (info.heads if options.flash_attention == "off" else 1)
    return 4 * rows * (info.tokenizer.vocabulary_size + width + scores)
