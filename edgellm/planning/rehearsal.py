"""One model's demand: by arithmetic, or as llama.cpp rehearses it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from edgellm.planning.cache_shape import cache_shape
from edgellm.planning.demand import Demand, measure_demand

if TYPE_CHECKING:
    from edgellm.models.gguf_info import GGUFInfo
    from edgellm.native.dry_run import DryRun
    from edgellm.types import LoadOptions


# A rehearsal reserves no keys and values, but it does make the book of the cells: of a context that long, which hardly
# any memory holds, the sum is enough.
_MOST_CELLS_BYTES = 64_000_000


class Rehearsal:
    """Tells what one model takes, without what is loaded beside it. Close it: it may hold llama.cpp's rehearsal.

    `sequences` 0 means as many as there are by default.
    """

    def __init__(self, info: GGUFInfo, *, sequences: int = 0) -> None:
        self.info = info
        self.shape = cache_shape(info)
        self.sequences = sequences or (4 if self.shape.state_values > 0 else 16)
        self._dry_run: DryRun | None = None
        self._placement: tuple[object, ...] = ()

    def estimate(self, options: LoadOptions, *, gpu_compute_bytes: int | None = None) -> Demand:
        """The demand by arithmetic alone, high in what it cannot know. `gpu_compute_bytes` is known for the GPU from
        a rehearsal with other layers there."""
        rough = measure_demand(self.info, self.shape, options, None, sequences=self.sequences)
        if gpu_compute_bytes is None:
            return rough
        return replace(rough, gpu_compute_bytes=gpu_compute_bytes if rough.gpu_bytes else 0)

    def demand(self, options: LoadOptions) -> Demand:
        """The demand as llama.cpp rehearses it; of a context of more than a million tokens, the estimate.

        Raises ConfigError where it refuses the options.
        """
        if self.shape.cells_bytes(options.n_ctx) > _MOST_CELLS_BYTES:
            return self.estimate(options)
        from edgellm.native.dry_run import DryRun

        placement = (
            options.n_gpu_layers,
            options.cpu_moe,
            options.override_tensors,
            options.devices,
            options.tensor_split,
        )
        if self._dry_run is None or placement != self._placement:
            self.close()
            self._dry_run = DryRun(self.info.path, replace(options, lora=(), control_vectors=()))
            self._placement = placement
        buffers = self._dry_run.buffers(options)
        return measure_demand(self.info, self.shape, options, buffers, sequences=self.sequences)

    @property
    def has_rope(self) -> bool:
        """Positions are rotated, as far as a rehearsal has told: they can be stretched to a longer context."""
        return self._dry_run is None or self._dry_run.has_rope

    def close(self) -> None:
        """Frees llama.cpp's rehearsal. A second call does nothing."""
        if self._dry_run is not None:
            self._dry_run.close()
            self._dry_run = None
