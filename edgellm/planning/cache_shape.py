"""How much memory a model's context takes, worked out from its GGUF alone.

Source of the arithmetic: llama.cpp's llama_hparams (n_embd_k_gqa, n_embd_r, n_embd_s) and its KV caches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgellm.models.gguf_file import TENSOR_TYPES

if TYPE_CHECKING:
    from edgellm.models.gguf_info import GGUFInfo

_CELLS_STEP = 256  # llama.cpp rounds the context, and the window's cells, up to this
_CELL_BYTES = 52  # position, shift and sequences of a cell, beside its keys and values: measured
_STATE_VALUE_BYTES = 4  # recurrent state is kept in f32
# Of so many layers the last is a full one, the others have the window, where the file does not list them.
_WINDOW_PERIODS = {
    "gemma2": 2,
    "gemma3": 6,
    "gemma3n": 5,
    "cohere2": 4,
    "gpt-oss": 2,
    "exaone4": 4,
    "olmo2": 4,
    "llama4": 4,
}
_BYTES = {name: (block, size) for name, block, size in TENSOR_TYPES.values()}


def type_bytes(kind: str, values: int) -> int:
    """Bytes of a row of `values` in a type such as "q8_0"."""
    block, size = _BYTES[kind.upper()]
    return values // block * size


@dataclass(frozen=True, slots=True)
class LayerCache:
    """Values that one layer keeps for one token. Latent attention (MLA) keeps a key and no value."""

    key_width: int
    value_width: int
    is_windowed: bool = False


@dataclass(frozen=True, slots=True)
class CacheShape:
    """What a context of this model holds.

    `layers` are those with keys and values; `state_values` counts the values of recurrent state over all layers,
    for one sequence; `window` is the sliding window in tokens, 0 for none.
    """

    layers: tuple[LayerCache, ...]
    state_values: int = 0
    window: int = 0

    def cells(self, n_ctx: int) -> int:
        """Tokens there is room for: llama.cpp rounds up."""
        return -(-n_ctx // _CELLS_STEP) * _CELLS_STEP

    def kv_bytes(
        self,
        n_ctx: int,
        key_type: str = "f16",
        value_type: str = "f16",
        *,
        window_cells: int | None = None,
    ) -> int:
        """Bytes of keys and values for a context of `n_ctx` tokens.

        `window_cells` caps what windowed layers keep; None keeps all positions there too, so that any token can be
        rewound to.
        """
        cells = self.cells(n_ctx)
        total = 0
        for layer in self.layers:
            own = cells
            if layer.is_windowed and window_cells is not None:
                own = min(cells, self.cells(window_cells))
            total += own * (type_bytes(key_type, layer.key_width) + type_bytes(value_type, layer.value_width))
        return total

    def cells_bytes(self, n_ctx: int, *, window_cells: int | None = None) -> int:
        """Bytes in which llama.cpp keeps the book of its cells. Windowed layers have cells of their own."""
        if not self.layers:
            return 0
        count = cells = self.cells(n_ctx)
        if any(layer.is_windowed for layer in self.layers):
            count += cells if window_cells is None else min(cells, self.cells(window_cells))
        return count * _CELL_BYTES

    def state_bytes(self, sequences: int) -> int:
        """Bytes of recurrent state for so many chats and branches."""
        return self.state_values * _STATE_VALUE_BYTES * max(1, sequences)

    def can_hold(self, key_type: str, value_type: str) -> bool:
        """Quantized types come in blocks: do rows of every layer divide into them?"""
        key_block, value_block = _BYTES[key_type.upper()][0], _BYTES[value_type.upper()][0]
        return all(
            layer.key_width % key_block == 0 and layer.value_width % value_block == 0 for layer in self.layers
        )


def cache_shape(info: GGUFInfo) -> CacheShape:
    """What the GGUF says of its context's memory. Architectures that keep more (an indexer's keys, say) are
    corrected by llama.cpp's own rehearsal, where a plan makes one."""
    layers = tuple(
        LayerCache(count * key, count * value, is_windowed)
        for count, key, value, is_windowed in _layers(info)
        if count
    )
    latent = _number(info, "attention.kv_lora_rank")
    if latent and _number(info, "attention.key_length_mla"):
        width = latent + info.rope.dimension_count
        layers = tuple(LayerCache(width, 0) for _ in layers)
    return CacheShape(layers, _state_values(info), info.sliding_window)


def _layers(info: GGUFInfo) -> list[tuple[int, int, int, bool]]:
    """(KV heads, key size, value size, has window) of each layer."""
    heads = info.kv_heads_by_layer
    shared = _number(info, "attention.shared_kv_layers")
    own = heads[: len(heads) - shared - _number(info, "nextn_predict_layers")]
    pattern = info.metadata.get(f"{info.architecture}.attention.sliding_window_pattern")
    period = _WINDOW_PERIODS.get(info.architecture, 0)
    found: list[tuple[int, int, int, bool]] = []
    for layer, count in enumerate(own):
        if isinstance(pattern, tuple):
            is_windowed = layer < len(pattern) and bool(pattern[layer])
        else:
            every = pattern if isinstance(pattern, int) and pattern > 1 else period
            is_windowed = bool(info.sliding_window and every and (layer + 1) % every)
        key, value = info.key_head_size, info.value_head_size
        if is_windowed:
            key = _number(info, "attention.key_length_swa") or key
            value = _number(info, "attention.value_length_swa") or value
        found.append((count, key, value, is_windowed))
    return found


def _state_values(info: GGUFInfo) -> int:
    """Values of recurrent state over all recurrent layers, for one sequence."""
    recurrent = info.layers if info.architecture == "falcon-h1" else info.layers - info.attention_layers
    recurrent -= _feed_forward_only(info)
    if recurrent <= 0:
        return 0
    embedding = info.embedding_length
    if head := _number(info, "wkv.head_size"):
        shifts = _number(info, "token_shift_count") or 2
        return recurrent * (shifts * embedding + embedding * head)
    if cache := _number(info, "shortconv.l_cache"):
        return recurrent * embedding * (cache - 1)
    if head := _number(info, "kda.head_dim"):
        kernel = _number(info, "ssm.conv_kernel") or 4
        return recurrent * (3 * (kernel - 1) * info.heads * head + head * head * info.heads)
    inner, state = _number(info, "ssm.inner_size"), _number(info, "ssm.state_size")
    groups = _number(info, "ssm.group_count")
    convolution = max(0, _number(info, "ssm.conv_kernel") - 1) * (inner + 2 * groups * state)
    return recurrent * (convolution + state * inner)


def _feed_forward_only(info: GGUFInfo) -> int:
    """Layers of Nemotron-H that neither attend nor remember."""
    sizes = info.metadata.get(f"{info.architecture}.feed_forward_length")
    if not info.architecture.startswith("nemotron_h") or not isinstance(sizes, tuple):
        return 0
    return sum(1 for size in sizes if size)


def _number(info: GGUFInfo, key: str) -> int:
    value = info.metadata.get(f"{info.architecture}.{key}")
    if isinstance(value, tuple):
        value = max((item for item in value if isinstance(item, int | float)), default=0)
    return int(value) if isinstance(value, int | float) else 0
