"""What a GGUF says of its model: sizes, quantization, context, memory a token, templates, tokenizer."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from edgellm.errors import ModelCorrupt, ModelNotFound
from edgellm.models.gguf_file import GGUFFile, Scalar, Value, read_gguf

_SPLIT_NAME = re.compile(r"^(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf$")
_BLOCK_NAME = re.compile(r"^blk\.(\d+)\.")
_F16_BYTES = 2
_TEMPLATE_KEY = "tokenizer.chat_template"
# LLAMA_MAX_LAYERS of llama.cpp.
_MOST_LAYERS = 512
_SAMPLING_PREFIX = "general.sampling."


@dataclass(frozen=True, slots=True)
class RopeInfo:
    """Rotary position embedding. `scaling` is none, linear, yarn ...; `factor` stretches the context."""

    base: float
    dimension_count: int
    scaling: str
    factor: float
    original_context: int


@dataclass(frozen=True, slots=True)
class TokenizerInfo:
    """`model` is gpt2, llama ...; `pre` names the pre-tokenizer. Ids are None where the file has none."""

    model: str
    pre: str
    vocabulary_size: int
    bos: int | None
    eos: int | None
    adds_bos: bool | None


@dataclass(frozen=True, slots=True)
class WeightSizes:
    """Where the bytes are. `layers` and `experts` (of a layer's bytes, those of its routed experts) by layer;
    `embedding` is the input table, `rest` what stands behind the last layer. `is_tied`: the input table is read
    for the output too.
    """

    layers: tuple[int, ...]
    experts: tuple[int, ...]
    embedding: int
    rest: int
    is_tied: bool


@dataclass(frozen=True, slots=True)
class GGUFInfo:
    """A model, as its file(s) describe it; nothing here needs llama.cpp.

    `size_bytes` and `quantization` (type name to bytes, largest first) are sums over all parts of a split.
    `kv_heads_by_layer` has 0 for a layer without attention.
    `kv_bytes_per_token` is for an f16 cache that keeps every position of every layer (no window dropped);
    `attention_layers` counts the layers that have such a cache, the rest are recurrent. `context_length` is 0
    where the file does not say. `metadata` has all scalars and short arrays.
    """

    path: Path
    parts: tuple[Path, ...]
    size_bytes: int
    version: int
    architecture: str
    name: str
    licence: str
    parameters: int
    active_parameters: int
    quantization: Mapping[str, int]
    context_length: int
    embedding_length: int
    layers: int
    attention_layers: int
    heads: int
    kv_heads: int
    kv_heads_by_layer: tuple[int, ...]
    key_head_size: int
    value_head_size: int
    rope: RopeInfo
    experts: int
    experts_used: int
    sliding_window: int
    kv_bytes_per_token: int
    chat_templates: Mapping[str, str]
    tokenizer: TokenizerInfo
    sampling: Mapping[str, Scalar]
    pooling: int | None
    metadata: Mapping[str, Value]
    weights: WeightSizes

    @property
    def gqa_ratio(self) -> float:
        """Query heads that share one key-value head; 0 where there is no attention."""
        return self.heads / self.kv_heads if self.kv_heads else 0.0

    @property
    def main_type(self) -> str:
        """The quantization type that takes the most bytes."""
        return next(iter(self.quantization), "")

    @property
    def bits_per_weight(self) -> float:
        """Bits of tensor data for each weight, over the whole model."""
        return 8 * sum(self.quantization.values()) / self.parameters if self.parameters else 0.0


def inspect_gguf(path: str | Path) -> GGUFInfo:
    """What the GGUF at `path` (any part of a split model) says of its model.

    Raises ModelNotFound (file or a sibling part missing), ModelCorrupt, ModelUnsupported.
    """
    parts = split_parts(path)
    files = [read_gguf(part) for part in parts]
    _check_split(files)
    return _describe(files)


def split_parts(path: str | Path) -> tuple[Path, ...]:
    """All parts of the split model that `path` belongs to, in order; just `path` where it is whole.

    Raises ModelNotFound naming the first part that is missing.
    """
    path = Path(path)
    match = _SPLIT_NAME.match(path.name)
    if match is None:
        return (path,)
    names = split_names(path.name)
    parts = tuple(path.with_name(name) for name in names)
    missing = [part for part in parts if not part.is_file()]
    if missing:
        raise ModelNotFound(
            f"{path.name} is part of a model in {len(parts)} files, and {missing[0].name} is missing"
            f" from {path.parent}.",
            hint=f"Put all {len(parts)} parts into one folder.",
        )
    return parts


def split_names(name: str) -> tuple[str, ...]:
    """File names of all parts that `name` (`x-00001-of-00003.gguf`) stands for; else just `name`."""
    match = _SPLIT_NAME.match(name)
    if match is None:
        return (name,)
    count = int(match["count"])
    return tuple(f"{match['stem']}-{number:05d}-of-{count:05d}.gguf" for number in range(1, count + 1))


def _check_split(files: list[GGUFFile]) -> None:
    first = files[0]
    declared = first.metadata.get("split.count", 0)
    if isinstance(declared, int) and declared > 1 and len(files) == 1:
        raise ModelNotFound(
            f"{first.path} is one of {declared} parts, but its name does not say which.",
            hint=f"Name the parts NAME-00001-of-{declared:05d}.gguf and so on.",
        )
    for number, file in enumerate(files):
        if len(files) > 1 and file.metadata.get("split.no") != number:
            raise ModelCorrupt(
                f"{file.path} says it is part {file.metadata.get('split.no')} (from 0) of its model, its name"
                f" says {number}.",
                hint="Download the parts again.",
            )


class _Keys:
    """Reads metadata by type; keys that start with a dot get the architecture before it."""

    def __init__(self, metadata: Mapping[str, Value], architecture: str) -> None:
        self._metadata = metadata
        self._architecture = architecture

    def get(self, key: str) -> Value | None:
        """The raw value."""
        return self._metadata.get(self._architecture + key if key.startswith(".") else key)

    def number(self, key: str, default: int = 0) -> int:
        """An integer; the largest of an array."""
        return max(self.numbers(key, 1, default), default=default)

    def numbers(self, key: str, count: int, default: int = 0) -> tuple[int, ...]:
        """An integer for each layer, whether the file has one or an array."""
        value = self.get(key)
        if isinstance(value, tuple):
            return tuple(int(item) for item in value if isinstance(item, int | float))
        return (int(value),) * count if isinstance(value, int | float) else (default,) * count

    def real(self, key: str, default: float = 0.0) -> float:
        """A float."""
        value = self.get(key)
        return float(value) if isinstance(value, int | float) else default

    def text(self, key: str, default: str = "") -> str:
        """A string."""
        value = self.get(key)
        return value if isinstance(value, str) else default

    def token(self, key: str) -> int | None:
        """A token id."""
        value = self.get(key)
        return int(value) if isinstance(value, int) else None


def _describe(files: list[GGUFFile]) -> GGUFInfo:
    first = files[0]
    architecture = first.metadata.get("general.architecture")
    if not isinstance(architecture, str) or not architecture:
        raise ModelCorrupt(
            f"{first.path} does not name its architecture.", hint="Get another conversion of this model."
        )
    keys = _Keys(first.metadata, architecture)
    layers = keys.number(".block_count")
    if not 0 <= layers <= _MOST_LAYERS:
        raise ModelCorrupt(
            f"{first.path} claims to have {layers} layers; llama.cpp takes {_MOST_LAYERS} at most.",
            hint="Download the model again.",
        )
    heads = keys.number(".attention.head_count")
    embedding = keys.number(".embedding_length")
    head_size = embedding // heads if heads else 0
    kv_heads = _kv_heads(keys, layers, heads)
    key_size = keys.number(".attention.key_length", head_size)
    value_size = keys.number(".attention.value_length", head_size)
    adds_bos = keys.get("tokenizer.ggml.add_bos_token")
    pooling = keys.get(".pooling_type")
    experts, used = keys.number(".expert_count"), keys.number(".expert_used_count")
    total, expert_weights = _count_parameters(files)
    return GGUFInfo(
        path=first.path,
        parts=tuple(file.path for file in files),
        size_bytes=sum(file.size_bytes for file in files),
        version=first.version,
        architecture=architecture,
        name=keys.text("general.name"),
        licence=keys.text("general.license.name") or keys.text("general.license"),
        parameters=total,
        active_parameters=total - expert_weights + (expert_weights * used // experts if experts else 0),
        quantization=_quantization(files),
        context_length=keys.number(".context_length"),
        embedding_length=embedding,
        layers=layers,
        attention_layers=sum(1 for count in kv_heads if count),
        heads=heads,
        kv_heads=max(kv_heads, default=0),
        kv_heads_by_layer=kv_heads,
        key_head_size=key_size,
        value_head_size=value_size,
        rope=RopeInfo(
            base=keys.real(".rope.freq_base", 10000.0),
            dimension_count=keys.number(".rope.dimension_count", key_size),
            scaling=keys.text(".rope.scaling.type", "none"),
            factor=keys.real(".rope.scaling.factor", 1.0),
            original_context=keys.number(".rope.scaling.original_context_length"),
        ),
        experts=experts,
        experts_used=used,
        sliding_window=keys.number(".attention.sliding_window"),
        kv_bytes_per_token=_kv_bytes(keys, kv_heads, key_size, value_size),
        chat_templates=_templates(first.metadata),
        tokenizer=TokenizerInfo(
            model=keys.text("tokenizer.ggml.model"),
            pre=keys.text("tokenizer.ggml.pre"),
            vocabulary_size=first.array_lengths.get("tokenizer.ggml.tokens", keys.number(".vocab_size")),
            bos=keys.token("tokenizer.ggml.bos_token_id"),
            eos=keys.token("tokenizer.ggml.eos_token_id"),
            adds_bos=adds_bos if isinstance(adds_bos, bool) else None,
        ),
        sampling={
            key.removeprefix(_SAMPLING_PREFIX): value
            for key, value in first.metadata.items()
            if key.startswith(_SAMPLING_PREFIX) and not isinstance(value, tuple)
        },
        pooling=pooling if isinstance(pooling, int) else None,
        metadata=first.metadata,
        weights=_weight_sizes(files, layers),
    )


def _kv_heads(keys: _Keys, layers: int, heads: int) -> tuple[int, ...]:
    """Key-value heads of each layer; 0 for a layer without attention."""
    counts = keys.numbers(".attention.head_count_kv", layers, heads)
    interval = keys.number(".full_attention_interval")
    if interval > 1 and len(set(counts)) == 1:
        counts = tuple(count if (layer + 1) % interval == 0 else 0 for layer, count in enumerate(counts))
    return counts


def _kv_bytes(keys: _Keys, kv_heads: tuple[int, ...], key_size: int, value_size: int) -> int:
    shared = keys.number(".attention.shared_kv_layers")
    own = kv_heads[: len(kv_heads) - shared] if shared else kv_heads
    latent = keys.number(".attention.kv_lora_rank")
    if latent and keys.get(".attention.key_length_mla") is not None:
        # Multi-head latent attention caches one compressed vector and the rotated part of the key.
        return _F16_BYTES * len(own) * (latent + keys.number(".rope.dimension_count"))
    window_key = keys.number(".attention.key_length_swa", key_size)
    window_value = keys.number(".attention.value_length_swa", value_size)
    pattern = keys.get(".attention.sliding_window_pattern")
    has_window = pattern if isinstance(pattern, tuple) else ()
    total = 0
    for layer, count in enumerate(own):
        is_windowed = layer < len(has_window) and bool(has_window[layer])
        total += count * (window_key + window_value if is_windowed else key_size + value_size)
    return _F16_BYTES * total


def _count_parameters(files: Iterable[GGUFFile]) -> tuple[int, int]:
    """All weights, and those of them that belong to routed experts."""
    total = experts = 0
    for file in files:
        for tensor in file.tensors:
            total += tensor.parameters
            if "_exps." in tensor.name:
                experts += tensor.parameters
    return total, experts


def _weight_sizes(files: Iterable[GGUFFile], count: int) -> WeightSizes:
    layers, experts = [0] * count, [0] * count
    embedding = rest = 0
    has_output = False
    for tensor in (tensor for file in files for tensor in file.tensors):
        match = _BLOCK_NAME.match(tensor.name)
        if match is not None and int(match[1]) < count:
            layers[int(match[1])] += tensor.size_bytes
            experts[int(match[1])] += tensor.size_bytes if "_exps." in tensor.name else 0
        elif tensor.name.startswith(("token_embd", "per_layer_token_embd")):
            embedding += tensor.size_bytes
        else:
            rest += tensor.size_bytes
            has_output = has_output or tensor.name == "output.weight"
    return WeightSizes(tuple(layers), tuple(experts), embedding, rest, not has_output)


def _quantization(files: Iterable[GGUFFile]) -> dict[str, int]:
    sums: dict[str, int] = {}
    for file in files:
        for tensor in file.tensors:
            sums[tensor.type] = sums.get(tensor.type, 0) + tensor.size_bytes
    return dict(sorted(sums.items(), key=lambda item: -item[1]))


def _templates(metadata: Mapping[str, Value]) -> dict[str, str]:
    """Chat templates by name; the unnamed one is `default`."""
    found: dict[str, str] = {}
    for key, value in metadata.items():
        if isinstance(value, str) and key == _TEMPLATE_KEY:
            found["default"] = value
        elif isinstance(value, str) and key.startswith(_TEMPLATE_KEY + "."):
            found[key.removeprefix(_TEMPLATE_KEY + ".")] = value
    return found
