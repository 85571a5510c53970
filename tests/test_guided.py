"""The guided strategy: choice by likelihood, grounded arguments, and a tape that costs what it should."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import jsonschema
import msgspec
import numpy as np
import pytest
from scripted_chats import TEMPLATE, events_of

import edgellm
from edgellm.guided.copy_bias import CopyBias
from edgellm.guided.grounding import NOTHING, Unused, is_stated, stated_choice, stated_flag
from edgellm.testing import ByteVocabulary

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@edgellm.tool(permission="auto", examples=[("Light the hall", {"room": "hall", "level": 3})])
def light(
    room: Literal["hall", "kitchen"],
    level: Annotated[int, msgspec.Meta(ge=0, le=9)],
    is_warm: bool = False,
    colour: str = "white",
) -> str:
    """Sets a light.

    Args:
        room: Which room.
        level: How bright.
        is_warm: Warm light.
        colour: Its colour.
    """
    return f"{room} {level} {is_warm} {colour}"


@edgellm.tool(permission="auto")
def fetch(what: Literal["mail", "milk"]) -> str:
    """Fetches something.

    Args:
        what: What to fetch.
    """
    return what


# -- mechanics, on a tiny model ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runtime(tiny_model: Callable[..., Path]) -> Iterator[edgellm.Runtime]:
    with edgellm.load(tiny_model("llama", n_ctx=8192), n_ctx=8192, threads=1) as runtime:
        yield runtime


def turn_of(runtime: edgellm.Runtime, text: str = "Light the kitchen at 5", **options: Any) -> list[Any]:
    chat = runtime.chat(tools=[light, fetch], strategy="guided", template=TEMPLATE, seed=1)
    return list(chat.send(text, max_tokens=300, **options))


def test_required_call_is_written_whole_and_valid(runtime: edgellm.Runtime) -> None:
    events = turn_of(runtime, tool_choice="light")
    (ready,) = [event for event in events if isinstance(event, edgellm.ToolCallReady)]
    assert ready.call.name == "light"
    jsonschema.validate(ready.call.arguments, light.spec.parameters)
    (finished,) = [event for event in events if isinstance(event, edgellm.ToolFinished)]
    assert finished.result.is_ok


def test_scores_are_sent_for_every_tool_and_the_best_is_chosen_where_one_is_required(
    runtime: edgellm.Runtime,
) -> None:
    events = turn_of(runtime, tool_choice="required")
    (scored,) = [event for event in events if isinstance(event, edgellm.ToolChoiceScored)]
    assert [name for name, _ in scored.scores] == ["light", "fetch"]
    assert all(np.isfinite(score) for _, score in scored.scores)
    assert scored.chosen == max(scored.scores, key=lambda pair: pair[1])[0]
    (ready,) = [event for event in events if isinstance(event, edgellm.ToolCallReady)]
    assert ready.call.name == scored.chosen


def test_below_the_threshold_the_model_answers_by_itself(
    runtime: edgellm.Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat = runtime.chat(tools=[light, fetch], strategy="guided", template=TEMPLATE, seed=1)
    monkeypatch.setattr(chat._agent._guided, "_threshold", float("inf"))  # pyright: ignore
    events = events_of(chat.send("Hello", max_tokens=5))
    assert [event.chosen for event in events if isinstance(event, edgellm.ToolChoiceScored)] == [None]
    assert not any(isinstance(event, edgellm.ToolCallStarted) for event in events)
    assert events[-1].usage.decode_tokens == 5


def test_guided_call_leaves_one_token_pending_and_prefills_nothing_twice(runtime: edgellm.Runtime) -> None:
    chat = runtime.chat(tools=[light, fetch], strategy="guided", template=TEMPLATE, seed=1)
    steps = []
    for event in chat.send("Light the kitchen at 5", tool_choice="light", max_tokens=80):
        steps.append(event)
    first, second = chat.usage.legs[:2]
    assert first.guided_tokens == first.forced_tokens == first.decode_tokens
    assert second.reused_tokens == first.prefill_tokens + first.decode_tokens - 1
    assert chat.usage.rebuilt_tokens == 0
    (result,) = [event.result.text for event in steps if isinstance(event, edgellm.ToolFinished)]
    glue = (
        f"\n<|im_start|>user\n<tool_response>\n{result}\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
    )
    assert second.prefill_tokens + second.ahead_tokens == 1 + len(runtime.tokenize(glue, parse_special=True))
    assert chat.conversation.session.check_memory()
    (span, *_) = [s for s in chat.spans if s.kind == "tool_call" and s.start >= first.prefill_tokens]
    text = runtime.vocabulary.text_of(chat.tape[span.start : span.end]).decode()
    assert text.startswith("<tool_call>") and text.rstrip().endswith("</tool_call>")


def test_guided_steps_are_marked_and_the_sampler_is_told_of_them(runtime: edgellm.Runtime) -> None:
    chat = runtime.chat(
        tools=[light], strategy="guided", template=TEMPLATE, sampler="penalties(1.1) | greedy", trace=3
    )
    drawn = [
        event.step
        for event in chat.send("Light the kitchen at 5", tool_choice="light", max_tokens=80)
        if isinstance(event, edgellm.TokenDrawn)
    ]
    call = [step for step in drawn if step.is_guided]
    assert call and all(step.is_forced for step in call)
    assert b"".join(step.piece for step in call).startswith(b"<tool_call>")


def test_cancel_while_arguments_are_decoded_ends_the_turn_without_a_call(runtime: edgellm.Runtime) -> None:
    chat = runtime.chat(tools=[light, fetch], strategy="guided", template=TEMPLATE, seed=1)
    turn = chat.send("Light the kitchen at 5", tool_choice="required")
    events = []
    for event in turn:
        events.append(event)
        if isinstance(event, edgellm.ToolChoiceScored):
            chat.cancel()
    assert events[-1].finish_reason == "cancelled"
    assert not any(isinstance(event, edgellm.ToolRunning) for event in events)
    assert events_of(chat.send("Hello", tool_choice="none", max_tokens=3))[-1].usage.decode_tokens >= 1
    assert chat.conversation.session.check_memory()


def test_value_that_never_ends_leaves_no_half_call(runtime: edgellm.Runtime) -> None:
    @edgellm.tool(permission="auto")
    def say(text: str) -> str:
        """Says something.

        Args:
            text: What.
        """
        return text

    chat = runtime.chat(tools=[say], strategy="guided", template=TEMPLATE, seed=1)
    events = events_of(chat.send("Say it", tool_choice="say", max_tokens=40))
    for event in events:
        if isinstance(event, edgellm.ToolCallReady):
            jsonschema.validate(event.call.arguments, say.spec.parameters)
    assert isinstance(events[-1], edgellm.TurnFinished)
    assert chat.conversation.session.check_memory()


def test_unknown_strategy_is_refused(runtime: edgellm.Runtime) -> None:
    with pytest.raises(edgellm.ConfigError, match="strategy='clever' is not one of auto, guided, free"):
        runtime.chat(tools=[light], strategy="clever", template=TEMPLATE)


# -- grounding -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_text", "value"),
    [
        ("weather in celsius please", "celsius"),
        ("weather please", NOTHING),
        ("celsius or fahrenheit", NOTHING),
    ],
)
def test_optional_choice_counts_where_exactly_one_stands_in_the_request(
    request_text: str, value: Any
) -> None:
    assert (
        stated_choice({"enum": ["celsius", "fahrenheit"]}, Unused(request_text)) is value
        or value == "celsius"
    )
    found = stated_choice({"enum": ["celsius", "fahrenheit"]}, Unused(request_text))
    assert found == value if value is not NOTHING else found is NOTHING


@pytest.mark.parametrize(
    ("request_text", "value"),
    [("list all, hidden too", True), ("list all but not the hidden ones", False), ("list all", NOTHING)],
)
def test_optional_flag_needs_a_word_of_its_name(request_text: str, value: Any) -> None:
    found = stated_flag("include_hidden", Unused(request_text))
    assert found == value if value is not NOTHING else found is NOTHING


@pytest.mark.parametrize(
    ("name", "request_text", "taken", "value", "is_so"),
    [
        ("days", "weather in Paris for 3 days", [], 3, True),
        ("days", "weather in Paris", [], 3, False),
        ("days", "weather for three days", [], 3, True),
        ("days", "3 pizzas for Tom", [], 3, False),
        ("days", "3 days of rain, 3", [3, 3], 3, False),
        ("label", "timer for the pizza", [], "pizza", True),
        ("label", "start a timer", [], "pizza", False),
        ("label", "timer for the pizza", ["pizza"], "pizza", False),
    ],
)
def test_optional_value_counts_where_the_request_states_it(
    name: str, request_text: str, taken: list[Any], value: Any, is_so: bool
) -> None:
    unused = Unused(request_text)
    for item in taken:
        unused.take(item)
    assert is_stated(name, {}, value, unused) is is_so


# -- copying ---------------------------------------------------------------------------------------------------


def biased(value: str, request: str, examples: tuple[str, ...] = ()) -> dict[str, float]:
    vocabulary = ByteVocabulary()
    logits = np.zeros(vocabulary.size, dtype=np.float32)
    CopyBias(vocabulary).apply(logits, value, request, examples)  # type: ignore[arg-type]  # duck-typed
    return {chr(token): float(logits[token]) for token in np.flatnonzero(logits)}


def test_words_of_the_request_may_begin_a_value_and_only_its_next_letter_goes_on() -> None:
    begin = biased('"', "Weather in Paris")
    assert begin["P"] == begin["W"] == begin["i"] == 2.0
    assert "s" not in begin
    assert biased('"Pa', "Weather in Paris") == {"r": 4.0}


def test_whole_span_may_be_closed_and_a_list_goes_on_only_where_the_request_does() -> None:
    assert biased('"Paris', "Weather in Paris")['"'] == 4.0
    assert '"' not in biased('"Par', "Weather in Paris")


def test_numbers_that_the_request_does_not_hold_are_held_back() -> None:
    numbers = biased("", "Set it to 21 degrees")
    assert numbers["2"] == 2.0
    assert numbers["3"] == numbers["9"] == -6.0


def test_value_of_a_worked_example_does_not_leak() -> None:
    assert biased('"', "Play some jazz", ("Mozart",))["M"] == -6.0
    assert biased('"', "Play some Mozart", ("Mozart",))["M"] == 2.0


def test_expression_is_whole_once_all_its_numbers_are_used() -> None:
    request = "What is 23 * 17 + 4?"
    assert '"' not in biased('"23', request)
    assert biased('"23 * 17 + 4', request)['"'] > 4.0
    assert '"' not in biased('"23 * 17 + ', request)


def test_item_is_not_listed_twice() -> None:
    assert biased('["milk", "', "Add milk and eggs")["m"] == -8.0


# -- with the real model ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def smollm2(smollm2_path: Path) -> Iterator[edgellm.Runtime]:
    with edgellm.load(smollm2_path, n_ctx=2048) as runtime:
        yield runtime


@pytest.mark.slow
@pytest.mark.model
def test_first_question_of_the_readme_is_a_call_a_result_and_an_appended_leg(
    smollm2: edgellm.Runtime,
) -> None:
    from edgellm_tools.calculator import calculator
    from edgellm_tools.clock import clock

    chat = smollm2.chat(
        tools=[calculator, clock],
        strategy="guided",
        seed=1,
        sampler="top_k(40) | top_p(0.9) | temperature(0.2) | dist",
    )
    events = events_of(chat.send("What is 23 * 17 + 4?", max_tokens=120))
    (finished,) = [event for event in events if isinstance(event, edgellm.ToolFinished)]
    assert finished.call.name == "calculator"
    assert finished.call.arguments == {"expression": "23 * 17 + 4"}
    assert finished.result.text == "395"
    assert "395" in events[-1].text
    first, second = chat.usage.legs
    glue = "\n<|im_start|>user\n<tool_response>\n395\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
    assert second.prefill_tokens + second.ahead_tokens == 1 + len(smollm2.tokenize(glue, parse_special=True))
    assert second.reused_tokens == first.prefill_tokens + first.decode_tokens - 1
    assert [
        e for e in chat.send("Who was Napoleon?", max_tokens=5) if isinstance(e, edgellm.ToolCallStarted)
    ] == []


def test_a_cancel_is_heard_while_tools_are_compared(
    tiny_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with edgellm.load(tiny_model("llama", n_ctx=8192), n_ctx=8192, threads=1) as runtime:
        chat = runtime.chat(tools=[light, fetch], strategy="guided", template=TEMPLATE, seed=1)
        context = runtime.engine.context
        decode, compared = context.decode, 0
        events: list[Any] = []

        def counted(rows: Any) -> Any:
            nonlocal compared
            if (
                events
                and isinstance(events[-1], edgellm.PrefillProgress)
                and events[-1].done == events[-1].total
            ):
                compared += 1
                if compared == 2:
                    # As from another thread: in the middle of a decode that serves the comparison.
                    chat.cancel()
            return decode(rows)

        monkeypatch.setattr(context, "decode", counted)
        for event in chat.send("Light the kitchen at 5", max_tokens=300):
            events.append(event)
        assert compared == 2
        assert events[-1].finish_reason == "cancelled"
        assert not [event for event in events if isinstance(event, edgellm.ToolChoiceScored)]
        # Nothing is left of it: the same chat chooses, and others are not disturbed.
        monkeypatch.undo()
        again = list(chat.send("Light the kitchen at 5", max_tokens=300))
        assert [event for event in again if isinstance(event, edgellm.ToolChoiceScored)]
        assert runtime.chat(template=TEMPLATE).ask("the", max_tokens=3)
