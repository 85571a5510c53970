"""Layers on a GPU give the logits of the processor. `make test-vulkan` runs these on a software Vulkan device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tiny_models import Shape

from edgellm.models.gguf_info import inspect_gguf
from edgellm.native.context import Context
from edgellm.native.devices import devices
from edgellm.native.dry_run import read_buffers
from edgellm.native.library import captured_log
from edgellm.native.model import Model
from edgellm.planning.demand import this_machine
from edgellm.planning.fit import Fitting
from edgellm.types import LoadOptions

SHAPE = Shape(n_layer=6, n_embd=128, head_dim=32, n_head_kv=4)
TOKENS = tuple(range(3, 99))
MIB = 1 << 20


def _has_gpu() -> bool:
    return any(device.kind in ("gpu", "igpu") for device in devices())


pytestmark = pytest.mark.skipif(not _has_gpu(), reason="this build of llama.cpp has no GPU: make test-vulkan")


def logits_of(path: Path, **options: object) -> NDArray[np.float32]:
    """Logits of the last token of a prefill, and of two tokens decoded after it; (3, n_vocab)."""
    chosen = LoadOptions(n_ctx=256, n_seq_max=1, threads=1, **options)  # type: ignore[arg-type]
    model = Model.load(path, chosen)
    context = Context(model, chosen)
    try:
        last = len(TOKENS) - 1
        context.decode([(token, index, 0, index == last) for index, token in enumerate(TOKENS)])
        rows = [context.logits(last).copy()]
        for position in (last + 1, last + 2):
            context.decode_one(5, position, 0)
            rows.append(context.logits(0).copy())
        return np.array(rows)
    finally:
        context.close()
        model.close()


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "moe", "gemma3", "mamba"])
@pytest.mark.parametrize("quant", ["F32", "Q8_0"])
def test_no_some_and_all_layers_on_the_gpu_give_the_same_logits(
    tiny_model: Callable[..., Path], architecture: str, quant: str
) -> None:
    path = tiny_model(architecture, quant=quant)
    layers = inspect_gguf(path).layers
    on_cpu = logits_of(path, n_gpu_layers=0)
    for count in (1, (layers + 1) // 2, layers + 1, "all"):
        on_gpu = logits_of(path, n_gpu_layers=count)
        spread = float(on_cpu.max() - on_cpu.min())
        assert np.abs(on_gpu - on_cpu).max() < 0.02 * spread, count


def test_experts_stay_at_home_and_the_logits_are_the_same(tiny_model: Callable[..., Path]) -> None:
    path = tiny_model("moe")
    on_cpu = logits_of(path, n_gpu_layers=0)
    at_home = logits_of(path, n_gpu_layers="all", cpu_moe="all")
    assert np.abs(at_home - on_cpu).max() < 0.02 * float(on_cpu.max() - on_cpu.min())


@pytest.mark.parametrize("count", [0, 3, 7])
def test_what_lies_on_the_gpu_is_predicted(tiny_model: Callable[..., Path], count: int) -> None:
    path = tiny_model("llama", n_ctx=8192, shape=SHAPE)
    options = LoadOptions(n_ctx=8192, n_seq_max=4, n_gpu_layers=count, use_mmap=False)
    with Fitting(inspect_gguf(path), this_machine(), options) as fitting:
        chosen = fitting.wanted()
        demand = fitting.demand(chosen)
    with captured_log() as log:
        model = Model.load(path, chosen)
        Context(model, chosen).close()
        model.close()
    on_gpu = on_host = 0.0
    for line in log.text.splitlines():
        if "buffer size" in line and ("model" in line or " KV " in line or "compute" in line):
            name = line.partition(":")[2].split()[0]
            size = float(line.rpartition("=")[2].split()[0]) * MIB
            if name.startswith("CPU") or "Host" in name:
                on_host += size
            else:
                on_gpu += size
    on_host += read_buffers(log.text).output_bytes
    assert demand.gpu_bytes == pytest.approx(on_gpu, rel=0.05, abs=0.1 * MIB)
    assert demand.host_bytes - demand.other_bytes == pytest.approx(on_host, rel=0.05, abs=0.1 * MIB)


def test_fewer_layers_are_chosen_where_the_gpu_is_small(tiny_model: Callable[..., Path]) -> None:
    path = tiny_model("llama", n_ctx=8192, shape=SHAPE)
    info, machine = inspect_gguf(path), this_machine()
    options = LoadOptions(n_ctx=8192, kv_type_k="f16", kv_type_v="f16", n_ubatch=128)
    gpu = replace(machine.gpus[0], is_shared=False)
    with Fitting(info, machine, options) as fitting:
        whole = fitting.demand(fitting.wanted())
    room = whole.gpu_bytes - whole.gpu_weights_bytes // 2
    small = replace(machine, gpus=(replace(gpu, free_bytes=room, total_bytes=0),))
    with Fitting(info, small, options) as fitting:
        fitted = fitting.fit()
    assert isinstance(fitted.options.n_gpu_layers, int)
    assert 0 < fitted.options.n_gpu_layers < info.layers + 1
    assert 0 < fitted.demand.gpu_bytes <= room
    assert "layers on the GPU" in fitted.notes[0]
