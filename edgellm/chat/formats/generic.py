"""generic: for models whose template knows nothing of tools. Everything goes through plain turns.

Tools are described in the system turn, calls are written in hermes syntax, results come in a user turn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from edgellm.chat.formats.hermes import Hermes
from edgellm.chat.marked import joined, mark
from edgellm.types import Message, SpanKind, ToolCall, ToolResult, ToolSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Generic(Hermes):
    """Hermes calls where the template offers no place for tools."""

    id: str = "generic"
    template_takes_tools: bool = False

    def describe_tools(self, tools: Sequence[ToolSpec]) -> str | None:
        """One line a tool, as a signature: a JSON schema says the same in four times as many tokens."""
        if not tools:
            return None
        lines = [f"- {tool.name}({_signature(tool.parameters)}): {_summary(tool)}" for tool in tools]
        form = self.render_call_head("NAME") + '{"ARGUMENT": VALUE}' + self.render_call_tail("NAME")
        return "\n".join(["You can use these tools:", *lines, "To use a tool, answer only with:", form])

    def result_messages(
        self, calls: Sequence[ToolCall], results: Sequence[ToolResult]
    ) -> tuple[Message, ...]:
        texts = [result.text for _, result in zip(calls, results, strict=True)]
        return (Message("user", self._result_turn(texts)),)

    def to_template(self, messages: Sequence[Message]) -> tuple[Message, ...]:
        lowered: list[Message] = []
        waiting: list[str] = []
        for message in messages:
            if message.role == "tool":
                waiting.append(message.content)
                continue
            if waiting:
                lowered.append(Message("user", self._result_turn(waiting)))
                waiting = []
            lowered.append(self._with_calls_as_text(message) if message.tool_calls else message)
        if waiting:
            lowered.append(Message("user", self._result_turn(waiting)))
        return tuple(lowered)

    def _with_calls_as_text(self, message: Message) -> Message:
        parts = [mark(message.content, SpanKind.TEXT)] if message.content else []
        for call in message.tool_calls:
            if parts:
                parts.append(mark(self.marks.between_calls, SpanKind.TEXT))
            parts.append(mark(self.render_call(call), SpanKind.TOOL_CALL))
        return replace(message, content=joined(parts), tool_calls=())

    def _result_turn(self, texts: Sequence[str]) -> str:
        """The results as the content of one user turn; the marks inside it remember whose text is whose."""
        parts: list[str] = []
        for index, text in enumerate(texts):
            parts.append(mark(("\n" if index else "") + f"{self.marks.result_open}\n", SpanKind.GLUE))
            parts.append(mark(text, SpanKind.TOOL_RESULT, source="result"))
            parts.append(mark(f"\n{self.marks.result_close}", SpanKind.GLUE))
        return joined(parts)


def _summary(tool: ToolSpec) -> str:
    return " ".join(tool.description.strip().split("\n\n")[0].split())


def _signature(schema: Mapping[str, Any]) -> str:
    required = schema.get("required", ())
    parts: list[str] = []
    for name, item in schema.get("properties", {}).items():
        mark_optional = "" if name in required else "?"
        parts.append(f"{name}{mark_optional}: {_type(item)}")
    return ", ".join(parts)


def _type(schema: Any) -> str:
    if not isinstance(schema, Mapping):
        return "any"
    if isinstance(values := schema.get("enum"), list):
        return "|".join(str(value) for value in values)
    if "const" in schema:
        return str(schema["const"])
    options = schema.get("anyOf") or schema.get("oneOf")
    if isinstance(options, list):
        return "|".join(dict.fromkeys(_type(option) for option in options))
    kind = schema.get("type", "any")
    if isinstance(kind, list):
        return "|".join(map(str, kind))
    if kind == "array":
        return f"{_type(schema.get('items'))}[]"
    return str(kind)
