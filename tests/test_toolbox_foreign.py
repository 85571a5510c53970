"""Schemas from elsewhere: a call is checked, also where Python cannot read all of its tool's schema."""

from __future__ import annotations

from typing import Any

import pytest

from edgellm.errors import ToolError
from edgellm.toolbox.foreign import readable
from edgellm.toolbox.tool import raw_tool


def made(properties: dict[str, Any], **more: Any) -> Any:
    parameters = {"type": "object", "properties": properties, **more}
    return raw_tool({"name": "f", "parameters": parameters}, lambda **values: values)


@pytest.mark.parametrize("pattern", ["^\\p{L}+$", "(?<year>[0-9]+)", "\\cJ"])
def test_a_pattern_that_python_cannot_read_is_no_reason_to_fail(pattern: str) -> None:
    tool = made({"a": {"type": "string", "pattern": pattern}, "b": {"type": "integer"}})
    assert tool.check({"a": "x", "b": 1}) == {"a": "x", "b": 1}
    with pytest.raises(ToolError, match="'b' should be an integer"):
        tool.check({"a": "x", "b": "many"})
    assert tool.spec.parameters["properties"]["a"]["pattern"] == pattern  # the grammar may know better


def test_names_that_only_an_unreadable_pattern_allows_pass() -> None:
    tool = made({"a": {"type": "integer"}}, patternProperties={"^\\p{L}$": True}, additionalProperties=False)
    assert tool.check({"a": 1, "é": 2}) == {"a": 1, "é": 2}


def test_true_and_false_stand_for_any_value_and_none() -> None:
    tool = made(
        {"any": True, "never": False, "list": {"type": "array", "items": False}, "n": {"type": "integer"}}
    )
    assert tool.check({"any": [1], "n": "3"}) == {"any": [1], "n": 3}
    for wrong in ({"never": 1}, {"list": [1]}, {"any": 1, "n": "many"}):
        with pytest.raises(ToolError, match="was not run"):
            tool.check(wrong)
    required = made({"any": True}, required=["any"])
    with pytest.raises(ToolError, match="'any' is missing"):
        required.check({})


def test_values_and_names_that_look_like_keywords_are_left_alone() -> None:
    schema = {
        "const": {"pattern": "("},
        "properties": {"pattern": {"type": "string"}, "enum": {"enum": [True, "("]}},
        "required": ["pattern"],
        "additionalProperties": False,
    }
    assert readable(schema) == schema
