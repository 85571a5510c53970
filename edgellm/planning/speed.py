"""Tokens a second to expect: bytes to read over bandwidth in decode, multiply-adds over arithmetic in prefill."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgellm.models.gguf_info import GGUFInfo
    from edgellm.planning.calibration import Calibration

_MAIN_TYPES = 2


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
    """The part of all weights that one token reads: without the input table (unless the output is made with it), and
    of the experts those that are used."""
    weights = info.weights
    everything = sum(weights.layers) + weights.embedding + weights.rest
    unread = 0.0 if weights.is_tied else float(weights.embedding)
    if info.experts:
        unread += sum(weights.experts) * (1 - info.experts_used / info.experts)
    return 1 - unread / everything if everything else 1.0


def predict(info: GGUFInfo, calibration: Calibration, *, kv_bytes: int) -> Speed | None:
    """What to expect of this machine's processor, or None where no type of the model could be measured.

    `kv_bytes` is the KV cache of the whole context: with a full one all of it is read for each token.
    """
    known = [name for name in info.quantization if name in calibration.types]
    if not known:
        return None
    share = active_share(info)
    stand_in = known[0]
    total = sum(info.quantization.values())
    active_parameters = info.active_parameters * (1.0 if info.weights.is_tied else share)
    decode_s = prefill_s = calibration.layer_s * info.layers
    prefill_s /= 128  # a batch pays it once
    fastest = max(speed.decode_bytes_s for speed in calibration.types.values())
    for name, size in info.quantization.items():
        speed = calibration.types.get(name, calibration.types[stand_in])
        decode_s += reading_s(size * share, speed.decode_bytes_s)
        prefill_s += active_parameters * size / total / speed.prefill_macs_s
    return Speed(1 / decode_s, 1 / (decode_s + reading_s(kv_bytes, fastest)), 1 / prefill_s)
