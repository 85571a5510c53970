"""Output parser: the same text gives the same events however it is cut, and nothing is swallowed."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from format_laws import merged
from hypothesis import example, given
from hypothesis import strategies as st

from edgellm.chat.formats import FORMATS, Generic, Hermes
from edgellm.chat.formats.json_text import JsonText
from edgellm.chat.parser import OutputParser
from edgellm.events import (
    Event,
    ReasoningDelta,
    TextDelta,
    ToolCallBroken,
    ToolCallDelta,
    ToolCallName,
    ToolCallReady,
    ToolCallStarted,
)
from edgellm.raw_output import stream_parser
from edgellm.types import ToolCall, ToolSpec

PLAIN = Hermes()
THINKING = Hermes(is_thinking=True)
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'


def parse(
    pieces: list[str] | str, wire_format: Hermes = PLAIN, **options: Any
) -> tuple[OutputParser, list[Event]]:
    parser = OutputParser(wire_format, **options)
    events: list[Event] = []
    for piece in [pieces] if isinstance(pieces, str) else pieces:
        events += parser.feed(piece)
    return parser, merged(events + parser.finish())


def test_one_call_between_text() -> None:
    parser, events = parse(f"Let me see.\n{CALL}\nDone.")
    call = ToolCall("call_0", "add", {"a": 1}, CALL)
    assert events == [
        TextDelta("Let me see."),
        ToolCallStarted(0),
        ToolCallName(0, "add"),
        ToolCallDelta(0, '{"a": 1}'),
        ToolCallReady(0, call),
        TextDelta("\nDone."),
    ]
    assert parser.calls == (call,)
    assert parser.text == "Let me see.\nDone."


# (output, text, reasoning, calls as (name, arguments), number of broken calls)
Case = tuple[str, str, str, list[tuple[str, dict[str, Any]]], int]
CASES: dict[str, Case] = {
    "empty": ("", "", "", [], 0),
    "no call": ("Hi\n", "Hi\n", "", [], 0),
    "two with newline": (f"{CALL}\n{CALL}", "", "", [("add", {"a": 1})] * 2, 0),
    "two without separator": (CALL + CALL, "", "", [("add", {"a": 1})] * 2, 0),
    "spaces before a call stay": (f"Well.  {CALL}", "Well.  ", "", [("add", {"a": 1})], 0),
    "no closing mark": (CALL.removesuffix("\n</tool_call>"), "", "", [("add", {"a": 1})], 0),
    "next call instead of closing mark": (
        CALL.removesuffix("</tool_call>") + CALL,
        "",
        "",
        [("add", {"a": 1})] * 2,
        0,
    ),
    "half a closing mark": (CALL[:-3] + "!", "</tool_ca!", "", [("add", {"a": 1})], 0),
    "no arguments": ('<tool_call>{"name":"now"}</tool_call>', "", "", [("now", {})], 0),
    "null arguments": ('<tool_call>{"name":"now","arguments":null}</tool_call>', "", "", [("now", {})], 0),
    "name last": (
        '<tool_call>{"arguments":{"b":"x"},"name":"f"}</tool_call>',
        "",
        "",
        [("f", {"b": "x"})],
        0,
    ),
    "arguments as text": (
        '<tool_call>{"name":"f","arguments":"{\\"b\\": [1, 2]}"}</tool_call>',
        "",
        "",
        [("f", {"b": [1, 2]})],
        0,
    ),
    "other keys": (
        '<tool_call>{"id":3,"name":"f","parameters":{},"x":[{}]}</tool_call>',
        "",
        "",
        [("f", {})],
        0,
    ),
    "closing mark in a string": (
        '<tool_call>{"name":"f","arguments":{"b":"</tool_call> \\" }"}}</tool_call>.',
        ".",
        "",
        [("f", {"b": '</tool_call> " }'})],
        0,
    ),
    "raw newline in a string": (
        '<tool_call>{"name":"f","arguments":{"b":"x\ny"}}</tool_call>',
        "",
        "",
        [("f", {"b": "x\ny"})],
        0,
    ),
    "surrogates": (
        '<tool_call>{"name":"f","arguments":{"b":"\\ud83d\\ude00\\ud83d!\\ude00"}}</tool_call>',
        "",
        "",
        [("f", {"b": "😀\ufffd!\ufffd"})],
        0,
    ),
    "text after the mark": ("<tool_call>no json</tool_call>", "<tool_call>no json</tool_call>", "", [], 0),
    "mark only": ("Use <tool_call>", "Use <tool_call>", "", [], 0),
    "almost a mark": ("a\n<tool_cal l>", "a\n<tool_cal l>", "", [], 0),
    "mark before a mark": (f"<tool_call><tool_{CALL}", "<tool_call><tool_", "", [("add", {"a": 1})], 0),
    "broken": ('a\n<tool_call>{"name": oops}', 'a\n<tool_call>{"name": oops}', "", [], 1),
    "broken, then a good one": (
        '<tool_call>{"name" <tool_call>{"name":"f"}',
        '<tool_call>{"name" ',
        "",
        [("f", {})],
        1,
    ),
    "cut off": (
        '<tool_call>{"name": "f", "arguments": {"a',
        "",
        "",
        [],
        1,
    ),
    "nameless": ('<tool_call>{"arguments":{}}', "", "", [], 1),
    "arguments are a list": (
        '<tool_call>{"name":"f","arguments":[1]}',
        "",
        "",
        [],
        1,
    ),
    "number out of bounds": (
        '<tool_call>{"name":"f","arguments":{"a":' + "9" * 500 + "}}",
        '<tool_call>{"name":"f","arguments":{"a":' + "9" * 500 + "}}",
        "",
        [],
        1,
    ),
    "stray end of thought": ("a</think>b", "a</think>b", "", [], 0),
}

THINKING_CASES: dict[str, Case] = {
    "thought, then answer": ("<think>\nHm.\n</think>\n\nYes.", "Yes.", "Hm.", [], 0),
    "space before the thought": ("\n <think>Hm.</think>Yes.", "Yes.", "Hm.", [], 0),
    "empty thought": ("<think>\n\n</think>\n\nYes.", "Yes.", "", [], 0),
    "tag inside the answer": ("Yes <think> no", "Yes <think> no", "", [], 0),
    "call ends the thought": (f"<think>Hm.\n{CALL}", "", "Hm.", [("add", {"a": 1})], 0),
    "call, then another thought": (
        f"<think>a</think>{CALL}<think>b</think>c",
        "c",
        "ab",
        [("add", {"a": 1})],
        0,
    ),
    "no call inside the thought": ("<think>a <tool_call> b</think>c", "c", "a <tool_call> b", [], 0),
    "broken call inside the thought": (
        "<think>a\n<tool_call>{x} b</think>c",
        "c",
        "a\n<tool_call>{x} b",
        [],
        1,
    ),
    "thought cut off": ("<think>a </thin", "", "a </thin", [], 0),
}


@pytest.mark.parametrize("cut", [1, 2, 5, 10_000])
@pytest.mark.parametrize(
    ("wire_format", "case"),
    [pytest.param(PLAIN, case, id=name) for name, case in CASES.items()]
    + [pytest.param(THINKING, case, id=name) for name, case in THINKING_CASES.items()],
)
def test_output(wire_format: Hermes, case: Case, cut: int) -> None:
    output, text, reasoning, calls, n_broken = case
    pieces = [output[at : at + cut] for at in range(0, len(output), cut)]
    parser, events = parse(pieces, wire_format)
    assert parser.text == text
    assert parser.reasoning == reasoning
    assert [(call.name, call.arguments) for call in parser.calls] == calls
    assert sum(isinstance(event, ToolCallBroken) for event in events) == n_broken
    for event in events:
        if isinstance(event, ToolCallReady):
            fragments = [
                e.fragment for e in events if isinstance(e, ToolCallDelta) and e.index == event.index
            ]
            assert json.loads("".join(fragments)) == event.call.arguments
    assert parser.held == ""
    assert not parser.in_call


PIECES = [
    "<tool_call>", "</tool_call>", "<think>", "</think>", '{"name": "f", "arguments": ', '{"a": "', "\\ud83d",
    "\\ude00",
    '"}', "}", "[1, -2.5e3, true]", '"arguments": "{}"', "\n", " ", "é", "<tool_", "a", "\\", '"', ",", ":", "{", CALL,
]  # fmt: skip
OUTPUTS = st.lists(st.sampled_from(PIECES), max_size=14).map("".join)


@given(
    OUTPUTS,
    st.lists(st.integers(0, 200), max_size=8),
    st.sampled_from([PLAIN, THINKING]),
    st.sampled_from(["", "<think>\n"]),
)
@example("a\n\n\n<tool_call>\n{}", [], PLAIN, "")
@example('<tool_call>{"name": "f", "arguments": {"a": 1-2, ', [], PLAIN, "")
def test_any_cut_gives_the_same_events(
    output: str, cuts: list[int], wire_format: Hermes, prefix: str
) -> None:
    places = sorted({0, len(output), *(cut for cut in cuts if cut < len(output))})
    pieces = [output[a:b] for a, b in itertools.pairwise(places)]
    _, whole = parse(output, wire_format, prefix=prefix)
    assert parse(pieces, wire_format, prefix=prefix)[1] == whole
    assert parse(list(output), wire_format, prefix=prefix)[1] == whole


@given(OUTPUTS)
def test_nothing_is_swallowed_but_marks_and_space(output: str) -> None:
    parser, events = parse(output, THINKING)
    shown = "".join(piece.text for piece in parser.pieces if piece.kind not in ("mark", "end"))
    assert [event.call.raw for event in events if isinstance(event, ToolCallReady)] == [
        piece.text for piece in parser.pieces if piece.kind == "call"
    ]
    left = output
    for char in shown:
        # What is shown is the output, in order, with something left out ...
        place = left.find(char)
        assert place >= 0
        left = left[place + 1 :]
    without_marks = output.replace("<think>", "").replace("</think>", "")
    if "<think>" not in shown and "</think>" not in shown:
        # ... which is nothing but thinking marks and white space.
        assert "".join(shown.split()) == "".join(without_marks.split())
    assert parser.held == ""


@given(OUTPUTS, st.sampled_from([PLAIN, THINKING]), st.sampled_from(["", "<think>\n"]))
def test_pieces_are_the_output(output: str, wire_format: Hermes, prefix: str) -> None:
    parser, events = parse(list(output), wire_format, prefix=prefix)
    assert "".join(piece.text for piece in parser.pieces) == output
    kinds = {kind: "".join(p.text for p in parser.pieces if p.kind == kind) for kind in ("text", "reasoning")}
    assert kinds == {"text": parser.text, "reasoning": parser.reasoning}
    assert [p.text for p in parser.pieces if p.kind == "call"] == [call.raw for call in parser.calls]
    broken = [p.text for p in parser.pieces if p.kind == "broken"]
    assert (
        broken == [e.raw for e in events if isinstance(e, ToolCallBroken)][len(broken) * -1 :][: len(broken)]
    )
    hidden = "".join("".join(p.text for p in parser.pieces if p.kind == "mark").split())
    assert hidden.replace("<think>", "").replace("</think>", "") == ""


JSON_LEAVES = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
)
JSON_VALUES = st.recursive(
    JSON_LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(JSON_VALUES, st.booleans(), st.sampled_from([None, 2]))
def test_json_text_accepts_what_json_writes(value: Any, ensure_ascii: bool, indent: int | None) -> None:
    text = json.dumps(value, ensure_ascii=ensure_ascii, indent=indent) + ","
    scanner = JsonText()
    taken = ""
    for char in text:
        assert not scanner.is_done or char == ","
        scanner.feed(char)
        taken += scanner.take()
    assert scanner.is_done
    assert json.loads(taken) == value


@pytest.mark.parametrize(
    ("format", "text"),
    [
        ("hermes", '<tool_call>{"name": "f", "arguments": {"a": [1e999]}}</tool_call>'),
        ("pythonic", "[f(a=1e999)]"),
        ("qwen3-coder", "<tool_call><function=f><parameter=a>[-1e999]</parameter></function></tool_call>"),
    ],
)
def test_numbers_that_json_cannot_write_again_are_in_no_call(format: str, text: str) -> None:
    parser = stream_parser(format=format, tools=[{"name": "f", "parameters": {"type": "object"}}])
    parser.feed(text)
    parser.finish()
    for call in parser.calls:
        json.dumps(call.arguments, allow_nan=False)


@given(st.text('{}[]",:\\ au0d8-1.e\n', max_size=24))
def test_json_text_agrees_with_the_standard_reader(text: str) -> None:
    try:
        expected = json.loads(text, strict=False)
    except ValueError:
        expected = ValueError
    scanner = JsonText()
    try:
        end = scanner.feed(text + " ")
        got: Any = json.loads(scanner.take()) if scanner.is_done and not text[end:].strip() else ValueError
    except ValueError:
        got = ValueError
    if expected is not ValueError and "\ud800" <= max(str(expected), default="") <= "\udfff":
        return
    assert got == expected


def test_fragments_are_held_until_an_escape_is_whole() -> None:
    parser = OutputParser(PLAIN)
    parser.feed('<tool_call>{"name": "f", "arguments": {"a": "x')
    assert parser.feed("\\ud8") == []
    assert parser.feed("3d") == []
    assert parser.feed("\\ude00") == [ToolCallDelta(0, "\\ud83d\\ude00")]


def test_state_while_a_call_is_open() -> None:
    parser = OutputParser(PLAIN, start_index=2)
    assert parser.feed("ab <tool") == [TextDelta("ab ")]
    assert (parser.held, parser.in_call, parser.call_start) == ("<tool", False, None)
    parser.feed('_call>{"name": "f"')
    assert (parser.in_call, parser.call_start) == (True, 3)
    assert parser.held == '<tool_call>{"name": "f"'
    parser.feed("}</tool_call>")
    assert (parser.in_call, parser.call_start) == (False, None)
    assert parser.calls[0].id == "call_2"


def test_prompt_may_have_opened_the_reasoning() -> None:
    for wire_format in (PLAIN, Generic()):
        _, events = parse("Hm.</think>Yes.", wire_format, prefix="<|im_start|>assistant\n<think>\n")
        assert events == [ReasoningDelta("Hm."), TextDelta("Yes.")]
    closed = "<|im_start|>assistant\n<think>\n\n</think>\n\n"
    _, events = parse("Yes.", THINKING, prefix=closed)
    assert events == [TextDelta("Yes.")]
    assert OutputParser(THINKING, prefix="<think>").in_reasoning


def test_control_token_inside_a_call_breaks_it() -> None:
    parser = OutputParser(PLAIN)
    parser.feed('<tool_call>{"name": "f')
    events = parser.feed("<|im_start|>", is_control=True)
    assert isinstance(events[0], ToolCallBroken)
    assert events[1] == TextDelta('<tool_call>{"name": "f<|im_start|>')


def test_closing_mark_may_be_a_control_token() -> None:
    parser = OutputParser(PLAIN)
    parser.feed("<tool_call>", is_control=True)
    parser.feed('{"name": "f"}\n')
    assert isinstance(parser.feed("</tool_call>", is_control=True)[0], ToolCallReady)


@pytest.mark.parametrize("before", ["", "Hello"], ids=["first of all", "behind a word"])
def test_control_token_that_a_reader_gives_back_is_one_still(before: str) -> None:
    marks = {"<|tool_calls_section_begin|>", "<|tool_call_begin|>", "<|tool_call_argument_begin|>"}
    tools = (ToolSpec("f", "", {"type": "object", "properties": {}}),)
    parser = OutputParser(FORMATS["kimi-k2"], tools=tools, control_marks=marks)
    for piece in (before, "<|tool_calls_section_begin|>", "<|tool_call_begin|>", "functions.f:0"):
        parser.feed(piece, is_control=piece in marks)
    parser.feed("<|tool_call_argument_begin|>", is_control=True)
    parser.feed("{}<|tool_call_end|>")
    assert parser.text == before
    assert [call.name for call in parser.calls] == ["f"]


def test_results_of_its_own_end_a_leg_and_are_no_text() -> None:
    parser = OutputParser(FORMATS["deepseek-v3.1"])
    parser.feed("So: <｜tool▁outputs▁begin｜>")
    parser.feed("<｜tool▁output▁begin｜>cold")
    assert parser.is_hiding
    assert not parser.in_call
    parser.feed("<｜tool▁output▁end｜><｜tool▁outputs▁end｜> Fine.")
    assert not parser.is_hiding
    parser.finish()
    assert parser.text == "So:  Fine."
    # Where no calls are expected, nothing but the marks goes.
    plain = OutputParser(FORMATS["deepseek-v3.1"], expects_calls=False)
    plain.feed("<｜tool▁outputs▁begin｜>cold<｜tool▁outputs▁end｜>")
    plain.finish()
    assert plain.text == "cold"


def test_without_tools_marks_are_text() -> None:
    _, events = parse(CALL, expects_calls=False)
    assert events == [TextDelta(CALL)]


@pytest.mark.parametrize(
    ("output", "shown"),
    [
        ("\n" * 50_000, 50_000),
        ('<tool_call>{"name": "' + "x" * 50_000, 0),
        ("<tool" * 10_000, 50_000),
        ("<think>a" + " " * 50_000, 50_001),
    ],
    ids=["held newlines", "open string", "half marks", "held space"],
)
def test_long_output_takes_linear_time(output: str, shown: int) -> None:
    parser = OutputParser(THINKING)
    for char in output:
        parser.feed(char)
    parser.finish()
    assert len(parser.text + parser.reasoning) == shown


def test_plain_text_that_spells_a_control_token_is_text() -> None:
    """Where the vocabulary has a mark as one control token, only that token is the mark."""
    call = '{"name": "f", "arguments": {}}'
    marks = {"<tool_call>", "</tool_call>"}
    spelled = OutputParser(PLAIN, control_marks=marks)
    for piece in ("I write <tool", "_call>", call, "</tool_call> now."):
        spelled.feed(piece)
    spelled.finish()
    assert spelled.text == f"I write <tool_call>{call}</tool_call> now."
    assert spelled.calls == ()
    drawn = OutputParser(PLAIN, control_marks=marks)
    drawn.feed("I call ")
    drawn.feed("<tool_call>", is_control=True)
    drawn.feed(call)
    drawn.feed("</tool_call>", is_control=True)
    drawn.finish()
    assert (drawn.text, [found.name for found in drawn.calls]) == ("I call ", ["f"])
