"""Tiny random GGUFs that llama.cpp loads and decodes: `build(path, arch="moe")` takes milliseconds.

Weights are seeded: the same arguments give the same bytes. Sizes are a few hundred kB. The scale is chosen so
that the softmax is neither flat nor one-hot (logits of standard deviation about 2).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import gguf
import numpy as np
from numpy.typing import NDArray

Arch = Literal["llama", "moe", "qwen3", "qwen2moe", "gemma3", "mamba", "jamba"]
ARCHS: tuple[Arch, ...] = ("llama", "moe", "qwen3", "qwen2moe", "gemma3", "mamba", "jamba")
ATTENTION_ARCHS: tuple[Arch, ...] = ("llama", "moe", "qwen3", "qwen2moe", "gemma3")

CHATML = (
    "{%- for message in messages -%}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
)

CONTROL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
# Each word is merged letter by letter. The runs of spaces double up to 64 bytes: one token longer than the
# 32 bytes that careless readers of pieces allow for.
_WORDS = (
    " the",
    " and",
    " is",
    " a",
    " to",
    " of",
    "in",
    "ing",
    "er",
    "user",
    "assistant",
    "system",
    "name",
    "call",
)
_SPACE_RUNS = (2, 4, 8, 16, 32, 64)


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of one model. `n_swa` is the sliding window in tokens, 0 for none."""

    n_layer: int = 2
    n_embd: int = 64
    n_head: int = 4
    n_head_kv: int = 2
    head_dim: int = 16
    n_ff: int = 96
    n_expert: int = 0
    n_expert_used: int = 0
    n_swa: int = 0


_SHAPES: dict[str, Shape] = {
    "llama": Shape(),
    "moe": Shape(n_expert=4, n_expert_used=2, n_ff=64),
    "qwen3": Shape(),
    "qwen2moe": Shape(n_expert=4, n_expert_used=2, n_ff=64),
    # Five of gemma3's six layers have the window; fewer layers would leave no full one.
    "gemma3": Shape(n_layer=6, n_embd=32, n_head=2, n_head_kv=1, n_ff=64, n_swa=16),
    "mamba": Shape(n_head=0, n_head_kv=0, head_dim=0, n_ff=0),
    # Every other layer is recurrent.
    "jamba": Shape(n_layer=4),
}


def byte_alphabet() -> dict[int, str]:
    """GPT-2's byte-to-letter table: byte value to the visible character that stands for it."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {byte: chr(byte) for byte in visible}
    for offset, byte in enumerate(byte for byte in range(256) if byte not in table):
        table[byte] = chr(256 + offset)
    return table


def bpe_vocabulary() -> tuple[list[str], list[int], list[str]]:
    """Tokens, token types and merges of the byte-level vocabulary. Ids 0 to 2 are CONTROL_TOKENS."""
    letters = byte_alphabet()
    tokens = [*CONTROL_TOKENS, *(letters[byte] for byte in range(256))]
    merges: list[str] = []
    known = set(tokens)

    def merge(left: str, right: str) -> str:
        if left + right not in known:
            known.add(left + right)
            tokens.append(left + right)
            merges.append(f"{left} {right}")
        return left + right

    for run in _SPACE_RUNS:
        half = letters[0x20] * (run // 2)
        merge(half, half)
    for word in _WORDS:
        text = "".join(letters[byte] for byte in word.encode())
        head = text[0]
        for letter in text[1:]:
            head = merge(head, letter)
    types = [gguf.TokenType.CONTROL] * len(CONTROL_TOKENS)
    types += [gguf.TokenType.NORMAL] * (len(tokens) - len(types))
    return tokens, [int(kind) for kind in types], merges


def spm_vocabulary() -> tuple[list[str], list[int], list[float]]:
    """Tokens, token types and scores of a SentencePiece-like vocabulary with byte fallback."""
    tokens = ["<unk>", "<s>", "</s>"]
    types = [gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.CONTROL]
    tokens += [f"<0x{byte:02X}>" for byte in range(256)]
    types += [gguf.TokenType.BYTE] * 256
    tokens += ["<|im_start|>", "<|im_end|>"]
    types += [gguf.TokenType.CONTROL] * 2
    pieces = ["▁", *map(chr, range(0x21, 0x7F)), "▁t", "he", "▁the", "in", "er", "▁a", "an", "▁an"]
    tokens += pieces
    types += [gguf.TokenType.NORMAL] * len(pieces)
    scores = [0.0] * (len(tokens) - len(pieces)) + [-float(rank) for rank in range(len(pieces))]
    return tokens, [int(kind) for kind in types], scores


class _Weights:
    """Adds seeded tensors to a writer, quantized where their rows allow it."""

    def __init__(self, writer: gguf.GGUFWriter, seed: int, quant: str) -> None:
        self._writer = writer
        self._random = np.random.default_rng(seed)
        self._quant = gguf.GGMLQuantizationType[quant]

    def matrix(self, name: str, *shape: int, scale: float | None = None) -> None:
        """Random weights; `shape` as numpy has it: rows first, the input dimension last."""
        spread = scale if scale is not None else 1.0 / np.sqrt(shape[-1])
        data: NDArray[Any] = self._random.normal(0.0, spread, shape).astype(np.float32)
        if self._quant is gguf.GGMLQuantizationType.F32 or shape[-1] % 32:
            self._writer.add_tensor(f"{name}.weight", data)
        else:
            packed = gguf.quants.quantize(data, self._quant)
            self._writer.add_tensor(f"{name}.weight", packed, raw_dtype=self._quant)

    def vector(self, name: str, size: int, value: float = 1.0, noise: float = 0.05) -> None:
        """A norm or a bias: `value` with a little noise."""
        self._writer.add_tensor(name, (value + self._random.normal(0.0, noise, size)).astype(np.float32))

    def array(self, name: str, data: NDArray[Any]) -> None:
        """Given values, never quantized."""
        self._writer.add_tensor(name, data.astype(np.float32))


def build(
    path: str | Path,
    arch: Arch = "llama",
    *,
    seed: int = 1,
    n_ctx: int = 512,
    quant: str = "F32",
    tokenizer: Literal["gpt2", "llama"] = "gpt2",
    chat_template: str | None = CHATML,
    named_templates: Mapping[str, str] | None = None,
    metadata: Mapping[str, Any] | None = None,
    shape: Shape | None = None,
    name: str = "tiny",
    split_max_tensors: int = 0,
    more_tokens: int = 0,
) -> Path:
    """Writes a model and returns its path (the first part's, if split).

    `quant` is F32, F16, Q8_0, Q4_0 ... (only matrices whose rows are multiples of 32 take it). `metadata`
    adds or overrides keys: bool, int (uint32), float (float32), str, list. `split_max_tensors` above 0 writes
    `<stem>-00001-of-0000N.gguf` and its siblings. The vocabulary has `more_tokens` besides those that texts need.
    """
    path = Path(path)
    sizes = shape or _SHAPES[arch]
    architecture = "llama" if arch == "moe" else arch
    writer = gguf.GGUFWriter(path, architecture, split_max_tensors=split_max_tensors)
    _add_header(writer, architecture, sizes, n_ctx, name)
    n_vocab = _add_vocabulary(writer, tokenizer, more_tokens)
    templates: list[dict[str, str]] = [
        {"name": key, "template": text} for key, text in (named_templates or {}).items()
    ]
    if chat_template is not None:
        templates.append({"name": "default", "template": chat_template})
    if templates:
        writer.add_chat_template(templates)
    _override(writer, metadata or {})
    weights = _Weights(writer, seed, quant)
    # Rows of standard deviation 2/sqrt(n) against a normed hidden state give logits of deviation about 2.
    weights.matrix("token_embd", n_vocab, sizes.n_embd, scale=2.0 / np.sqrt(sizes.n_embd))
    weights.vector("output_norm.weight", sizes.n_embd)
    if arch not in ("gemma3", "mamba"):
        weights.matrix("output", n_vocab, sizes.n_embd, scale=2.0 / np.sqrt(sizes.n_embd))
    for layer in range(sizes.n_layer):
        if arch == "mamba":
            _add_mamba_layer(weights, f"blk.{layer}", sizes)
        elif arch == "jamba" and layer % 2 == 0:
            _add_mamba_layer(weights, f"blk.{layer}", sizes)
            for part, size in (("dt", sizes.n_embd // 16), ("b", 16), ("c", 16)):
                weights.vector(f"blk.{layer}.ssm_{part}_norm.weight", size)
            _add_feed_forward(weights, f"blk.{layer}", arch, sizes)
        else:
            _add_attention(weights, f"blk.{layer}", arch, sizes)
            _add_feed_forward(weights, f"blk.{layer}", arch, sizes)
    path.parent.mkdir(parents=True, exist_ok=True)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    parts = len(writer.tensors)
    writer.close()
    return path if parts == 1 else path.with_name(f"{path.stem}-00001-of-{parts:05d}.gguf")


def _add_header(writer: gguf.GGUFWriter, architecture: str, sizes: Shape, n_ctx: int, name: str) -> None:
    writer.add_name(name)
    writer.add_license("apache-2.0")
    writer.add_context_length(n_ctx)
    writer.add_embedding_length(sizes.n_embd)
    writer.add_block_count(sizes.n_layer)
    writer.add_layer_norm_rms_eps(1e-5)
    if architecture in ("mamba", "jamba"):
        writer.add_ssm_conv_kernel(4)
        writer.add_ssm_inner_size(2 * sizes.n_embd)
        writer.add_ssm_state_size(16)
        writer.add_ssm_time_step_rank(sizes.n_embd // 16)
    if architecture == "mamba":
        writer.add_feed_forward_length(0)
        writer.add_head_count(0)
        return
    writer.add_feed_forward_length(sizes.n_ff)
    writer.add_head_count(sizes.n_head)
    if architecture == "jamba":
        writer.add_head_count_kv([sizes.n_head_kv * (layer % 2) for layer in range(sizes.n_layer)])
    else:
        writer.add_head_count_kv(sizes.n_head_kv)
    writer.add_key_length(sizes.head_dim)
    writer.add_value_length(sizes.head_dim)
    writer.add_rope_dimension_count(sizes.head_dim)
    writer.add_rope_freq_base(10000.0)
    if sizes.n_expert:
        writer.add_expert_count(sizes.n_expert)
        writer.add_expert_used_count(sizes.n_expert_used)
    if architecture == "qwen2moe":
        writer.add_expert_feed_forward_length(sizes.n_ff)
        writer.add_expert_shared_feed_forward_length(sizes.n_ff)
    if sizes.n_swa:
        writer.add_sliding_window(sizes.n_swa)


def _add_vocabulary(writer: gguf.GGUFWriter, tokenizer: str, more: int) -> int:
    writer.add_tokenizer_model(tokenizer)
    extra = [f"more{number}" for number in range(more)]
    normal = [int(gguf.TokenType.NORMAL)] * more
    if tokenizer == "gpt2":
        tokens, types, merges = bpe_vocabulary()
        writer.add_tokenizer_pre("gpt-2")
        writer.add_token_list(tokens + extra)
        writer.add_token_types(types + normal)
        writer.add_token_merges(merges)
        writer.add_bos_token_id(tokens.index("<|im_start|>"))
        writer.add_eos_token_id(tokens.index("<|im_end|>"))
        writer.add_add_bos_token(False)
    else:
        tokens, types, scores = spm_vocabulary()
        writer.add_tokenizer_pre("default")
        writer.add_token_list(tokens + extra)
        writer.add_token_types(types + normal)
        writer.add_token_scores(scores + [-1000.0] * more)
        writer.add_unk_token_id(0)
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(tokens.index("<|im_end|>"))
        writer.add_add_bos_token(True)
    return len(tokens) + more


def _override(writer: gguf.GGUFWriter, metadata: Mapping[str, Any]) -> None:
    for key, value in metadata.items():
        for shard in writer.kv_data:
            shard.pop(key, None)
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)


def _add_attention(weights: _Weights, prefix: str, arch: str, sizes: Shape) -> None:
    query, key_value = sizes.n_head * sizes.head_dim, sizes.n_head_kv * sizes.head_dim
    weights.vector(f"{prefix}.attn_norm.weight", sizes.n_embd)
    weights.matrix(f"{prefix}.attn_q", query, sizes.n_embd)
    weights.matrix(f"{prefix}.attn_k", key_value, sizes.n_embd)
    weights.matrix(f"{prefix}.attn_v", key_value, sizes.n_embd)
    weights.matrix(f"{prefix}.attn_output", sizes.n_embd, query)
    if arch == "qwen2moe":
        weights.vector(f"{prefix}.attn_q.bias", query, 0.0)
        weights.vector(f"{prefix}.attn_k.bias", key_value, 0.0)
        weights.vector(f"{prefix}.attn_v.bias", key_value, 0.0)
    if arch in ("qwen3", "gemma3"):
        weights.vector(f"{prefix}.attn_q_norm.weight", sizes.head_dim)
        weights.vector(f"{prefix}.attn_k_norm.weight", sizes.head_dim)
    if arch == "gemma3":
        weights.vector(f"{prefix}.post_attention_norm.weight", sizes.n_embd)
        weights.vector(f"{prefix}.post_ffw_norm.weight", sizes.n_embd)


def _add_feed_forward(weights: _Weights, prefix: str, arch: str, sizes: Shape) -> None:
    weights.vector(f"{prefix}.ffn_norm.weight", sizes.n_embd)
    if not sizes.n_expert:
        weights.matrix(f"{prefix}.ffn_gate", sizes.n_ff, sizes.n_embd)
        weights.matrix(f"{prefix}.ffn_up", sizes.n_ff, sizes.n_embd)
        weights.matrix(f"{prefix}.ffn_down", sizes.n_embd, sizes.n_ff)
        return
    weights.array(
        f"{prefix}.ffn_gate_inp.weight",
        np.random.default_rng(sizes.n_expert).normal(0.0, 1.0, (sizes.n_expert, sizes.n_embd)),
    )
    weights.matrix(f"{prefix}.ffn_gate_exps", sizes.n_expert, sizes.n_ff, sizes.n_embd)
    weights.matrix(f"{prefix}.ffn_up_exps", sizes.n_expert, sizes.n_ff, sizes.n_embd)
    weights.matrix(f"{prefix}.ffn_down_exps", sizes.n_expert, sizes.n_embd, sizes.n_ff)
    if arch == "qwen2moe":
        weights.vector(f"{prefix}.ffn_gate_inp_shexp.weight", sizes.n_embd, 0.0)
        weights.matrix(f"{prefix}.ffn_gate_shexp", sizes.n_ff, sizes.n_embd)
        weights.matrix(f"{prefix}.ffn_up_shexp", sizes.n_ff, sizes.n_embd)
        weights.matrix(f"{prefix}.ffn_down_shexp", sizes.n_embd, sizes.n_ff)


def _add_mamba_layer(weights: _Weights, prefix: str, sizes: Shape) -> None:
    inner, state, rank = 2 * sizes.n_embd, 16, sizes.n_embd // 16
    random = np.random.default_rng(inner)
    weights.vector(f"{prefix}.attn_norm.weight", sizes.n_embd)
    weights.matrix(f"{prefix}.ssm_in", 2 * inner, sizes.n_embd)
    weights.array(f"{prefix}.ssm_conv1d.weight", random.normal(0.0, 0.5, (inner, 4)))
    weights.vector(f"{prefix}.ssm_conv1d.bias", inner, 0.0)
    weights.matrix(f"{prefix}.ssm_x", rank + 2 * state, inner)
    weights.matrix(f"{prefix}.ssm_dt", inner, rank)
    weights.vector(f"{prefix}.ssm_dt.bias", inner, -2.0)
    # A must be negative, or the state grows without bound.
    weights.array(f"{prefix}.ssm_a", -np.tile(np.arange(1.0, state + 1.0), (inner, 1)))
    weights.vector(f"{prefix}.ssm_d", inner)
    weights.matrix(f"{prefix}.ssm_out", sizes.n_embd, inner)


def build_lora(
    path: str | Path,
    *,
    seed: int = 1,
    rank: int = 2,
    arch: str = "llama",
    strength: float = 0.5,
    shape: Shape | None = None,
) -> Path:
    """A LoRA adapter for the tiny model of architecture llama: it changes queries and the feed-forward's end."""
    path = Path(path)
    sizes, random = shape or _SHAPES["llama"], np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, arch)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(rank))
    for layer in range(sizes.n_layer):
        for name, rows, columns in (
            ("attn_q", sizes.n_head * sizes.head_dim, sizes.n_embd),
            ("ffn_down", sizes.n_embd, sizes.n_ff),
        ):
            a = random.normal(0.0, strength, (rank, columns)).astype(np.float32)
            b = random.normal(0.0, strength, (rows, rank)).astype(np.float32)
            writer.add_tensor(f"blk.{layer}.{name}.weight.lora_a", a)
            writer.add_tensor(f"blk.{layer}.{name}.weight.lora_b", b)
    return write(writer, path)


def build_control_vector(
    path: str | Path, *, seed: int = 1, layers: int = 2, n_embd: int = 64, hint: str = "llama"
) -> Path:
    """A control vector for the tiny model of architecture llama: one direction for each layer but the first."""
    path = Path(path)
    random = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, "controlvector")
    writer.add_string("controlvector.model_hint", hint)
    for layer in range(1, layers):
        writer.add_tensor(f"direction.{layer}", random.normal(0.0, 1.0, n_embd).astype(np.float32))
    return write(writer, path)


def write(writer: gguf.GGUFWriter, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
