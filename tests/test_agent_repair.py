"""Repair: a damaged call is taken back and written again in its place, whatever the damage."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from scripted_chats import ADD_2_AND_3, add, scripted_chat, tape_text

import edgellm
from edgellm.grammars import Grammars
from edgellm.toolbox.tool import ToolOptions, raw_tool

if TYPE_CHECKING:
    pass


@edgellm.tool(permission="auto")
def shout(text: str) -> str:
    """Says it loud.

    Args:
        text: What.
    """
    return text.upper()


# After a repair the scripted model is asked anew in the same leg: "" lets it end there.
def make_chat(runtime: edgellm.Runtime, *answers: str, **options: Any) -> edgellm.Chat:
    options.setdefault("tools", [add, shout])
    options.setdefault("constraint", "off")
    return scripted_chat(runtime, *answers, **options)


DAMAGED = {
    "no opening mark": '{"name": "add", "arguments": {"a": 2, "b": 3}}',
    "trailing comma": '<tool_call>\n{"name": "add", "arguments": {"a": 2, "b": 3,}}\n</tool_call>',
    "single quotes": "<tool_call>\n{'name': 'add', 'arguments': {'a': 2, 'b': 3}}\n</tool_call>",
    "wrong name": '<tool_call>\n{"name": "Add_numbers", "arguments": {"a": 2, "b": 3}}\n</tool_call>',
    "text inside": '<tool_call>\nSure: {"name": "add", "arguments": {"a": 2, "b": 3}}\n</tool_call>',
    "numbers as text": '<tool_call>\n{"name": "add", "arguments": "{\'a\': 2, \'b\': 3}"}\n</tool_call>',
    "cut off": '<tool_call>\n{"name": "add", "arguments": {"a": 2, "b": 3',
    "bracket missing": '<tool_call>\n{"name": "add", "arguments": {"a": 2, "b": 3}\n</tool_call>',
}


@pytest.mark.parametrize("damaged", DAMAGED.values(), ids=DAMAGED)
def test_damaged_call_is_written_again(runtime: edgellm.Runtime, damaged: str) -> None:
    chat = make_chat(runtime, damaged, "", "It is 5.")
    events: list[Any] = list(chat.send("What is 2 + 3?"))
    (repaired,) = (event for event in events if isinstance(event, edgellm.CallRepaired))
    assert repaired.before.strip() in damaged
    assert repaired.after == ADD_2_AND_3 or damaged == DAMAGED["cut off"]
    (finished,) = (event for event in events if isinstance(event, edgellm.ToolFinished))
    assert finished.call.name == "add"
    assert finished.result.is_ok
    # The damage is gone from the tape, the repaired call stands in its place.
    assert repaired.after in tape_text(chat)
    assert damaged not in tape_text(chat) or damaged in repaired.after
    assert chat.usage.repaired_calls == 1
    assert chat.usage.forced_tokens > 0
    assert not any(isinstance(event, edgellm.ToolCallBroken) for event in events)
    session = chat.conversation.session
    assert session.check_memory()
    assert len(session.tape) - 1 <= session.kv_length <= len(session.tape)


def test_text_before_the_call_stays(runtime: edgellm.Runtime) -> None:
    chat = make_chat(runtime, "Let me see.\n" + DAMAGED["trailing comma"], "", "It is 5.")
    events: list[Any] = list(chat.send("What is 2 + 3?"))
    assert events[-1].text == "Let me see.It is 5."
    assert "Let me see.\n" + ADD_2_AND_3 in tape_text(chat)


def test_newline_in_a_string_needs_no_repair(runtime: edgellm.Runtime) -> None:
    chat = make_chat(
        runtime, '<tool_call>\n{"name": "shout", "arguments": {"text": "a\nb"}}\n</tool_call>', "A."
    )
    events: list[Any] = list(chat.send("Say a b."))
    assert chat.usage.repaired_calls == 0
    assert next(e for e in events if isinstance(e, edgellm.ToolFinished)).result.text == "A\nB"


def test_plain_answers_are_left_alone(runtime: edgellm.Runtime) -> None:
    answer = 'Write {"name": "x"} to call, or <tool_ call> not.'
    chat = make_chat(runtime, answer)
    assert chat.ask("How?") == answer
    assert chat.usage.repaired_calls == 0


def test_limit_inside_a_repair_emits_no_call(runtime: edgellm.Runtime) -> None:
    chat = make_chat(runtime, "<tool_call>\nnothing at all\n</tool_call>")
    events: list[Any] = list(chat.send("What is 2 + 3?", max_tokens=25))
    assert not any(isinstance(event, (edgellm.ToolCallReady, edgellm.CallRepaired)) for event in events)
    assert events[-1].finish_reason == "length"
    # Nothing is left to write it better with: the model is not told of it.
    assert [message.role for message in chat.messages].count("user") == 1


WRONG_NAMES = {
    "glm-4.5": "<tool_call>addd\n<arg_key>a</arg_key>\n<arg_value>2</arg_value>\n"
    "<arg_key>b</arg_key>\n<arg_value>3</arg_value>\n</tool_call>",
    "lfm2": "<|tool_call_start|>[addd(a=2, b=3)]<|tool_call_end|>",
    "minicpm5": '<function name="addd"><param name="a">2</param><param name="b">3</param></function>',
    "hunyuan": "<tool_calls>\n<tool_call>addd<tool_sep>\n<arg_key>a</arg_key>\n<arg_value>2</arg_value>\n"
    "<arg_key>b</arg_key>\n<arg_value>3</arg_value>\n</tool_call>\n</tool_calls>",
    "kimi-k2": 'functions.addd:0<|tool_call_argument_begin|>{"a": 2, "b": 3}<|tool_call_end|>'
    "<|tool_calls_section_end|>",
}


@pytest.mark.parametrize("name", WRONG_NAMES)
def test_call_of_a_tool_that_is_not_there_is_written_again(runtime: edgellm.Runtime, name: str) -> None:
    chat = make_chat(runtime, WRONG_NAMES[name], "", "It is 5.", chat_format=name)
    events: list[Any] = list(chat.send("What is 2 + 3?"))
    (repaired,) = (event for event in events if isinstance(event, edgellm.CallRepaired))
    assert "'addd' is not a tool, there is add, shout" in repaired.error
    (finished,) = (event for event in events if isinstance(event, edgellm.ToolFinished))
    assert finished.call.name == "add"
    assert finished.result.text == "5"
    assert "addd" not in tape_text(chat)
    assert events[-1].text == "It is 5."


def test_unknown_tool_behind_a_good_call_leaves_that_alone(runtime: edgellm.Runtime) -> None:
    listed = "<|tool_call_start|>[add(a=2, b=3), subtract(a=2)]<|tool_call_end|>"
    chat = make_chat(runtime, listed, "It is 5.", chat_format="lfm2")
    events: list[Any] = list(chat.send("What is 2 + 3?"))
    ready = [event.call.name for event in events if isinstance(event, edgellm.ToolCallReady)]
    assert ready == ["add"]
    assert chat.usage.repaired_calls == 0
    assert [event.error for event in events if isinstance(event, edgellm.ToolCallBroken)] == [
        "'subtract' is not a tool, there is add, shout"
    ]
    assert events[-1].text == "It is 5."


def test_a_call_written_under_the_grammar_is_refused_not_written_again(runtime: edgellm.Runtime) -> None:
    # What llguidance cannot enforce: the same draw once more would break it again.
    number = {"type": "integer", "not": {"const": 3}}
    parameters = {"type": "object", "properties": {"number": number}, "required": ["number"]}
    description = {"name": "halve", "description": "Halves a number.", "parameters": parameters}
    seen: list[int] = []

    def halve(number: int) -> None:
        seen.append(number)

    tool = raw_tool(description, halve, ToolOptions(permission="auto"))
    call = '<tool_call>\n{"name": "halve", "arguments": {"number": 3}}\n</tool_call>'
    chat = make_chat(runtime, call, "It is odd.", tools=[tool], constraint="check")
    events: list[Any] = list(chat.send("Half of 3?"))
    (finished,) = (event for event in events if isinstance(event, edgellm.ToolFinished))
    assert not finished.result.is_ok
    assert seen == []
    assert chat.usage.repaired_calls == 0
    assert events[-1].text == "It is odd."


def test_without_a_grammar_the_model_is_told(
    runtime: edgellm.Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise edgellm.ConstraintError("no such grammar.")

    monkeypatch.setattr(Grammars, "of_call", refuse)
    good = WRONG_NAMES["lfm2"].replace("addd", "add")
    answers = (WRONG_NAMES["lfm2"], good, "It is 5.")
    chat = make_chat(runtime, *answers, chat_format="lfm2", constraint="check")
    events: list[Any] = list(chat.send("What is 2 + 3?"))
    assert any(isinstance(event, edgellm.ToolCallBroken) for event in events)
    assert "could not be read: 'addd' is not a tool, there is add, shout." in tape_text(chat)
    assert events[-1].text == "It is 5."
