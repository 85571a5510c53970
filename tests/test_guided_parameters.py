"""Guided calls of tools whose parameters are described elsewhere in the schema."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jsonschema
import pytest
from tiny_models import CHATML

import edgellm
from edgellm.guided.parameters import standing_alone
from edgellm.toolbox.tool import ToolOptions, raw_tool

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

UNITS = {"enum": ["m", "km"]}
PLACE = {
    "type": "object",
    "properties": {"zip": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["zip"],
    "additionalProperties": False,
}
TREE = {"type": "object", "properties": {"more": {"$ref": "#"}}, "additionalProperties": False}


def spec_of(properties: dict[str, Any], **more: Any) -> edgellm.ToolSpec:
    return edgellm.ToolSpec("f", "F.", {"type": "object", "properties": properties, **more})


def test_references_are_followed_and_definitions_stand_beside_them() -> None:
    definitions = {"unit": UNITS, "route": {"type": "array", "items": {"$ref": "#/$defs/unit"}}}
    spec = spec_of(
        {
            "unit": {"$ref": "#/$defs/unit", "description": "Of length."},
            "route": {"$ref": "#/$defs/route"},
            "n": True,
        },
        **{"$defs": definitions},
    )
    alone = standing_alone(spec)
    assert alone.parameters["properties"] == {
        "unit": {**UNITS, "description": "Of length.", "$defs": definitions},
        "route": {**definitions["route"], "$defs": definitions},
        "n": {},
    }
    assert alone.name == spec.name


def test_a_tool_without_references_is_left_as_it_is() -> None:
    spec = spec_of({"a": {"type": "integer"}}, **{"$defs": {"unused": UNITS}})
    assert standing_alone(spec) is spec


@pytest.mark.parametrize(
    ("properties", "has_end"),
    [
        ({"place": {"$ref": "#/$defs/place"}, "unit": {"$ref": "#/$defs/unit"}}, True),
        (
            {"places": {"type": "array", "items": {"$ref": "#/$defs/place"}, "minItems": 1, "maxItems": 1}},
            True,
        ),
        ({"any": True, "unit": {"$ref": "#/$defs/unit"}}, False),
        ({"tree": TREE}, False),
        ({"list": {"type": "array", "items": True, "maxItems": 0}}, True),
    ],
)
def test_required_call_is_valid_whatever_the_schema_refers_to(
    tiny_model: Callable[..., Path], properties: dict[str, Any], has_end: bool
) -> None:
    parameters = {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
        "$defs": {"place": PLACE, "unit": UNITS},
    }
    received: list[dict[str, Any]] = []
    tool = raw_tool(
        {"name": "f", "parameters": parameters},
        lambda **values: received.append(values),
        ToolOptions(permission="auto"),
    )
    with edgellm.load(tiny_model("llama", n_ctx=8192), n_ctx=8192, threads=1) as runtime:
        chat = runtime.chat(tools=[tool], strategy="guided", template=CHATML, seed=4)
        events = list(chat.send("Zip 7, in km", tool_choice="required", max_tokens=200))
    calls = [event.call for event in events if isinstance(event, edgellm.ToolCallReady)]
    for call in calls[:1]:
        jsonschema.validate(call.arguments, parameters)
    # A random model may write a value without an end; then there is no call.
    assert calls or (not has_end and events[-1].finish_reason == "length")
