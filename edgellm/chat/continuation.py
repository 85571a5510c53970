"""What stands between an assistant's text and the next generation prompt.

A chat never renders its history again: it appends. The text to append is found by rendering a small
conversation whose assistant turn is a placeholder, followed by the new messages; what stands behind the
placeholder is the continuation.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from edgellm.chat.formats.wire import WireFormat
from edgellm.chat.marked import plain
from edgellm.chat.parser import OutputParser
from edgellm.chat.template import ChatTemplate
from edgellm.errors import TemplateError
from edgellm.types import Message, Segment, SpanKind, ToolCall, ToolSpec

# Roles of the new messages; whether the assistant called tools before them.
_Shape = tuple[tuple[str, ...], bool]


class Continuation:
    """Continuations for one template and wire format.

    Which way works is found once for each shape of turn (the roles of the new messages, and whether the
    assistant called tools); afterwards a turn costs one render of a small conversation.
    """

    def __init__(self, template: ChatTemplate, wire_format: WireFormat) -> None:
        self._template = template
        self._format = wire_format
        # Letters and digits only: nothing to strip, split at or escape. Random: no message can contain it.
        self._placeholder = f"x{secrets.token_hex(12)}x"
        self._way_of: dict[_Shape, Callable[..., tuple[Segment, ...] | None]] = {}

    def suffix(
        self,
        tail: Sequence[Message],
        *,
        had_calls: bool = False,
        tools: Sequence[ToolSpec] = (),
        **kwargs: Any,
    ) -> tuple[Segment, ...]:
        """All text behind the assistant's last character, end of turn first, generation prompt last.

        `tail` are the new messages: a user turn, or, with `had_calls`, the results of the calls that the
        assistant turn before made (as `WireFormat.result_messages` gives them). Where the end-of-turn token
        has been drawn already, take it off with `strip_leading`. Raises TemplateError where the template
        neither keeps the placeholder nor the format knows its suffix.
        """
        tail = self._format.to_template(tail)
        shape = (tuple(message.role for message in tail), had_calls)
        known = self._way_of.get(shape)
        ways = [self._behind_calls, self._behind_text] if had_calls else [self._behind_text]
        if known:
            ways.sort(key=known.__ne__)
        refusal: TemplateError | None = None
        for way in ways:
            try:
                found = way(tail, tools, kwargs)
            except TemplateError as error:
                refusal = refusal or error
                continue
            if found is not None:
                self._way_of[shape] = way
                return found
        by_format = self._format.suffix(self._template.source, tail)
        if by_format is not None:
            return by_format
        roles = ", ".join(message.role for message in tail)
        raise TemplateError(
            f"chat template {self._template.name!r} gives no text to continue with (turn: {roles}): "
            f"{refusal.message if refusal else 'it drops or rewrites the assistant turn before it'}",
            hint="Try another template with `--template chatml` (or `--template FILE`).",
        ) from refusal

    def _behind_text(
        self,
        tail: Sequence[Message],
        tools: Sequence[ToolSpec],
        kwargs: Mapping[str, Any],
    ) -> tuple[Segment, ...] | None:
        """Behind an assistant turn of text only. Calls, if any, are taken for its text."""
        assistant = Message("assistant", self._placeholder)
        return self._render_behind(assistant, tail, tools, kwargs)

    def _behind_calls(
        self,
        tail: Sequence[Message],
        tools: Sequence[ToolSpec],
        kwargs: Mapping[str, Any],
    ) -> tuple[Segment, ...] | None:
        """Behind an assistant turn that calls tools, for templates that write the calls themselves."""
        results = [message for message in tail if message.role == "tool"]
        if not results or not self._format.template_takes_tools:
            return None
        stand_ins = tuple(
            ToolCall(result.tool_call_id, result.name or "tool", {"value": "it"}) for result in results
        )
        messages = [Message("user", self._placeholder), Message("assistant", tool_calls=stand_ins), *tail]
        behind = self._after_calls(messages, stand_ins, tools, kwargs)
        if behind is not None and any(segment.kind == SpanKind.SYSTEM for segment in behind):
            # The tools are on the tape already; a template that names them in the newest turn would repeat them.
            behind = self._after_calls(messages, stand_ins, (), kwargs)
        return behind if behind is not None and _holds(behind, tail) else None

    def _after_calls(
        self,
        messages: Sequence[Message],
        calls: Sequence[ToolCall],
        tools: Sequence[ToolSpec],
        kwargs: Mapping[str, Any],
    ) -> tuple[Segment, ...] | None:
        rendered = self._template.render(messages, tools=tools, **kwargs)
        behind = _cut_behind(rendered, self._placeholder)
        end = self._end_of_calls(behind, calls) if behind is not None else None
        return _drop(behind, end) if behind is not None and end is not None else None

    def _end_of_calls(self, segments: Sequence[Segment], calls: Sequence[ToolCall]) -> int | None:
        """Where the last of these calls ends, as the format itself reads it; None where they are not all there."""
        specs = tuple(ToolSpec(call.name, "", {"type": "object"}) for call in calls)
        parser = OutputParser(replace(self._format, is_thinking=True), tools=specs)
        parser.feed("".join(segment.text for segment in segments))
        parser.finish()
        end = count = 0
        for piece in parser.pieces:
            if count == len(calls) and piece.kind != "end":
                return end
            end += len(piece.text)
            count += piece.kind == "call"
        return end if count == len(calls) else None

    def _render_behind(
        self,
        assistant: Message,
        tail: Sequence[Message],
        tools: Sequence[ToolSpec],
        kwargs: Mapping[str, Any],
    ) -> tuple[Segment, ...] | None:
        messages = [Message("user", "?"), assistant, *tail]
        rendered = self._template.render(messages, tools=tools, **kwargs)
        if tools and _repeats_tools(rendered, self._placeholder):
            # The tools are on the tape already; a template that names them in the newest turn would repeat them.
            rendered = self._template.render(messages, **kwargs)
        behind = _cut_behind(rendered, self._placeholder)
        if behind is None or not _holds(behind, tail):
            return None
        return behind


def strip_leading(segments: Sequence[Segment], text: str) -> tuple[Segment, ...] | None:
    """The segments without `text` at their beginning; None if they do not begin with it."""
    whole = "".join(segment.text for segment in segments)
    if not whole.startswith(text):
        return None
    return _drop(segments, len(text))


def _drop(segments: Sequence[Segment], count: int) -> tuple[Segment, ...]:
    kept: list[Segment] = []
    for segment in segments:
        if count >= len(segment.text):
            count -= len(segment.text)
            continue
        kept.append(replace(segment, text=segment.text[count:]) if count else segment)
        count = 0
    return tuple(kept)


def _cut_behind(segments: Sequence[Segment], placeholder: str) -> tuple[Segment, ...] | None:
    """What stands behind the last placeholder."""
    whole = "".join(segment.text for segment in segments)
    at = whole.rfind(placeholder)
    if at < 0:
        return None
    return _drop(segments, at + len(placeholder))


def _holds(segments: Sequence[Segment], tail: Sequence[Message]) -> bool:
    """Whether the new messages' texts arrived: word for word, or rewritten (as JSON, without tags ...)."""
    whole = "".join(segment.text for segment in segments)
    if all(plain(message.content).strip() in whole for message in tail):
        return True
    return any(segment.kind in (SpanKind.USER, SpanKind.TOOL_RESULT) for segment in segments)


def _repeats_tools(segments: Sequence[Segment], placeholder: str) -> bool:
    behind = _cut_behind(segments, placeholder)
    return behind is not None and any(segment.kind == SpanKind.SYSTEM for segment in behind)
