"""Contexts that llama.cpp does not make."""

from __future__ import annotations

from edgellm.errors import ConfigError, OutOfMemory
from edgellm.native.context_error import context_error
from edgellm.types import LoadOptions


def test_a_context_that_is_not_made_says_why() -> None:
    # As llama.cpp logs them, with a line that it writes of every context.
    head = "llama_context: flash_attn = auto\n"
    for reason, kind in (
        ("failed to allocate buffer for kv cache", OutOfMemory),
        ("std::bad_alloc", OutOfMemory),
        ("quantized V cache requires flash_attn to be enabled", ConfigError),
    ):
        error = context_error(reason, f"{head}llama_init_from_model: {reason}\n", LoadOptions())
        assert type(error) is kind and ("needs flash attention" in str(error)) == (kind is ConfigError), (
            reason
        )
