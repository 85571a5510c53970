"""Why llama.cpp made no context, by what it logged."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgellm.errors import ConfigError, OutOfMemory

if TYPE_CHECKING:
    from edgellm.types import LoadOptions


def context_error(reason: str, log: str, options: LoadOptions) -> Exception:
    """What to raise where llama.cpp logged `log` and made no context with these options; `reason` is the log's last
    errors."""
    lowered = log.lower()
    if "block size" in lowered:
        return ConfigError(
            f"the KV cache type does not fit this model: {reason}.",
            hint='Use kv_type_k="f16" and kv_type_v="f16".',
            log=log,
        )
    if "v cache requires flash_attn" in lowered:
        return ConfigError(
            f"kv_type_v={options.kv_type_v!r} needs flash attention: {reason}.",
            hint='Set flash_attention="auto" or "on", or kv_type_v="f16".',
            log=log,
        )
    if "alloc" in lowered or "memory" in lowered:
        return OutOfMemory(
            f"the context does not fit into memory: {reason}.",
            hint="Ask for a smaller n_ctx or a smaller KV type (kv_type_k='q8_0').",
            log=log,
        )
    return ConfigError(
        f"llama.cpp cannot make a context: {reason or 'no reason given'}.",
        hint="Check n_ctx, n_batch, KV types and flash attention.",
        log=log,
    )
