"""Quantizing: types, plans, importance matrices, overrides; nothing half is ever left."""

from __future__ import annotations

import json
import os
import signal
import struct
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cli_harness import child, cli

import edgellm
from edgellm.errors import Cancelled, ConfigError, ModelCorrupt, ModelNotFound

TEXT = "The kettle is on the stove, and the rain is at the window. " * 12


@pytest.fixture(scope="module")
def wide(tiny_model: Callable[..., Path]) -> Path:
    """A model whose rows hold the blocks of 256 of the K- and I-types."""
    from tiny_models import Shape

    return tiny_model("llama", shape=Shape(n_embd=256, n_ff=256, n_head=4, head_dim=64))


def _types(path: Path) -> dict[str, str]:
    import gguf

    return {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors}


def test_every_type_has_a_plan_or_says_why_not(wide: Path) -> None:
    plans = edgellm.plan_every_quantize(wide)
    refused = {kind: str(plan) for kind, plan in plans.items() if isinstance(plan, ModelCorrupt)}
    sizes = {kind: plan for kind, plan in plans.items() if not isinstance(plan, ModelCorrupt)}
    assert len(sizes) >= 34, refused
    assert sizes["COPY"].new_bytes == sizes["COPY"].old_bytes
    assert (
        sizes["F32"].new_bytes > sizes["Q8_0"].new_bytes > sizes["Q4_0"].new_bytes > sizes["Q2_K"].new_bytes
    )
    assert sizes["IQ2_XXS"].needs_importance
    assert not sizes["Q4_0"].needs_importance
    assert all(plan.tensors for plan in sizes.values())


def test_what_does_not_fit_a_model_is_refused_and_the_rest_is_planned(
    tiny_model: Callable[..., Path],
) -> None:
    plans = edgellm.plan_every_quantize(tiny_model("llama"))
    refused = plans["Q1_0"]  # its blocks do not fit rows of 64, and nothing stands in for it
    assert isinstance(refused, ModelCorrupt)
    assert "fallback" in refused.message
    behind = plans["COPY"]
    assert not isinstance(behind, ModelCorrupt)
    assert behind.new_bytes == behind.old_bytes


def test_a_plan_tells_the_size_of_the_file(wide: Path, tmp_path: Path) -> None:
    plan = edgellm.plan_quantize(wide, "Q4_0")
    written = edgellm.quantize(wide, tmp_path / "q4.gguf", "Q4_0")
    types = _types(written)
    assert {item.name: item.new_type.upper() for item in plan.tensors} == types
    # The rest of the file is the vocabulary; each tensor is told to 0.01 MiB.
    rest = written.stat().st_size - plan.new_bytes
    assert 0 < rest < 0.005 * (1 << 20) * len(types) + 100_000


def test_tensors_get_the_type_they_are_given(wide: Path, tmp_path: Path) -> None:
    written = edgellm.quantize(
        wide, tmp_path / "q.gguf", "Q4_0", tensors={r"attn_v": "q8_0", "ffn_up": "F16"}
    )
    types = _types(written)
    assert types["blk.0.attn_v.weight"] == "Q8_0"
    assert types["blk.1.ffn_up.weight"] == "F16"
    assert types["blk.1.ffn_down.weight"] == "Q4_0"
    with pytest.raises(ConfigError, match="tensor type 'Q4_K_M'"):
        edgellm.plan_quantize(wide, "Q4_0", tensors={"attn_v": "Q4_K_M"})
    with pytest.raises(ConfigError, match="regular expression"):
        edgellm.plan_quantize(wide, "Q4_0", tensors={"attn_(": "Q4_K"})
    with pytest.raises(ConfigError, match=r"cannot read a tensor's pattern \(\(\?i\)ATTN_V\)"):
        edgellm.plan_quantize(wide, "Q4_0", tensors={"(?i)ATTN_V": "Q8_0"})  # Python's alone


@pytest.mark.parametrize(
    ("kind", "tensors", "said"),
    [
        ("Q4_0", {"nosuchtensor": "Q8_0"}, "no tensor's name matches 'nosuchtensor'"),
        ("Q4_0", {"ATTN_V": "Q8_0"}, "no tensor's name matches 'ATTN_V'"),
        ("BF16", {"attn_v": "Q8_0"}, "no effect in BF16"),
        ("COPY", {"attn_v": "Q8_0"}, "no effect in COPY"),
        ("Q4_0", {"attn_norm": "Q8_0"}, "blk.0.attn_norm.weight would be f32"),
        ("Q4_0", {"attn": "Q8_0", "attn_v": "Q5_1"}, "another pattern before it"),
    ],
)
def test_a_type_that_no_tensor_would_get_is_refused(
    wide: Path, tmp_path: Path, kind: str, tensors: dict[str, str], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        edgellm.plan_quantize(wide, kind, tensors=tensors)
    with pytest.raises(ConfigError, match=said):
        edgellm.quantize(wide, tmp_path / "q.gguf", kind, tensors=tensors)
    assert not list(tmp_path.iterdir())


def test_a_narrow_pattern_before_a_wide_one_is_heeded(wide: Path) -> None:
    plan = edgellm.plan_quantize(wide, "Q4_0", tensors={"attn_v": "Q5_1", "attn": "Q8_0"})
    types = {tensor.name: tensor.new_type for tensor in plan.tensors}
    assert (types["blk.0.attn_v.weight"], types["blk.0.attn_k.weight"]) == ("q5_1", "q8_0")


def test_what_is_wrong_is_said_before_the_text_is_read(
    wide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("the text was read")

    monkeypatch.setattr("edgellm.weights.calibrate.calibrate", never)
    text, there, matrix = tmp_path / "text.txt", tmp_path / "there.gguf", tmp_path / "m.gguf"
    text.write_text(TEXT)
    there.write_bytes(b"x")
    part = tmp_path / "x-00001-of-00002.gguf"
    for words, said in (
        ((wide, there, "Q4_0"), "exists already"),
        ((wide, part, "Q4_0"), "one part of 2"),
        ((wide, tmp_path / "q.gguf", "Q9"), "'Q9' is unknown"),
        ((wide, tmp_path / "q.gguf", "Q4_0", "--tensor", "none=Q8_0"), "no tensor's name"),
    ):
        for more in ((), ("--save-imatrix", matrix)):
            outcome = cli("quantize", *words, "--calibrate", text, *more)
            assert (outcome.code, outcome.out) == (1, "")
            assert said in outcome.err
    words = ("--calibrate", text, "--save-imatrix", tmp_path / "none" / "m.gguf")
    assert "cannot be written" in cli("quantize", wide, tmp_path / "q.gguf", "Q4_0", *words).err
    words = ("--calibrate", text, "--save-imatrix", there)
    assert "exists already" in cli("quantize", wide, tmp_path / "q.gguf", "Q4_0", *words).err
    assert there.read_bytes() == b"x"
    assert sorted(tmp_path.iterdir()) == [text, there]


def test_an_empty_text_is_an_error(wide: Path, tmp_path: Path) -> None:
    text, target = tmp_path / "empty.txt", tmp_path / "q.gguf"
    text.write_text("\n")
    outcome = cli("quantize", wide, target, "Q4_0", "--calibrate", text)
    assert outcome.code == 1
    assert "empty.txt is empty" in outcome.err
    with pytest.raises(ConfigError, match="the text has 0 tokens"):
        edgellm.quantize(wide, target, "Q4_0", calibrate_text="")
    assert not target.exists()


def test_the_home_folder_is_found_from_python_too(
    wide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert edgellm.quantize(wide, "~/q.gguf", "Q8_0") == tmp_path / "q.gguf"
    ones = {"blk.0.attn_q.weight": np.ones((1, 256), np.float32)}
    matrix = edgellm.ImportanceMatrix(ones, {"blk.0.attn_q.weight": np.ones(1, np.float32)}, 1, 512, "ones")
    matrix.save("~/m.gguf")
    assert edgellm.ImportanceMatrix.read("~/m.gguf").chunk_tokens == 512
    edgellm.quantize(wide, "~/steered.gguf", "Q8_0", importance="~/m.gguf")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.gguf", "q.gguf", "steered.gguf"]


@pytest.mark.slow
def test_an_importance_matrix_is_made_saved_read_and_used(wide: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs an importance matrix"):
        edgellm.quantize(wide, tmp_path / "none.gguf", "IQ2_XXS")
    matrix = edgellm.calibrate(wide, TEXT, source="a text")
    assert "blk.0.attn_q.weight" in matrix.sums
    assert all((matrix.counts[name] > 0).all() for name in matrix.sums)
    file = tmp_path / "m.gguf"
    matrix.save(file)
    again = edgellm.ImportanceMatrix.read(file)
    assert all(np.array_equal(again.sums[name], matrix.sums[name]) for name in matrix.sums)
    assert (again.chunks, again.chunk_tokens) == (matrix.chunks, 512)
    steered = edgellm.quantize(wide, tmp_path / "steered.gguf", "IQ2_XXS", importance=file)
    assert _types(steered)["blk.0.ffn_up.weight"] == "IQ2_XXS"
    on_the_way = edgellm.quantize(wide, tmp_path / "same.gguf", "IQ2_XXS", calibrate_text=TEXT)
    import gguf

    def weights(path: Path) -> list[bytes]:
        return [tensor.data.tobytes() for tensor in gguf.GGUFReader(path).tensors]

    assert weights(steered) == weights(on_the_way)
    plain = edgellm.quantize(wide, tmp_path / "plain.gguf", "Q4_0")
    q4 = edgellm.quantize(wide, tmp_path / "q4.gguf", "Q4_0", importance=file)
    assert weights(plain) != weights(q4)


def test_inputs_of_weights_are_summed_as_numpy_would(tiny_model: Callable[..., Path]) -> None:
    """The first layer's input is the normalized embedding: its sum can be computed from the file."""
    import gguf

    path = tiny_model("llama")
    matrix = edgellm.calibrate(path, TEXT)
    reader = gguf.GGUFReader(path)
    tensors = {
        tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type) for tensor in reader.tensors
    }
    with edgellm.read_vocabulary(path) as vocabulary:
        tokens = vocabulary.tokenize(TEXT)[: int(matrix.counts["blk.0.attn_q.weight"][0])]
    embedded = tensors["token_embd.weight"][tokens].astype(np.float64)
    normed = embedded / np.sqrt((embedded**2).mean(axis=1, keepdims=True) + 1e-5)
    normed *= tensors["blk.0.attn_norm.weight"]
    assert np.allclose(matrix.sums["blk.0.attn_q.weight"][0], (normed**2).sum(axis=0), rtol=2e-3)


def test_experts_count_the_tokens_that_reach_them(tiny_model: Callable[..., Path]) -> None:
    matrix = edgellm.calibrate(tiny_model("moe"), TEXT)
    whole = matrix.counts["blk.0.attn_q.weight"][0]
    for name in ("blk.0.ffn_up_exps.weight", "blk.0.ffn_down_exps.weight"):
        assert matrix.sums[name].shape[0] == 4
        assert matrix.counts[name].sum() == 2 * whole  # two experts a token
    values = matrix.values()
    assert all(np.isfinite(row).all() for row in values.values())


def test_older_matrices_are_read_and_broken_ones_refused(tmp_path: Path) -> None:
    old = tmp_path / "m.dat"
    entry = struct.pack("<i", 4) + b"blk0" + struct.pack("<ii", 2, 3) + struct.pack("<3f", 2.0, 4.0, 6.0)
    old.write_bytes(struct.pack("<i", 1) + entry)
    assert edgellm.ImportanceMatrix.read(old).values()["blk0"].tolist() == [1.0, 2.0, 3.0]
    old.write_bytes(struct.pack("<i", 1) + entry[:-4])
    with pytest.raises(ConfigError, match="cut off"):
        edgellm.ImportanceMatrix.read(old)
    old.write_bytes(b"hello, I am a letter")
    with pytest.raises(ConfigError, match="not an importance matrix"):
        edgellm.ImportanceMatrix.read(old)
    with pytest.raises(ConfigError, match="cannot be read"):
        edgellm.ImportanceMatrix.read(tmp_path / "none")


def test_whoever_watches_may_stop_it_and_nothing_is_left(wide: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int, str]] = []

    def stop_at_third(done: int, total: int, what: str) -> bool:
        seen.append((done, total, what))
        return done < 3

    with pytest.raises(Cancelled):
        edgellm.quantize(wide, tmp_path / "q.gguf", "Q4_0", progress=stop_at_third)
    assert [done for done, _, _ in seen] == [1, 2, 3]
    assert not list(tmp_path.glob("*gguf*"))
    assert not list(tmp_path.glob(".q*"))


def test_a_file_that_llama_cpp_refuses_gives_an_error_not_a_crash(wide: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(wide.read_bytes()[:-50_000])
    with pytest.raises(ModelCorrupt):
        edgellm.quantize(cut, tmp_path / "q.gguf", "Q4_0")
    assert not list(tmp_path.glob(".q*"))
    with pytest.raises(ModelNotFound):
        edgellm.plan_quantize(tmp_path / "none.gguf", "Q4_0")


@pytest.mark.slow
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_ended_in_the_middle_it_leaves_nothing(
    tiny_model: Callable[..., Path], tmp_path: Path, end: int
) -> None:
    from tiny_models import Shape

    # IQ2_S is the slowest there is: seconds for some megabytes.
    big = tiny_model("llama", shape=Shape(n_embd=512, n_ff=2048, n_head=4, head_dim=128, n_layer=6))
    matrix = tmp_path / "m.gguf"
    edgellm.calibrate(big, TEXT).save(matrix)
    folder = tmp_path / "out"
    folder.mkdir()
    with child("quantize", big, folder / "q.gguf", "IQ2_S", "--imatrix", matrix, "--threads", 1) as process:
        deadline = time.monotonic() + 60
        while not any(part.stat().st_size > 0 for part in folder.glob(".q*")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        os.kill(process.pid, end)
        code = process.wait(30)
    assert code == (120 if end == signal.SIGINT else -signal.SIGKILL)
    while list(folder.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert list(folder.iterdir()) == []


def test_dry_run_shows_sizes_and_writes_nothing(wide: Path, tmp_path: Path) -> None:
    every = cli("quantize", wide, "--dry-run")
    assert every.code == 0, every.err
    assert "Q4_K_M" in every.out and "needs an importance matrix" in every.out
    one = cli("quantize", wide, "--dry-run", "--type", "Q4_0", "--tensor", "attn_v=Q8_0")
    assert one.code == 0, one.err
    line = next(line for line in one.out.splitlines() if line.startswith("blk.0.attn_v"))
    assert line.split()[1:3] == ["f32", "q8_0"]
    assert cli("quantize", wide, "--dry-run", "--tensor", "attn_v", "--type", "Q4_0").code == 2
    for words in (("--tensor", "attn_v=Q8_0"), ("--pure",)):
        untyped = cli("quantize", wide, "--dry-run", *words)
        assert untyped.code == 2
        assert "name one with --type" in untyped.err
    assert cli("quantize", wide, tmp_path / "x.gguf").code == 2
    assert not list(tmp_path.glob("*.gguf"))


@pytest.mark.slow
def test_calibrated_on_the_command_line(wide: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    target, matrix = tmp_path / "q.gguf", tmp_path / "m.gguf"
    outcome = cli(
        *("quantize", wide, target, "--type", "IQ2_XXS", "--calibrate", text, "--save-imatrix", matrix)
    )
    assert outcome.code == 0, outcome.err
    assert outcome.out.strip() == str(target)
    assert matrix.is_file()
    assert json.loads(cli("inspect", target, "--json").out)["quantization"]["IQ2_XXS"] > 0
