"""Chats whose answers are scripted, on a template like ChatML: every token goes through the engine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import edgellm
from edgellm.scripted import Scripted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgellm.events import Event

TEMPLATE = (
    "{%- for m in messages -%}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
)
CALL = '<tool_call>\n{"name": "%s", "arguments": %s}\n</tool_call>'
"""A call as that family writes it: % (name, arguments as JSON)."""
ADD_2_AND_3 = CALL % ("add", '{"a": 2, "b": 3}')


@edgellm.tool(permission="auto")
def add(a: int, b: int) -> int:
    """Adds two numbers.

    Args:
        a: The first.
        b: The second.
    """
    return a + b


def script(runtime: edgellm.Runtime, *answers: str) -> list[Scripted]:
    """A sampler that gives these answers, one a leg."""
    return [Scripted(list(answers), runtime.vocabulary.special_tokens["<|im_end|>"])]


def scripted_chat(runtime: edgellm.Runtime, *answers: str, **options: Any) -> edgellm.Chat:
    """A chat that answers so; `options` as for `Runtime.chat`."""
    options.setdefault("template", TEMPLATE)
    return runtime.chat(sampler=script(runtime, *answers), **options)


def events_of(turn: Iterator[Event], *kinds: type) -> list[Any]:
    """All events of a turn, or those of some kinds. Any: a test knows which attributes they have."""
    return [event for event in turn if not kinds or isinstance(event, kinds)]


def tape_text(chat: edgellm.Chat) -> str:
    """All that the model has seen."""
    return chat.runtime.vocabulary.text_of(chat.tape).decode()
