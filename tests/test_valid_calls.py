"""Whatever a model draws under a tool's grammar is a valid call: a seeded sample of benchmarks/valid_calls.py."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from jsonschema import Draft202012Validator
from scale import SCALE
from tiny_models import CHATML

import edgellm
from edgellm.types import ToolCall, ToolResult
from edgellm.usage import Usage

if TYPE_CHECKING:
    from collections.abc import Callable

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import valid_calls
from random_schemas import random_tool


def assert_good(figures: dict[str, Any], problems: list[str]) -> None:
    assert problems == []
    assert {name: figures[name] for name in valid_calls.MUST_BE_ZERO} == dict.fromkeys(
        valid_calls.MUST_BE_ZERO, 0
    )
    assert figures["caught"] == figures["only_relaxed"]
    assert figures["emitted"] + figures["cut_off"] + figures["too_large"] == figures["schemas"]
    assert figures["too_large"] <= figures["schemas"] // 20
    assert figures["emitted"] > figures["schemas"] // 3


@pytest.mark.slow
def test_calls_of_a_random_model_are_valid(tiny_model: Callable[..., Path]) -> None:
    problems: list[str] = []
    with edgellm.load(tiny_model("llama", n_ctx=8192), n_ctx=8192, threads=1) as runtime:
        figures = valid_calls.run(
            runtime,
            (random_tool(5, index) for index in range(80 * SCALE)),
            seed=5,
            max_tokens=400,
            template=CHATML,
            say=problems.append,
        )
    assert_good(figures, [line for line in problems if " schemas, " not in line])
    assert figures["relaxed"] > 5


@pytest.mark.slow
@pytest.mark.model
def test_calls_of_the_default_model_are_valid(smollm2_path: Path) -> None:
    problems: list[str] = []
    with edgellm.load(smollm2_path, n_ctx=4096) as runtime:
        figures = valid_calls.run(
            runtime,
            (random_tool(2, index) for index in range(12)),
            seed=2,
            max_tokens=200,
            say=problems.append,
        )
    assert_good(figures, problems)


def test_random_schemas_are_valid_and_of_every_kind() -> None:
    texts = []
    for index in range(300):
        schema = random_tool(9, index)["function"]["parameters"]
        Draft202012Validator.check_schema(schema)
        assert random_tool(9, index)["function"]["parameters"] == schema
        texts.append(repr(schema))
    everything = " ".join(texts)
    for word in (
        "anyOf",
        "oneOf",
        "allOf",
        "$ref",
        "const",
        "enum",
        "pattern",
        "format",
        "uniqueItems",
        "'not'",
        "'if'",
    ):
        assert word in everything


# -- the judge itself ---------------------------------------------------------------------------------------------

UNIQUE = {
    "type": "object",
    "properties": {"a": {"type": "array", "items": {"type": "integer"}, "uniqueItems": True}},
    "required": ["a"],
}


@pytest.mark.parametrize(
    ("arguments", "received", "raw", "expected"),
    [
        ({"a": [1]}, [{"a": [1]}], None, ["relaxed", "emitted"]),
        ({"a": [1]}, [], None, ["relaxed", "emitted", "refused_though_valid"]),
        ({"a": [1, 1]}, [], None, ["relaxed", "emitted", "only_relaxed", "caught"]),
        ({"a": [1, 1]}, [{"a": [1, 1]}], None, ["relaxed", "invalid_at_tool", "emitted", "only_relaxed"]),
        ({"a": ["x"]}, [], None, ["relaxed", "emitted", "invalid"]),
        (
            {"a": [1]},
            [{"a": [1]}],
            '<tool_call>\n{"name": "f", "arguments": {"a": [2]}}',
            ["relaxed", "emitted", "invalid"],
        ),
        ({"a": [1]}, [{"a": [1]}], "<tool_call>\n{", ["relaxed", "emitted", "invalid"]),
    ],
)
def test_the_judge_sees_what_is_wrong(
    arguments: dict[str, Any], received: list[dict[str, Any]], raw: str | None, expected: list[str]
) -> None:
    offer = valid_calls.Offer({"function": {"name": "f", "parameters": UNIQUE}}, received)
    written = f'<tool_call>\n{{"name": "f", "arguments": {json.dumps(arguments)}}}\n</tool_call>'
    call = ToolCall("call_0", "f", arguments, raw or written)
    events = [edgellm.ToolCallReady(0, call), edgellm.ToolFinished(call, ToolResult("done"))]
    assert valid_calls.judge(offer, events) == expected


@pytest.mark.parametrize(("reason", "expected"), [("length", "cut_off"), ("eog", "no_call")])
def test_no_call_is_forgiven_only_at_a_limit(reason: Any, expected: str) -> None:
    offer = valid_calls.Offer({"function": {"name": "f", "parameters": UNIQUE}})
    assert valid_calls.judge(offer, [edgellm.TurnFinished("", reason, Usage(), ())]) == ["relaxed", expected]
