"""What a saved chat was begun with: the tools that its model was told of, and worked turns.

They stand on its tape and stay there, whatever it is opened with.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from edgellm.errors import SessionError
from edgellm.types import Message, ToolSpec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from edgellm.conversation import Conversation


class _Tool(msgspec.Struct):
    """What a model is told of a tool."""

    name: str
    description: str
    # Any: a JSON Schema.
    parameters: dict[str, Any]


def beginning_of(conversation: Conversation) -> dict[str, Any]:
    """A conversation's beginning, as JSON values."""
    return {
        "told": [
            {"name": spec.name, "description": spec.description, "parameters": spec.parameters}
            for spec in conversation.specs
        ],
        "examples": msgspec.to_builtins(conversation.preamble),
    }


def take_up_beginning(
    conversation: Conversation, state: Mapping[str, Any], offered: Sequence[ToolSpec], *, is_guided: bool
) -> list[str]:
    """Gives the conversation the beginning that stands on its tape, in the place of the one it was made with; nothing
    where nothing stands there yet.

    What that means for who opened it, in sentences: tools of which the model was told nothing, or what is no longer so.
    `is_guided`: the runtime chooses tools, the model need not know of them. Raises SessionError.
    """
    if not conversation.is_begun:
        return []
    try:
        # Files of earlier versions do not say it: what the chat is opened with counts.
        if "told" in state:
            told = msgspec.convert(state["told"], list[_Tool])
            conversation.specs = tuple(
                ToolSpec(tool.name, tool.description, tool.parameters) for tool in told
            )
            conversation.preamble = tuple(msgspec.convert(state["examples"], list[Message]))
    except (KeyError, msgspec.ValidationError) as error:
        raise SessionError(
            f"the saved chat's beginning cannot be read: {error}.", hint="It was written by another version."
        ) from error
    return _about_tools(conversation.specs, offered, is_guided=is_guided)


def _about_tools(told: Sequence[ToolSpec], offered: Sequence[ToolSpec], *, is_guided: bool) -> list[str]:
    known = {spec.name: _shown(spec) for spec in told}
    now = {spec.name: _shown(spec) for spec in offered}
    notes: list[str] = []
    if new := [] if is_guided else [name for name in now if name not in known]:
        notes.append(
            f"The model does not know of {', '.join(new)}: it was told of tools when this chat began."
        )
    if gone := [name for name in known if name not in now]:
        notes.append(
            f"The model was told of {', '.join(gone)} when this chat began; not offered now, calls are refused."
        )
    if changed := [name for name in known if name in now and known[name] != now[name]]:
        notes.append(
            f"The model was told of {', '.join(changed)} as it was when this chat began; it has changed."
        )
    return notes


def _shown(spec: ToolSpec) -> object:
    """What the model sees of a tool, as it is after it was saved."""
    return msgspec.json.decode(msgspec.json.encode(spec.to_openai()))
