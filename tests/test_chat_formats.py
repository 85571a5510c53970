"""Wire formats: what is written can be read, grammars accept exactly it, and the right one is chosen."""

from __future__ import annotations

import pytest
from format_laws import consumed

import edgellm
from edgellm.chat.formats import Generic, Hermes, choose_format
from edgellm.chat.marked import segments_of
from edgellm.errors import ConfigError, FormatError
from edgellm.types import Message, SpanKind, ToolCall, ToolResult, ToolSpec

KNOWS_TOOLS = "{% for t in tools %}{{ t | tojson }}{% endfor %}<tool_call>{{ x }}</tool_call>"

ADD = ToolSpec(
    "add",
    "Add numbers.\n\nMore about it.",
    {
        "type": "object",
        "properties": {
            "numbers": {"type": "array", "items": {"type": "number"}},
            "unit": {"enum": ["m", "km"]},
            "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        },
        "required": ["numbers"],
        "additionalProperties": False,
    },
)
NOW = ToolSpec('now "é"', "The time.", {"type": "object", "properties": {}, "additionalProperties": False})


@pytest.mark.parametrize("raw", ["", "<tool_call>", "hello", '<tool_call>{"name": 3}', '{"arguments": {}}'])
def test_what_is_no_call_is_refused(raw: str) -> None:
    with pytest.raises(FormatError, match="hermes"):
        Hermes().parse_call(raw)


@pytest.mark.parametrize("lead", ["", ' "\n'])
def test_grammar_takes_calls_as_they_are_written(lead: str) -> None:
    hermes = Hermes()
    grammar = hermes.call_grammar([ADD, NOW], lead=lead, many=True)
    first = hermes.render_call(
        ToolCall("", "add", {"numbers": [1, 2.5], "unit": "km", "note": '</tool_call>"\n'})
    )
    second = hermes.render_call(ToolCall("", NOW.name, {}))
    for text in (first, second, f"{first}\n{second}\n{first}"):
        assert consumed(grammar, lead + text) == (len((lead + text).encode()), True)
    single = hermes.call_grammar([ADD, NOW], lead=lead, many=False)
    assert consumed(single, f"{lead}{first}\n{second}")[0] == len(f"{lead}{first}".encode())


@pytest.mark.parametrize(
    "text",
    [
        '<tool_call>\n{"name": "sub',
        '<tool_call>\n{"name": "add", "arguments": {}',
        '<tool_call>\n{"name": "add", "arguments": {"numbers": ["1',
        '<tool_call>\n{"name": "add", "arguments": {"numbers": [], "unit": "mm',
        '<tool_call>\n{"arguments"',
        "Hello",
    ],
)
def test_grammar_refuses_what_is_not_valid(text: str) -> None:
    taken, is_accepting = consumed(Hermes().call_grammar([ADD]), text)
    assert taken < len(text)
    assert not is_accepting


def test_grammar_names_marks_that_are_tokens() -> None:
    grammar = Hermes().call_grammar([NOW], special_ids={"<tool_call>": 7, "</tool_call>": 8})
    assert "<[7]>" in grammar
    assert "<[8]>" in grammar
    assert "tool_call>" not in grammar


def test_grammar_needs_a_tool() -> None:
    with pytest.raises(FormatError, match="at least one tool"):
        Hermes().call_grammar([])


def test_generic_describes_tools_in_few_words() -> None:
    text = Generic().describe_tools([ADD, NOW])
    assert text is not None
    assert "- add(numbers: number[], unit?: m|km, note?: string|null): Add numbers.\n" in text
    assert "More about it" not in text
    assert text.endswith(Generic().render_call_tail("x"))
    assert Generic().describe_tools([]) is None
    assert Hermes().describe_tools([ADD]) is None


def test_results_of_generic_share_a_user_turn_and_keep_their_origin() -> None:
    calls = [ToolCall("call_0", "add", {}), ToolCall("call_1", "now", {})]
    results = [ToolResult("3"), ToolResult("noon")]
    (message,) = Generic().result_messages(calls, results)
    assert message.role == "user"
    assert message.content == "<tool_response>\n3\n</tool_response>\n<tool_response>\nnoon\n</tool_response>"
    marked = [
        segment.text for segment in segments_of(message.content) if segment.kind == SpanKind.TOOL_RESULT
    ]
    assert marked == ["3", "noon"]
    assert not any(segment.is_template for segment in segments_of(message.content))
    assert Hermes().result_messages(calls, results)[1] == Message(
        "tool", "noon", tool_call_id="call_1", name="now"
    )


def test_generic_turns_history_into_plain_turns() -> None:
    call = ToolCall("call_0", "add", {"numbers": [1]})
    history = [
        Message("user", "Add."), Message("assistant", "So:", tool_calls=(call,)),
        Message("tool", "1"), Message("tool", "2"), Message("assistant", "Done."),
    ]  # fmt: skip
    plain = Generic().to_template(history)
    assert [message.role for message in plain] == ["user", "assistant", "user", "assistant"]
    assert plain[1].content == "So:\n" + Generic().render_call(call)
    assert plain[1].tool_calls == ()
    assert plain[2].content.count("<tool_response>") == 2
    assert Hermes().to_template(history) == tuple(history)


@pytest.mark.parametrize(
    ("source", "special_tokens", "expected", "words"),
    [
        (KNOWS_TOOLS, (), "hermes", "<tool_call>"),
        ("{{ messages }}", (), "generic", "knows nothing of tools"),
        ("{{ tools }}[TOOL_CALLS]", (), "mistral-array", "TOOL_CALLS"),
        ("{{ tools }}[MY_CALLS]", (), "generic", "takes tools"),
        (KNOWS_TOOLS + "<function=", (), "generic", "not known"),
    ],
)
def test_choice_by_the_template(
    source: str, special_tokens: tuple[str, ...], expected: str, words: str
) -> None:
    chosen = choose_format(source, special_tokens)
    assert chosen.id == expected
    assert words in chosen.reason
    assert not chosen.is_thinking


def test_choice_by_name() -> None:
    assert choose_format(KNOWS_TOOLS, override="generic").id == "generic"
    assert choose_format(KNOWS_TOOLS, override="auto").id == "hermes"
    assert choose_format("<think>").is_thinking
    with pytest.raises(ConfigError, match=r"'hermse' is unknown\. Known formats: .*generic, .*hermes"):
        choose_format(KNOWS_TOOLS, override="hermse")


@pytest.mark.parametrize(
    ("source", "written"),
    [
        ("<|tool_sep{{ ':opensource' }}><tool_sep>", "<tool_call:opensource>"),
        ("{{ '｜DSML｜' }}<function_calls>", "<｜DSML｜function_calls>"),
        ("{{ '｜DSML｜' }}<tool_calls><function_calls>", "<｜DSML｜tool_calls>"),
        ("a model called xLAM", '[{"name": "now"'),
    ],
)
def test_calls_are_written_in_the_templates_own_spelling(source: str, written: str) -> None:
    wire_format = choose_format(source)
    assert written in wire_format.render_call(ToolCall("", "now", {}))


def test_firefunction_can_be_asked_without_tools() -> None:
    inputs = choose_format("functools[{{ functions }}").template_inputs(())
    assert inputs["functions"] == ""


def test_other_names_of_formats() -> None:
    assert choose_format("", (), "muse").id == "muse-glimmer"
    assert choose_format("", (), "hammer").id == "xlam"


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (r"a\ud83d\ude00b", "a\U0001f600b"),
        (r"\ud83d", "\ufffd"),
        (r"\ud83dx\ude00", "\ufffdx\ufffd"),
        (r"\ud83d\ud83d\ude00", "\ufffd\U0001f600"),
        (r"\ud83d\n", "\ufffd\n"),
        (r"\ud83d\u0041", "\ufffdA"),
    ],
)
def test_half_a_pair_in_a_python_string_is_one_unknown_character(written: str, read: str) -> None:
    (call,) = edgellm.parse(f'[add(a="{written}")]', format="pythonic").calls
    assert call.arguments == {"a": read}


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (r'["\ud83d\ude00"]', ["\U0001f600"]),
        (r'["\ud83d"]', ["\ufffd"]),
        (r"['\ud83d', '\ud83d\ude00']", ["\ufffd", "\U0001f600"]),
    ],
)
def test_half_a_pair_in_a_tagged_value_is_one_unknown_character(written: str, read: list[str]) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "array", "items": {"type": "string"}}}}
    (call,) = edgellm.parse(
        f"<tool_call>\n<function=add>\n<parameter=a>\n{written}\n</parameter>\n</function>\n</tool_call>",
        format="qwen3-coder",
        tools=[{"name": "add", "parameters": schema}],
    ).calls
    assert call.arguments == {"a": read}
