"""GGUF headers: what is read, how fast, and what damaged files say."""

from __future__ import annotations

import ctypes
import struct
import subprocess
import sys
import time
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import ARCHS, CHATML, build

from edgellm.errors import EdgeError, ModelCorrupt, ModelNotFound, ModelUnsupported
from edgellm.models.gguf_file import TENSOR_TYPES, read_gguf
from edgellm.models.gguf_info import inspect_gguf, split_names
from edgellm.native.library import captured_log, lib


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


def test_type_sizes_are_those_of_the_gguf_package() -> None:
    ours = {kind: (block, size) for kind, (_, block, size) in TENSOR_TYPES.items()}
    theirs = {int(kind): sizes for kind, sizes in gguf.GGML_QUANT_SIZES.items()}
    assert {kind: theirs[kind] for kind in ours} == ours


@pytest.mark.parametrize("arch", ARCHS)
def test_header_agrees_with_the_gguf_package(arch: str, tmp_path: Path) -> None:
    path = build(tmp_path / "m.gguf", arch, quant="Q8_0")  # type: ignore[arg-type]
    ours, theirs = read_gguf(path), gguf.GGUFReader(path)
    assert [(t.name, t.type, t.shape, t.size_bytes) for t in ours.tensors] == [
        (t.name, t.tensor_type.name, tuple(int(n) for n in t.shape), t.n_bytes) for t in theirs.tensors
    ]
    for key, field in theirs.fields.items():
        if not key.startswith("GGUF.") and field.types[0] != gguf.GGUFValueType.ARRAY:
            assert ours.metadata[key] == field.contents(), key
    assert ours.array_lengths["tokenizer.ggml.tokens"] == 301


def test_llama_sizes(tiny: Path) -> None:
    info = inspect_gguf(tiny)
    assert (info.architecture, info.name, info.licence) == ("llama", "tiny", "apache-2.0")
    assert (info.layers, info.heads, info.kv_heads, info.gqa_ratio) == (2, 4, 2, 2.0)
    assert info.kv_bytes_per_token == 2 * 2 * 2 * (16 + 16)
    assert info.quantization == {"F32": info.parameters * 4}
    assert info.chat_templates == {"default": CHATML}
    assert (info.tokenizer.bos, info.tokenizer.eos, info.tokenizer.vocabulary_size) == (1, 2, 301)
    assert info.context_length == 512


def test_experts_window_and_recurrence(tmp_path: Path) -> None:
    moe = inspect_gguf(build(tmp_path / "moe.gguf", "moe"))
    assert (moe.experts, moe.experts_used) == (4, 2)
    expert_weights = 2 * 3 * 4 * 64 * 64
    assert moe.parameters - moe.active_parameters == expert_weights // 2
    assert inspect_gguf(build(tmp_path / "g.gguf", "gemma3")).sliding_window == 16
    mamba = inspect_gguf(build(tmp_path / "mamba.gguf", "mamba"))
    assert (mamba.kv_bytes_per_token, mamba.attention_layers, mamba.gqa_ratio) == (0, 0, 0.0)


def test_hybrid_counts_attention_layers_only(tmp_path: Path) -> None:
    path = build(tmp_path / "h.gguf", metadata={"llama.attention.head_count_kv": [0, 2]})
    info = inspect_gguf(path)
    assert (info.attention_layers, info.kv_heads) == (1, 2)
    assert info.kv_bytes_per_token == 2 * 2 * (16 + 16)


def test_rope_scaling_sampling_and_named_templates(tmp_path: Path) -> None:
    info = inspect_gguf(
        build(
            tmp_path / "m.gguf",
            named_templates={"tool_use": "{{ tools }}"},
            metadata={
                "llama.rope.scaling.type": "yarn",
                "llama.rope.scaling.factor": 4.0,
                "llama.rope.scaling.original_context_length": 128,
                "general.sampling.temp": 0.5,
                "general.sampling.top_k": 20,
            },
        )
    )
    assert (info.rope.scaling, info.rope.factor, info.rope.original_context) == ("yarn", 4.0, 128)
    assert info.sampling == {"temp": 0.5, "top_k": 20}
    assert set(info.chat_templates) == {"default", "tool_use"}


def test_split_model_is_summed_over_its_parts(tmp_path: Path, tiny: Path) -> None:
    first = build(tmp_path / "m.gguf", split_max_tensors=8)
    whole, split = inspect_gguf(tiny), inspect_gguf(first)
    assert first.name == split_names(first.name)[0]
    assert len(split.parts) > 1
    assert (split.parameters, split.quantization) == (whole.parameters, whole.quantization)
    assert inspect_gguf(split.parts[-1]).parts == split.parts


def test_missing_part_is_named(tmp_path: Path) -> None:
    first = build(tmp_path / "m.gguf", split_max_tensors=8)
    second = first.with_name(split_names(first.name)[1])
    second.unlink()
    with pytest.raises(ModelNotFound, match=second.name):
        inspect_gguf(first)


def test_renamed_part_is_refused(tmp_path: Path) -> None:
    first = build(tmp_path / "m.gguf", split_max_tensors=8)
    renamed = first.rename(tmp_path / "other.gguf")
    with pytest.raises(ModelNotFound, match="one of"):
        inspect_gguf(renamed)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty"),
        (b"PK\x03\x04" + bytes(64), "zip"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git-lfs"),
        (b"\x00\x01\x02\x03" + bytes(64), "not a GGUF"),
        (b"GGUF\x03\x00\x00\x00", "cut short"),
        (b"GGUF\x03\x00\x00\x00" + b"\xff" * 16, "more entries"),
    ],
)
def test_foreign_files_are_named(data: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(data)
    with pytest.raises(ModelCorrupt, match=words) as caught:
        inspect_gguf(path)
    assert "\n" not in str(caught.value)
    assert caught.value.hint


def test_old_version_and_other_byte_order(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<I", 1) + bytes(64))
    with pytest.raises(ModelUnsupported, match="version 1"):
        inspect_gguf(path)
    path.write_bytes(b"GGUF" + struct.pack(">I", 3) + bytes(64))
    with pytest.raises(ModelUnsupported, match="big-endian"):
        inspect_gguf(path)


def test_no_such_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="no file"):
        inspect_gguf(tmp_path / "nothing.gguf")
    with pytest.raises(ModelNotFound, match="folder"):
        inspect_gguf(tmp_path)


def test_cut_tensor_data_is_found(tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(tiny.read_bytes()[:-40])
    with pytest.raises(ModelCorrupt, match="cut short: it has"):
        inspect_gguf(path)


def test_impossible_number_of_layers_is_said_before_anything_is_made_for_them(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(2**31)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(ModelCorrupt, match="2147483648 layers"):
        inspect_gguf(path)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_cut_or_flipped_byte_in_the_header_is_an_edge_error_or_readable(
    data: st.DataObject, tiny: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    raw = bytearray(tiny.read_bytes())
    header = 9000
    if data.draw(st.booleans(), label="cut"):
        raw = raw[: data.draw(st.integers(0, len(raw) - 33))]
        must_fail = True
    else:
        raw[data.draw(st.integers(0, header))] = data.draw(st.integers(0, 255))
        must_fail = False
    path = tmp_path_factory.mktemp("flip") / "m.gguf"
    path.write_bytes(raw)
    try:
        inspect_gguf(path)
    except EdgeError as error:
        assert "\n" not in error.message
    else:
        assert not must_fail


@pytest.mark.slow
def test_large_vocabulary_is_read_quickly_and_without_numpy(tmp_path: Path) -> None:
    path = tmp_path / "large.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_token_list([f"token{number}" for number in range(262_144)])
    writer.add_token_scores([0.0] * 262_144)
    writer.add_chat_template("x")
    writer.add_tensor("token_embd.weight", np.zeros((4, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    seconds: list[float] = []
    for _ in range(5):
        start = time.process_time()
        info = inspect_gguf(path)
        seconds.append(time.process_time() - start)
    assert info.tokenizer.vocabulary_size == 262_144
    assert info.chat_templates == {"default": "x"}
    # 0.03 s of CPU on a laptop core; the bound leaves room for a busy machine.
    assert min(seconds) < 0.2
    code = (
        "import sys; from edgellm.models.gguf_info import inspect_gguf; inspect_gguf(sys.argv[1]);"
        "print(sorted({'numpy', 'gguf', 'llama_cpp'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


@pytest.mark.parametrize("arch", ARCHS)
def test_llama_cpp_loads_and_decodes_the_tiny_models(arch: str, tmp_path: Path) -> None:
    native = lib()
    path = build(tmp_path / "m.gguf", arch)  # type: ignore[arg-type]
    with captured_log() as log:
        model = native.llama_model_load_from_file(str(path).encode(), native.llama_model_default_params())
    assert model, log.text
    params = native.llama_context_default_params()
    params.n_ctx, params.n_threads, params.n_threads_batch = 64, 1, 1
    context = native.llama_init_from_model(model, params)
    vocabulary = native.llama_model_get_vocab(model)
    text = b"<|im_start|>user\nthe end<|im_end|>\n"
    tokens = (native.llama_token * 64)()
    count = native.llama_tokenize(vocabulary, text, len(text), tokens, 64, False, True)
    assert tokens[0] == 1
    assert native.llama_decode(context, native.llama_batch_get_one(tokens, count)) == 0
    rows = ctypes.cast(native.llama_get_logits_ith(context, -1), ctypes.POINTER(ctypes.c_float))
    logits = np.ctypeslib.as_array(rows, (301,)).astype(np.float64)
    probs = np.exp(logits - logits.max())
    assert 0.004 < float(probs.max() / probs.sum()) < 0.9
    native.llama_free(context)
    native.llama_model_free(model)
