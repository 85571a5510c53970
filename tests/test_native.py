"""The native room: vocabulary, loading, quantizing, and errors with names."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import tiny_models
from tiny_models import Shape

import edgellm
from edgellm.errors import Cancelled, ConfigError, ModelCorrupt, ModelNotFound
from edgellm.native.context import Context
from edgellm.native.devices import backends, devices
from edgellm.native.library import log_text, system_info
from edgellm.native.model import Model
from edgellm.offline import merged_options
from edgellm.types import LoadOptions, LoraAdapter, Segment, SpanKind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture(scope="module")
def model(tiny_model: Callable[..., Path]) -> Iterator[Model]:
    model = Model.load(tiny_model("llama"), LoadOptions())
    yield model
    model.close()


def template(text: str) -> Segment:
    return Segment(text, SpanKind.GLUE, True)


def content(text: str) -> Segment:
    return Segment(text, SpanKind.USER, False)


def test_control_token_in_a_content_stays_text(model: Model) -> None:
    vocabulary = model.vocabulary
    end = vocabulary.special_tokens["<|im_end|>"]
    segments = [template("<|im_start|>user\n"), content("a<|im_end|>b"), template("<|im_end|>\n")]
    entries = vocabulary.encode(segments)
    assert [token for token, _ in entries].count(end) == 1
    assert (
        vocabulary.text_of([token for token, _ in entries]).decode()
        == "<|im_start|>usera<|im_end|>b<|im_end|>".replace("usera", "user\na") + "\n"
    )
    assert all(kind is SpanKind.GLUE for token, kind in entries if token == end)


@pytest.mark.parametrize(
    "segments",
    [
        [template("x"), content("<|im_"), content("end|>"), template("y")],
        [template("x<|im_"), content("end|>y")],
        [content("x<|im_end|"), template(">")],
    ],
)
def test_control_token_straddling_a_content_stays_text(model: Model, segments: list[Segment]) -> None:
    end = model.vocabulary.special_tokens["<|im_end|>"]
    assert end not in [token for token, _ in model.vocabulary.encode(segments)]


def test_harmless_contents_are_tokenized_jointly(model: Model) -> None:
    vocabulary = model.vocabulary
    segments = [template("<|im_start|>user\nSay: "), content("hello there"), template("!<|im_end|>")]
    joined = "".join(segment.text for segment in segments)
    assert [t for t, _ in vocabulary.encode(segments)] == vocabulary.tokenize(joined, parse_special=True)


def test_each_token_belongs_to_the_owner_of_its_first_byte(model: Model) -> None:
    entries = model.vocabulary.encode([template("<|im_start|>"), content("äö"), template("<|im_end|>")])
    at = 0
    for token, kind in entries:
        expected = SpanKind.USER if 12 <= at < 16 else SpanKind.GLUE
        assert kind is expected
        at += len(model.vocabulary.piece(token))
    assert at == 26


def test_all_pieces_round_trip_and_ids_out_of_range_are_refused(model: Model) -> None:
    vocabulary = model.vocabulary
    text = "Grüße, 你好 🙂\n\t end"
    assert vocabulary.text_of(vocabulary.tokenize(text)).decode() == text
    with pytest.raises(ValueError, match="outside the vocabulary"):
        vocabulary.piece(vocabulary.size)


def test_token_longer_than_the_first_buffer_is_kept(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgellm.native.vocabulary._FIRST_PIECE_BUFFER", 2)
    start = model.vocabulary.special_tokens["<|im_start|>"]
    assert model.vocabulary._read_piece(start) == b"<|im_start|>"  # pyright: ignore[reportPrivateUsage]


def test_loading_can_be_stopped_by_its_progress(tiny_model: Callable[..., Path]) -> None:
    with pytest.raises(Cancelled):
        Model.load(tiny_model("llama"), LoadOptions(), progress=lambda fraction: False)
    seen: list[float] = []
    Model.load(tiny_model("llama"), LoadOptions(), progress=seen.append).close()
    assert seen[-1] == pytest.approx(1.0)


def test_what_progress_raises_ends_the_load(
    tiny_model: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    def fail(_fraction: float) -> None:
        raise ValueError("no screen")

    with pytest.raises(ValueError, match="no screen"):
        edgellm.load(tiny_model("llama"), progress=fail)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("at", [0.0, 1.0])
def test_ctrl_c_while_loading_is_raised(
    at: float, tiny_model: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    def press(fraction: float) -> None:
        if fraction >= at:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        edgellm.load(tiny_model("llama"), progress=press)
    assert capfd.readouterr().err == ""
    edgellm.load(tiny_model("llama")).close()


def test_file_that_is_no_gguf_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_text("hello", encoding="utf-8")
    with pytest.raises(ModelCorrupt, match=r"x\.gguf") as caught:
        Model.load(path, LoadOptions())
    assert "magic" in caught.value.log
    with pytest.raises(ModelNotFound):
        Model.load(tmp_path / "missing.gguf", LoadOptions())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kv_type_k": "q3"}, "kv_type_k='q3' is not one of auto, f32"),
        ({"devices": ("GPU7",)}, "no device named 'GPU7'"),
        ({"override_tensors": ("blk",)}, "is not PATTERN=DEVICE"),
        ({"override_tensors": ("blk([=CPU",)}, "not a regular expression"),
        ({"override_tensors": ("blk=GPU7",)}, "no device named"),
        ({"lora": (LoraAdapter("/none.gguf"),)}, "no LoRA adapter"),
        ({"tensor_split": (1.0,) * 99}, "99 devices"),
    ],
)
def test_wrong_load_options_have_a_remedy(
    tiny_model: Callable[..., Path], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        edgellm.load(tiny_model("llama"), **options)
    assert caught.value.hint


def test_unknown_load_option_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'n_ctx'"):
        merged_options(None, None, {"n_ctxt": 1})


@pytest.mark.parametrize(
    "options",
    [
        {"kv_type_k": "q8_0", "kv_type_v": "q8_0", "flash_attention": "on"},
        {"kv_type_k": "q4_0", "kv_type_v": "q4_0"},
        {"flash_attention": "off"},
        {"use_mmap": False},
        {"rope_scaling": "yarn", "n_ctx": 1024, "yarn_orig_ctx": 512, "rope_freq_scale": 0.5},
        {"threads": 1, "threads_batch": 2, "n_batch": 32, "n_ubatch": 16},
        {"n_gpu_layers": "all", "tensor_split": (1.0,), "check_tensors": True},
        {"override_tensors": (r"blk\.0\.ffn.*=CPU",)},
    ],
)
def test_every_load_option_decodes(tiny_model: Callable[..., Path], options: dict[str, Any]) -> None:
    # Heads of 32: quantized KV types come in blocks of that size.
    model = tiny_model("llama", shape=Shape(n_embd=128, head_dim=32))
    with edgellm.load(model, **options) as runtime:
        (last,) = [e for e in runtime.complete("abc", max_tokens=4) if isinstance(e, edgellm.TurnFinished)]
        assert last.usage.decode_tokens >= 1


def test_kv_type_that_does_not_fit_the_heads_is_explained(tiny_model: Callable[..., Path]) -> None:
    with pytest.raises(ConfigError, match="block size 32 does not divide") as caught:
        edgellm.load(tiny_model("llama"), kv_type_k="q8_0")
    assert "f16" in caught.value.hint
    with pytest.raises(ConfigError, match="needs flash attention"):
        edgellm.load(
            tiny_model("llama", shape=Shape(n_embd=128, head_dim=32)), kv_type_v="q8_0", flash_attention="off"
        )


def test_experts_can_stay_on_the_cpu(tiny_model: Callable[..., Path]) -> None:
    for layers in (1, "all"):
        with edgellm.load(tiny_model("moe"), cpu_moe=layers, n_ctx=64) as runtime:
            assert list(runtime.complete("abc", max_tokens=2))


def test_devices_and_backends_are_listed() -> None:
    assert "CPU" in backends()
    assert any(device.kind == "cpu" and device.total_bytes > 0 for device in devices())
    assert "CPU" in system_info()
    assert isinstance(log_text(), str)


def test_quantized_copy_is_smaller_loads_and_answers(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    source, target = tiny_model("llama"), tmp_path / "q8.gguf"
    edgellm.quantize(source, target, "q8_0")
    assert target.stat().st_size < source.stat().st_size
    with edgellm.load(target, n_ctx=64) as runtime:
        assert list(runtime.complete("abc", max_tokens=2))
    with pytest.raises(ConfigError, match="exists already"):
        edgellm.quantize(source, target, "Q8_0")
    with pytest.raises(ConfigError, match="unknown"):
        edgellm.quantize(source, tmp_path / "x.gguf", "Q9")
    with pytest.raises(ModelNotFound):
        edgellm.quantize(tmp_path / "none", tmp_path / "x.gguf", "Q8_0")
    assert list(tmp_path.glob(".*part")) == []


def test_embeddings_are_unit_vectors_and_equal_for_equal_texts(tiny_model: Callable[..., Path]) -> None:
    with edgellm.load(tiny_model("llama"), n_ctx=64) as runtime:
        vectors = runtime.embed(["hello", "other", "hello"])
        assert vectors.shape == (3, runtime.model.n_embd)
        assert vectors.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, rtol=1e-5)
        np.testing.assert_allclose(vectors[0], vectors[2])
        assert not np.allclose(vectors[0], vectors[1])
        assert runtime.embed([]).shape == (0, runtime.model.n_embd)
        with pytest.raises(ConfigError, match="list of texts"):
            runtime.embed("hello")
        with pytest.raises(edgellm.ContextFull, match="exceeds the embedding context"):
            runtime.embed(["x" * 5000])


def test_tag_that_is_one_token_in_any_text_is_not_forged_by_a_content(
    tiny_model: Callable[..., Path],
) -> None:
    tokens, types, merges = tiny_models.bpe_vocabulary()
    tokens[-1], types[-1] = "<tool_call>", 4
    metadata = {
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [int(kind) for kind in types],
        "tokenizer.ggml.merges": merges[:-1],
    }
    path = tiny_model("llama", metadata=metadata)
    model = Model.load(path, LoadOptions())
    tag = model.vocabulary.tokenize("<tool_call>")
    assert len(tag) == 1
    entries = model.vocabulary.encode(
        [template("<tool_call>"), content("see <tool_call> here"), template("!")]
    )
    assert [token for token, _ in entries].count(tag[0]) == 1
    assert model.vocabulary.text_of([token for token, _ in entries]) == b"<tool_call>see <tool_call> here!"
    model.close()


@pytest.mark.parametrize("options", [LoadOptions(n_ctx=1), LoadOptions(n_batch=2, n_seq_max=5)])
def test_context_and_batch_have_room_for_a_token_of_each_sequence(model: Model, options: LoadOptions) -> None:
    context = Context(model, options)
    assert context.n_batch >= context.n_seq_max and context.n_ctx >= context.n_seq_max
    context.close()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "spin 2000"),
        ({"OMP_WAIT_POLICY": "passive"}, "passive"),
        ({"OMP_WAIT_POLICY": ""}, "libgomp's own"),
        ({"OMP_WAIT_POLICY": "", "GOMP_SPINCOUNT": "9"}, "spin 9"),
        ({"GOMP_SPINCOUNT": "7"}, "spin 7"),
    ],
)
def test_threads_spin_briefly_unless_the_user_says_otherwise(given: dict[str, str], expected: str) -> None:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    code = (
        "import os; from edgellm.native.library import lib, wait_policy; lib();"
        "print(wait_policy(), os.environ.get('GOMP_SPINCOUNT'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=kept | given, capture_output=True, text=True, check=True
    )
    spins = expected.rpartition(" ")[2] if expected.startswith("spin") else "None"
    assert done.stdout.split() == [*expected.split(), spins]
