"""Settings that fit: what is given up, in which order, and what is said of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from cli_harness import cli
from tiny_models import Shape

import edgellm
from edgellm.errors import ConfigError, OutOfMemory
from edgellm.models.gguf_info import inspect_gguf
from edgellm.planning.cache_shape import cache_shape
from edgellm.planning.calibration import Calibration, Threads, TypeSpeed
from edgellm.planning.demand import Demand, Gpu, Machine, measure_demand
from edgellm.planning.fit import Fitting
from edgellm.planning.plan import fit_options, make_plan
from edgellm.types import LoadOptions

# Large enough that a context weighs something: 8,192 tokens are 16 MB of keys and values.
SHAPE = Shape(n_layer=8, n_embd=128, head_dim=32, n_head_kv=4)
KEPT = 64_000_000  # what a plan leaves to others on a machine this small


@pytest.fixture
def model(tiny_model: Callable[..., Path]) -> Path:
    return tiny_model("llama", n_ctx=8192, shape=SHAPE)


def always(found: Machine) -> Callable[[tuple[str, ...]], Machine]:
    return lambda devices: found


def machine(room: int, *gpus: Gpu) -> Machine:
    return Machine(KEPT + room, 1 << 30, 2, gpus=gpus)


def whole(model: Path, **options: object) -> Demand:
    with Fitting(inspect_gguf(model), Machine(None, 0, 2), LoadOptions(**options)) as fitting:  # type: ignore[arg-type]
        return fitting.demand(fitting.wanted())


@pytest.mark.parametrize(
    ("room", "total", "kept"),
    [(4e9, 4e9, 200e6), (20e9, 24e9, 512e6), (600e6, 24e9, 150e6), (100e6, 1e9, KEPT)],
)
def test_a_share_of_the_memory_is_left_to_others(room: float, total: float, kept: float) -> None:
    assert Machine(int(room), int(total), 4).reserve_bytes == kept


def test_no_room_is_not_the_same_as_room_that_nobody_knows(model: Path) -> None:
    info = inspect_gguf(model)
    with pytest.raises(OutOfMemory, match=r"0 MB of 1\.07 GB are available"):
        fit_options(info, LoadOptions(), machine=Machine(0, 1 << 30, 2))
    assert fit_options(info, LoadOptions(), machine=Machine(None, 0, 2)).options.n_ctx == 8192


def test_with_room_enough_nothing_is_given_up(model: Path) -> None:
    fitted = fit_options(inspect_gguf(model), LoadOptions(), machine=machine(1 << 30))
    assert (fitted.options.n_ctx, fitted.options.kv_type_k, fitted.options.n_ubatch) == (8192, "f16", 512)
    assert fitted.notes == ()


def test_batches_shrink_first_then_the_cache_then_the_context(model: Path) -> None:
    info = inspect_gguf(model)
    seen: list[tuple[int, str, int]] = []
    room = whole(model).host_bytes
    while True:
        try:
            fitted = fit_options(info, LoadOptions(), machine=machine(room))
        except OutOfMemory:
            break
        seen.append((fitted.options.n_ctx, fitted.options.kv_type_k, fitted.options.n_ubatch))
        assert fitted.demand.host_bytes <= room
        room = fitted.demand.host_bytes - 1
    assert seen[:3] == [(8192, "f16", 512), (8192, "f16", 128), (8192, "q8_0", 512)]
    assert seen[-1][0] == 1024
    assert [n_ctx for n_ctx, _, _ in seen] == sorted((n_ctx for n_ctx, _, _ in seen), reverse=True)


def test_what_was_given_up_is_said_with_the_sum(model: Path) -> None:
    need = whole(model).host_bytes
    fitted = fit_options(inspect_gguf(model), LoadOptions(), machine=machine(need - 1))
    (note,) = fitted.notes
    assert "batches of 128 instead of 512" in note
    assert f"{need / 1e6:,.0f} MB" in note


def test_what_the_user_asked_for_is_never_changed(model: Path) -> None:
    asked = LoadOptions(n_ctx=8192, kv_type_k="f16", kv_type_v="f16", n_ubatch=512)
    need = whole(model).host_bytes
    assert fit_options(inspect_gguf(model), asked, machine=machine(need)).options.n_ctx == 8192
    with pytest.raises(OutOfMemory) as caught:
        fit_options(inspect_gguf(model), asked, machine=machine(need - 1))
    # The sum, and the way out.
    assert "weights +" in caught.value.message
    assert "8,192 tokens, f16" in caught.value.message
    assert "smaller n_ctx or a smaller KV type" in caught.value.hint
    quantized = replace(asked, kv_type_k="q8_0", kv_type_v="q8_0")
    with pytest.raises(OutOfMemory) as caught:
        fit_options(inspect_gguf(model), quantized, machine=machine(1))
    assert "smaller n_ctx" in caught.value.hint and "KV type" not in caught.value.hint


def test_where_nothing_fits_the_smallest_sum_is_shown(model: Path) -> None:
    with pytest.raises(OutOfMemory) as caught:
        fit_options(inspect_gguf(model), LoadOptions(), machine=machine(1))
    assert "1,024 tokens" in caught.value.message
    assert "fit='off'" in caught.value.hint


def test_a_cache_that_does_not_divide_into_blocks_stays_f16(tiny_model: Callable[..., Path]) -> None:
    path = tiny_model("llama", n_ctx=8192, shape=replace(SHAPE, head_dim=24, n_head_kv=1))
    need = whole(path, n_ubatch=128).host_bytes
    fitted = fit_options(inspect_gguf(path), LoadOptions(n_ubatch=128), machine=machine(need - 1))
    assert (fitted.options.kv_type_k, fitted.options.n_ctx) == ("f16", 4096)


def test_layers_and_experts_go_to_the_gpu_as_far_as_they_fit(tiny_model: Callable[..., Path]) -> None:
    info = inspect_gguf(tiny_model("moe", n_ctx=8192, shape=replace(SHAPE, n_expert=4, n_expert_used=2)))
    options = LoadOptions(n_ctx=2048, kv_type_k="f16", kv_type_v="f16", n_batch=512, n_ubatch=512)
    shape = cache_shape(info)

    def demand(**changes: object) -> Demand:
        return measure_demand(info, shape, replace(options, **changes), None, sequences=16)  # type: ignore[arg-type]

    everything, nothing = demand(n_gpu_layers="all"), demand(n_gpu_layers=0)
    assert nothing.gpu_bytes == 0
    # The input table stays in main memory; all else is on the GPU.
    assert everything.weights_bytes == info.weights.embedding
    assert everything.kv_bytes == 0
    assert everything.gpu_weights_bytes + everything.weights_bytes == sum(info.quantization.values())
    half = demand(n_gpu_layers=5)  # four layers and the output
    assert half.gpu_kv_bytes == nothing.kv_bytes // 2
    assert half.gpu_weights_bytes == sum(info.weights.layers[4:]) + info.weights.rest
    at_home = demand(n_gpu_layers="all", cpu_moe=3)
    assert everything.gpu_weights_bytes - at_home.gpu_weights_bytes == sum(info.weights.experts[:3]) > 0


def test_a_gpu_that_shares_main_memory_is_counted_once(model: Path) -> None:
    demand = Demand(weights_bytes=10, kv_bytes=0, gpu_weights_bytes=200_000_000)
    shared = Gpu("iGPU", 1 << 30, 1 << 30, is_shared=True)
    assert demand.fits(machine(210_000_000, shared))
    assert not demand.fits(machine(190_000_000, shared))
    assert demand.fits(machine(190_000_000, replace(shared, is_shared=False)))
    assert not demand.fits(machine(1 << 30, Gpu("GPU", 190_000_000, 190_000_000)))


def test_load_takes_what_fits_and_says_so(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need = whole(model).host_bytes
    monkeypatch.setattr("edgellm.planning.plan.this_machine", always(machine(need - 1)))
    with edgellm.load(model) as runtime:
        assert runtime.options.n_ubatch == 128
        (note,) = runtime.notes
        said = [e.message for e in runtime.chat().send("Hi", max_tokens=1) if isinstance(e, edgellm.Notice)]
        assert said == [note]
        again = [e.message for e in runtime.chat().send("Hi", max_tokens=1) if isinstance(e, edgellm.Notice)]
        assert again == []
    monkeypatch.setattr("edgellm.planning.plan.this_machine", always(machine(1)))
    with pytest.raises(OutOfMemory):
        edgellm.load(model)
    with edgellm.load(model, fit="off") as runtime:
        assert runtime.n_ctx == 8192


def test_a_four_bit_cache_with_tools_is_warned_of(model: Path) -> None:
    @edgellm.tool
    def nothing() -> str:
        """Does nothing."""
        return ""

    with edgellm.load(model, n_ctx=512, kv_type_k="q4_0", kv_type_v="q4_0") as runtime:
        plain = [e for e in runtime.chat().send("Hi", max_tokens=1) if isinstance(e, edgellm.Notice)]
        assert plain == []
        chat = runtime.chat(tools=[nothing], strategy="free")
        said = [e.message for e in chat.send("Hi", max_tokens=1) if isinstance(e, edgellm.Notice)]
        assert any("4 bits garbles tool calls" in text for text in said)


# -- the whole plan ----------------------------------------------------------------------------------------


def test_a_plan_has_a_row_for_each_context_and_type(model: Path) -> None:
    plan = edgellm.plan(model, is_measured=False)
    assert plan.fits
    assert {row.kv_type for row in plan.rows} == {"f16", "q8_0", "q4_0"}
    assert max(row.n_ctx for row in plan.rows) == 8192
    sizes = {(row.n_ctx, row.kv_type): row.kv_bytes for row in plan.rows}
    assert sizes[8192, "q8_0"] / sizes[8192, "f16"] == pytest.approx(34 / 64, rel=0.01)
    assert all(row.speed is None for row in plan.rows)
    with pytest.raises(ConfigError, match="Did you mean 'n_ctx'"):
        edgellm.plan(model, n_ctxx=4)


def test_fewer_threads_are_advised_where_they_were_faster(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = Calibration(2, 0.0, {"F32": TypeSpeed(1e9, 1e9)}, fastest_threads=1)

    def found(device: str = "", threads: Threads | None = None) -> Calibration:
        return known

    monkeypatch.setattr("edgellm.planning.machine_speed.known_calibration", found)
    info = inspect_gguf(model)
    plan = make_plan(info, LoadOptions(), machine=machine(1 << 30), is_measured=False)
    assert plan.notes == ("Measured here, 1 thread decodes fastest: consider --threads 1.",)
    assert plan.speed is not None and all(row.speed is not None for row in plan.rows)
    assert make_plan(info, LoadOptions(threads=2), machine=machine(1 << 30), is_measured=False).notes == ()
    known = replace(known, others_cores=1.0)  # then what was fastest tells of the neighbours
    (told,) = make_plan(info, LoadOptions(), machine=machine(1 << 30), is_measured=False).notes
    assert told.startswith("Other programs used 1.0 cores")


def test_the_chosen_setting_has_a_row_of_its_own(model: Path) -> None:
    for key, value, label in (("q5_1", "q5_1", "q5_1"), ("q8_0", "f16", "q8_0/f16")):
        plan = edgellm.plan(model, is_measured=False, n_ctx=2048, kv_type_k=key, kv_type_v=value)
        (row,) = [row for row in plan.rows if (row.n_ctx, row.kv_type) == (2048, plan.kv_type)]
        assert (plan.kv_type, row.kv_bytes) == (label, plan.demand.context_bytes)
    outcome = cli("plan", model, "--no-measure", "--kv-type", "q5_1")
    (marked,) = [line for line in outcome.out.splitlines() if "←" in line]
    assert marked.startswith("8,192") and "q5_1" in marked
    # A context that had to shrink by more than the table shows.
    least = whole(model, n_ctx=1024, kv_type_k="q8_0", kv_type_v="q8_0", n_ubatch=128).host_bytes
    small = make_plan(inspect_gguf(model), LoadOptions(), machine=machine(least), is_measured=False)
    assert [row.fits for row in small.rows if (row.n_ctx, row.kv_type) == (1024, "q8_0")] == [True]


def test_a_plan_for_more_than_the_trained_length_says_what_becomes_of_positions(
    model: Path, tiny_model: Callable[..., Path]
) -> None:
    for path, n_ctx in ((model, 16_384), (tiny_model("mamba"), 1024)):
        plan = edgellm.plan(path, is_measured=False, n_ctx=n_ctx)
        with edgellm.load(path, n_ctx=n_ctx) as runtime:
            assert plan.notes == runtime.notes != ()
            assert plan.options == runtime.options
    assert "by YaRN from 8,192 tokens" in cli("plan", model, "--no-measure", "--ctx", "16384").out
    assert edgellm.plan(model, is_measured=False, n_ctx=8192).notes == ()


def test_layers_for_a_gpu_that_is_not_there_are_told_of(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgellm.planning.plan.this_machine", always(machine(1 << 30)))
    monkeypatch.setattr("edgellm.planning.demand.this_machine", always(machine(1 << 30)))
    told = ("This llama.cpp has no GPU for 10 layers to lie on: the processor computes them.",)
    assert edgellm.plan(model, is_measured=False, n_gpu_layers=10).notes == told
    for fit in ("auto", "off"):
        with edgellm.load(model, n_gpu_layers=10, n_ctx=512, fit=fit) as runtime:
            assert runtime.notes == told
    assert "no GPU for all layers" in edgellm.plan(model, is_measured=False, n_gpu_layers="all").notes[0]
    for count in ("auto", 0):
        assert edgellm.plan(model, is_measured=False, n_gpu_layers=count).notes == ()


def test_a_plan_that_does_not_fit_still_has_its_rows(model: Path) -> None:
    plan = make_plan(inspect_gguf(model), LoadOptions(), machine=machine(1), is_measured=False)
    assert not plan.fits
    assert "does not fit into memory" in plan.refusal
    assert plan.rows
    assert not any(row.fits for row in plan.rows)


# -- the command -------------------------------------------------------------------------------------------


def test_plan_prints_a_table_or_json(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = cli("plan", model, "--no-measure", "--ctx", "2048")
    assert outcome.code == 0, outcome.err
    assert "KV cache (2,048 tokens, f16)" in outcome.out
    assert "chosen: context 2,048, KV f16" in outcome.out
    plan = json.loads(cli("plan", "-m", model, "--no-measure", "--json").out)
    assert plan["options"]["n_ctx"] == 8192
    assert plan["demand"]["host_bytes"] > plan["demand"]["kv_bytes"]
    twice = cli("plan", model, "-m", model)
    assert twice.code == 2 and "Two models are named" in twice.err
    assert "4 bits" in cli("plan", model, "--no-measure", "--kv-type", "q4_0", "--tools").out
    monkeypatch.setattr("edgellm.planning.plan.this_machine", always(machine(1)))
    refused = cli("plan", model, "--no-measure")
    assert refused.code == 1
    assert "does not fit into memory" in refused.out
    assert "--fit off" in refused.out and "fit='off'" not in refused.out
