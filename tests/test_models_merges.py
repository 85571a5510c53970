"""How tokens are merged from bytes, and the rest of what pages ask the front door for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import edgellm
from edgellm.sampling.registry import REGISTRY


def test_a_word_is_merged_in_the_order_the_merges_were_learned() -> None:
    table = edgellm.Merges({(b"t", b"h"): 1, (b"h", b"e"): 0, (b"t", b"he"): 2})
    steps = table.steps(b"the")
    assert [(step.rank, step.left, step.right) for step in steps] == [(0, b"h", b"e"), (2, b"t", b"he")]
    assert [step.parts for step in steps] == [(b"t", b"he"), (b"the",)]


def test_of_equal_pairs_the_first_is_merged_first() -> None:
    steps = edgellm.Merges({(b"a", b"a"): 0}).steps(b"aaa")
    assert [step.parts for step in steps] == [(b"aa", b"a")]


def test_no_merge_is_no_step() -> None:
    assert edgellm.Merges({}).steps(b"ab") == ()
    assert edgellm.Merges({}).steps(b"") == ()


def test_merges_of_a_file_make_the_tokens_of_its_vocabulary(tiny_model: Callable[..., Path]) -> None:
    path = tiny_model("llama")
    table = edgellm.read_merges(path)
    assert len(table) > 10
    with edgellm.read_vocabulary(path) as vocabulary:
        for text in (" the", "assistant", "ing and", " " * 32):
            for token in vocabulary.tokenize(text):
                piece = vocabulary.piece(token)
                steps = table.steps(piece)
                assert (steps[-1].parts if steps else (piece,)) == (piece,)


def test_a_vocabulary_of_another_kind_says_so(tiny_model: Callable[..., Path]) -> None:
    with pytest.raises(edgellm.ConfigError, match="no byte-level BPE"):
        edgellm.read_merges(tiny_model("llama", tokenizer="llama"))


def test_stages_of_plugins_stand_behind_those_of_llama_cpp() -> None:
    stages = edgellm.sampler_stages()
    names = [stage.name for stage in stages]
    assert names.index("top_k") < names.index("entropix")
    top_p = next(stage for stage in stages if stage.name == "top_p")
    assert next((param.name, param.low, param.high) for param in top_p.params) == ("p", 0, 1)
    assert REGISTRY.get("top_a") is not None


def test_an_argument_is_changed_and_a_default_is_not_written() -> None:
    top_k = edgellm.ChainSpec.parse("top_k(10)").stages[0]
    assert str(top_k.with_arg("k", 5)) == "top_k(5)"
    assert str(top_k.with_arg("k", 40)) == "top_k"
    with pytest.raises(edgellm.SamplerError, match="'k' must be a whole number"):
        top_k.with_arg("k", 0)


@pytest.mark.model
def test_merges_of_the_default_model(smollm2_path: Path) -> None:
    steps = edgellm.read_merges(smollm2_path).steps(b" the")
    assert steps[-1].parts == (b" the",)


def test_the_native_log_is_text() -> None:
    assert isinstance(edgellm.native_log(min_level=3), str)
