"""A context longer than the model was trained for: how its rotary positions are stretched to it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgellm.models.gguf_info import GGUFInfo
    from edgellm.types import LoadOptions


def stretched(info: GGUFInfo, options: LoadOptions, *, has_rope: bool) -> tuple[LoadOptions, tuple[str, ...]]:
    """(options with the RoPE scaling that `n_ctx` needs, what to tell the user of it).

    Untouched, and nothing to tell, up to the length the model was trained for. Beyond it positions are stretched as
    the model's own metadata says (linear), else by YaRN from its original length, unless the options say how.
    """
    asked, trained = options.n_ctx, info.context_length
    if not trained or asked <= trained:
        return options, ()
    head = f"a context of {asked:,} tokens is more than the {trained:,} that this model was trained for"
    is_given = options.rope_scaling != "model" or any(
        (options.rope_freq_base, options.rope_freq_scale, options.yarn_orig_ctx)
    )
    rope = info.rope
    if is_given or not has_rope or rope.scaling == "longrope":
        return options, (f"{head}: what lies beyond may be worse.",)
    if rope.scaling == "linear":
        scale = trained / asked / (rope.factor or 1.0)
        return (
            replace(options, rope_scaling="linear", rope_freq_scale=scale),
            (_told(head, "linearly, as the model's metadata says", scale),),
        )
    original = rope.original_context or trained
    scale = original / asked
    return (
        replace(options, rope_scaling="yarn", rope_freq_scale=scale, yarn_orig_ctx=original),
        (_told(head, f"by YaRN from {original:,} tokens", scale),),
    )


def _told(head: str, way: str, scale: float) -> str:
    return (
        f"{head}: its positions are stretched {way}, {1 / scale:.3g} times. "
        "Short texts change a little too, and what lies beyond the trained length may be worse."
    )
