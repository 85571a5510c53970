"""What a context takes: by arithmetic, as llama.cpp rehearses it, and as it allocates it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_models import Shape

from edgellm.models.gguf_info import GGUFInfo, inspect_gguf
from edgellm.native.context import Context, settled
from edgellm.native.dry_run import Buffers, DryRun, read_buffers
from edgellm.native.library import captured_log
from edgellm.native.model import Model
from edgellm.planning.cache_shape import CacheShape, LayerCache, cache_shape, type_bytes
from edgellm.planning.demand import Machine
from edgellm.planning.fit import Fitting
from edgellm.planning.plan import make_plan
from edgellm.planning.speed import reading_s
from edgellm.types import LoadOptions

ARCHITECTURES = ("llama", "moe", "qwen3", "qwen2moe", "gemma3", "mamba")
MIB = 1 << 20
WIDE = Shape(n_layer=8, n_embd=128, head_dim=32, n_head_kv=4)


def test_published_figures_of_a_70b_model_come_out() -> None:
    # Llama 3 70B: 80 layers, 8 KV heads, head size 128, 16 bits.
    shape = CacheShape(tuple(LayerCache(8 * 128, 8 * 128) for _ in range(80)))
    assert shape.kv_bytes(16_384) / 1e9 == pytest.approx(5.4, abs=0.05)
    assert shape.kv_bytes(128_000) / 1e9 == pytest.approx(42, abs=0.5)
    assert reading_s(140e9, 3e12) * 1000 == pytest.approx(47, abs=0.5)


def test_quantized_types_take_what_their_blocks_take() -> None:
    assert type_bytes("f16", 64) == 128
    assert type_bytes("q8_0", 64) == 2 * 34
    assert type_bytes("q4_0", 64) == 2 * 18
    shape = CacheShape((LayerCache(48, 64),))
    assert shape.can_hold("f16", "q8_0")
    assert not shape.can_hold("q8_0", "f16")


def test_a_window_that_is_cut_takes_less() -> None:
    shape = CacheShape((LayerCache(64, 64, is_windowed=True), LayerCache(64, 64)), window=512)
    assert shape.kv_bytes(4096) == 2 * 4096 * 256
    assert shape.kv_bytes(4096, window_cells=1024) == (4096 + 1024) * 256


def test_the_book_of_the_cells_is_counted(tiny_model: Callable[..., Path]) -> None:
    count = 1 << 20
    for architecture, caches in (("llama", 1), ("gemma3", 2), ("mamba", 0)):
        shape = cache_shape(inspect_gguf(tiny_model(architecture)))
        assert shape.cells_bytes(count) == pytest.approx(52 * count * caches)
    assert cache_shape(inspect_gguf(tiny_model("gemma3"))).cells_bytes(count, window_cells=256) == 52 * (
        count + 256
    )


def test_a_context_beyond_all_memory_is_refused_by_its_sum(
    tiny_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    rehearsed: list[int] = []

    def buffers(_rehearsal: DryRun, options: LoadOptions) -> Buffers:
        rehearsed.append(options.n_ctx)
        return Buffers()

    monkeypatch.setattr(DryRun, "buffers", buffers)
    info = inspect_gguf(tiny_model("llama"))
    plan = make_plan(
        info, LoadOptions(n_ctx=2_000_000_000), machine=Machine(4 << 30, 8 << 30, 2), is_measured=False
    )
    assert "2,000,000,000 tokens" in plan.refusal
    assert not any(row.fits for row in plan.rows if row.n_ctx > 1 << 28)
    assert plan.demand.other_bytes > 52 * 2_000_000_000
    assert all(n_ctx <= 1 << 20 for n_ctx in rehearsed)


def test_latent_attention_keeps_one_compressed_key(tiny_model: Callable[..., Path]) -> None:
    plain = inspect_gguf(tiny_model("llama"))
    metadata = {**plain.metadata, "llama.attention.kv_lora_rank": 512, "llama.attention.key_length_mla": 192}
    info = replace(plain, metadata=metadata, rope=replace(plain.rope, dimension_count=64))
    assert cache_shape(info).layers == (LayerCache(576, 0),) * 2


def test_layers_that_share_or_lack_a_cache_have_none(tiny_model: Callable[..., Path]) -> None:
    plain = inspect_gguf(tiny_model("gemma3"))
    info = replace(plain, metadata={**plain.metadata, "gemma3.attention.shared_kv_layers": 2})
    assert len(cache_shape(plain).layers) == 6
    assert len(cache_shape(info).layers) == 4
    hybrid = replace(
        plain,
        kv_heads_by_layer=(0, 0, 1, 0, 0, 1),
        attention_layers=2,
        metadata={**plain.metadata, "gemma3.shortconv.l_cache": 3},
    )
    assert len(cache_shape(hybrid).layers) == 2
    # Four layers keep the last two inputs of width 32, in f32.
    assert cache_shape(hybrid).state_bytes(4) == 4 * 4 * 2 * 32 * 4


def test_windowed_layers_are_known(tiny_model: Callable[..., Path]) -> None:
    shape = cache_shape(inspect_gguf(tiny_model("gemma3")))
    assert [layer.is_windowed for layer in shape.layers] == [True] * 5 + [False]
    assert shape.window == 16


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_arithmetic_is_what_llama_cpp_rehearses(tiny_model: Callable[..., Path], architecture: str) -> None:
    path = (
        tiny_model(architecture)
        if architecture == "mamba"
        else tiny_model(architecture, shape=_wide(architecture))
    )
    shape = cache_shape(inspect_gguf(path))
    with DryRun(path, LoadOptions(n_gpu_layers=0)) as rehearsal:
        for n_ctx, kv_type in ((4096, "f16"), (4096, "q8_0"), (1000, "q4_0"), (300, "f16")):
            if not shape.can_hold(kv_type, kv_type):
                continue
            options = LoadOptions(n_ctx=n_ctx, kv_type_k=kv_type, kv_type_v=kv_type, n_seq_max=4)
            found = rehearsal.buffers(options)
            assert shape.kv_bytes(n_ctx, kv_type, kv_type) == pytest.approx(found.kv_bytes, abs=0.011 * MIB)
            assert shape.state_bytes(4) == pytest.approx(found.state_bytes, abs=0.006 * MIB)


def test_a_window_alone_is_what_llama_cpp_rehearses(tiny_model: Callable[..., Path]) -> None:
    path = tiny_model("gemma3", shape=_wide("gemma3"))
    info = inspect_gguf(path)
    options = LoadOptions(n_ctx=8192, n_seq_max=4, n_gpu_layers=0, swa_full=False)
    with Fitting(info, Machine(None, 0, 1), options) as fitting:
        rough, rehearsed = fitting.estimate(fitting.wanted()), fitting.demand(fitting.wanted())
    assert rough.kv_bytes == pytest.approx(rehearsed.kv_bytes, abs=0.02 * MIB)
    assert rough.kv_bytes < cache_shape(info).kv_bytes(8192) / 2


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_is_predicted_is_what_is_allocated(tiny_model: Callable[..., Path], architecture: str) -> None:
    path = tiny_model(architecture, n_ctx=8192, shape=_wide(architecture))
    info = inspect_gguf(path)
    options = LoadOptions(n_ctx=8192, n_seq_max=4, n_gpu_layers=0, use_mmap=False)
    with Fitting(info, Machine(None, 0, 1), options) as fitting:
        demand = fitting.demand(fitting.wanted())
    predicted = demand.host_bytes - demand.other_bytes
    assert predicted == pytest.approx(_allocated(path, options), rel=0.05)


def _wide(architecture: str) -> Shape | None:
    if architecture == "mamba":
        return Shape(n_head=0, n_head_kv=0, head_dim=0, n_ff=0, n_embd=256, n_layer=8)
    expert = {"n_expert": 4, "n_expert_used": 2} if "moe" in architecture else {}
    return replace(WIDE, **expert, n_swa=16 if architecture == "gemma3" else 0)


def _allocated(path: Path, options: LoadOptions) -> int:
    """The sizes of all buffers that llama.cpp made, as it logs them."""
    with captured_log() as log:
        model = Model.load(path, settled(options))
        Context(model, options).close()
        model.close()
    buffers = read_buffers(log.text)
    weights = sum(
        float(line.rpartition("=")[2].split()[0]) * MIB
        for line in log.text.splitlines()
        if "model buffer size" in line
    )
    return int(
        weights
        + buffers.kv_bytes
        + buffers.state_bytes
        + buffers.output_bytes
        + sum(buffers.compute_bytes.values())
    )


_CHILD = """
import sys
import edgellm
from edgellm.machine import resident_bytes
edgellm.inspect(sys.argv[1])
import edgellm.dialogue, edgellm.engine.engine, edgellm.native.model, edgellm.sampling.chain, edgellm.completion
import edgellm.planning.plan
edgellm.native.library.lib()
before = resident_bytes()
with edgellm.load(sys.argv[1], n_ctx=int(sys.argv[2]), n_gpu_layers=0, n_batch=128, n_ubatch=128) as runtime:
    # Every part of every buffer is touched: a whole batch, its logits, the last cell of the cache.
    context = runtime.engine.context
    rows = context.n_batch
    context.decode([(1, position, 0, True) for position in range(rows)])
    # Logits of a whole batch are asked for here alone: a chat has one row for each of its sequences.
    beyond = 4 * runtime.vocabulary.size * (rows - context.n_seq_max)
    print(resident_bytes() - before - beyond)
"""


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.parametrize("name", ["smollm2-135m", "gemma3-270m"])
def test_resident_memory_of_a_real_model_is_predicted(name: str, smollm2_path: Path) -> None:
    path = smollm2_path if name == "smollm2-135m" else smollm2_path.parents[1] / name
    if path.is_dir():
        path = next(path.glob("*.gguf"), path)
    if not path.is_file():
        pytest.skip(f"{name} is not here: edgellm models pull {name}")
    info: GGUFInfo = inspect_gguf(path)
    options = LoadOptions(n_ctx=8192, n_gpu_layers=0, n_batch=128, n_ubatch=128)
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, str(path), "8192"], capture_output=True, text=True, check=True
    )
    with Fitting(info, Machine(None, 0, 1), options) as fitting:
        predicted = fitting.demand(fitting.wanted()).host_bytes
    assert predicted == pytest.approx(int(done.stdout), rel=0.05)
