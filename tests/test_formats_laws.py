"""Laws that every wire format keeps: what is written can be read, however it is cut, and its grammar takes it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from format_laws import consumed, cuts, read
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from edgellm.chat.formats import FORMATS, WireFormat
from edgellm.chat.formats.code_calls import BraceCalls
from edgellm.chat.formats.tagged_families import DEEPSEEK_DSML_32, HUNYUAN_OPEN
from edgellm.chat.parser import OutputParser
from edgellm.events import ToolCallReady, ToolCallStarted
from edgellm.types import ToolCall, ToolSpec

WEATHER = ToolSpec(
    "get_weather",
    "The weather.",
    {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer"},
            "exact": {"type": "boolean"},
            "unit": {"enum": ["celsius", "kelvin"]},
            "tags": {"type": "array", "items": {"type": "string"}},
            "place": {
                "type": "object",
                "properties": {"lat": {"type": "number"}, "name": {"type": "string"}},
                "required": ["lat"],
                "additionalProperties": False,
            },
        },
        "required": ["city"],
        "additionalProperties": False,
    },
)
CLOCK = ToolSpec("clock", "The time.", {"type": "object", "properties": {}, "additionalProperties": False})
TOOLS = (WEATHER, CLOCK)

WORDS = st.text("abc é\n'\"\\<>{}[](),:=|/☂", max_size=12).map(lambda text: f"x{text}x")
ARGUMENTS = st.fixed_dictionaries(
    {"city": WORDS},
    optional={
        "days": st.integers(-3, 99),
        "exact": st.booleans(),
        "unit": st.sampled_from(["celsius", "kelvin"]),
        "tags": st.lists(WORDS, min_size=1, max_size=2),
        "place": st.fixed_dictionaries({"lat": st.sampled_from([1, -2.5])}, optional={"name": WORDS}),
    },
)
SPELLED = {"deepseek-dsml of V3.2": DEEPSEEK_DSML_32, "hunyuan of the open weights": HUNYUAN_OPEN}
ALL = pytest.mark.parametrize("wire_format", [*FORMATS.values(), *SPELLED.values()], ids=[*FORMATS, *SPELLED])
# These write one call a message.
SINGLE = ("harmony", "muse-glimmer", "gigachat3", "gigachat3.1", "granite-20b-fc")
PLAIN = {
    "city": "Paris",
    "days": 2,
    "exact": True,
    "unit": "kelvin",
    "tags": ["a", "b"],
    "place": {"lat": 1.5},
}


def names_of(parser: Any) -> list[tuple[str, dict[str, Any]]]:
    return [(call.name, call.arguments) for call in parser.calls]


@ALL
@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(arguments=ARGUMENTS)
def test_a_written_call_reads_back(wire_format: WireFormat, arguments: dict[str, Any]) -> None:
    if isinstance(wire_format, BraceCalls):
        # It has no way to write its own quotes within a text.
        assume(wire_format.style.delimiter not in str(arguments))
    raw = wire_format.render_call(ToolCall("call_0", "get_weather", arguments))
    parser, _ = read(wire_format, [raw], tools=TOOLS)
    assert names_of(parser) == [("get_weather", arguments)]
    assert parser.text.strip() == ""
    by_character, _ = read(wire_format, list(raw), tools=TOOLS)
    assert names_of(by_character) == names_of(parser)


@pytest.mark.slow
@ALL
def test_several_calls_read_back_however_they_are_cut(wire_format: WireFormat) -> None:
    calls = [ToolCall("", "get_weather", PLAIN), ToolCall("", "clock", {})]
    if wire_format.id in SINGLE:
        calls.pop()
    raw = "Let me see.\n" * (wire_format.id != "muse-glimmer") + wire_format.render_calls(calls)
    _, whole = read(wire_format, [raw], tools=TOOLS)
    ready = [event for event in whole if isinstance(event, ToolCallReady)]
    assert [(event.call.name, event.call.arguments) for event in ready] == [
        (call.name, call.arguments) for call in calls
    ]
    for pieces in cuts(raw):
        parser, events = read(wire_format, pieces, tools=TOOLS)
        assert events == whole
        assert "".join(piece.text for piece in parser.pieces) == raw


@ALL
def test_a_whole_call_waits_for_nothing(wire_format: WireFormat) -> None:
    """Whoever writes a call under its grammar, and draws until it is whole, has to see that it is."""
    for name, arguments in (("get_weather", PLAIN), ("clock", {})):
        parser = OutputParser(wire_format, tools=TOOLS)
        parser.feed(wire_format.render_call(ToolCall("", name, arguments)))
        assert names_of(parser) == [(name, arguments)]


@ALL
def test_grammar_takes_what_is_written(wire_format: WireFormat) -> None:
    grammar = wire_format.call_grammar(TOOLS, many=wire_format.id not in SINGLE)
    for arguments in (PLAIN, {"city": "Paris"}, {"city": "x", "place": {"lat": 2, "name": "y"}}):
        raw = wire_format.render_call(ToolCall("", "get_weather", arguments))
        assert consumed(grammar, raw) == (len(raw.encode()), True), raw
    if wire_format.id not in SINGLE:
        raw = wire_format.render_calls([ToolCall("", "get_weather", PLAIN), ToolCall("", "clock", {})])
        assert consumed(grammar, raw) == (len(raw.encode()), True), raw


@ALL
def test_grammar_refuses_unknown_tools_and_missing_arguments(wire_format: WireFormat) -> None:
    grammar = wire_format.call_grammar(TOOLS)
    for name, arguments in (("get_whether", {"city": "x"}), ("get_weather", {"days": 2})):
        raw = wire_format.render_call(ToolCall("", name, arguments))
        taken, is_accepting = consumed(grammar, raw)
        assert taken < len(raw.encode()) or not is_accepting, raw


@ALL
def test_grammar_follows_a_lead(wire_format: WireFormat) -> None:
    raw = wire_format.render_call(ToolCall("", "clock", {}))
    grammar = wire_format.call_grammar(TOOLS, lead=' "\n')
    assert consumed(grammar, ' "\n' + raw) == (len(raw.encode()) + 3, True)


@ALL
def test_a_call_that_is_cut_off_is_not_given_out(wire_format: WireFormat) -> None:
    raw = wire_format.render_call(ToolCall("", "get_weather", {"city": "Paris"}))
    end = raw.index("Paris") + 3
    parser, events = read(wire_format, [raw[:end]], tools=TOOLS)
    assert parser.calls == ()
    assert "".join(piece.text for piece in parser.pieces) == raw[:end]
    assert not any(isinstance(event, ToolCallReady) for event in events)


@ALL
def test_the_beginning_of_an_end_is_no_text(wire_format: WireFormat) -> None:
    """Where the output ends inside the mark that ends a whole call."""
    raw = wire_format.render_call(ToolCall("", "get_weather", PLAIN))
    for end in range(len(raw)):
        parser, _ = read(wire_format, [raw[:end]], tools=TOOLS)
        if parser.calls:
            assert parser.text.strip() == "", raw[:end]


@ALL
def test_plain_text_stays(wire_format: WireFormat) -> None:
    text = 'Well, 2 < 3 and [a](b), {"x": 1}, f(x), to=you. <tool> `code` [1, 2]'
    parser, events = read(wire_format, [text], tools=TOOLS)
    assert parser.text == text
    assert not any(isinstance(event, ToolCallStarted) for event in events)


@ALL
@pytest.mark.parametrize("space", ["\n", "\n\n"])
def test_text_on_both_sides_of_a_call_stays_apart(wire_format: WireFormat, space: str) -> None:
    if wire_format.id == "muse-glimmer":
        pytest.skip("its calls are messages of their own")
    for name, arguments in (("get_weather", PLAIN), ("clock", {})):
        call = wire_format.render_call(ToolCall("", name, arguments))
        parser, _ = read(wire_format, [f"Before.{space}{call}{space}After."], tools=TOOLS)
        assert names_of(parser) == [(name, arguments)]
        assert parser.text.split() == ["Before.", "After."]


TEXTS = (
    "",
    " ",
    "日本 ☂️",
    'it\'s "it"',
    "x < y & z",
    "a\nb\n",
    '{"a": 1}',
    "\\n C:\\x",
    "12",
    "null",
    "<think>",
    "a, b=c)",
    "```",
)


@ALL
def test_any_text_is_an_argument(wire_format: WireFormat) -> None:
    for value in TEXTS:
        raw = wire_format.render_call(ToolCall("", "get_weather", {"city": value, "tags": [value]}))
        parser, _ = read(wire_format, [raw], tools=TOOLS)
        assert names_of(parser) == [("get_weather", {"city": value, "tags": [value]})]
        assert parser.text.strip() == ""


@ALL
def test_reasoning_is_kept_apart(wire_format: WireFormat) -> None:
    marks = wire_format.marks
    if not marks.reasoning_open:
        pytest.skip("this format has no reasoning of its own")
    thinking = replace(wire_format, is_thinking=True)
    call = wire_format.render_call(ToolCall("", "clock", {}))
    raw = f"{marks.reasoning_open}Hm, a < b.{marks.reasoning_close}Yes."
    parser, whole = read(thinking, [raw], tools=TOOLS)
    assert (parser.reasoning, parser.text) == ("Hm, a < b.", "Yes.")
    for pieces in cuts(raw):
        assert read(thinking, pieces, tools=TOOLS)[1] == whole
    parser, _ = read(thinking, [f"{marks.reasoning_open}Hm.{marks.reasoning_close}{call}"], tools=TOOLS)
    assert (parser.reasoning, [call.name for call in parser.calls]) == ("Hm.", ["clock"])


@given(
    st.sampled_from(list(FORMATS.values())),
    st.lists(st.integers(0, 400), max_size=6),
    st.lists(st.sampled_from(["text ", "\n", "{", "[", "<", ">", '"', "}", "clock", "x=1", ")"]), max_size=6),
)
@settings(max_examples=300, deadline=None)
def test_nothing_is_lost_doubled_or_moved(
    wire_format: WireFormat, places: list[int], junk: list[str]
) -> None:
    """Calls with pieces torn out and junk between: what was fed is what the pieces hold, however it is cut."""
    raw = wire_format.render_calls([ToolCall("", "get_weather", PLAIN), ToolCall("", "clock", {})])
    raw = f"{wire_format.marks.reasoning_open}{raw}"
    for number, place in enumerate(places):
        at = place % (len(raw) + 1)
        raw = raw[:at] + (junk[number] if number < len(junk) else "") + raw[at + number :]
    parser, whole = read(wire_format, [raw], tools=TOOLS)
    assert "".join(piece.text for piece in parser.pieces) == raw
    assert read(wire_format, list(raw), tools=TOOLS)[1] == whole
