"""Are values of LoadOptions such that llama.cpp can take them? It ends the process over some that it cannot."""

from __future__ import annotations

import math
import os
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from edgellm.types import ControlVector, LoadOptions, LoraAdapter
from edgellm.value_rules import LARGEST, SWITCH, Rule, check, is_whole, one_of, several, whole

if TYPE_CHECKING:
    from collections.abc import Mapping

WIDE_KV_TYPES = ("f32", "f16")
KV_TYPES = (*WIDE_KV_TYPES, "q8_0", "q5_1", "q5_0", "q4_1", "q4_0")
MAX_CTX = 2**31 - 1  # llama.cpp's positions have 32 bits
MAX_THREADS = 1024
_MAX_SEQUENCES = 256  # LLAMA_MAX_SEQ


def _is_amount(value: Any) -> bool:
    is_number = not isinstance(value, bool) and isinstance(value, int | float)
    return is_number and math.isfinite(value) and value >= 0


def _count_or(*words: str) -> Rule:
    said = " or ".join(f'"{word}"' for word in words)
    return Rule(f"a count of layers, {said}", lambda value: is_whole(value, 0, LARGEST) or value in words)


_AMOUNT = Rule("a number, 0 or more", _is_amount)
_TEXTS = several("texts", lambda value: isinstance(value, str))
_NAME = Rule("a catalogue name or a file", lambda value: isinstance(value, str | os.PathLike))

RULES: dict[str, Rule] = {
    "n_ctx": whole(MAX_CTX),
    "n_seq_max": whole(_MAX_SEQUENCES),
    "n_batch": whole(),
    "n_ubatch": whole(),
    "threads": whole(MAX_THREADS),
    "threads_batch": whole(MAX_THREADS),
    "n_gpu_layers": _count_or("all", "auto"),
    "devices": _TEXTS,
    "tensor_split": several("numbers, 0 or more", _is_amount),
    "main_gpu": whole(),
    "cpu_moe": _count_or("all", "auto"),
    "override_tensors": _TEXTS,
    "use_mmap": SWITCH,
    "use_mlock": SWITCH,
    "flash_attention": one_of("auto", "on", "off"),
    "kv_type_k": one_of("auto", *KV_TYPES),
    "kv_type_v": one_of("auto", *KV_TYPES),
    "rope_scaling": one_of("model", "none", "linear", "yarn"),
    "rope_freq_base": _AMOUNT,
    "rope_freq_scale": _AMOUNT,
    "yarn_orig_ctx": whole(MAX_CTX),
    "swa_full": SWITCH,
    "checkpoints": whole(),
    "checkpoint_mb": whole(),
    "prefix_cache_mb": whole(),
    "draft_model": _NAME,
    "lora": several("LoraAdapter objects", lambda value: isinstance(value, LoraAdapter)),
    "control_vectors": several("ControlVector objects", lambda value: isinstance(value, ControlVector)),
    "check_tensors": SWITCH,
    "fit": one_of("auto", "off"),
}
"""What each field of LoadOptions takes."""


def check_values(values: Mapping[str, Any], *, where: str = "load option ") -> None:
    """Raises ConfigError for the first of these fields of LoadOptions whose value is impossible; `where` begins its
    message."""
    check(RULES, values, where=where)


def check_options(options: LoadOptions) -> None:
    """Raises ConfigError for options that no model could be loaded with."""
    check_values({item.name: getattr(options, item.name) for item in fields(options)})
