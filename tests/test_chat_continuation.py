"""Continuation: the text to append is the text a full render would have had there."""

from __future__ import annotations

import pytest

from edgellm.chat.continuation import Continuation, strip_leading
from edgellm.chat.formats import Generic, Hermes, WireFormat
from edgellm.chat.template import BUILTIN, ChatTemplate
from edgellm.errors import TemplateError
from edgellm.types import Message, Segment, SpanKind, ToolCall, ToolResult, ToolSpec

# Reasoning of earlier turns is stripped, results share a user turn, tools stand in the system turn.
THINKER = """
{%- if tools %}<|im_start|>system
{% for tool in tools %}{{ tool | tojson }}{% endfor %}<|im_end|>
{% endif %}
{%- for m in messages %}
    {%- if m.role == 'tool' %}
        {%- if messages[loop.index0 - 1].role != 'tool' %}{{ '<|im_start|>user' }}{% endif %}
        {{- '\\n<tool_response>\\n' + m.content + '\\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{ '<|im_end|>\\n' }}{% endif %}
    {%- else %}
        {{- '<|im_start|>' + m.role + '\\n' + m.content.split('</think>')[-1] }}
        {%- for c in m.tool_calls or [] %}
            {{- '\\n<tool_call>\\n{"name": "' + c.function.name }}
            {{- '", "arguments": ' + c.function.arguments | tojson + '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n<think>\\n' }}{% endif %}
"""
# Refuses a system role and anything but user and assistant in turn.
STRICT = """
{%- for m in messages %}
    {%- if m.role not in ('user', 'assistant') or (m.role == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Roles must alternate') }}
    {%- endif %}
    {{- '<' + m.role + '>' + m.content | trim + '</s>' }}
{%- endfor %}
{%- if add_generation_prompt %}<assistant>{% endif %}
"""
DROPS = "{% for m in messages if m.role != 'assistant' %}<|im_start|>{{ m.content }}{% endfor %}"
TOOLS_IN_LAST_TURN = """
{%- for m in messages %}
    {%- if loop.last and tools %}[TOOLS]{{ tools | tojson }}[/TOOLS]{% endif %}
    {{- '[' + m.role + ']' + m.content }}
{%- endfor %}
"""

TOOL = ToolSpec("f", "Does it.", {"type": "object", "properties": {"x": {"type": "string"}}})
CALLS = [ToolCall("call_0", "f", {"x": "1"}), ToolCall("call_1", "f", {"x": "2"})]
RESULTS = [ToolResult("one"), ToolResult("two <|im_end|>")]


def continuation(source: str, wire_format: WireFormat) -> Continuation:
    return Continuation(ChatTemplate(source, is_guarded=False), wire_format)


def text_of(segments: tuple[Segment, ...]) -> str:
    return "".join(segment.text for segment in segments)


def test_next_user_turn() -> None:
    subject = continuation(BUILTIN["chatml"], Generic())
    for text in ("Next?", "And <|im_end|> then?"):
        assert subject.suffix([Message("user", text)]) == (
            Segment("<|im_end|>\n<|im_start|>user\n", SpanKind.GLUE, True),
            Segment(text, SpanKind.USER, False),
            Segment("<|im_end|>\n<|im_start|>assistant\n", SpanKind.GLUE, True),
        )


@pytest.mark.parametrize("n_calls", [1, 2])
def test_results_behind_calls_are_what_a_full_render_has_there(n_calls: int) -> None:
    hermes, template = Hermes(), ChatTemplate(THINKER, is_guarded=False)
    calls = CALLS[:n_calls]
    tail = hermes.result_messages(calls, RESULTS[:n_calls])
    called = [Message("user", "Q"), Message("assistant", "So.", tool_calls=tuple(calls))]
    full = text_of(template.render([*called, *tail], tools=[TOOL]))
    suffix = Continuation(template, hermes).suffix(tail, had_calls=True, tools=[TOOL])
    assert text_of(suffix).startswith("<|im_end|>\n<|im_start|>user\n<tool_response>\n")
    assert text_of(suffix).endswith("<|im_start|>assistant\n<think>\n")
    assert full.endswith(hermes.render_call(calls[-1]) + text_of(suffix))
    assert [s.text for s in suffix if s.kind == SpanKind.TOOL_RESULT] == [r.text for r in RESULTS[:n_calls]]
    assert all(segment.is_template for segment in suffix if segment.kind == SpanKind.GLUE)


def test_template_that_strips_reasoning_and_one_that_refuses_tool_turns() -> None:
    thinker = continuation(THINKER, Hermes())
    assert text_of(thinker.suffix([Message("user", "Hi")])) == (
        "<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<think>\n"
    )
    generic = Generic()
    strict = continuation(STRICT, generic)
    suffix = strict.suffix(generic.result_messages(CALLS[:1], RESULTS[:1]), had_calls=True)
    assert text_of(suffix) == "</s><user><tool_response>\none\n</tool_response></s><assistant>"
    assert Segment("one", SpanKind.TOOL_RESULT, False) in suffix
    # Tool messages of a foreign history come out the same.
    assert strict.suffix([Message("tool", "one")], had_calls=True) == suffix


def test_roles_the_template_refuses_are_an_error_that_says_so() -> None:
    with pytest.raises(TemplateError, match=r"turn: user, user.*Roles must alternate.*--template chatml"):
        continuation(STRICT, Generic()).suffix([Message("user", "a"), Message("user", "b")])
    with pytest.raises(TemplateError, match="drops or rewrites"):
        continuation(DROPS.replace("<|im_start|>", "["), Hermes()).suffix([Message("user", "a")])


def test_format_gives_the_suffix_where_the_template_drops_the_answer() -> None:
    subject = continuation(DROPS, Hermes())
    tail = Hermes().result_messages(CALLS, RESULTS)
    assert text_of(subject.suffix(tail, had_calls=True)) == (
        "<|im_end|>\n<|im_start|>user\n<tool_response>\none\n</tool_response>\n<tool_response>\n"
        "two <|im_end|>\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
    )
    user = subject.suffix([Message("user", "<|im_end|>")])
    assert Segment("<|im_end|>", SpanKind.USER, False) in user


def test_tools_are_not_repeated_in_the_new_turn() -> None:
    suffix = continuation(TOOLS_IN_LAST_TURN, Hermes()).suffix([Message("user", "Hi")], tools=[TOOL])
    assert text_of(suffix) == "[user]Hi"


def test_message_that_a_template_rewrites_is_continued_all_the_same() -> None:
    suffix = continuation(THINKER, Hermes()).suffix([Message("user", "a</think>b")])
    assert "<|im_start|>user\nb<|im_end|>" in text_of(suffix)


def test_strip_leading() -> None:
    segments = (Segment("<|im_end|>\n", SpanKind.GLUE, True), Segment("Hi", SpanKind.USER, False))
    assert strip_leading(segments, "<|im_end|>") == (Segment("\n", SpanKind.GLUE, True), segments[1])
    assert strip_leading(segments, "<|im_end|>\n") == segments[1:]
    assert strip_leading(segments, "<|im_end|>\nH")[0].text == "i"  # type: ignore[index]
    assert strip_leading(segments, "") == segments
    assert strip_leading(segments, "</s>") is None
