"""Reading a model's raw output in a wire format, without a model: whole, or while it is being written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from edgellm.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgellm.chat.formats import WireFormat
    from edgellm.chat.parser import OutputParser
    from edgellm.types import ToolCall, ToolSpec


@dataclass(frozen=True, slots=True)
class Parsed:
    """A model's raw output, read: answer text, reasoning, complete calls."""

    content: str
    reasoning: str
    calls: tuple[ToolCall, ...]


def parse(
    text: str,
    *,
    format: str = "auto",
    template: str | None = None,
    tools: Sequence[Mapping[str, Any]] | None = None,
    prefix: str = "",
) -> Parsed:
    """Reads a model's raw output in a wire format.

    `format` is a format's id; "auto" chooses by `template` (a chat template's text), else hermes. `tools` are
    OpenAI tool objects; `prefix` is the generation prompt that the output continues: without it, output that closes
    reasoning it has not opened begins inside it. Raises ConfigError for an unknown format, and for tools that are none.
    """
    prefix = prefix or implied_prefix(text, format=format, template=template)
    parser = stream_parser(format=format, template=template, tools=tools, prefix=prefix)
    parser.feed(text)
    parser.finish()
    return Parsed(parser.text, parser.reasoning, tuple(parser.calls))


def stream_parser(
    *,
    format: str = "auto",
    template: str | None = None,
    tools: Sequence[Mapping[str, Any]] | None = None,
    prefix: str = "",
) -> OutputParser:
    """`parse` for text that is still being written: `feed(piece)` and `finish()` give events.

    Options as for `parse`; whether the output starts inside reasoning is told by `prefix` alone.
    """
    from edgellm.chat.parser import OutputParser

    return OutputParser(_parse_format(format, template), prefix=prefix, tools=_specs(tools or ()))


def _specs(tools: Sequence[Any]) -> list[ToolSpec]:
    """Tools in the form of the OpenAI API, with or without their envelope. Raises ConfigError for anything else."""
    from edgellm.types import ToolSpec

    specs: list[ToolSpec] = []
    for number, tool in enumerate(tools):
        inner: Any = tool.get("function", tool) if isinstance(tool, Mapping) else None
        if not isinstance(inner, Mapping) or not isinstance(inner.get("name"), str):
            raise ConfigError(
                f"tool {number} has no name.", hint='Write {"name": "...", "parameters": {...}}.'
            )
        parameters: Any = inner.get("parameters") or {"type": "object", "properties": {}}
        if not isinstance(parameters, Mapping):
            raise ConfigError(
                f"the parameters of tool {inner['name']!r} are no object.", hint="Give a JSON Schema."
            )
        specs.append(ToolSpec(inner["name"], str(inner.get("description") or ""), dict(parameters)))
    return specs


def _parse_format(format: str, template: str | None) -> WireFormat:
    from edgellm.chat.formats import choose_format
    from edgellm.chat.template import ChatTemplate

    if template is not None:
        return choose_format(template, (), format, ChatTemplate(template).text)
    # No template says whether the model thinks: marks of reasoning are taken for what they look like.
    return replace(choose_format("", (), "hermes" if format == "auto" else format), is_thinking=True)


def implied_prefix(text: str, *, format: str = "auto", template: str | None = None) -> str:
    """The opening mark of reasoning where the output `text` closes reasoning that it has not opened, else ""."""
    wire_format = _parse_format(format, template)
    marks = wire_format.scan_marks()
    closes = [mark.text for mark in marks if mark.does == "answer" and mark.inside == "reasoning"]
    end = min((text.index(close) for close in closes if close in text), default=-1)
    opens = [mark for mark in marks if mark.does == "reason"]
    has_opened = any(
        text.lstrip().startswith(mark.text) or (mark.where == "anywhere" and mark.text in text[: max(end, 0)])
        for mark in opens
    )
    return "" if end < 0 or has_opened else wire_format.marks.reasoning_open
