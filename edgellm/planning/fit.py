"""Settings that fit: what the user asked for where there is room, and else the least that has to be given up."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from edgellm.errors import ConfigError, OutOfMemory
from edgellm.load_check import WIDE_KV_TYPES
from edgellm.native.context import DEFAULT_CTX_LIMIT, cache_type, settled
from edgellm.planning.adapter_sizes import AdapterSizes
from edgellm.planning.placement import gpu_notes
from edgellm.planning.rehearsal import Rehearsal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from edgellm.models.gguf_info import GGUFInfo
    from edgellm.planning.demand import Demand, Machine
    from edgellm.types import LoadOptions

_SMALLEST_CTX = 1024
_SMALL_UBATCH = 128
_AMPLE = 0.6  # where this share of the room is enough, by an estimate that is high, nobody needs to rehearse


@dataclass(frozen=True, slots=True)
class Fitted:
    """Options with nothing left to choose, what they take, and what was given up to make them fit."""

    options: LoadOptions
    demand: Demand
    notes: tuple[str, ...] = ()


class Fitting:
    """Looks for settings of one model, and of what is loaded beside it, on one machine. Close it: it may hold
    llama.cpp's rehearsals.

    `draft` is the draft model that the options name; their adapters are looked up: raises ConfigError where one is
    missing or made for another model.
    """

    def __init__(
        self, info: GGUFInfo, machine: Machine, options: LoadOptions, *, draft: GGUFInfo | None = None
    ) -> None:
        self.info = info
        self.machine = machine
        self.asked = options
        self._own = Rehearsal(info, sequences=options.n_seq_max)
        self._draft = Rehearsal(draft, sequences=1) if draft is not None else None
        self._adapters = AdapterSizes(info, options)

    @property
    def wanted_ctx(self) -> int:
        """The context there would be with memory enough."""
        return self.asked.n_ctx or min(self.info.context_length or DEFAULT_CTX_LIMIT, DEFAULT_CTX_LIMIT)

    @property
    def has_rope(self) -> bool:
        """The model rotates positions, as far as a rehearsal has told."""
        return self._own.has_rope

    def wanted(self) -> LoadOptions:
        """The options with every choice made as if memory were no matter. Raises ConfigError for a type of no cache."""
        chosen = replace(settled(self.asked), n_ctx=self.wanted_ctx)
        for kind in (chosen.kv_type_k, chosen.kv_type_v):
            cache_type(kind)
        if chosen.cpu_moe == "auto":
            chosen = replace(chosen, cpu_moe=0)
        if chosen.n_gpu_layers == "auto" or not self.machine.gpus:
            chosen = replace(chosen, n_gpu_layers="all" if self.machine.gpus else 0)
        return chosen

    def estimate(self, options: LoadOptions) -> Demand:
        """The demand by arithmetic alone, high in what it cannot know."""
        draft = self._draft.estimate(options.for_draft()) if self._draft is not None else None
        return self._with(self._own.estimate(options), draft, options)

    def demand(self, options: LoadOptions) -> Demand:
        """The demand as llama.cpp rehearses it. Raises ConfigError where it refuses the options."""
        draft = self._draft.demand(options.for_draft()) if self._draft is not None else None
        return self._with(self._own.demand(options), draft, options)

    def _with(self, own: Demand, draft: Demand | None, options: LoadOptions) -> Demand:
        """The model's own demand, and what is loaded beside it."""
        adapters, gpu_adapters = self._adapters.bytes(options)
        return replace(
            own,
            draft_bytes=draft.host_bytes if draft is not None else 0,
            gpu_draft_bytes=draft.gpu_bytes if draft is not None else 0,
            adapter_bytes=adapters,
            gpu_adapter_bytes=gpu_adapters,
        )

    def fit(self) -> Fitted:
        """The best settings that fit. Raises OutOfMemory with the sum where none do."""
        fitted = self._fit()
        return replace(fitted, notes=(*gpu_notes(self.asked, self.machine), *fitted.notes))

    def _fit(self) -> Fitted:
        wanted = self.wanted()
        rough = self.estimate(wanted)
        if self._has_ample_room(rough):
            return Fitted(wanted, rough)
        first = self.demand(wanted)
        if first.fits(self.machine):
            return Fitted(wanted, first)
        smallest: tuple[LoadOptions, Demand] = (wanted, first)
        for options in self._ladder(wanted):
            try:
                demand = self.demand(options)
            except ConfigError:  # a KV type that this model or build does not take
                continue
            placed = (options, demand) if demand.fits(self.machine) else self._on_fewer_layers(options)
            if placed is not None:
                return Fitted(placed[0], placed[1], self._notes(wanted, first, placed[0]))
            if demand.all_bytes < smallest[1].all_bytes:
                smallest = (options, demand)
        raise self._out_of_memory(*smallest)

    def _has_ample_room(self, rough: Demand) -> bool:
        machine = self.machine
        if machine.room_bytes is None:
            return not machine.gpus
        if any(gpu.is_shared for gpu in machine.gpus):
            return rough.all_bytes <= _AMPLE * min(machine.usable_bytes, machine.gpu_usable_bytes)
        if machine.gpus and rough.gpu_bytes > _AMPLE * machine.gpu_usable_bytes:
            return False
        return rough.host_bytes <= _AMPLE * machine.usable_bytes

    # -- what can be given up ----------------------------------------------------------------------------

    def _ladder(self, wanted: LoadOptions) -> Iterator[LoadOptions]:
        """Settings from most to least wanted: batches shrink first, then the KV cache's type, then the context."""
        for n_ctx in self.contexts():
            for kv_type in self._kv_types():
                for n_ubatch in self._ubatches(wanted):
                    yield replace(
                        wanted,
                        n_ctx=n_ctx,
                        n_ubatch=n_ubatch,
                        kv_type_k=wanted.kv_type_k if self.asked.kv_type_k != "auto" else kv_type,
                        kv_type_v=wanted.kv_type_v if self.asked.kv_type_v != "auto" else kv_type,
                    )

    def contexts(self) -> list[int]:
        """Context lengths to try, longest first: the one that was asked for, or halves of what is wanted."""
        found = [self.wanted_ctx]
        while not self.asked.n_ctx and found[-1] // 2 >= _SMALLEST_CTX:
            found.append(found[-1] // 2)
        return found

    def _kv_types(self) -> list[str]:
        is_free = "auto" in (self.asked.kv_type_k, self.asked.kv_type_v)
        if not is_free or not self._own.shape.layers or not self.can_hold("q8_0"):
            return ["f16"]
        return ["f16", "q8_0"]

    def can_hold(self, kind: str) -> bool:
        """Whether the KV caches can be of that type, with the flash attention that was asked for."""
        values = kind if self.asked.flash_attention != "off" else "f16"
        models = [self._own] if self._draft is None else [self._own, self._draft]
        return values == kind and all(model.shape.can_hold(kind, kind) for model in models)

    def _ubatches(self, wanted: LoadOptions) -> list[int]:
        return [wanted.n_ubatch] if self.asked.n_ubatch else [wanted.n_ubatch, _SMALL_UBATCH]

    def _on_fewer_layers(self, options: LoadOptions) -> tuple[LoadOptions, Demand] | None:
        """The same with experts, and then whole layers, left in main memory: as few as it takes."""
        if not self.machine.gpus:
            return None
        steps: list[LoadOptions] = []
        if self.info.experts and self.asked.cpu_moe == "auto":
            steps += [replace(options, cpu_moe=count) for count in range(1, self.info.layers + 1)]
        if self.asked.n_gpu_layers == "auto":
            last = steps[-1] if steps else options
            steps += [replace(last, n_gpu_layers=count) for count in range(self.info.layers, -1, -1)]
        # By arithmetic first (compute memory as rehearsed with all layers); the rehearsal has the last word.
        rough_from = self._estimates_like(options) if steps else self.estimate
        for step in steps:
            if rough_from(step).fits(self.machine):
                demand = self.demand(step)
                if demand.fits(self.machine):
                    return step, demand
        return None

    def _estimates_like(self, options: LoadOptions) -> Callable[[LoadOptions], Demand]:
        """Estimates for other placements, with the GPU's compute memory as it is rehearsed with these options."""
        known = self._own.demand(options).gpu_compute_bytes
        draft = self._draft
        known_draft = draft.demand(options.for_draft()).gpu_compute_bytes if draft is not None else 0

        def estimate(step: LoadOptions) -> Demand:
            own = self._own.estimate(step, gpu_compute_bytes=known)
            beside = (
                draft.estimate(step.for_draft(), gpu_compute_bytes=known_draft) if draft is not None else None
            )
            return self._with(own, beside, step)

        return estimate

    # -- saying so -----------------------------------------------------------------------------------------

    def _notes(self, wanted: LoadOptions, first: Demand, chosen: LoadOptions) -> tuple[str, ...]:
        given_up: list[str] = []
        if chosen.n_ctx != wanted.n_ctx:
            given_up.append(f"a context of {chosen.n_ctx:,} tokens instead of {wanted.n_ctx:,}")
        if (chosen.kv_type_k, chosen.kv_type_v) != (wanted.kv_type_k, wanted.kv_type_v):
            given_up.append(f"a KV cache of {chosen.kv_type_k} instead of {wanted.kv_type_k}")
        if chosen.n_ubatch != wanted.n_ubatch:
            given_up.append(f"prefill in batches of {chosen.n_ubatch} instead of {wanted.n_ubatch}")
        if chosen.cpu_moe != wanted.cpu_moe:
            given_up.append(f"the experts of {chosen.cpu_moe} layers in main memory")
        if chosen.n_gpu_layers != wanted.n_gpu_layers:
            given_up.append(f"{chosen.n_gpu_layers} of {self.info.layers + 1} layers on the GPU")
        why = f"all of it would take {gigabytes(first.all_bytes)}, and {_free(self.machine)}"
        return (f"To fit into memory: {', '.join(given_up)} ({why}).",) if given_up else ()

    def _out_of_memory(self, options: LoadOptions, demand: Demand) -> OutOfMemory:
        machine = self.machine
        weights = demand.weights_bytes + demand.gpu_weights_bytes
        kv = demand.context_bytes
        draft = demand.draft_bytes + demand.gpu_draft_bytes
        adapters = demand.adapter_bytes + demand.gpu_adapter_bytes
        rest = demand.all_bytes - weights - kv - draft - adapters
        beside = f" + {gigabytes(draft)} draft model" if draft else ""
        beside += f" + {gigabytes(adapters)} adapters" if adapters else ""
        smaller = "Take a smaller quantization"
        if self.asked.n_ctx > _SMALLEST_CTX:
            smaller = "Ask for a smaller n_ctx"
            if options.kv_type_k in WIDE_KV_TYPES:
                smaller += " or a smaller KV type (kv_type_k='q8_0')"
        if draft:
            smaller = f"Leave the draft model out, {smaller[0].lower()}{smaller[1:]}"
        return OutOfMemory(
            f"{self.info.path.name} does not fit into memory: {gigabytes(demand.all_bytes)} ="
            f" {gigabytes(weights)} weights + {gigabytes(kv)} context ({options.n_ctx:,} tokens,"
            f" {options.kv_type_k}) + {gigabytes(rest)} buffers{beside}; {available(machine)}.",
            hint=f"{smaller}, close other programs, or insist with fit='off'.",
        )

    def close(self) -> None:
        """Frees the rehearsals. A second call does nothing."""
        self._own.close()
        if self._draft is not None:
            self._draft.close()

    def __enter__(self) -> Fitting:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


def available(machine: Machine) -> str:
    """The memory there is, in words, for a refusal."""
    if machine.room_bytes is None:
        return _free(machine)
    where = "of the cgroup's" if machine.limit_bytes else "of"
    return (
        f"{gigabytes(machine.room_bytes)} {where}"
        f" {gigabytes(machine.limit_bytes or machine.total_bytes)} are available,"
        f" {gigabytes(machine.reserve_bytes)} of them kept free"
    )


def _free(machine: Machine) -> str:
    known = machine.room_bytes is not None
    text = f"{gigabytes(machine.usable_bytes)} are free" if known else "free memory is not known"
    if machine.gpus:
        text += f", {gigabytes(machine.gpu_usable_bytes)} on the GPU"
    return text


def gigabytes(size_bytes: int) -> str:
    """A size in words: "5.37 GB", "98 MB"."""
    return f"{size_bytes / 1e9:,.2f} GB" if size_bytes >= 995_000_000 else f"{size_bytes / 1e6:,.0f} MB"
