"""Are values of LoadOptions such that llama.cpp can take them? It ends the process over some that it cannot."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, fields
from numbers import Integral
from typing import TYPE_CHECKING, Any

from edgellm.errors import ConfigError
from edgellm.types import ControlVector, LoadOptions, LoraAdapter

if TYPE_CHECKING:
    from collections.abc import Mapping

KV_TYPES = ("f32", "f16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0")
MAX_CTX = 2**31 - 1  # llama.cpp's positions have 32 bits
MAX_THREADS = 1024
_MAX_SEQUENCES = 256  # LLAMA_MAX_SEQ
_LARGEST = 2**31 - 1


@dataclass(frozen=True, slots=True)
class _Rule:
    """What a field takes: in words that follow "is not", and as a question."""

    words: str
    # Any: whatever somebody wrote in a catalogue or gave to `load`.
    accepts: Callable[[Any], bool]


def _is_whole(value: Any, low: int, high: int) -> bool:
    return not isinstance(value, bool) and isinstance(value, Integral) and low <= int(value) <= high


def _whole(high: int = _LARGEST) -> _Rule:
    return _Rule(f"a whole number from 0 to {high:,}", lambda value: _is_whole(value, 0, high))


def _count_or(*words: str) -> _Rule:
    said = " or ".join(f'"{word}"' for word in words)
    return _Rule(f"a count of layers, {said}", lambda value: _is_whole(value, 0, _LARGEST) or value in words)


def _one_of(*choices: str) -> _Rule:
    return _Rule(f"one of {', '.join(choices)}", lambda value: isinstance(value, str) and value in choices)


def _is_amount(value: Any) -> bool:
    is_number = not isinstance(value, bool) and isinstance(value, int | float)
    return is_number and math.isfinite(value) and value >= 0


def _several(what: str, is_one: Callable[[Any], bool]) -> _Rule:
    return _Rule(
        f"a tuple of {what}",
        lambda value: isinstance(value, tuple | list) and all(map(is_one, value)),  # pyright: ignore[reportUnknownArgumentType]
    )


_AMOUNT = _Rule("a number, 0 or more", _is_amount)
_SWITCH = _Rule("True or False", lambda value: isinstance(value, bool))
_TEXTS = _several("texts", lambda value: isinstance(value, str))
_NAME = _Rule("a catalogue name or a file", lambda value: isinstance(value, str | os.PathLike))

RULES: dict[str, _Rule] = {
    "n_ctx": _whole(MAX_CTX),
    "n_seq_max": _whole(_MAX_SEQUENCES),
    "n_batch": _whole(),
    "n_ubatch": _whole(),
    "threads": _whole(MAX_THREADS),
    "threads_batch": _whole(MAX_THREADS),
    "n_gpu_layers": _count_or("all", "auto"),
    "devices": _TEXTS,
    "tensor_split": _several("numbers, 0 or more", _is_amount),
    "main_gpu": _whole(),
    "cpu_moe": _count_or("all", "auto"),
    "override_tensors": _TEXTS,
    "use_mmap": _SWITCH,
    "use_mlock": _SWITCH,
    "flash_attention": _one_of("auto", "on", "off"),
    "kv_type_k": _one_of("auto", *KV_TYPES),
    "kv_type_v": _one_of("auto", *KV_TYPES),
    "rope_scaling": _one_of("model", "none", "linear", "yarn"),
    "rope_freq_base": _AMOUNT,
    "rope_freq_scale": _AMOUNT,
    "yarn_orig_ctx": _whole(MAX_CTX),
    "swa_full": _SWITCH,
    "checkpoints": _whole(),
    "checkpoint_mb": _whole(),
    "prefix_cache_mb": _whole(),
    "draft_model": _NAME,
    "lora": _several("LoraAdapter objects", lambda value: isinstance(value, LoraAdapter)),
    "control_vectors": _several("ControlVector objects", lambda value: isinstance(value, ControlVector)),
    "check_tensors": _SWITCH,
    "fit": _one_of("auto", "off"),
}
"""What each field of LoadOptions takes."""


def check_values(values: Mapping[str, Any], *, where: str = "load option ") -> None:
    """Raises ConfigError for the first of these fields of LoadOptions whose value is impossible; `where` begins its
    message."""
    for name, value in values.items():
        if not RULES[name].accepts(value):
            raise ConfigError(
                f"{where}{name}={value!r} is not {RULES[name].words}.",
                hint=f"Give one that is, or leave {name} out.",
            )


def check_options(options: LoadOptions) -> None:
    """Raises ConfigError for options that no model could be loaded with."""
    check_values({item.name: getattr(options, item.name) for item in fields(options)})
