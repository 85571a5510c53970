"""Contexts longer than the model was trained for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import edgellm
from edgellm.models.gguf_info import inspect_gguf
from edgellm.models.rope_scaling import stretched

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

YARN = {
    "llama.rope.scaling.type": "yarn",
    "llama.rope.scaling.factor": 2.0,
    "llama.rope.scaling.original_context_length": 256,
}
LINEAR = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 2.0}


@pytest.mark.parametrize(
    ("metadata", "options", "expected"),
    [
        ({}, {"n_ctx": 512}, ("model", 0.0, 0)),
        ({}, {}, ("model", 0.0, 0)),
        ({}, {"n_ctx": 2048}, ("yarn", 0.25, 512)),
        # Trained for 512 with YaRN from 256: the factor counts from there.
        (YARN, {"n_ctx": 512}, ("model", 0.0, 0)),
        (YARN, {"n_ctx": 1024}, ("yarn", 0.25, 256)),
        (LINEAR, {"n_ctx": 1024}, ("linear", 0.25, 0)),
        # Whoever says how is not overruled.
        ({}, {"n_ctx": 2048, "rope_scaling": "none"}, ("none", 0.0, 0)),
        ({}, {"n_ctx": 2048, "rope_freq_base": 50000.0}, ("model", 0.0, 0)),
    ],
)
def test_scaling_comes_from_the_models_metadata(
    tiny_model: Callable[..., Path],
    metadata: dict[str, Any],
    options: dict[str, Any],
    expected: tuple[Any, ...],
) -> None:
    info = inspect_gguf(tiny_model("llama", metadata=metadata))
    chosen, told = stretched(info, edgellm.LoadOptions(**options), has_rope=True)
    assert (chosen.rope_scaling, chosen.rope_freq_scale, chosen.yarn_orig_ctx) == expected
    assert bool(told) == (options.get("n_ctx", 0) > 512)


def test_a_model_without_rotary_positions_is_only_warned_of(tiny_model: Callable[..., Path]) -> None:
    info = inspect_gguf(tiny_model("mamba"))
    chosen, told = stretched(info, edgellm.LoadOptions(n_ctx=1024), has_rope=False)
    assert chosen == edgellm.LoadOptions(n_ctx=1024) and len(told) == 1
    with edgellm.load(tiny_model("mamba"), n_ctx=1024, threads=1) as runtime:
        assert not runtime.model.has_rope and runtime.options.rope_scaling == "model"


def test_positions_are_stretched_and_the_reader_is_told_once(tiny_model: Callable[..., Path]) -> None:
    path = tiny_model("llama")
    logits: dict[str, Any] = {}
    for name, options in (
        ("trained", {"n_ctx": 512}),
        ("longer", {"n_ctx": 1024}),
        ("by hand", {"n_ctx": 1024, "rope_scaling": "yarn", "rope_freq_scale": 0.5, "yarn_orig_ctx": 512}),
    ):
        with edgellm.load(path, threads=1, **options) as runtime:
            session = runtime.engine.session(runtime.make_chain("greedy"))
            session.extend([(token, edgellm.SpanKind.PROMPT) for token in runtime.tokenize("Hello " * 30)])
            logits[name] = session.logits().copy()
            session.close()
            if name != "longer":
                continue
            chat = runtime.chat(sampler="temperature(1) | dist", seed=1)
            said: list[str] = []
            for _ in range(3):
                said.append(
                    " ".join(
                        event.message
                        for event in chat.send("why " * 70, max_tokens=5)
                        if isinstance(event, edgellm.Notice)
                    )
                )
            assert "by YaRN from 512 tokens, 2 times" in said[0]
            assert ["longer now than the 512 tokens" in text for text in said] == [False, True, False]
    assert np.array_equal(logits["longer"], logits["by hand"])
    assert np.abs(logits["longer"] - logits["trained"]).max() > 1e-3
