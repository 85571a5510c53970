"""Calls whose one argument is source code, written as it is: what models send to a Python interpreter."""

from __future__ import annotations

import re
from collections.abc import Generator, Sequence
from contextlib import suppress

from edgellm.chat.formats.arguments import Arguments
from edgellm.chat.formats.script import Ended, Source
from edgellm.chat.formats.typed_value import is_text, properties
from edgellm.chat.formats.wire import Begun, Complete, Named
from edgellm.types import ToolSpec

PYTHON_TAG = "<|python_tag|>"
NAMES = ("code_interpreter", "python", "ipython")
TURN_ENDS = ("<|eom_id|>", "<|eot_id|>")
_METHOD_CHARS = 200
_METHOD = re.compile(r"[\w-]+\.call\s*\(")
_METHOD_BEGUN = re.compile(r"[\w-]*(\.(c(a(l(l\s*)?)?)?)?)?")


def interpreter_of(tools: Sequence[ToolSpec], default: str) -> str:
    """The tool that takes code: `default` where no tools are known, "" where none of them does."""
    if not tools:
        return default
    return next((tool.name for tool in tools if tool.name in NAMES), "")


def is_method_next(source: Source) -> Generator[None, None, bool]:
    """Does `NAME.call(` come next? Nothing is taken."""
    size = 1
    while True:
        ahead = yield from source.peek(size)
        if _METHOD.match(ahead):
            return True
        if len(ahead) < size or size > _METHOD_CHARS or not _METHOD_BEGUN.fullmatch(ahead):
            return False
        size += 1


def read_code(
    source: Source, name: str, tools: Sequence[ToolSpec], stops: Sequence[str] = TURN_ENDS
) -> Generator[None, None, str]:
    """Reads a call of `name` whose code ends at one of `stops`, or with the output; gives the stop."""
    source.tell(Begun())
    source.tell(Named(name))
    schemas = properties(tools, name) or {}
    arguments = Arguments(source)
    arguments.key(next((key for key, schema in schemas.items() if is_text(schema)), "code"))
    arguments.give('"')
    stop = ""
    # Where nothing closes it, the end of the turn does.
    with suppress(Ended):
        _, stop = yield from source.until(stops, arguments.text)
    arguments.give('"')
    source.tell(Complete(name, arguments.end(), source.rest))
    return stop
