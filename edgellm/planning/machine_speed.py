"""How fast a machine's processors are, each as it was measured, and the speed of a model that lies on several."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from edgellm.errors import EdgeError
from edgellm.planning.calibration import Threads, calibrate, known_calibration
from edgellm.planning.placement import is_on_gpu, layers_on_gpu, read_weights
from edgellm.planning.speed import Part, main_types, predict

if TYPE_CHECKING:
    from edgellm.models.gguf_info import GGUFInfo
    from edgellm.planning.calibration import Calibration
    from edgellm.planning.demand import Demand, Machine
    from edgellm.planning.speed import Speed
    from edgellm.types import LoadOptions


@dataclass(frozen=True, slots=True)
class MachineSpeed:
    """What was measured. `cpu` is None where the processor was not; `gpus` has those that were, by name.

    `gaps` says in a sentence each what is not known, and why.
    """

    cpu: Calibration | None
    gpus: dict[str, Calibration] = field(default_factory=dict["str", "Calibration"])
    gaps: tuple[str, ...] = ()

    @property
    def others_cores(self) -> float:
        """Cores that other programs used while this was measured, the most of all; 0 where that is of no account."""
        found = [*([self.cpu] if self.cpu is not None else []), *self.gpus.values()]
        return max((one.others_cores for one in found if one.is_disturbed), default=0.0)

    def speed(self, info: GGUFInfo, options: LoadOptions, demand: Demand, machine: Machine) -> Speed | None:
        """The speed to expect of settled options that take `demand`; None where a part of it is not known."""
        on_cpu, on_gpu = read_weights(info, options)
        layers = range(info.layers)
        there = sum(is_on_gpu(info, options, layer) for layer in layers)
        # A layer whose experts stay at home is computed in both places.
        here = sum(not is_on_gpu(info, options, layer, is_expert=bool(info.experts)) for layer in layers)
        parts: list[Part] = []
        if on_cpu or not on_gpu:
            if self.cpu is None:
                return None
            parts.append(Part(self.cpu, here, on_cpu, demand.kv_bytes))
        if not layers_on_gpu(info, options):
            return predict(info, parts)
        if options.override_tensors or not machine.gpus:
            return None
        for name, share in _shares(options, machine):
            if name not in self.gpus:
                return None
            parts.append(Part(self.gpus[name], there * share, on_gpu * share, demand.gpu_kv_bytes * share))
        return predict(info, parts)


def measured_speed(
    info: GGUFInfo,
    options: LoadOptions,
    machine: Machine,
    *,
    is_measured: bool = True,
    is_measured_again: bool = False,
) -> MachineSpeed:
    """The machine's speed for this model's weights, with the threads that the options name. `is_measured` measures what
    is not known yet, `is_measured_again` all of it; a GPU that cannot be measured is one of the gaps. Raises EdgeError
    where the processor cannot."""
    is_measured = is_measured or is_measured_again
    threads = Threads.of(options)
    types = main_types(info)
    gaps: list[str] = []
    if is_measured:
        cpu = calibrate(types, threads=threads, is_anew=is_measured_again)
    else:
        cpu = known_calibration(threads=threads)
    if cpu is None:
        count = f" with {threads.decode} threads" if options.threads else ""
        gaps.append(f"The processor has not been measured{count} yet.")
    elif not set(info.quantization) & set(cpu.types):
        gaps.append("No type of this model's weights has been measured on the processor.")
    gpus: dict[str, Calibration] = {}
    for gpu in machine.gpus:
        try:
            found = (
                calibrate(types, gpu.name, is_anew=is_measured_again)
                if is_measured
                else known_calibration(gpu.name)
            )
        except EdgeError as error:
            gaps.append(f"{gpu.name} cannot be measured: {error.message}")
            continue
        if found is None:
            gaps.append(f"{gpu.name} has not been measured yet.")
        elif not set(info.quantization) & set(found.types):
            gaps.append(f"{gpu.name} cannot be measured with this model's types of weights.")
        else:
            gpus[gpu.name] = found
    if machine.gpus and options.override_tensors:
        gaps.append("Where override_tensors puts tensors is not looked at: no speed with layers on a GPU.")
    return MachineSpeed(cpu, gpus, tuple(gaps))


def _shares(options: LoadOptions, machine: Machine) -> list[tuple[str, float]]:
    """(name, share of the layers) of each GPU: as `tensor_split` says, else by free memory, as llama.cpp does."""
    weights = [float(gpu.free_bytes) for gpu in machine.gpus]
    if options.tensor_split:
        given = (*options.tensor_split, *([0.0] * len(weights)))
        weights = list(given[: len(weights)])
    total = sum(weights)
    if not total:
        return [(gpu.name, 1 / len(weights)) for gpu in machine.gpus]
    return [(gpu.name, weight / total) for gpu, weight in zip(machine.gpus, weights, strict=True) if weight]
