"""Tokens a second to expect: bytes to read over bandwidth in decode, multiply-adds over arithmetic in prefill."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgellm.planning.placement import read_weights
from edgellm.types import LoadOptions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgellm.models.gguf_info import GGUFInfo
    from edgellm.planning.calibration import Calibration

_MAIN_TYPES = 2
_BATCH = 128  # so many tokens of a prefill share what a layer costs beside its weights


@dataclass(frozen=True, slots=True)
class Speed:
    """Tokens a second: decode with an empty and with a full context, and prefill."""

    decode_tok_s: float
    decode_full_tok_s: float
    prefill_tok_s: float


def reading_s(size_bytes: float, bandwidth_bytes_s: float) -> float:
    """Seconds to read so many bytes: the least a token can take whose weights they are."""
    return size_bytes / bandwidth_bytes_s


def main_types(info: GGUFInfo) -> list[str]:
    """The weight types that take the most bytes: those worth measuring."""
    return list(info.quantization)[:_MAIN_TYPES]


def active_share(info: GGUFInfo) -> float:
    """The part of all weights that one token reads (see `read_weights`)."""
    everything = sum(info.weights.layers) + info.weights.embedding + info.weights.rest
    return sum(read_weights(info, LoadOptions(n_gpu_layers=0))) / everything if everything else 1.0


@dataclass(frozen=True, slots=True)
class Part:
    """What one processor does of every token: it reads `read_bytes` of weights, and with a full context `kv_bytes` of
    the KV cache."""

    calibration: Calibration
    layers: float
    read_bytes: float
    kv_bytes: float


def predict(info: GGUFInfo, parts: Sequence[Part]) -> Speed | None:
    """What to expect where the parts of a model are computed one after the other: their times add up.

    None where one of them could be measured with no type of the model's weights.
    """
    read = sum(part.read_bytes for part in parts)
    decode_s = full_s = prefill_s = 0.0
    for part in parts:
        known = [name for name in info.quantization if name in part.calibration.types]
        if not known or not read:
            return None
        beside_s = part.calibration.layer_s * part.layers
        macs = _macs(info) * part.read_bytes / read
        weights_s, batch_s = _weights_s(info, part, known[0], macs)
        fastest = max(speed.decode_bytes_s for speed in part.calibration.types.values())
        decode_s += beside_s + weights_s
        full_s += reading_s(part.kv_bytes, fastest)
        prefill_s += beside_s / _BATCH + batch_s
    return Speed(1 / decode_s, 1 / (decode_s + full_s), 1 / prefill_s) if decode_s else None


def _macs(info: GGUFInfo) -> float:
    """Multiply-adds of a token: one for each weight in use."""
    return info.active_parameters * (1.0 if info.weights.is_tied else active_share(info))


def _weights_s(info: GGUFInfo, part: Part, stand_in: str, macs: float) -> tuple[float, float]:
    """Seconds that a part's weights take of a token: (decoded alone, in a batch)."""
    alone_s = batch_s = 0.0
    total = sum(info.quantization.values())
    for name, size in info.quantization.items():
        speed = part.calibration.types.get(name, part.calibration.types[stand_in])
        alone_s += reading_s(part.read_bytes * size / total, speed.decode_bytes_s)
        batch_s += macs * size / total / speed.prefill_macs_s
    return alone_s, batch_s
