"""Tokens a second to expect: of the processor, of a GPU, and of layers on both."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from cli_harness import cli
from tiny_models import Shape

from edgellm.models.gguf_info import GGUFInfo, inspect_gguf
from edgellm.native.devices import Device
from edgellm.planning.calibration import Calibration, Threads, TypeSpeed, calibrate, known_calibration
from edgellm.planning.demand import Demand, Gpu, Machine
from edgellm.planning.fit import Fitting
from edgellm.planning.machine_speed import MachineSpeed
from edgellm.planning.placement import placed_weights, read_weights
from edgellm.planning.plan import make_plan
from edgellm.planning.speed import Part, Speed, active_share, predict
from edgellm.types import LoadOptions

SHAPE = Shape(n_layer=8, n_embd=128, head_dim=32, n_head_kv=4)
CPU = Calibration(2, 1e-5, {"F32": TypeSpeed(10e9, 1e11)})
GPU = Calibration(2, 2e-6, {"F32": TypeSpeed(200e9, 5e12)})
MACHINE = Machine(8 << 30, 16 << 30, 2, gpus=(Gpu("Stub0", 4 << 30, 4 << 30),))
DEVICES = [
    Device("CPU", "a processor", "cpu", 8 << 30, 16 << 30),
    Device("Stub0", "a stub", "gpu", 4 << 30, 4 << 30),
]


@pytest.fixture
def info(tiny_model: Callable[..., Path]) -> GGUFInfo:
    return inspect_gguf(tiny_model("llama", n_ctx=8192, shape=SHAPE))


@pytest.fixture
def stub_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgellm.native.devices.devices", lambda: DEVICES)


def speed_of(info: GGUFInfo, options: LoadOptions, speeds: MachineSpeed, machine: Machine) -> Speed | None:
    with Fitting(info, machine, options) as fitting:
        demand: Demand = fitting.estimate(options)
    return speeds.speed(info, options, demand, machine)


def test_speed_follows_bytes_and_bandwidth(info: GGUFInfo, tiny_model: Callable[..., Path]) -> None:
    slow = Calibration(2, 0.0, {"F32": TypeSpeed(1e9, 1e9)})
    size = sum(info.quantization.values())
    read = size - info.weights.embedding
    speed = predict(info, [Part(slow, info.layers, read, 0)])
    assert speed is not None
    assert speed.decode_tok_s == pytest.approx(1e9 / read, rel=1e-6)
    full = predict(info, [Part(slow, info.layers, read, size)])
    assert full is not None and full.decode_full_tok_s < full.decode_tok_s == speed.decode_tok_s
    assert full.decode_full_tok_s == pytest.approx(1e9 / (read + size), rel=1e-6)
    assert predict(info, [Part(Calibration(2, 0.0, {}), info.layers, read, 0)]) is None
    moe = inspect_gguf(tiny_model("moe"))
    unread = moe.weights.embedding + sum(moe.weights.experts) / 2
    assert active_share(moe) == pytest.approx(1 - unread / sum(moe.quantization.values()))


def test_the_times_of_both_places_add_up(info: GGUFInfo) -> None:
    speeds = MachineSpeed(CPU, {"Stub0": GPU})
    options = LoadOptions(n_ctx=8192, n_ubatch=512, kv_type_k="f16", kv_type_v="f16")
    half = replace(options, n_gpu_layers=5)  # four of eight layers, and the output
    found = speed_of(info, half, speeds, MACHINE)
    assert found is not None
    weights = info.weights
    host, gpu = sum(weights.layers[:4]), sum(weights.layers[4:]) + weights.rest
    seconds = host / 10e9 + 4 * 1e-5 + gpu / 200e9 + 4 * 2e-6
    assert 1 / found.decode_tok_s == pytest.approx(seconds, rel=1e-6)
    kv = 2 * 2 * 4 * 4 * 32 * 8192  # of four layers
    assert 1 / found.decode_full_tok_s == pytest.approx(seconds + kv / 10e9 + kv / 200e9, rel=1e-6)
    macs = sum(info.quantization.values()) / 4 - weights.embedding / 4
    batch_s = macs * (host / (host + gpu) / 1e11 + gpu / (host + gpu) / 5e12) + 4 * (1e-5 + 2e-6) / 128
    assert 1 / found.prefill_tok_s == pytest.approx(batch_s, rel=1e-3)
    none, every = (
        speed_of(info, replace(options, n_gpu_layers=count), speeds, MACHINE) for count in (0, "all")
    )
    assert none is not None and every is not None
    assert none.decode_tok_s < found.decode_tok_s < every.decode_tok_s


def test_all_layers_on_the_gpu_need_no_processor(info: GGUFInfo) -> None:
    options = LoadOptions(n_ctx=512, n_ubatch=128, kv_type_k="f16", kv_type_v="f16", n_gpu_layers="all")
    found = speed_of(info, options, MachineSpeed(None, {"Stub0": GPU}), MACHINE)
    assert found is not None
    read = sum(info.weights.layers) + info.weights.rest
    assert 1 / found.decode_tok_s == pytest.approx(read / 200e9 + 8 * 2e-6, rel=1e-6)
    assert (
        speed_of(info, replace(options, n_gpu_layers=3), MachineSpeed(None, {"Stub0": GPU}), MACHINE) is None
    )


def test_several_gpus_have_their_shares(info: GGUFInfo) -> None:
    two = replace(MACHINE, gpus=(Gpu("Stub0", 3 << 30, 4 << 30), Gpu("Stub1", 1 << 30, 4 << 30)))
    slow = Calibration(2, 0.0, {"F32": TypeSpeed(50e9, 1e12)})
    fast = Calibration(2, 0.0, {"F32": TypeSpeed(200e9, 1e12)})
    speeds = MachineSpeed(None, {"Stub0": fast, "Stub1": slow})
    options = LoadOptions(n_ctx=512, n_ubatch=128, kv_type_k="f16", kv_type_v="f16", n_gpu_layers="all")
    read = sum(info.weights.layers) + info.weights.rest
    found = speed_of(info, options, speeds, two)
    assert found is not None
    assert 1 / found.decode_tok_s == pytest.approx(read * (0.75 / 200e9 + 0.25 / 50e9), rel=1e-6)
    even = speed_of(info, replace(options, tensor_split=(1.0, 1.0)), speeds, two)
    assert even is not None
    assert 1 / even.decode_tok_s == pytest.approx(read * (0.5 / 200e9 + 0.5 / 50e9), rel=1e-6)
    assert speed_of(info, options, MachineSpeed(CPU, {"Stub0": fast}), two) is None
    one = speed_of(info, replace(options, tensor_split=(1.0, 0.0)), MachineSpeed(CPU, {"Stub0": fast}), two)
    assert one is not None


def test_experts_at_home_are_read_there(tiny_model: Callable[..., Path]) -> None:
    shape = replace(SHAPE, n_expert=4, n_expert_used=2)
    moe = inspect_gguf(tiny_model("moe", n_ctx=8192, shape=shape))
    home = LoadOptions(n_gpu_layers="all", cpu_moe=3)
    host, gpu = read_weights(moe, home)
    assert host == pytest.approx(sum(moe.weights.experts[:3]) / 2)
    everything = sum(read_weights(moe, LoadOptions(n_gpu_layers=0)))
    assert host + gpu == pytest.approx(everything)
    assert placed_weights(moe, home)[0] == moe.weights.embedding + sum(moe.weights.experts[:3])


def test_an_output_made_with_the_input_table_is_read_where_it_is_computed(
    tiny_model: Callable[..., Path],
) -> None:
    info = inspect_gguf(tiny_model("gemma3"))
    assert info.weights.is_tied
    on_cpu, on_gpu = (
        read_weights(info, LoadOptions(n_gpu_layers=0)),
        read_weights(info, LoadOptions(n_gpu_layers="all")),
    )
    assert on_cpu == (on_gpu[1], 0)
    assert on_gpu[0] == 0


def test_each_device_is_measured_for_itself_and_kept(
    monkeypatch: pytest.MonkeyPatch, stub_gpu: None, tmp_path: Path
) -> None:
    measured: list[tuple[str, int]] = []

    def timed(path: Path, threads: int, subject: object, *, rows: int = 1) -> float:
        device: str = getattr(subject, "device")  # noqa: B009
        measured.append((device, rows))
        given = GPU if device else CPU
        size = path.stat().st_size
        if size < 4_000_000:
            return 16 * given.layer_s
        bandwidth = given.types["F32"].decode_bytes_s
        macs = size / 34 * 32
        beside = 4 * given.layer_s
        return (size / bandwidth if rows == 1 else rows * macs / given.types["F32"].prefill_macs_s) + beside

    monkeypatch.setattr("edgellm.planning.calibration._timed", timed)
    cpu, gpu = calibrate(["Q8_0"]), calibrate(["Q8_0"], "Stub0")
    assert gpu.layer_s == pytest.approx(GPU.layer_s)
    assert cpu.types["Q8_0"].decode_bytes_s == pytest.approx(10e9, rel=0.02)
    assert gpu.types["Q8_0"].decode_bytes_s == pytest.approx(200e9, rel=0.02)
    assert gpu.types["Q8_0"].prefill_macs_s == pytest.approx(5e12, rel=0.02)
    assert ("Stub0", 256) in measured and ("", 64) in measured
    count = len(measured)
    assert (calibrate(["Q8_0"]), calibrate(["Q8_0"], "Stub0")) == (cpu, gpu)
    assert len(measured) == count
    kept = json.loads((tmp_path / "home/cache/calibration.json").read_text())
    assert sorted(key.endswith("beside Stub0 (a stub): Stub0") for key in kept) == [False, True]
    # Without the GPU large batches are computed elsewhere: what was measured beside it does not hold.
    monkeypatch.setattr("edgellm.native.devices.devices", lambda: DEVICES[:1])
    assert known_calibration() is None


def test_a_plan_has_speeds_for_each_number_of_layers(info: GGUFInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    def known(types: object, device: str = "", **_options: object) -> Calibration:
        return GPU if device else CPU

    monkeypatch.setattr("edgellm.planning.machine_speed.calibrate", known)
    plan = make_plan(info, LoadOptions(threads=2), machine=MACHINE)
    assert plan.gaps == ()
    assert plan.gpu_calibrations == {"Stub0": GPU}
    by_layers = {
        row.gpu_layers: row.speed.decode_tok_s for row in plan.rows if row.speed and row.n_ctx == 8192
    }
    assert list(by_layers) == [0, 4, 9]
    assert by_layers[0] < by_layers[4] < by_layers[9]
    assert plan.speed is not None and plan.speed.decode_tok_s == by_layers[9]


def test_what_cannot_be_measured_is_said_in_the_table(
    info: GGUFInfo, monkeypatch: pytest.MonkeyPatch, stub_gpu: None
) -> None:
    cpu = replace(CPU, threads=2)
    real = calibrate

    def found(types: list[str], device: str = "", **_options: object) -> Calibration:
        return real(types, device) if device else cpu

    monkeypatch.setattr("edgellm.planning.machine_speed.calibrate", found)
    # llama.cpp has no such device: measuring fails as it would on a driver that does not start.
    outcome = cli("plan", info.path, "--ctx", "2048")
    assert outcome.code == 0, outcome.err
    lines = outcome.out.splitlines()
    assert "?: Stub0 cannot be measured: no device named 'Stub0'." in lines
    assert max(map(len, lines)) <= 80
    rows = [line.split() for line in lines if line.startswith("2,048 ") and " f16 " in line]
    assert [(row[2], row[-1]) for row in rows if row[2] != "0"] == [("4", "?"), ("9", "?")]
    assert all(row[-1] != "?" for row in rows if row[2] == "0")
    plan = make_plan(info, LoadOptions(override_tensors=("x=CPU",)), machine=MACHINE, is_measured=False)
    assert plan.gaps[0] == "The processor has not been measured yet."
    assert plan.gaps[1] == "Stub0 has not been measured yet."
    assert "override_tensors" in plan.gaps[2]


class Stopwatch:
    """Stands in for what is timed: two threads take a second a token, others as many times longer as they are off;
    and for the neighbours, who use `busy` cores."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.busy = 0.0
        self.measured: list[tuple[int, int]] = []
        monkeypatch.setattr("edgellm.planning.calibration._timed", self.timed)
        monkeypatch.setattr("edgellm.planning.calibration.usable_cores", lambda: 4)
        monkeypatch.setattr("edgellm.planning.calibration.Neighbours", lambda: self)
        monkeypatch.setattr("edgellm.planning.calibration._CALM_LOOK_S", 0.0)

    def cores(self) -> float:
        return self.busy

    def timed(self, path: Path, threads: int, subject: object, *, rows: int = 1) -> float:
        self.measured.append((threads, rows))
        return (1 + abs(threads - 2)) * rows * path.stat().st_size / 1e10


def test_speeds_are_those_of_the_threads_that_are_asked_for(
    info: GGUFInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = Stopwatch(monkeypatch)
    alone = replace(MACHINE, gpus=(), cores=4)
    plans = {count: make_plan(info, LoadOptions(threads=count), machine=alone) for count in (0, 1, 2, 4)}
    speeds = {count: plan.speed.decode_tok_s for count, plan in plans.items() if plan.speed is not None}
    assert speeds[0] == speeds[4] < speeds[1] < speeds[2]
    assert "2 threads decode fastest" in plans[0].notes[0] and plans[4].notes == ()
    before = len(watch.measured)
    make_plan(info, LoadOptions(threads=1, threads_batch=3), machine=alone)
    assert set(watch.measured[before:]) == {(1, 1), (3, 64)}
    before = len(watch.measured)
    gaps = make_plan(info, LoadOptions(threads=3), machine=alone, is_measured=False).gaps
    assert gaps == ("The processor has not been measured with 3 threads yet.",)
    assert len(watch.measured) == before


def test_what_was_measured_beside_busy_programs_is_said_and_measured_anew(
    info: GGUFInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = Stopwatch(monkeypatch)
    alone = replace(MACHINE, gpus=(), cores=2)
    options = LoadOptions(threads=2)

    def notes(*, is_measured_again: bool = False) -> tuple[tuple[str, ...], int]:
        before = len(watch.measured)
        plan = make_plan(info, options, machine=alone, is_measured_again=is_measured_again)
        return plan.notes, len(watch.measured) - before

    watch.busy = 1.5
    (said,), count = notes()
    assert count > 0
    assert said.startswith("Other programs used 1.5 cores") and "--measure-again" in said
    assert notes() == ((said,), 0)  # they still are: to measure again would tell no more
    watch.busy = 0.1
    assert notes() == ((), count)
    watch.busy = 1.5
    assert notes() == ((), 0)  # what was measured in peace holds
    assert notes(is_measured_again=True) == ((said,), count)
    assert cli("plan", info.path, "--no-measure", "--measure-again").code == 2
    watch.busy = 0.0
    assert "Other programs" not in cli("plan", info.path, "--threads", "2", "--measure-again").out


def test_threads_are_counted_as_the_context_counts_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgellm.planning.calibration.usable_cores", lambda: 4)
    found = [Threads.of(LoadOptions(threads=a, threads_batch=b)) for a, b in ((0, 0), (2, 0), (0, 3), (1, 2))]
    assert found == [Threads(4, 4), Threads(2, 2), Threads(4, 3), Threads(1, 2)]


@pytest.mark.slow
def test_the_machine_is_measured_once(tmp_path: Path) -> None:
    assert known_calibration() is None
    found = calibrate(["Q8_0", "NO_SUCH"])
    assert found.layer_s > 0
    assert set(found.types) == {"Q8_0"}
    assert found.types["Q8_0"].decode_bytes_s > 1e6
    assert known_calibration() == found
    file = tmp_path / "home/cache/calibration.json"
    file.write_text("{", encoding="utf-8")
    assert known_calibration() is None
