"""hermes: `<tool_call>` around a JSON object. Hermes 2 and 3, Qwen2.5, Qwen3, Granite 4 and many fine-tunes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgellm.chat.formats.json_calls import JsonCalls
from edgellm.chat.formats.wire import Marks
from edgellm.types import Message, Segment, SpanKind

_TURN = "<|im_start|>"
_TURN_END = "<|im_end|>\n"


_MARKS = Marks(
    call_open=("<tool_call>",),
    call_close="</tool_call>",
    between_calls="\n",
    reasoning_open="<think>",
    reasoning_close="</think>",
    result_open="<tool_response>",
    result_close="</tool_response>",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hermes(JsonCalls):
    """Calls as JSON between marks, one block each; the template describes the tools."""

    id: str = "hermes"
    marks: Marks = _MARKS
    # Inside the same marks other families write something else than a JSON object.
    signs: tuple[tuple[str, ...], ...] = (
        (
            "<tool_call>",
            "tools",
            "!<function=",
            "!<function name=",
            "!<arg_key>",
            "!<invoke name=",
            "!<tool_call>[",
        ),
    )
    before: str = "\n"
    after: str = "\n"

    def suffix(self, template_source: str, tail: Sequence[Message]) -> tuple[Segment, ...] | None:
        if _TURN not in template_source or any(message.tool_calls for message in tail):
            return None
        parts = [_glue(_TURN_END)]
        for index, message in enumerate(tail):
            if message.role != "tool":
                kind = SpanKind.USER if message.role == "user" else SpanKind.SYSTEM
                parts.append(_glue(f"{_TURN}{message.role}\n"))
                parts.append(Segment(message.content, kind, False))
                parts.append(_glue(_TURN_END))
                continue
            # Results of one turn share one user turn.
            if index == 0 or tail[index - 1].role != "tool":
                parts.append(_glue(f"{_TURN}user"))
            parts.append(_glue(f"\n{self.marks.result_open}\n"))
            parts.append(Segment(message.content, SpanKind.TOOL_RESULT, False))
            parts.append(_glue(f"\n{self.marks.result_close}"))
            if index + 1 == len(tail) or tail[index + 1].role != "tool":
                parts.append(_glue(_TURN_END))
        parts.append(_glue(f"{_TURN}assistant\n"))
        return tuple(part for part in parts if part.text)


def _glue(text: str) -> Segment:
    return Segment(text, SpanKind.GLUE, True)
