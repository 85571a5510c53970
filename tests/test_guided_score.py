"""The checker of the guided-tools cases, and the cases themselves."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import guided_score

WEATHER = {"name": "get_weather", "arguments": {"city": ["Oslo"], "days": ["", 3], "unit": ["", "celsius"]}}


@pytest.mark.parametrize(
    ("expect", "call", "verdict"),
    [
        (WEATHER, {"name": "get_weather", "arguments": {"city": "oslo"}}, "right"),
        (WEATHER, {"name": "get_weather", "arguments": {"city": " Oslo.", "days": 3.0}}, "right"),
        (WEATHER, {"name": "get_weather", "arguments": {"city": "Oslo", "days": None}}, "right"),
        (WEATHER, {"name": "get_weather", "arguments": {"city": "Oslo", "days": 4}}, "wrong_arguments"),
        (WEATHER, {"name": "get_weather", "arguments": {"city": "Oslo", "days": "3"}}, "wrong_arguments"),
        (WEATHER, {"name": "get_weather", "arguments": {"days": 3}}, "wrong_arguments"),
        (WEATHER, {"name": "get_weather", "arguments": {"city": "Oslo", "wind": True}}, "wrong_arguments"),
        (WEATHER, {"name": "clock", "arguments": {}}, "wrong_tool"),
        (WEATHER, None, "missed_call"),
        (None, {"name": "clock", "arguments": {}}, "false_call"),
        (None, None, "right_no_call"),
    ],
)
def test_verdict(expect: Any, call: Any, verdict: str) -> None:
    assert guided_score.score(expect, call) == verdict


@pytest.mark.parametrize(
    ("wanted", "value", "is_match"),
    [
        (5, 5.0, True),
        (1, True, False),
        (True, 1, False),
        (True, True, True),
        ("7:30 am", "07:30 AM", False),
        ("New York", "new-york", True),
        ("?", "!", False),
        (["milk", "eggs"], ["Milk", "eggs "], True),
        (["milk", "eggs"], ["eggs", "milk"], False),
        (["milk"], ["milk", "eggs"], False),
        ({"a": [1]}, {"a": [1.0]}, True),
        ({"a": 1}, {"b": 1}, False),
        ({"evaluates_to": 395}, "23 * 17 + 4", True),
        ({"evaluates_to": 395}, "17*23+4.0", True),
        ({"evaluates_to": 395}, "23 * 17", False),
        ({"evaluates_to": 1024}, "2^10", True),
        ({"evaluates_to": 1}, "1 / 0", False),
        ({"evaluates_to": 1}, "__import__('os')", False),
        ({"evaluates_to": 1}, "9**9**9**9", False),
        ({"evaluates_to": 395}, 395, False),
    ],
)
def test_values(wanted: Any, value: Any, is_match: bool) -> None:
    assert guided_score.values_match(wanted, value) is is_match


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists, max_leaves=6))
def test_a_value_matches_itself(value: Any) -> None:
    assert guided_score.values_match(value, value)


def test_rates_count_both_kinds_of_right() -> None:
    rates = guided_score.rates(["right", "right_no_call", "false_call", "missed_call"])
    assert rates == {
        "whole_case": 0.5,
        "wrong_tool": 0,
        "wrong_arguments": 0,
        "missed_call": 0.25,
        "false_call": 0.25,
    }


def test_cases_are_enough_and_apart() -> None:
    tune, held = guided_score.load_cases("tune"), guided_score.load_cases("held")
    everything = guided_score.load_cases()
    assert len(everything) == len(tune) + len(held) >= 240
    assert sum(case.expect is None for case in everything) >= 80
    assert len({case.question.casefold() for case in everything}) == len(everything)

    def names(cases: list[guided_score.Case]) -> set[str]:
        return {tool["function"]["name"] for case in cases for tool in case.tools}

    assert len(names(held) - names(tune)) >= 10
    bundled = [case for case in everything if names([case]) == {"calculator", "clock"}]
    assert len(bundled) >= 30


@pytest.mark.slow
def test_expected_calls_fit_their_schemas_and_examples_are_no_cases() -> None:
    cases = guided_score.load_cases()
    questions = {case.question.casefold() for case in cases}
    for case in cases:
        assert 1 <= len(case.tools) <= 6
        for tool in case.tools:
            for example in tool.get("examples", []):
                jsonschema.validate(example["arguments"], tool["function"]["parameters"])
                assert example["request"].casefold() not in questions
        if case.expect is None:
            continue
        schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in case.tools}
        schema = schemas[case.expect["name"]]
        chosen: dict[str, Any] = {}
        for name, acceptable in case.expect["arguments"].items():
            real = [value for value in acceptable if value != ""]
            if real:
                chosen[name] = "1" if isinstance(real[0], dict) else real[0]
        jsonschema.validate(chosen, schema)
