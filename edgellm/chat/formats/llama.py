"""Llama 3.1, 3.2 and 3.3: a JSON object without any mark, or behind `<|python_tag|>`."""

from __future__ import annotations

from edgellm.chat.formats.json_calls import JsonCalls
from edgellm.chat.formats.wire import Mark, Marks

LLAMA3_JSON = JsonCalls(
    id="llama3-json",
    marks=Marks(more=(Mark("<|python_tag|>", "maybe"),)),
    signs=(
        ("Environment: ipython", "!<function="),
        ("<|python_tag|>", "tools", "!<function="),
        ('"parameters": dictionary of argument name', "!<function="),
    ),
    arguments_key="parameters",
    is_bare=True,
)
