"""Structured answers: every kind of format, together with tools and behind reasoning."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import pydantic
import pytest
from scripted_chats import TEMPLATE, scripted_chat

import edgellm
from edgellm.response_format import ResponseFormat

if TYPE_CHECKING:
    pass

THINKS = TEMPLATE.replace("'<|im_start|>assistant\\n'", "'<|im_start|>assistant\\n<think>\\n'")


class Person(pydantic.BaseModel):
    """A person."""

    name: Literal["Ada", "Bo"]
    age: Literal[36, 7]


@edgellm.tool(permission="auto")
def look_up(word: str) -> str:
    """Looks a word up.

    Args:
        word: Which.
    """
    return f"{word}: a word"


def answer(runtime: edgellm.Runtime, response_format: Any, *answers: str, **options: Any) -> list[Any]:
    chat = scripted_chat(runtime, *answers, **options)
    return list(chat.send("Tell.", response_format=response_format, max_tokens=300))


@pytest.mark.parametrize(
    ("response_format", "written"),
    [
        ({"regex": "[0-9]{3}-[a-z/]{2}"}, "123-a/"),
        ({"lark": 'start: "yes" | "no" ", " reason\nreason: /[a-z ]+/'}, "no, because"),
        (["red", "dark green"], "dark green"),
    ],
    ids=["regex", "lark", "choices"],
)
def test_answer_is_kept_to_its_format(runtime: edgellm.Runtime, response_format: Any, written: str) -> None:
    turn = answer(runtime, response_format, written)[-1]
    assert (turn.text, turn.value) == (written, written)


def test_values_are_read_from_the_answer(runtime: edgellm.Runtime) -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"enum": [7, 8]}},
        "required": ["a"],
        "additionalProperties": False,
    }
    turn = answer(runtime, schema, "7")[-1]
    assert turn.text == f'{{"a": {turn.value["a"]}}}'
    person = answer(runtime, Person, "x")[-1].value
    assert isinstance(person, Person)


def test_what_the_format_forbids_is_not_written(runtime: edgellm.Runtime) -> None:
    turn = answer(runtime, ["red", "green"], "Certainly! It is red.")[-1]
    assert turn.text in ("red", "green")


def test_a_tool_may_be_called_before_the_answer(runtime: edgellm.Runtime) -> None:
    call = '<tool_call>\n{"name": "look_up", "arguments": {"word": "tree"}}\n</tool_call>'
    events = answer(runtime, ["a plant", "a stone"], call, "a plant", tools=[look_up])
    assert [e.result.text for e in events if isinstance(e, edgellm.ToolFinished)] == ["tree: a word"]
    assert events[-1].value == "a plant"


def test_reasoning_comes_first_and_is_free(runtime: edgellm.Runtime) -> None:
    events = answer(runtime, ["yes", "no"], "Let me see 1, 2.</think>\n\nyes", template=THINKS)
    reasoning = "".join(e.text for e in events if isinstance(e, edgellm.ReasoningDelta))
    assert reasoning == "Let me see 1, 2."
    assert events[-1].text.strip() in ("yes", "no")


def test_reasoning_is_closed_when_its_budget_is_spent(runtime: edgellm.Runtime) -> None:
    from edgellm.agent import AgentLimits

    limits = AgentLimits(reasoning_budget=5)
    events = answer(
        runtime, ["yes", "no"], "one two three four five six seven", template=THINKS, limits=limits
    )
    reasoning = "".join(e.text for e in events if isinstance(e, edgellm.ReasoningDelta))
    assert "long enough" in reasoning
    assert "seven" not in reasoning
    assert events[-1].text in ("yes", "no")


@pytest.mark.parametrize("bad", [7, "text", [], [3], {"lark": "x: 'a'"}])
def test_what_is_no_format_is_refused(bad: Any) -> None:
    with pytest.raises(edgellm.EdgeError, match=r"format|choices|start"):
        ResponseFormat.of(bad)


def test_openai_spelling_is_understood() -> None:
    given = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "integer"}}}
    assert ResponseFormat.of(given).schema == {"type": "integer"}
    assert ResponseFormat.of({"type": "json_object"}).schema == {"type": "object"}
