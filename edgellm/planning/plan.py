"""A plan: what a model takes on this machine, setting by setting, and what would be chosen."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from edgellm.errors import ConfigError, OutOfMemory
from edgellm.models.rope_scaling import stretched
from edgellm.planning.demand import this_machine
from edgellm.planning.fit import Fitted, Fitting
from edgellm.planning.machine_speed import measured_speed

if TYPE_CHECKING:
    from edgellm.models.gguf_info import GGUFInfo
    from edgellm.planning.calibration import Calibration
    from edgellm.planning.demand import Demand, Machine
    from edgellm.planning.machine_speed import MachineSpeed
    from edgellm.planning.speed import Speed
    from edgellm.types import LoadOptions

_KV_TYPES = ("f16", "q8_0", "q4_0")
_MOST_CONTEXTS = 5
_SMALLEST_CTX = 512
Q4_WITH_TOOLS = (
    "A KV cache of 4 bits garbles tool calls (names and arguments are copied from the context): take q8_0 or f16"
    " where tools are used."
)
_COARSE = ("q4_0", "q4_1")


@dataclass(frozen=True, slots=True)
class PlanRow:
    """One setting: what it takes, whether that fits, and the speed to expect (None: see `Plan.gaps`).

    `kv_type` names two where keys and values have different ones: "q8_0/f16".
    """

    n_ctx: int
    kv_type: str
    gpu_layers: int
    host_bytes: int
    gpu_bytes: int
    kv_bytes: int
    compute_bytes: int
    fits: bool
    speed: Speed | None


@dataclass(frozen=True, slots=True)
class Plan:
    """`options` are what `load` would take, `demand` what they take, `notes` what was given up for it and why.

    `refusal` says why nothing fits, "" where something does; then options and demand are those that were asked for.
    `calibration` is the processor's, `gpu_calibrations` those of GPUs by name; `gaps` says which speeds are not known,
    and why.
    """

    model: str
    architecture: str
    machine: Machine
    options: LoadOptions
    demand: Demand
    notes: tuple[str, ...]
    refusal: str
    speed: Speed | None
    calibration: Calibration | None
    rows: tuple[PlanRow, ...]
    gpu_calibrations: dict[str, Calibration] = field(default_factory=dict["str", "Calibration"])
    gaps: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        """Some setting fits."""
        return not self.refusal

    @property
    def kv_type(self) -> str:
        """The type of the KV cache that would be chosen, as its row in the table has it."""
        return _kv_words(self.options)

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON values."""
        demand = asdict(self.demand)
        demand |= {"host_bytes": self.demand.host_bytes, "gpu_bytes": self.demand.gpu_bytes}
        return {**asdict(self), "fits": self.fits, "demand": demand}


def fit_options(
    info: GGUFInfo,
    options: LoadOptions,
    *,
    draft: GGUFInfo | None = None,
    machine: Machine | None = None,
) -> Fitted:
    """Options with nothing left to choose, such that they fit this machine together with the draft model and the
    adapters they name. Raises OutOfMemory with the sum, ConfigError."""
    with Fitting(info, machine or this_machine(options.devices), options, draft=draft) as fitting:
        return fitting.fit()


def _kv_words(options: LoadOptions) -> str:
    """The type of the KV cache, "q8_0", or both of them: "q8_0/f16"."""
    key, value = options.kv_type_k, options.kv_type_v
    return key if key == value else f"{key}/{value}"


def settings_warning(options: LoadOptions, *, has_tools: bool) -> str:
    """What is unwise about settings that the user chose; empty where nothing is."""
    return Q4_WITH_TOOLS if has_tools and {options.kv_type_k, options.kv_type_v} & set(_COARSE) else ""


def make_plan(
    info: GGUFInfo,
    options: LoadOptions,
    *,
    draft: GGUFInfo | None = None,
    model: str = "",
    machine: Machine | None = None,
    is_measured: bool = True,
    is_measured_again: bool = False,
    has_tools: bool = False,
) -> Plan:
    """The whole plan. `draft` is the draft model that the options name.

    `is_measured` takes two seconds to measure this machine, and each GPU, where that has not been done yet;
    `is_measured_again` where it has been done as well.

    Raises ModelUnsupported, ConfigError.
    """
    machine = machine or this_machine(options.devices)
    speeds = measured_speed(
        info, options, machine, is_measured=is_measured, is_measured_again=is_measured_again
    )
    with Fitting(info, machine, options, draft=draft) as fitting:
        refusal = ""
        try:
            fitted = fitting.fit()
        except OutOfMemory as error:
            refusal = str(error)
            fitted = Fitted(fitting.wanted(), fitting.demand(fitting.wanted()))
        else:
            # What is printed is the rehearsal's, also where an estimate was enough to decide.
            demand = fitting.demand(fitted.options)
            options, told = stretched(info, fitted.options, has_rope=fitting.has_rope)
            fitted = replace(fitted, options=options, demand=demand, notes=(*fitted.notes, *told))
        rows = tuple(_rows(fitting, fitted.options, speeds))
    warning = settings_warning(fitted.options, has_tools=has_tools)
    notes = [*fitted.notes, *([warning] if warning else ())]
    cpu = speeds.cpu
    fastest = cpu.fastest_threads if cpu is not None and not cpu.is_disturbed else 0
    if not options.threads and 0 < fastest < machine.cores:
        # Advice, not a choice: a neighbour that was hardly seen in the measurement would halve every later answer.
        count = "1 thread decodes" if fastest == 1 else f"{fastest} threads decode"
        notes.append(f"Measured here, {count} fastest: consider --threads {fastest}.")
    if speeds.others_cores:
        notes.append(
            f"Other programs used {speeds.others_cores:.1f} cores while this machine was measured: it may be faster."
            " Measure again when they do not: edgellm plan --measure-again."
        )
    return Plan(
        model=model or info.path.name,
        architecture=info.architecture,
        machine=machine,
        options=fitted.options,
        demand=fitted.demand,
        notes=tuple(notes),
        refusal=refusal,
        speed=speeds.speed(info, fitted.options, fitted.demand, machine),
        calibration=cpu,
        rows=rows,
        gpu_calibrations=speeds.gpus,
        gaps=speeds.gaps,
    )


def _rows(fitting: Fitting, chosen: LoadOptions, speeds: MachineSpeed) -> list[PlanRow]:
    rows: list[PlanRow] = []
    kv_types = [(kind, kind) for kind in _KV_TYPES if fitting.can_hold(kind)]
    if (chosen.kv_type_k, chosen.kv_type_v) not in kv_types:
        kv_types.append((chosen.kv_type_k, chosen.kv_type_v))
    # By layers first: each number of them is a rehearsal of its own, each context on it a matter of milliseconds.
    for layers in _layer_counts(fitting, chosen):
        for n_ctx in _contexts(fitting, chosen.n_ctx):
            for key, value in kv_types:
                options = replace(chosen, n_ctx=n_ctx, kv_type_k=key, kv_type_v=value, n_gpu_layers=layers)
                try:
                    demand = fitting.demand(options)
                except ConfigError:  # this build or model does not take that type
                    continue
                rows.append(
                    PlanRow(
                        n_ctx=n_ctx,
                        kv_type=_kv_words(options),
                        gpu_layers=layers,
                        host_bytes=demand.host_bytes,
                        gpu_bytes=demand.gpu_bytes,
                        kv_bytes=demand.context_bytes,
                        compute_bytes=demand.compute_bytes + demand.gpu_compute_bytes,
                        fits=demand.fits(fitting.machine),
                        speed=speeds.speed(fitting.info, options, demand, fitting.machine),
                    )
                )
    return rows


def _contexts(fitting: Fitting, chosen: int) -> list[int]:
    """The chosen context, the wanted one and halves of it, and the model's whole length where that is longer."""
    wanted = fitting.wanted_ctx
    longest = max(wanted, fitting.info.context_length)
    found = {chosen, wanted, longest}
    size = longest
    while len(found) < _MOST_CONTEXTS and size // 2 >= _SMALLEST_CTX:
        size //= 2 if size <= 4 * wanted else 4
        found.add(size)
    return sorted(found)


def _layer_counts(fitting: Fitting, chosen: LoadOptions) -> list[int]:
    if not fitting.machine.gpus:
        return [0]
    every = fitting.info.layers + 1
    count = chosen.n_gpu_layers
    return sorted({0, every // 2, every, every if isinstance(count, str) else min(count, every)})
