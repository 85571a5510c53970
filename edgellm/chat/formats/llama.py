"""Llama 3.1, 3.2 and 3.3: a JSON object without any mark; behind `<|python_tag|>` that, or calls of built-in tools."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgellm.chat.formats.code_calls import PythonCalls
from edgellm.chat.formats.interpreter import (
    NAMES,
    PYTHON_TAG,
    TURN_ENDS,
    interpreter_of,
    is_method_next,
    read_code,
)
from edgellm.chat.formats.json_calls import JsonCalls
from edgellm.chat.formats.literals import PYTHON_JSON, Style
from edgellm.chat.formats.script import Fault, Scripted, Source
from edgellm.chat.formats.wire import CallReader, Mark, Marks
from edgellm.types import ToolSpec

Reading = Generator[None, None, None]

_ENDS = tuple(Mark(text, "drop") for text in TURN_ENDS)
_BUILTIN = Marks(call_open=(PYTHON_TAG,), more=_ENDS)
_JSON = Marks(more=(Mark(PYTHON_TAG, "maybe"), *_ENDS))


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaBuiltin(PythonCalls):
    """`<|python_tag|>NAME.call(key="value")`; what is neither that nor JSON is source code for the interpreter.

    Source: Meta's prompt formats of Llama 3.1.
    """

    id: str = "llama3-builtin"
    marks: Marks = _BUILTIN
    style: Style = PYTHON_JSON
    is_list: bool = False
    item_separator: str = "; "
    name_suffix: str = ".call"
    # Its built-in tools are named by the template, not by who offers tools.
    takes_only_offered: bool = False

    def scan_marks(self) -> tuple[Mark, ...]:
        bare = [mark for mark in LLAMA3_JSON.scan_marks() if mark.text in ("{", "[")]
        return (*PythonCalls.scan_marks(self), *bare)

    def reader(self, tools: Sequence[ToolSpec] = (), mark: str = "") -> CallReader:
        if mark != PYTHON_TAG:
            return LLAMA3_JSON.reader(tools, mark)
        return Scripted(lambda source: self.behind_tag(source, tools, NAMES[0]))

    def behind_tag(self, source: Source, tools: Sequence[ToolSpec], interpreter: str) -> Reading:
        """What follows the tag; `interpreter` is the tool that takes source code, "" for none."""
        yield from source.skip_space()
        if (yield from source.peek(1)) in ("{", "["):
            known = frozenset(tool.name for tool in tools)
            yield from LLAMA3_JSON.section(source, known, False)
        elif (yield from is_method_next(source)):
            yield from self.statements(source, tools)
        elif interpreter and (yield from source.peek(1)):
            yield from read_code(source, interpreter_of(tools, "") or interpreter, tools)
        else:
            raise Fault("no call follows")

    def goes_on(self, source: Source) -> Generator[None, None, bool]:
        return (yield from is_method_next(source))

    def template_inputs(self, tools: Sequence[ToolSpec]) -> Mapping[str, Any]:
        return {"builtin_tools": [tool.name for tool in tools]} if tools else {}


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaJson(JsonCalls):
    """Bare JSON; the tag stands in front of other calls too."""

    id: str = "llama3-json"
    marks: Marks = _JSON
    signs: tuple[tuple[str, ...], ...] = (
        ("Environment: ipython", "!<function="),
        (PYTHON_TAG, "tools", "!<function="),
        ('"parameters": dictionary of argument name', "!<function="),
    )
    arguments_key: str = "parameters"
    is_bare: bool = True

    def reader(self, tools: Sequence[ToolSpec] = (), mark: str = "") -> CallReader:
        if mark != PYTHON_TAG:
            return JsonCalls.reader(self, tools, mark)
        # The tag says that code follows; who is told no interpreter has none.
        name = interpreter_of(tools, NAMES[0])
        return Scripted(lambda source: LLAMA3_BUILTIN.behind_tag(source, tools, name))


LLAMA3_JSON = LlamaJson()
LLAMA3_BUILTIN = LlamaBuiltin()
