"""Schemas from type hints and docstrings."""

import dataclasses
import enum
import functools
import pathlib
import typing
from collections.abc import Sequence
from typing import Annotated, Any, Literal, NotRequired, TypedDict

import annotated_types
import msgspec
import pydantic
import pytest
from jsonschema import Draft202012Validator

from edgellm.errors import ToolError
from edgellm.toolbox.context import ToolContext
from edgellm.toolbox.schema import read_docstring
from edgellm.toolbox.tool import tool


class Unit(enum.Enum):
    CELSIUS = "celsius"
    FAHRENHEIT = "fahrenheit"


@dataclasses.dataclass
class Place:
    city: str
    zip: int | None = None


@dataclasses.dataclass
class Tree:
    label: str
    children: "list[Tree]" = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Circle:
    radius: float


@dataclasses.dataclass
class Square:
    side: float


class Point(msgspec.Struct):
    x: int
    title: str = ""


class Options(TypedDict):
    depth: int
    name: NotRequired[str]


class Order(pydantic.BaseModel):
    title: str
    count: int = pydantic.Field(1, ge=1, description="How many.")
    place: Place | None = None


INTEGER = {"type": "integer"}
STRING = {"type": "string"}
PLACE = {
    "type": "object",
    "properties": {"city": STRING, "zip": {"anyOf": [INTEGER, {"type": "null"}], "default": None}},
    "required": ["city"],
    "additionalProperties": False,
}


def schema_of(hint: Any, **default: Any) -> dict[str, Any]:
    def function(value):
        pass

    function.__annotations__ = {"value": hint}
    if default:
        function.__defaults__ = (default["default"],)
    return tool(function).spec.parameters


@pytest.mark.parametrize(
    ("hint", "expected"),
    [
        (str, STRING),
        (int, INTEGER),
        (float, {"type": "number"}),
        (bool, {"type": "boolean"}),
        (None, {"type": "null"}),
        (Any, {}),
        (object, {}),
        (Literal["a", "b"], {"enum": ["a", "b"]}),
        (Literal[2, 1], {"enum": [2, 1]}),
        (Unit, {"enum": ["celsius", "fahrenheit"]}),
        (int | None, {"anyOf": [INTEGER, {"type": "null"}]}),
        (int | str, {"anyOf": [INTEGER, STRING]}),
        (list[int], {"type": "array", "items": INTEGER}),
        (Sequence[str], {"type": "array", "items": STRING}),
        (set[str], {"type": "array", "items": STRING}),
        (tuple[int, ...], {"type": "array", "items": INTEGER}),
        (
            tuple[int, str],
            {"type": "array", "minItems": 2, "maxItems": 2, "prefixItems": [INTEGER, STRING], "items": False},
        ),
        (dict[str, int], {"type": "object", "additionalProperties": INTEGER}),
        (pathlib.Path, STRING),
        (Place, PLACE),
        (list[Place], {"type": "array", "items": PLACE}),
        (
            Options,
            {
                "type": "object",
                "properties": {"depth": INTEGER, "name": STRING},
                "required": ["depth"],
                "additionalProperties": False,
            },
        ),
        (
            Annotated[int, annotated_types.Interval(ge=1, lt=7)],
            {**INTEGER, "minimum": 1, "exclusiveMaximum": 7},
        ),
        (Annotated[str, annotated_types.Len(2, 5)], {**STRING, "minLength": 2, "maxLength": 5}),
        (Annotated[list[str], annotated_types.MinLen(1)], {"type": "array", "items": STRING, "minItems": 1}),
        (
            Annotated[int, pydantic.Field(ge=1, description="Days.")],
            {**INTEGER, "minimum": 1, "description": "Days."},
        ),
        (Annotated[str, msgspec.Meta(pattern="^a")], {**STRING, "pattern": "^a"}),
        (Annotated[str, "A city."], {**STRING, "description": "A city."}),
        (list[Annotated[int, annotated_types.Ge(0)]], {"type": "array", "items": {**INTEGER, "minimum": 0}}),
    ],
)
def test_hint_becomes_schema(hint: Any, expected: dict[str, Any]) -> None:
    schema = schema_of(hint)
    assert schema["properties"]["value"] == expected
    assert schema["required"] == ["value"]
    assert schema["additionalProperties"] is False
    Draft202012Validator.check_schema(schema)


def test_property_called_title_is_kept_and_titles_are_dropped() -> None:
    point = schema_of(Point)["properties"]["value"]
    assert point["properties"] == {"x": INTEGER, "title": {"type": "string", "default": ""}}
    assert "title" not in point


def test_pydantic_model_is_inlined() -> None:
    order = schema_of(Order)["properties"]["value"]
    assert order["properties"]["count"] == {**INTEGER, "minimum": 1, "default": 1, "description": "How many."}
    assert order["properties"]["title"] == STRING
    assert order["properties"]["place"]["anyOf"][0]["properties"]["city"] == STRING
    assert "$ref" not in str(order)


def test_recursive_type_keeps_its_reference_at_the_top() -> None:
    schema = schema_of(Tree)
    assert schema["properties"]["value"] == {"$ref": "#/$defs/Tree"}
    valid = Draft202012Validator(schema)
    assert valid.is_valid({"value": {"label": "a", "children": [{"label": "b"}]}})
    assert not valid.is_valid({"value": {"label": "a", "children": [{"lable": "b"}]}})


def test_union_of_dataclasses_is_any_of() -> None:
    options = schema_of(Circle | Square)["properties"]["value"]["anyOf"]
    assert [list(option["properties"]) for option in options] == [["radius"], ["side"]]


@pytest.mark.parametrize(
    ("hint", "default", "expected"),
    [
        (int, 3, {**INTEGER, "default": 3}),
        (int | None, None, INTEGER),
        (int, None, INTEGER),
        (Literal["a", None], None, {"enum": ["a"]}),
        (int | str | None, None, {"anyOf": [INTEGER, STRING]}),
        (Unit, Unit.CELSIUS, {"enum": ["celsius", "fahrenheit"], "default": "celsius"}),
        (pathlib.Path, pathlib.Path("a/b"), {**STRING, "default": "a/b"}),
        (Any, object(), {}),
    ],
)
def test_default_makes_it_optional(hint: Any, default: Any, expected: dict[str, Any]) -> None:
    schema = schema_of(hint, default=default)
    assert schema["properties"]["value"] == expected
    assert schema["required"] == []


def test_docstring_gives_descriptions() -> None:
    def weather(city: str, days: Annotated[int, "From the hint."] = 1) -> str:
        """Weather of a city.

        Worldwide.

        Args:
            city: Name of the city,
                such as "Bern".
            days (int): Overruled by the hint.

        Returns:
            Text.
        """
        return city * days

    spec = tool(weather).spec
    assert spec.description == "Weather of a city.\n\nWorldwide."
    assert spec.parameters["properties"]["city"]["description"] == 'Name of the city, such as "Bern".'
    assert spec.parameters["properties"]["days"]["description"] == "From the hint."


def test_docstring_without_sections() -> None:
    assert read_docstring("Just this.") == ("Just this.", {})
    assert read_docstring("") == ("", {})


def no_hint(x):
    pass


def stars(*names: str):
    pass


def two_stars(**names: str):
    pass


def positional(x: int, /):
    pass


def unknown_hint(x: "Nowhere"):  # noqa: F821
    pass


def odd_type(x: complex):
    pass


def misnamed_context(context: ToolContext):
    pass


def field_as_default(x: int = pydantic.Field(3)):
    pass


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (no_hint, ["'no_hint'", "'x'", "no type hint", "`x: str`"]),
        (stars, ["'stars'", "*names"]),
        (two_stars, ["**names"]),
        (positional, ["'x'", "by name"]),
        (unknown_hint, ["'Nowhere'", "is not known"]),
        (odd_type, ["'x'", "complex"]),
        (misnamed_context, ["'context'", "Call it 'call'"]),
        (field_as_default, ["'x'", "Annotated"]),
    ],
)
def test_wrong_declaration_names_parameter_and_place(function: Any, words: list[str]) -> None:
    with pytest.raises(ToolError) as caught:
        _ = tool(function).spec
    for word in [*words, "test_toolbox_schema.py:"]:
        assert word in str(caught.value)


def test_context_never_reaches_the_schema() -> None:
    def f(x: int, call: ToolContext) -> int:
        return x

    assert list(tool(f).spec.parameters["properties"]) == ["x"]


def test_ordinary_parameter_called_call_stays() -> None:
    def f(call: str) -> str:
        return call

    assert tool(f).spec.parameters["required"] == ["call"]


def test_partial_hides_what_it_has_filled_in() -> None:
    def add(x: int, y: int) -> int:
        return x + y

    made = tool(functools.partial(add, y=1), name="increment")
    assert made.spec.parameters["required"] == ["x"]
    assert made(2) == 3


def test_type_checking_only_import_of_the_context() -> None:
    namespace: dict[str, Any] = {}
    source = "from __future__ import annotations\ndef f(x: int, call: ToolContext) -> int: return x"
    exec(source, namespace)
    assert list(tool(namespace["f"]).spec.parameters["properties"]) == ["x"]


def test_schema_module_never_imports_pydantic_by_itself() -> None:
    import subprocess
    import sys

    code = (
        "import sys\nfrom edgellm.toolbox.tool import tool\n"
        "@tool\ndef f(x: int) -> int:\n    'Doc.'\n    return x\n"
        "assert f.spec.parameters['required'] == ['x']\n"
        "assert f.check({'x': '3'}) == {'x': 3}\n"
        "print([m for m in ('pydantic', 'jsonschema', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_choices_keep_the_order_they_were_written_in() -> None:
    levels = Literal["low", "medium", "high"]
    assert schema_of(levels | None)["properties"]["value"]["anyOf"][0] == {"enum": ["low", "medium", "high"]}
    assert schema_of(list[levels])["properties"]["value"]["items"] == {"enum": ["low", "medium", "high"]}
    described = schema_of(Annotated[levels, "How much."], default="low")["properties"]["value"]
    assert described == {"enum": ["low", "medium", "high"], "description": "How much.", "default": "low"}


def test_optional_is_the_same_as_union_with_none() -> None:
    assert schema_of(typing.Optional[int]) == schema_of(int | None)  # noqa: UP045
