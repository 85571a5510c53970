"""What is loaded beside a model: a draft model and adapters are part of every sum."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_models
from cli_harness import cli
from tiny_models import Shape

import edgellm
from edgellm.engine.draft_model import DraftModel
from edgellm.errors import ConfigError, ModelNotFound, OutOfMemory
from edgellm.models.gguf_info import inspect_gguf
from edgellm.native.dry_run import read_buffers
from edgellm.native.library import captured_log
from edgellm.native.model import Model
from edgellm.native.overlay import load_lora
from edgellm.planning.demand import Demand, Gpu, Machine
from edgellm.planning.fit import Fitting
from edgellm.planning.plan import fit_options
from edgellm.types import ControlVector, LoadOptions, LoraAdapter

MIB = 1 << 20
SHAPE = Shape(n_layer=8, n_embd=128, head_dim=32, n_head_kv=4)
SMALL = Shape(n_layer=3, n_embd=128, head_dim=32, n_head_kv=4)
OPTIONS = LoadOptions(
    n_ctx=8192, n_seq_max=4, n_gpu_layers=0, use_mmap=False, kv_type_k="f16", kv_type_v="f16"
)


@pytest.fixture
def model(tiny_model: Callable[..., Path]) -> Path:
    return tiny_model("llama", n_ctx=8192, shape=SHAPE)


@pytest.fixture
def draft(tiny_model: Callable[..., Path]) -> Path:
    return tiny_model("llama", n_ctx=8192, shape=SMALL, seed=5)


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    return tiny_models.build_lora(tmp_path / "wide.gguf", rank=512)


def demand(model: Path, options: LoadOptions, draft: Path | None = None) -> Demand:
    other = inspect_gguf(draft) if draft is not None else None
    with Fitting(inspect_gguf(model), Machine(None, 0, 1), options, draft=other) as fitting:
        return fitting.demand(fitting.wanted())


def always(found: Machine) -> Callable[[tuple[str, ...]], Machine]:
    return lambda devices: found


def machine(room: int, *gpus: Gpu) -> Machine:
    return Machine(64_000_000 + room, 1 << 30, 2, gpus=gpus)


def test_a_draft_model_takes_what_is_predicted(model: Path, draft: Path) -> None:
    options = replace(OPTIONS, draft_model=str(draft))
    alone, both = demand(model, OPTIONS), demand(model, options, draft)
    assert replace(both, draft_bytes=0) == alone
    vocabulary = both.other_bytes  # the same tokens; it is no buffer of llama.cpp's
    target = Model.load(model, options)
    with captured_log() as log:
        made = DraftModel(draft, options, target.vocabulary)
    made.close()
    target.close()
    buffers = read_buffers(log.text)
    weights = sum(
        float(line.rpartition("=")[2].split()[0]) * MIB
        for line in log.text.splitlines()
        if "model buffer size" in line
    )
    allocated = weights + buffers.kv_bytes + buffers.output_bytes + sum(buffers.compute_bytes.values())
    assert both.draft_bytes - vocabulary == pytest.approx(allocated, rel=0.05)
    # Half the context, half the cache: it has the same length as the large model's.
    half = demand(model, replace(options, n_ctx=4096), draft)
    kv = 2 * 2 * 3 * 4 * 32 * 4096
    assert both.draft_bytes - half.draft_bytes >= kv  # and its buffers shrink


def test_a_lora_takes_what_is_predicted(tiny_model: Callable[..., Path], lora: Path) -> None:
    model = tiny_model("llama")
    options = replace(OPTIONS, n_ctx=512, lora=(LoraAdapter(str(lora)), LoraAdapter(str(lora), 0.5)))
    found = demand(model, options)
    target = Model.load(model, options)
    with captured_log() as log:
        load_lora(target, lora)
    target.close()
    (line,) = [line for line in log.text.splitlines() if "LoRA buffer size" in line]
    allocated = float(line.rpartition("=")[2].split()[0]) * MIB
    assert found.adapter_bytes == pytest.approx(allocated, rel=0.05)
    assert found.host_bytes == demand(model, replace(options, lora=())).host_bytes + found.adapter_bytes


def test_a_control_vector_takes_rows_of_the_model(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    vector = tiny_models.build_control_vector(tmp_path / "calm.gguf")
    info = inspect_gguf(tiny_model("llama"))
    options = replace(OPTIONS, n_ctx=512, control_vectors=(ControlVector(str(vector)),))
    # As it was read, summed, and in llama.cpp.
    assert demand(info.path, options).adapter_bytes == 3 * 4 * info.layers * info.embedding_length


def test_matrices_lie_where_their_weights_lie(tiny_model: Callable[..., Path], lora: Path) -> None:
    info = inspect_gguf(tiny_model("llama"))  # two layers
    options = replace(OPTIONS, n_ctx=512, lora=(LoraAdapter(str(lora)),))
    with Fitting(info, machine(1 << 30, Gpu("GPU", 1 << 30, 1 << 30)), options) as fitting:
        none, half, every = (
            fitting.estimate(replace(options, n_gpu_layers=count)) for count in (0, 2, "all")
        )
    assert (none.gpu_adapter_bytes, every.adapter_bytes) == (0, 0)
    assert half.gpu_adapter_bytes == half.adapter_bytes == none.adapter_bytes // 2
    assert every.gpu_bytes > every.gpu_adapter_bytes == none.adapter_bytes


def test_layers_leave_room_on_the_gpu_for_the_draft_model(model: Path, draft: Path) -> None:
    options = replace(OPTIONS, draft_model=str(draft), n_gpu_layers="all")
    with Fitting(inspect_gguf(model), machine(1 << 30), options, draft=inspect_gguf(draft)) as fitting:
        on_gpu = fitting.estimate(options)
        at_home = fitting.estimate(replace(options, n_gpu_layers=0))
    assert on_gpu.gpu_draft_bytes > 0 == at_home.gpu_draft_bytes
    full = Gpu("GPU", on_gpu.gpu_bytes - on_gpu.gpu_draft_bytes, 0)
    assert not on_gpu.fits(machine(1 << 30, full))
    assert replace(on_gpu, gpu_draft_bytes=0).fits(machine(1 << 30, full))


def test_what_fits_alone_gives_way_to_the_draft_model(model: Path, draft: Path) -> None:
    room = demand(model, OPTIONS).host_bytes
    free = replace(OPTIONS, n_ctx=0, kv_type_k="auto", kv_type_v="auto", draft_model=str(draft))
    info, other = inspect_gguf(model), inspect_gguf(draft)
    assert fit_options(info, free, machine=machine(room)).notes == ()
    fitted = fit_options(info, free, draft=other, machine=machine(room))
    assert "To fit into memory" in fitted.notes[0]
    assert fitted.demand.draft_bytes > 0
    assert fitted.demand.host_bytes <= room


def test_the_refusal_adds_them_up(model: Path, draft: Path, tmp_path: Path) -> None:
    lora = tiny_models.build_lora(tmp_path / "huge.gguf", rank=512, shape=SHAPE)
    beside = replace(OPTIONS, draft_model=str(draft), lora=(LoraAdapter(str(lora)),))
    options = replace(beside, n_ubatch=512)
    with pytest.raises(OutOfMemory) as caught:
        fit_options(inspect_gguf(model), options, draft=inspect_gguf(draft), machine=machine(1))
    sizes = demand(model, options, draft)
    assert f"{sizes.draft_bytes / 1e6:,.0f} MB draft model" in caught.value.message
    assert f"{sizes.adapter_bytes / 1e6:,.0f} MB adapters" in caught.value.message
    assert f"{sizes.host_bytes / 1e6:,.0f} MB =" in caught.value.message
    assert caught.value.hint.startswith("Leave the draft model out, ask for")


def test_load_counts_them_before_it_allocates(
    model: Path, draft: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = demand(model, OPTIONS).host_bytes
    monkeypatch.setattr("edgellm.planning.plan.this_machine", always(machine(room)))
    edgellm.load(model, options=OPTIONS).close()
    with pytest.raises(OutOfMemory, match="draft model"):
        edgellm.load(model, options=OPTIONS, draft_model=str(draft))
    with pytest.raises(ModelNotFound):
        edgellm.load(model, draft_model="./none.gguf")


def test_adapters_that_do_not_fit_the_model_are_refused_before_it_is_loaded(
    model: Path, tmp_path: Path
) -> None:
    foreign = tiny_models.build_lora(tmp_path / "foreign.gguf", arch="qwen3")
    with pytest.raises(ConfigError, match="made for a qwen3 model"):
        edgellm.plan(model, is_measured=False, lora=(LoraAdapter(str(foreign)),))


def test_a_plan_refuses_adapters_of_other_sizes_and_scales_that_are_no_number(
    model: Path, tmp_path: Path
) -> None:
    for name, shape in (("lora", SHAPE), ("narrow", SMALL), ("other", None)):
        tiny_models.build_lora(tmp_path / f"{name}.gguf", shape=shape)
    vector = tiny_models.build_control_vector(tmp_path / "calm.gguf")
    words = ("plan", model, "--no-measure", "--ctx", "1024")
    for option in ("lora", "narrow"):  # a model of the same width and more layers has all that is changed
        assert cli(*words, "--lora", tmp_path / f"{option}.gguf").code == 0
    for beside, remedy in (
        (("--lora", tmp_path / "other.gguf"), "does not fit this model: blk.0.attn_q.weight is 128 x 128"),
        (("--lora", f"{tmp_path / 'lora.gguf'}:nan"), "is nan. Give a number"),
        (("--control-vector", vector), "does not fit this model: direction.1 has 64 values"),
    ):
        outcome = cli(*words, *beside)
        assert outcome.code == 1
        assert remedy in outcome.err
    deep = tiny_models.build_lora(tmp_path / "deep.gguf", shape=replace(SHAPE, n_layer=9))
    assert "it has no blk.8.attn_q.weight" in cli(*words, "--lora", deep).err


def test_control_vectors_of_the_load_are_those_of_its_chats(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    vector = ControlVector(str(tiny_models.build_control_vector(tmp_path / "calm.gguf")))
    with edgellm.load(tiny_model("llama"), n_ctx=512, control_vectors=(vector,)) as runtime:
        (used,) = runtime.chat().adapters.control
        assert used.path == vector.path


def test_the_command_takes_the_same_options(model: Path, draft: Path, tmp_path: Path) -> None:
    lora = tiny_models.build_lora(tmp_path / "wide.gguf", rank=512, shape=SHAPE)
    vector = tiny_models.build_control_vector(tmp_path / "calm.gguf", layers=8, n_embd=128)
    words = ("plan", model, "--no-measure", "--ctx", "1024")
    beside = ("--draft-model", draft, "--lora", lora, "--control-vector", f"{vector}:0.5")
    plain = json.loads(cli(*words, "--json").out)["demand"]
    found = json.loads(cli(*words, *beside, "--json").out)["demand"]
    assert found["draft_bytes"] > 0 == plain["draft_bytes"]
    assert found["adapter_bytes"] > lora.stat().st_size * 0.9
    more = found["draft_bytes"] + found["adapter_bytes"]
    assert found["host_bytes"] == plain["host_bytes"] + more
    printed = cli(*words, *beside).out
    assert "draft model (" in printed
    assert "adapters" in printed
    assert cli(*words, "--lora", "none.gguf").err.startswith("edgellm: there is no LoRA adapter")
