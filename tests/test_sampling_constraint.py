"""Constraints: what may come next, what of a schema is given up, and that the chain obeys."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellm.errors import ConstraintError, SamplerError
from edgellm.sampling.chain import Chain, StepContext
from edgellm.sampling.constraint import Constraint
from edgellm.sampling.schema_relax import relax
from edgellm.testing import ByteVocabulary, random_logits

if TYPE_CHECKING:
    from pathlib import Path

VOCABULARY = ByteVocabulary()
TOKENIZER = VOCABULARY.grammar_tokenizer()


def texts(constraint: Constraint) -> set[str]:
    return {VOCABULARY.piece(int(i)).decode("latin-1") for i in constraint.allowed_ids()}


def test_allowed_tokens_follow_the_grammar() -> None:
    constraint = Constraint.from_regex(TOKENIZER, "a[bc]+d")
    assert texts(constraint) == {"a"}
    assert constraint.try_consume(b"ab") == 2
    assert texts(constraint) == {"b", "c", "d"}
    assert not constraint.is_accepting
    assert constraint.consume(ord("d"))
    assert (constraint.is_accepting, constraint.is_stopped) == (True, True)
    assert texts(constraint) == {"<eog>"}


def test_a_refused_token_changes_nothing() -> None:
    constraint = Constraint.from_regex(TOKENIZER, "ab+")
    assert constraint.try_consume(b"abxb") == 2
    assert not constraint.consume(ord("x"))
    assert texts(constraint) == {"b", "<eog>"}


def test_forced_tokens_are_those_without_a_choice_and_are_not_consumed() -> None:
    constraint = Constraint.from_lark(TOKENIZER, 'start: "<call>" /[0-9]+/')
    assert bytes(constraint.forced_tokens()) == b"<call>"
    assert texts(constraint) == {"<"}
    constraint.try_consume(b"<call>")
    assert constraint.forced_tokens() == []


def test_rollback_and_clone() -> None:
    constraint = Constraint.from_regex(TOKENIZER, "abc")
    constraint.try_consume(b"ab")
    twin = constraint.clone()
    twin.rollback(1)
    assert (texts(twin), texts(constraint)) == ({"b"}, {"c"})
    with pytest.raises(ConstraintError, match="has taken 1 tokens: 2 cannot be taken back"):
        twin.rollback(2)
    assert texts(twin) == {"b"}
    twin.reset()
    assert texts(twin) == {"a"}


def test_masked_logits() -> None:
    constraint = Constraint.from_regex(TOKENIZER, "[ab]", n_vocab=260)
    logits = random_logits(260, 1)
    constraint.mask(logits)
    assert set(np.flatnonzero(np.isfinite(logits))) == {ord("a"), ord("b")}


@pytest.mark.parametrize("grammar", ["start: foo", "start: /(/", "nothing", ""])
def test_bad_grammars_are_errors_in_one_line(grammar: str) -> None:
    with pytest.raises(ConstraintError) as caught:
        Constraint.from_lark(TOKENIZER, grammar)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


class BrokenMatcher:
    """A matcher that fails after it was made, as one does that meets a limit of its parser."""

    is_broken = False

    def is_error(self) -> bool:
        return self.is_broken

    def get_error(self) -> str:
        return "step limit\n reached\n<state>\n" + "x" * 9999

    def try_consume_tokens(self, tokens: list[int]) -> int:
        self.is_broken = True
        return 0


def test_a_matcher_that_fails_on_the_way_is_an_error_in_one_line() -> None:
    constraint = Constraint(BrokenMatcher(), 257)  # type: ignore[arg-type]
    with pytest.raises(ConstraintError) as caught:
        constraint.consume(1)
    assert str(caught.value).startswith("the grammar cannot be followed: step limit reached. ")


@pytest.mark.parametrize("pattern", ["ab", "ab+"])
def test_an_end_token_is_taken_once_and_given_back(pattern: str) -> None:
    constraint = Constraint.from_regex(TOKENIZER, pattern)
    assert not constraint.consume(VOCABULARY.eos)
    assert constraint.try_consume([*b"ab", VOCABULARY.eos]) == 3
    assert constraint.is_stopped
    assert not constraint.consume(VOCABULARY.eos)
    assert not constraint.consume(ord("b"))
    constraint.rollback(1)
    assert constraint.consume(VOCABULARY.eos)
    constraint.rollback(2)
    assert texts(constraint) == {"b"}
    with pytest.raises(ConstraintError, match="has taken 1 tokens"):
        constraint.rollback(2)


def test_the_chain_draws_only_what_is_allowed() -> None:
    for text in (
        "top_k(40) | dist(seed=1)",
        "temperature(1.5) | dist(seed=1)",
        "greedy",
        "typical(0.5) | mirostat",
    ):
        constraint = Constraint.from_regex(TOKENIZER, "(yes|no|maybe)")
        chain = Chain(text, n_vocab=257)
        tape: list[int] = []
        while True:
            drawn = chain.sample(
                random_logits(257, len(tape)), StepContext(len(tape)), constraint=constraint, trace=2
            )
            assert drawn.is_constrained
            assert drawn.distribution is not None and drawn.distribution.stages[0].stage == "constraint"
            assert constraint.consume(drawn.token)
            if drawn.token == VOCABULARY.eos:
                break
            tape.append(drawn.token)
        assert bytes(tape) in (b"yes", b"no", b"maybe")


def test_tokens_of_probability_zero_are_no_way_out() -> None:
    logits = random_logits(257, 1)
    logits[ord("a")] = -np.inf
    with pytest.raises(SamplerError, match="have probability 0"):
        Chain("greedy", n_vocab=257).sample(
            logits, StepContext(0), constraint=Constraint.from_regex(TOKENIZER, "a")
        )


def prop(**schema: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {"a": schema}}


RELAXED: list[tuple[dict[str, Any], dict[str, Any], list[str]]] = [
    (prop(type="string"), prop(type="string"), []),
    (
        prop(type="array", uniqueItems=True, items={"type": "string"}),
        prop(type="array", items={"type": "string"}),
        ["$.a: 'uniqueItems' is not enforced"],
    ),
    (prop(**{"type": "integer", "not": {"const": 1}}), prop(type="integer"), ["$.a: 'not' is not enforced"]),
    (
        prop(**{"type": "integer", "if": {"minimum": 1}, "then": {"maximum": 5}, "else": {}}),
        prop(type="integer"),
        ["$.a: 'if' is not enforced", "$.a: 'then' is not enforced", "$.a: 'else' is not enforced"],
    ),
    (prop(type="string", format="colour"), prop(type="string"), ["$.a: 'format' \"colour\" is not enforced"]),
    (prop(type="string", format="date"), prop(type="string", format="date"), []),
    (
        prop(type="string", pattern="^(?!x)a"),
        prop(type="string"),
        ["$.a: 'pattern' \"^(?!x)a\" is not enforced"],
    ),
    (prop(type="string", pattern="^a+$"), prop(type="string", pattern="^a+$"), []),
    (
        prop(oneOf=[{"type": "number"}, {"type": "integer"}]),
        prop(anyOf=[{"type": "number"}, {"type": "integer"}]),
        ["$.a: 'oneOf' is enforced as 'anyOf'"],
    ),
    (
        prop(type="object", patternProperties={"^(?=b)": {"type": "string"}}),
        prop(type="object", patternProperties={}),
        ["$.a: 'patternProperties' \"^(?=b)\" is not enforced"],
    ),
    # A property may bear the name of a keyword.
    (
        {"type": "object", "properties": {"uniqueItems": {"type": "array", "uniqueItems": True}}},
        {"type": "object", "properties": {"uniqueItems": {"type": "array"}}},
        ["$.uniqueItems: 'uniqueItems' is not enforced"],
    ),
]


@pytest.mark.parametrize(("schema", "relaxed", "notes"), RELAXED)
def test_relax(schema: dict[str, Any], relaxed: dict[str, Any], notes: list[str]) -> None:
    before = json.dumps(schema)
    assert relax(schema) == (relaxed, notes)
    assert json.dumps(schema) == before
    assert Constraint.from_json_schema(TOKENIZER, schema).notes == tuple(notes)


@pytest.mark.parametrize(
    "schema",
    [prop(type="foo"), prop(**{"$ref": "#/$defs/none"}), prop(**{"$ref": "https://example.com/x.json"})],
)
def test_broken_schemas_are_errors(schema: dict[str, Any]) -> None:
    with pytest.raises(ConstraintError, match="cannot be enforced"):
        relax(schema)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_whatever_is_drawn_under_a_schema_is_valid(seed: int) -> None:
    import jsonschema

    schema = {
        "type": "object",
        "properties": {
            "unit": {"enum": ["c", "f"]},
            "days": {"type": "integer", "minimum": 1, "maximum": 14},
            "tags": {"type": "array", "items": {"type": "string", "maxLength": 3}, "maxItems": 2},
        },
        "required": ["unit", "days"],
        "additionalProperties": False,
    }
    constraint = Constraint.from_json_schema(TOKENIZER, schema)
    chain = Chain("dist", n_vocab=257, seed=seed)
    tape: list[int] = []
    while not constraint.is_stopped:
        forced = constraint.forced_tokens()
        if not forced:
            logits = random_logits(257, seed * 1000 + len(tape))
            forced = [chain.sample(logits, StepContext(len(tape)), constraint=constraint).token]
        assert constraint.try_consume(forced) == len(forced)
        tape += forced
        assert len(tape) < 500
    text = bytes(token for token in tape if token < 256).decode()
    jsonschema.validate(json.loads(text), schema)


@pytest.mark.model
def test_the_real_model_has_a_tokenizer_for_grammars(smollm2_path: Path) -> None:
    from edgellm.native.grammar_vocab import grammar_tokenizer
    from edgellm.native.model import Model
    from edgellm.types import LoadOptions

    model = Model.load(smollm2_path, LoadOptions())
    vocabulary = model.vocabulary
    tokenizer = grammar_tokenizer(vocabulary)
    assert grammar_tokenizer(vocabulary) is tokenizer
    constraint = Constraint.from_lark(tokenizer, 'start: "<tool_call>" "{}"')
    assert vocabulary.text_of(constraint.forced_tokens()) == b"<tool_call>{}"
    # Text of a grammar never becomes a control token.
    constraint = Constraint.from_lark(tokenizer, 'start: "<|im_end|>"')
    end = vocabulary.special_tokens["<|im_end|>"]
    assert end not in constraint.allowed_ids()
    assert constraint.try_consume(constraint.forced_tokens()) > 1
    assert end in constraint.allowed_ids()
    del tokenizer, constraint
    model.close()
