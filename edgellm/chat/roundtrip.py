"""A call and its result through one template: rendered, parsed, continued, and compared with a full render."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgellm.chat.continuation import Continuation
from edgellm.chat.exactness import Exactness, compare_texts
from edgellm.chat.formats.wire import WireFormat
from edgellm.chat.parser import OutputParser
from edgellm.chat.template import ChatTemplate
from edgellm.errors import TemplateError
from edgellm.types import Message, Segment, ToolCall, ToolResult, ToolSpec

PROBE_TOOL = ToolSpec(
    "get_weather",
    "The weather of a city.",
    {
        "type": "object",
        "properties": {
            "city": {"type": "string", "description": "Name of the city."},
            "days": {"type": "integer", "description": "How many days."},
        },
        "required": ["city"],
    },
)
_ARGUMENTS = {"city": "Oslo", "days": 3}
_THOUGHT = "I should look."
_RESULT = "Snow, -3 degrees."
_ANSWER = "It snows."


@dataclass(frozen=True, slots=True)
class RoundTrip:
    """What came of it: `prompt`, the model's `call` as text, what was appended (`suffix`), and the comparison.

    `is_read`: the parser read the call back. `fault` says what went wrong instead.
    """

    prompt: str = ""
    call: str = ""
    suffix: str = ""
    is_read: bool = False
    exactness: Exactness | None = None
    fault: str = ""


def round_trip(template: ChatTemplate, wire_format: WireFormat) -> RoundTrip:
    """One conversation with one call. Raises nothing: what the template refuses is the result's `fault`."""
    tools = (PROBE_TOOL,)
    user = Message("user", "How is the weather in Oslo?")
    call = ToolCall(wire_format.call_id(0, PROBE_TOOL.name), PROBE_TOOL.name, dict(_ARGUMENTS))
    try:
        prompt = _text(_render(template, wire_format, [user], tools))
        marks = wire_format.marks
        is_thinking = wire_format.opens_reasoning(prompt) and bool(marks.reasoning_close)
        thought = _THOUGHT if is_thinking else ""
        written = f"{thought}{marks.reasoning_close}\n\n" * is_thinking + wire_format.render_call(call)
        # Where the prompt ends in the beginning of what is written, the model goes on behind it.
        shared = next((n for n in range(len(written), 2, -1) if prompt.endswith(written[:n])), 0)
        written = written[shared:]
        parser = OutputParser(wire_format, prefix=prompt, tools=tools)
        parser.feed(written)
        parser.finish()
        is_read = [(found.name, found.arguments) for found in parser.calls] == [(call.name, call.arguments)]
        results = wire_format.result_messages((call,), (ToolResult(_RESULT),))
        continuation = Continuation(template, wire_format)
        suffix = continuation.suffix(
            results, had_calls=True, tools=tools if wire_format.template_takes_tools else ()
        )
    except TemplateError as error:
        return RoundTrip(fault=error.message)
    tape = prompt + written + _text(suffix)
    assistant = Message("assistant", reasoning=thought, tool_calls=(call,))
    try:
        rendered = _text(_render(template, wire_format, [user, assistant, *results], tools))
    except TemplateError as error:
        return RoundTrip(prompt, written, _text(suffix), is_read, fault=error.message)
    return RoundTrip(prompt, written, _text(suffix), is_read, compare_texts(tape, rendered))


@dataclass(frozen=True, slots=True)
class NextTurn:
    """What the reasoning policies make of a thoughtful answer when the user speaks again, against a full render.

    "render" is that full render, and exact. `fault` says that there was no telling.
    """

    keep: Exactness | None = None
    excise: Exactness | None = None
    fault: str = ""

    @property
    def exact(self) -> str:
        """The cheapest policy whose tape is what the template would have said: "keep", "excise" or "render"."""
        for name, found in (("keep", self.keep), ("excise", self.excise)):
            if found is not None and found.verdict != "diverges":
                return name
        return "render"


def next_turn(template: ChatTemplate, wire_format: WireFormat) -> NextTurn:
    """One answer with reasoning, and the next question. Raises nothing, as `round_trip`."""
    user, following = Message("user", "How is the weather in Oslo?"), Message("user", "And in Bergen?")
    marks = wire_format.marks
    try:
        prompt = _text(_render(template, wire_format, [user], ()))
        opens, closes = marks.reasoning_open, marks.reasoning_close
        is_open = bool(closes) and wire_format.opens_reasoning(prompt)
        is_thinking = is_open or (bool(closes) and wire_format.is_thinking)
        thought = f"{'' if is_open else opens}{_THOUGHT}{closes}\n\n" if is_thinking else ""
        suffix = _text(Continuation(template, wire_format).suffix((following,), had_calls=False, tools=()))
        assistant = Message("assistant", _ANSWER, reasoning=_THOUGHT if is_thinking else "")
        rendered = _text(_render(template, wire_format, [user, assistant, following], ()))
    except TemplateError as error:
        return NextTurn(fault=error.message)
    keep = compare_texts(f"{prompt}{thought}{_ANSWER}{suffix}", rendered)
    return NextTurn(keep, compare_texts(f"{prompt}{_ANSWER}{suffix}", rendered) if thought else None)


def _render(
    template: ChatTemplate, wire_format: WireFormat, messages: Sequence[Message], tools: Sequence[ToolSpec]
) -> tuple[Segment, ...]:
    inputs = wire_format.template_inputs(tools)
    if not wire_format.template_takes_tools:
        described = wire_format.describe_tools(tools)
        messages = [*([Message("system", described)] if described else []), *messages]
        tools = ()
    return template.render(wire_format.to_template(messages), tools=tools, **inputs)


def _text(segments: Sequence[Segment]) -> str:
    return "".join(segment.text for segment in segments)
