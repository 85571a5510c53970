"""Where a leg ends: at the end of generation, or at the first token that cannot begin another call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from scripted_chats import ADD_2_AND_3, TEMPLATE, add, script, scripted_chat, tape_text

import edgellm

if TYPE_CHECKING:
    pass


def tape_after(runtime: edgellm.Runtime, answer: str, **options: Any) -> tuple[str, edgellm.Chat]:
    """What stands on the tape behind the prompt of the first leg."""
    chat = scripted_chat(runtime, answer, "It is 5.", tools=[add], **options)
    list(chat.send("2 and 3?"))
    return tape_text(chat).split("<|im_start|>assistant\n", 1)[1], chat


@pytest.mark.parametrize("constraint", ["off", "check", "force"])
@pytest.mark.parametrize(
    "behind",
    ["\n<tool_response>\n5\n</tool_response>", " So it is 6.", "\n\nAnd now", "<tool_cat>"],
    ids=["a result of its own", "text", "lines", "almost a mark"],
)
def test_nothing_stays_that_stood_behind_the_last_call(
    runtime: edgellm.Runtime, behind: str, constraint: Any
) -> None:
    text, chat = tape_after(runtime, ADD_2_AND_3 + behind, constraint=constraint)
    first = text.split("<|im_end|>")[0]
    assert first.rstrip() == ADD_2_AND_3
    assert chat.messages[-1].content == "It is 5."
    assert "<tool_response>\n5\n</tool_response>" in text


@pytest.mark.parametrize("end", ["<｜tool▁outputs▁end｜>It is 6.", ""], ids=["whole", "cut off"])
def test_results_that_no_tool_gave_end_the_leg(runtime: edgellm.Runtime, end: str) -> None:
    call = (
        '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>add<｜tool▁sep｜>{"a": 2, "b": 3}'
        "<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
    )
    made_up = "<｜tool▁outputs▁begin｜><｜tool▁output▁begin｜>6<｜tool▁output▁end｜>" + end
    text, chat = tape_after(runtime, call + made_up, constraint="off", chat_format="deepseek-v3.1")
    assert text.startswith(call)
    assert "6" not in text
    assert chat.messages[-1].content == "It is 5."


@pytest.mark.parametrize("between", ["\n", "", "\n\n"])
def test_all_calls_of_a_turn_are_taken(runtime: edgellm.Runtime, between: str) -> None:
    text, chat = tape_after(runtime, ADD_2_AND_3 + between + ADD_2_AND_3, constraint="off")
    calls = [call for message in chat.messages for call in message.tool_calls]
    assert [call.name for call in calls] == ["add", "add"]
    assert text.split("<|im_end|>")[0] == ADD_2_AND_3 + between + ADD_2_AND_3


@pytest.mark.parametrize("constraint", ["off", "check"])
def test_call_that_a_limit_cuts_before_its_mark_is_closed(runtime: edgellm.Runtime, constraint: Any) -> None:
    whole = len(runtime.tokenize(ADD_2_AND_3))
    seen = 0
    for limit in range(whole - 14, whole + 2):
        chat = runtime.chat(
            sampler=script(runtime, ADD_2_AND_3, "It is 5."),
            template=TEMPLATE,
            tools=[add],
            constraint=constraint,
        )
        events = list(chat.send("2 and 3?", max_tokens=limit))
        seen += any(isinstance(event, edgellm.ToolFinished) for event in events)
        list(chat.send("And?", max_tokens=3))
        text = runtime.vocabulary.text_of(chat.tape).decode()
        if "<tool_response>" in text:
            answer = text.split("<|im_start|>assistant\n")[1]
            assert answer.split("<|im_end|>")[0].rstrip() == ADD_2_AND_3, limit
        chat.close()
    assert seen > 2
