"""`@tool`: bare, with options, on functions, async functions and methods; Toolset."""

import asyncio
import functools
import types
from typing import Any

import pytest

from edgellm.errors import ToolError
from edgellm.toolbox.context import ToolContext
from edgellm.toolbox.tool import Tool, raw_tool, tool
from edgellm.toolbox.toolset import Toolset
from edgellm.types import ToolExample


def add(x: int, y: int = 1) -> int:
    """Adds."""
    return x + y


class Counter:
    """Has tools that share state."""

    def __init__(self, start: int) -> None:
        self.value = start

    @tool
    def increase(self, by: int = 1) -> int:
        """Counts up."""
        self.value += by
        return self.value

    @tool(name="peek", permission="auto")
    def look(self, call: ToolContext) -> str:
        """Tells the value."""
        return f"{call.call.name}{self.value}"

    @staticmethod
    @tool
    def double(x: int) -> int:
        """Doubles."""
        return x * 2

    @tool
    @staticmethod
    def triple(x: int) -> int:
        """Triples."""
        return x * 3

    @classmethod
    @tool
    def kind(cls) -> str:
        """Name of the class."""
        return cls.__name__


def run(one: Tool[..., Any], **arguments: Any) -> Any:
    return one.invoke(one.check(arguments), ToolContext())


def test_bare_decorator_keeps_the_function() -> None:
    made = tool(add)
    assert (made(2), made(2, y=5), made.__name__, made.__doc__) == (3, 7, "add", "Adds.")
    assert made.spec.name == "add"
    assert made.spec.description == "Adds."
    assert made.spec.permission == "ask"
    assert made.spec.timeout_s == 30.0
    assert run(made, x=2, y="4") == 6


def test_options_are_said_once() -> None:
    made = tool(
        name="plus",
        description="Sum.",
        permission="auto",
        timeout_s=2,
        max_result_tokens=9,
        examples=[("two and two", {"x": 2, "y": 2}), ToolExample("one more", {"x": 1})],
        is_grantable=False,
    )(add)
    spec = made.spec
    assert (spec.name, spec.description, spec.permission) == ("plus", "Sum.", "auto")
    assert (spec.timeout_s, spec.max_result_tokens, spec.is_grantable) == (2, 9, False)
    assert spec.examples[0] == ToolExample("two and two", {"x": 2, "y": 2})
    assert tool(made, permission="deny").spec.name == "plus"
    assert tool(made, permission="deny").spec.permission == "deny"


def test_async_function_gives_a_coroutine() -> None:
    @tool
    async def later(x: int) -> int:
        await asyncio.sleep(0)
        return x

    assert later.is_async
    assert asyncio.run(later(3)) == 3
    assert asyncio.run(run(later, x="4")) == 4


def test_methods_work_on_their_instance() -> None:
    one, other = Counter(1), Counter(10)
    assert list(one.increase.spec.parameters["properties"]) == ["by"]
    assert run(one.increase) == 2
    assert run(other.increase, by=5) == 15
    assert one.increase(3) == 5
    assert run(one.look) == "5"
    assert (one.double(4), one.triple(4), one.kind()) == (8, 12, "Counter")
    assert run(tool(Counter(0).kind)) == "Counter"
    assert Counter.increase.is_unbound
    assert not one.increase.is_unbound


def test_plain_bound_method_becomes_a_tool() -> None:
    class Sensor:
        def read(self, room: str) -> str:
            return room.upper()

    assert run(tool(Sensor().read), room="hall") == "HALL"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: tool(add, name=""), "not a name"),
        (lambda: tool(add, name="two words"), "not a name"),
        (lambda: tool(add, name="é"), "not a name"),
        (lambda: tool(add, name="9lives"), "not a name"),
        (lambda: tool(add, name="a" * 65), "not a name"),
        (lambda: tool(lambda: 1), "not a name"),
        (lambda: tool(functools.partial(add, 1)), "not a name"),
        (lambda: tool(add, permission="maybe"), "permission 'maybe' is unknown"),  # pyright: ignore
        (lambda: tool(add, timeout_s=0), "timeout_s"),
        (lambda: tool(add, max_result_tokens=0), "max_result_tokens"),
        (lambda: tool(add, examples=[("x", {"z": 1})]).spec, "unknown argument 'z'"),
        (lambda: tool(add, examples=["x"]).spec, "example"),  # pyright: ignore
        (lambda: tool(int), "'int'"),
        (lambda: tool(3), "'int'"),  # pyright: ignore
        (lambda: tool(classmethod(add)), "classmethod"),  # pyright: ignore
    ],
)
def test_wrong_options_are_told(make: Any, words: str) -> None:
    with pytest.raises(ToolError, match=words):
        make()


def test_foreign_description() -> None:
    description = {
        "type": "function",
        "function": {
            "name": "look-up",
            "description": "Looks up.",
            "parameters": {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]},
        },
    }
    made = raw_tool(description, lambda n: n + 1)
    assert made.spec.to_openai() == description
    assert run(made, n="3") == 4
    counter = Counter(5)
    assert run(raw_tool({"name": "up"}, types.MethodType(lambda self: self.value, counter))) == 5


@pytest.mark.parametrize(
    ("description", "words"),
    [
        ({}, "no 'name'"),
        ({"function": 3}, "not an object"),
        ({"name": "a b"}, "not a name"),
        ({"name": "x", "parameters": {"type": "string"}}, "type object"),
        (
            {"name": "x", "parameters": {"type": "object", "properties": {"a": {"type": "strin"}}}},
            "properties/a",
        ),
    ],
)
def test_foreign_description_that_is_wrong(description: dict[str, Any], words: str) -> None:
    with pytest.raises(ToolError, match=words):
        raw_tool(description, lambda: None)


def test_toolset_takes_all_kinds_of_sources_in_order() -> None:
    module = types.ModuleType("some_tools")
    module.plus = tool(add, name="plus")
    module.Tool = Tool
    module.helper = add
    tools = Toolset(
        add,
        [tool(add, name="again")],
        Counter(1),
        module,
        ({"name": "raw"}, lambda: "raw"),
        Toolset(tool(add, name="nested")),
        functools.partial(add, 1) and tool(functools.partial(add, 1), name="partial"),
    )
    assert tools.names == (
        "add", "again", "increase", "peek", "double", "triple", "kind", "plus", "raw", "nested", "partial",
    )  # fmt: skip
    assert len(tools) == 11
    assert "peek" in tools
    assert [spec.name for spec in tools.specs] == list(tools.names)
    assert tools.subset(["raw", "add"]).names == ("raw", "add")


def test_taken_name_names_both_places_and_adds_nothing() -> None:
    tools = Toolset(add)
    with pytest.raises(ToolError) as caught:
        tools.add([tool(add, name="fresh"), raw_tool({"name": "add"}, lambda: 1)])
    assert str(caught.value).count("test_toolbox_tool.py:") == 2
    assert tools.names == ("add",)


def test_same_tool_twice_is_one() -> None:
    counter = Counter(1)
    assert Toolset(counter.increase, counter.increase, add, add).names == ("increase", "add")
    with pytest.raises(ToolError, match="Two tools"):
        Toolset(counter.increase, Counter(2).increase)


@pytest.mark.parametrize("source", ["calculator", None, 3, int, {"name": "x"}, object()])
def test_what_is_no_tool_is_told(source: Any) -> None:
    with pytest.raises(ToolError):
        Toolset(source)


def test_method_without_its_object() -> None:
    with pytest.raises(ToolError, match="without its object"):
        Toolset(Counter.increase)


def test_module_without_tools() -> None:
    with pytest.raises(ToolError, match="has no tool"):
        Toolset(types.ModuleType("empty"))


def test_unknown_tool_is_told_to_the_model() -> None:
    tools = Toolset(tool(add, name="calculator"))
    with pytest.raises(ToolError, match="unknown tool 'calculater', did you mean 'calculator'"):
        tools.get("calculater")
    with pytest.raises(ToolError, match="there is 'calculator'"):
        tools.get("zzz")
    with pytest.raises(ToolError, match="there is none"):
        Toolset().get("zzz")


def test_context_reads_dotted_settings() -> None:
    context = ToolContext(settings={"files": {"root": "/srv"}, "flat": 1})
    assert context.setting("files.root") == "/srv"
    assert context.setting("flat") == 1
    assert context.setting("flat.deeper", "no") == "no"
    assert context.setting("files.other") is None


def test_an_async_generator_is_refused() -> None:
    async def numbers() -> Any:
        yield 1

    with pytest.raises(ToolError, match="async generator"):
        tool(numbers)
