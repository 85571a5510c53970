"""Mending: what a damaged call most likely said."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgellm.chat.formats import Generic
from edgellm.chat.mend import mend
from edgellm.types import ToolSpec

FORMAT = Generic()
WEATHER = ToolSpec(
    "get_weather",
    "Weather.",
    {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
        "required": ["city"],
    },
)
CLOCK = ToolSpec("clock", "Time.", {"type": "object", "properties": {"zone": {"type": "string"}}})
TOOLS = (WEATHER, CLOCK)
MEANT = {"city": "Paris", "days": 2}


@pytest.mark.parametrize(
    "raw",
    [
        '<tool_call>{"name": "get_weather", "arguments": {"city": "Paris", "days": 2,}}</tool_call>',
        "<tool_call>{'name': 'get_weather', 'arguments': {'city': 'Paris', 'days': 2}}</tool_call>",
        '{"name": "get_weather", "arguments": {"city": "Paris", "days": 2}}',
        '<tool_call>Sure! {"name": "get_weather", "arguments": {"city": "Paris", "days": 2}} there</tool_call>',
        '<tool_call>{"name": "getWeather", "parameters": {"city": "Paris", "days": 2}}',
        '<tool_call>{"name": "weather_for_me", "arguments": {"city": "Paris", "days": 2}}',
        '<tool_call>{"name": "get_weather", "arguments": "{\\"city\\": \\"Paris\\", \\"days\\": 2}"}',
        '<tool_call>{"name": "get_weather", "city": "Paris", "days": 2}',
        "<tool_call>{name: get_weather, arguments: {city: Paris, days: 2}}",
        '<tool_call>{"function": {"name": "get_weather", "arguments": {"city": "Paris", "days": 2}}}',
        '<tool_call>[{"name": "get_weather", "arguments": {"city": "Paris", "days": 2}}]',
        'get_weather {"city": "Paris", "days": 2}',
        '{"get_weather": {"city": "Paris", "days": 2}}',
        '<tool_call>{"name": "get_weather" "arguments": {"city": "Paris" "days": 2}}</tool_call>',
    ],
)
def test_damage_is_undone(raw: str) -> None:
    mended = mend(raw, TOOLS, FORMAT)
    assert mended is not None
    assert (mended.name, mended.arguments, mended.is_whole) == ("get_weather", MEANT, True)
    assert FORMAT.parse_call(mended.text) == ("get_weather", MEANT)


def test_what_was_cut_off_is_a_beginning() -> None:
    raw = '<tool_call>\n{"name": "get_weather", "arguments": {"days": 2, "city": "Par'
    mended = mend(raw, TOOLS, FORMAT)
    assert mended is not None
    assert not mended.is_whole
    assert mended.text == FORMAT.render_call_head("get_weather") + '{"days": 2'
    named = mend('<tool_call>\n{"name": "clock", "argu', TOOLS, FORMAT)
    assert named is not None
    assert (named.text, named.is_whole) == (FORMAT.render_call_head("clock"), False)


def test_raw_newlines_and_inner_quotes_stay() -> None:
    mended = mend('<tool_call>{"name": "clock", "arguments": {"zone": "a\nb "c" d"}}', TOOLS, FORMAT)
    assert mended is not None
    assert mended.arguments == {"zone": 'a\nb "c" d'}


@pytest.mark.parametrize("raw", ["", "<tool_call>", "Hello there", '<tool_call>{"a": 1}', "[1, 2", "{" * 300])
def test_what_names_no_tool_is_left_alone(raw: str) -> None:
    assert mend(raw, TOOLS, FORMAT) is None


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@given(st.text(max_size=60))
def test_it_never_raises(raw: str) -> None:
    mend("<tool_call>" + raw, TOOLS, FORMAT)


@given(
    st.dictionaries(
        st.text("abc", min_size=1), st.integers() | st.text("ab cé\n\\\"'{}[]:", max_size=6), max_size=3
    )
)
def test_a_good_call_stays_as_it_is(arguments: dict[str, Any]) -> None:
    raw = FORMAT.render_call_head("clock") + json.dumps(arguments) + FORMAT.render_call_tail("clock")
    mended = mend(raw, TOOLS, FORMAT)
    assert mended is not None
    assert mended.arguments == arguments
