"""BFCL's dialect of schemas and its rules for a right call, on cases made up in its form."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import bfcl_check
import toolcalls

FUNCTION = {
    "name": "bakery.order",
    "description": "Order bread.",
    "parameters": {
        "type": "dict",
        "properties": {
            "bread": {"type": "string", "description": "Kind."},
            "loaves": {"type": "integer"},
            "price": {"type": "float", "default": 2.5},
            "sliced": {"type": "boolean", "default": "no"},
            "sizes": {"type": "array", "items": {"type": "integer"}},
            "corner": {"type": "tuple", "items": {"type": "float"}},
            "address": {"type": "dict", "properties": {"street": {"type": "string"}}, "optional": True},
            "extras": {"type": "array", "items": {"type": "dict"}},
            "anything": {"type": "any"},
        },
        "required": ["bread", "loaves"],
    },
}
ANSWER: dict[str, list[Any]] = {
    "bread": ["Rye bread", "rye"],
    "loaves": [2],
    "price": ["", 3],
    "sliced": ["", True],
    "sizes": ["", [1, 2]],
    "corner": ["", [1.0, 2.0]],
    "address": ["", {"street": ["Mill Lane", "Mill Ln"], "floor": ["", "2"]}],
    "extras": ["", [{"name": ["seeds"]}]],
}
CASE = bfcl_check.BfclCase("made_0", ({"role": "user", "content": "?"},), (FUNCTION,), "bakery.order", ANSWER)


@pytest.mark.parametrize(
    ("more", "verdict"),
    [
        ({}, "right"),
        ({"bread": "RYE-BREAD"}, "right"),
        ({"bread": "wheat"}, "wrong_arguments"),
        ({"loaves": 2.0}, "wrong_arguments"),
        ({"loaves": "2"}, "wrong_arguments"),
        ({"price": 3}, "right"),
        ({"price": 3.0}, "right"),
        ({"price": 4}, "wrong_arguments"),
        ({"sliced": True}, "right"),
        ({"sliced": 1}, "wrong_arguments"),
        ({"sizes": [1, 2]}, "right"),
        ({"sizes": [2, 1]}, "wrong_arguments"),
        ({"corner": [1.0, 2.0]}, "right"),
        ({"corner": ["1", "2"]}, "wrong_arguments"),
        ({"address": {"street": "mill lane"}}, "right"),
        ({"address": {"street": "mill lane", "floor": "3"}}, "wrong_arguments"),
        ({"address": {"floor": "2"}}, "wrong_arguments"),
        ({"extras": [{"name": "Seeds"}]}, "right"),
        ({"extras": [{"name": "nuts"}]}, "wrong_arguments"),
        ({"extras": []}, "right"),  # the official checker's reading of an argument that may be left out
        ({"anything": "x"}, "wrong_arguments"),
        ({"more": 1}, "wrong_arguments"),
    ],
)
def test_check(more: dict[str, Any], verdict: str) -> None:
    call = {"name": "bakery_order", "arguments": {"bread": "rye", "loaves": 2, **more}}
    assert bfcl_check.check(CASE, call) == verdict


def test_missing_and_misnamed_calls() -> None:
    assert bfcl_check.check(CASE, None) == "missed_call"
    assert bfcl_check.check(CASE, {"name": "bakery", "arguments": {}}) == "wrong_tool"
    assert (
        bfcl_check.check(CASE, {"name": "bakery_order", "arguments": {"bread": "rye"}}) == "wrong_arguments"
    )


def test_schema_is_translated() -> None:
    schema = bfcl_check.tool_of(FUNCTION)["function"]["parameters"]
    assert schema["type"] == "object" and schema["required"] == ["bread", "loaves"]
    parts = schema["properties"]
    assert parts["price"] == {"type": "number", "default": 2.5}
    assert parts["sliced"] == {"type": "boolean"}
    assert parts["corner"] == {"type": "array", "items": {"type": "number"}}
    assert parts["address"] == {"type": "object", "properties": {"street": {"type": "string"}}}
    assert parts["anything"] == {}


def test_run_reads_official_files_and_counts(tmp_path: Path) -> None:
    (tmp_path / "possible_answer").mkdir()
    name = "BFCL_v4_multiple.json"
    questions = [
        {"id": f"multiple_{i}", "question": [[{"role": "user", "content": str(i)}]], "function": [FUNCTION]}
        for i in range(4)
    ]
    answers = [{"id": f"multiple_{i}", "ground_truth": [{"bakery.order": ANSWER}]} for i in range(4)]
    (tmp_path / name).write_text("\n".join(map(json.dumps, questions)), encoding="utf-8")
    (tmp_path / "possible_answer" / name).write_text("\n".join(map(json.dumps, answers)), encoding="utf-8")
    replies = {
        "0": toolcalls.Reply(({"name": "bakery_order", "arguments": {"bread": "rye", "loaves": 2}},), 12, 3),
        "1": toolcalls.Reply(({"name": "bakery_order", "arguments": {"bread": "rye", "loaves": 3}},)),
        "2": toolcalls.Reply(),
    }
    cases = bfcl_check.load_bfcl(tmp_path, "multiple", 3)
    figures = toolcalls.run(cases, lambda messages, tools: replies[messages[0]["content"]])
    assert figures["cases"] == 3
    assert (figures["right"], figures["wrong_arguments"], figures["missed_call"]) == (0.3333, 0.3333, 0.3333)
    assert (figures["tokens"], figures["forced"]) == (4.0, 1.0)


def test_parallel_calls_come_in_any_order_and_none_is_right_where_none_helps() -> None:
    other = {"bread": ["wheat"], "loaves": [1]}
    case = bfcl_check.BfclCase(
        "p", CASE.messages, CASE.functions, "bakery.order", ANSWER, (("bakery.order", other),)
    )
    rye = {"name": "bakery_order", "arguments": {"bread": "rye", "loaves": 2}}
    wheat = {"name": "bakery_order", "arguments": {"bread": "wheat", "loaves": 1}}
    assert bfcl_check.check_calls(case, [wheat, rye]) == "right"
    assert bfcl_check.check_calls(case, [rye]) == "missed_call"
    assert bfcl_check.check_calls(case, [rye, rye]) == "wrong_arguments"
    assert bfcl_check.check_calls(case, [rye, wheat, rye]) == "wrong_tool"
    nothing = bfcl_check.BfclCase("i", CASE.messages, CASE.functions, "", {})
    assert bfcl_check.check_calls(nothing, []) == "right"
    assert bfcl_check.check_calls(nothing, [rye]) == "false_call"
