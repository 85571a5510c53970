"""Arguments: exact first, lossless conversions, and errors a model can act on."""

import dataclasses
import enum
import json
import math
import pathlib
from typing import Annotated, Any, Literal

import msgspec
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from edgellm.errors import ToolError
from edgellm.toolbox.arguments import coerce
from edgellm.toolbox.tool import Tool, raw_tool, tool


class Unit(enum.Enum):
    CELSIUS = "celsius"
    FAHRENHEIT = "fahrenheit"


@dataclasses.dataclass
class Place:
    city: str
    zip: int = 0


@dataclasses.dataclass
class Circle:
    radius: float


class Order(pydantic.BaseModel):
    title: str
    count: int = pydantic.Field(1, ge=1)


def tool_for(hint: Any, *, default: Any = ...) -> Tool[..., Any]:
    def f(value):
        pass

    f.__annotations__ = {"value": hint}
    if default is not ...:
        f.__defaults__ = (default,)
    return tool(f)


@pytest.mark.parametrize(
    ("hint", "written", "expected"),
    [
        (str, "3", "3"),
        (str, 3, "3"),
        (str, 1.5, "1.5"),
        (str, True, "true"),
        (int, 3, 3),
        (int, "3", 3),
        (int, " -3 ", -3),
        (int, 3.0, 3),
        (float, 3, 3.0),
        (float, "3.5", 3.5),
        (float, "1e3", 1000.0),
        (bool, "True", True),
        (bool, "false", False),
        (Unit, "celsius", Unit.CELSIUS),
        (Unit, "Celsius", Unit.CELSIUS),
        (Literal[1, 2], "2", 2),
        (Literal["a", "b"], "A", "a"),
        (list[int], "[1, 2]", [1, 2]),
        (list[int], ["1", 2], [1, 2]),
        (tuple[int, str], ["1", 2], (1, "2")),
        (set[int], [1, 1, 2], {1, 2}),
        (dict[str, int], {"a": 1}, {"a": 1}),
        (int | str, "3", "3"),
        (int | list[int], "3", 3),
        (int | None, None, None),
        (pathlib.Path, "a/b", pathlib.Path("a/b")),
        (Place, {"city": "Bern"}, Place("Bern")),
        (Place, '{"city": "Bern", "zip": "3000"}', Place("Bern", 3000)),
        (list[Place], [{"city": "Bern", "zip": "1"}], [Place("Bern", 1)]),
        (Place | Circle, {"radius": 2}, Circle(2.0)),
        (Order, {"title": "x", "count": "2"}, Order(title="x", count=2)),
        (Order | None, None, None),
        (Any, {"x": [1]}, {"x": [1]}),
    ],
)
def test_value_is_taken(hint: Any, written: Any, expected: Any) -> None:
    value = tool_for(hint).check({"value": written})["value"]
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize(
    ("hint", "written", "words"),
    [
        (int, "three", ["'value'", "an integer", '"three"']),
        (int, 3.5, ["an integer", "3.5"]),
        (int, True, ["an integer", "true"]),
        (int, "3.0e0", ["an integer"]),
        (int, "9" * 30, ["an integer"]),
        (float, "nan", ["a number"]),
        (bool, 1, ["true or false", "1"]),
        (str, None, ["a string", "null"]),
        (str, ["a"], ["a string", '["a"]']),
        (Unit, "kelvin", ['one of "celsius", "fahrenheit"', '"kelvin"']),
        (Annotated[int, msgspec.Meta(ge=1, le=7)], 9, ["an integer from 1 to 7", "9"]),
        (Annotated[int, msgspec.Meta(gt=1)], 1, ["above 1"]),
        (Annotated[str, msgspec.Meta(min_length=3)], "a", ["at least 3 characters"]),
        (list[int], ["x"], ["a list, each an integer", "[0]"]),
        (Place, {"town": "Bern"}, ["unknown key 'town'"]),
        (Place, {"city": "Bern", "zpi": 1}, ["unknown key 'zpi'", "did you mean 'zip'"]),
        (Place, {"city": "Bern", "zip": [1]}, ["at zip"]),
        (Order, {"title": "x", "count": 0}, ["count", "greater than or equal to 1"]),
        (dict[str, int], {"a": "x"}, ["an object"]),
    ],
)
def test_value_is_refused_in_words(hint: Any, written: Any, words: list[str]) -> None:
    with pytest.raises(ToolError) as caught:
        tool_for(hint).check({"value": written})
    for word in [*words, "was not run", "call it again"]:
        assert word in str(caught.value)


def test_unknown_missing_and_wrong_are_told_together() -> None:
    @tool
    def weather(city: str, days: int = 1) -> str:
        return city * days

    with pytest.raises(ToolError) as caught:
        weather.check({"citty": "Bern", "days": "many"})
    text = str(caught.value)
    assert "unknown argument 'citty', did you mean 'city'?" in text
    assert "argument 'city' is missing" in text
    assert "argument 'days' should be an integer" in text


def test_null_for_an_optional_argument_leaves_it_out() -> None:
    assert tool_for(int, default=3).check({"value": None}) == {}


def test_absent_optional_arguments_stay_absent() -> None:
    assert tool_for(int, default=3).check({}) == {}


@pytest.mark.parametrize("arguments", [[1], "x", None, 3])
def test_arguments_that_are_no_object(arguments: Any) -> None:
    with pytest.raises(ToolError, match="not a JSON object"):
        tool_for(int).check(arguments)


def test_long_values_are_quoted_short() -> None:
    with pytest.raises(ToolError) as caught:
        tool_for(int).check({"value": "x" * 100_000})
    assert len(str(caught.value)) < 300


def test_deep_nesting_is_an_error_not_a_crash() -> None:
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(ToolError):
        tool_for(int).check({"value": deep})
    with pytest.raises(ToolError):
        tool_for(list[int]).check({"value": "[" * 100_000})


RAW = {
    "name": "lookup",
    "parameters": {
        "type": "object",
        "properties": {
            "n": {"type": "integer", "minimum": 1},
            "tags": {"type": "array", "items": {"type": "string"}},
            "deep": {"type": "object", "properties": {"x": {"type": "number"}}},
        },
        "required": ["n"],
        "additionalProperties": False,
    },
}


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ({"n": 2}, {"n": 2}),
        ({"n": "2"}, {"n": 2}),
        ({"n": 2, "tags": None}, {"n": 2}),
        ({"n": 2, "tags": '["a"]', "deep": {"x": "1.5"}}, {"n": 2, "tags": ["a"], "deep": {"x": 1.5}}),
    ],
)
def test_foreign_schema_takes(written: dict[str, Any], expected: dict[str, Any]) -> None:
    assert raw_tool(RAW, lambda **values: values).check(written) == expected


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ({"n": 0}, ["argument 'n' should be an integer, at least 1, got 0"]),
        ({}, ["argument 'n' is missing"]),
        ({"n": 1, "tag": []}, ["unknown argument 'tag', did you mean 'tags'?"]),
        ({"n": 1, "deep": {"x": "y"}}, ["argument 'deep' (at x) should be a number"]),
    ],
)
def test_foreign_schema_refuses_in_words(written: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ToolError) as caught:
        raw_tool(RAW, lambda **values: values).check(written)
    for word in words:
        assert word in str(caught.value)


SCHEMAS = st.recursive(
    st.sampled_from([{"type": name} for name in ("integer", "number", "boolean", "string", "null")])
    | st.just({"enum": ["a", "b", 1, None]})
    | st.just({}),
    lambda inner: (
        st.builds(lambda items: {"type": "array", "items": items}, inner)
        | st.builds(lambda x, y: {"type": "object", "properties": {"x": x, "y": y}}, inner, inner)
        | st.builds(lambda one, two: {"anyOf": [one, two]}, inner, inner)
    ),
    max_leaves=6,
)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-99, 99)
    | st.floats(-9, 9)
    | st.sampled_from(["", "1", "-2.5", "true", "A", "b", "[1]", '{"x": "1"}', "null"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["x", "y", "z"]), inner),
    max_leaves=6,
)


@given(SCHEMAS, JSON)
def test_what_is_valid_is_never_converted(schema: dict[str, Any], value: Any) -> None:
    if Draft202012Validator(schema).is_valid(value):
        made = coerce(value, schema, schema)
        assert made == value  # 3.0 is a valid integer, and equal to 3


@given(SCHEMAS, JSON)
def test_converting_twice_is_converting_once(schema: dict[str, Any], value: Any) -> None:
    once = coerce(value, schema, schema)
    assert coerce(once, schema, schema) == once
    json.dumps(once)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_numbers_beyond_float_are_told(value: float) -> None:
    schema = {"type": "object", "properties": {"value": {"type": "number"}}}
    for one in (tool_for(float), raw_tool({"name": "f", "parameters": schema}, lambda value: None)):
        with pytest.raises(ToolError, match=r"'value' should be a number, got .*out of range"):
            one.check({"value": value})
    with pytest.raises(ToolError, match="out of range"):
        tool_for(list[dict[str, float]]).check({"value": [{"a": 1.0}, {"a": value}]})
