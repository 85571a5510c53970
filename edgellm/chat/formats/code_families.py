"""Families whose calls are source code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from edgellm.chat.formats.code_calls import BraceCalls, PythonCalls
from edgellm.chat.formats.literals import PYTHON_JSON, Style
from edgellm.chat.formats.wire import Mark, Marks
from edgellm.types import ToolSpec

_THINK = Marks(reasoning_open="<think>", reasoning_close="</think>")

LFM2 = PythonCalls(
    id="lfm2",
    marks=replace(
        _THINK,
        call_open=("<|tool_call_start|>",),
        call_close="<|tool_call_end|>",
        result_open="<|tool_response_start|>",
        result_close="<|tool_response_end|>",
        more=(Mark("<|tool_call_end|>", "drop"),),
    ),
    signs=(("<|tool_call_start|>",), ("<|tool_list_start|>",), ("List of tools: [",)),
    vocabulary_sign="<|tool_call_start|>",
    is_bare=True,
)
OLMO3 = PythonCalls(
    id="olmo3",
    marks=replace(_THINK, call_open=("<function_calls>",), call_close="</function_calls>"),
    signs=(("<function_calls>", "!DSML"),),
    is_list=False,
    style=PYTHON_JSON,
    item_separator="\n",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SmolLM3Python(PythonCalls):
    """SmolLM3's template has a place of its own for tools that are called in Python."""

    def template_inputs(self, tools: Sequence[ToolSpec]) -> Mapping[str, Any]:
        return {"python_tools": [tool.to_openai()["function"] for tool in tools]} if tools else {}


SMOLLM3_PYTHON = SmolLM3Python(
    id="smollm3-python",
    marks=replace(_THINK, call_open=("<code>",), call_close="</code>"),
    signs=(("python_tools", "<code>", "!xml_tools"),),
    is_list=False,
    item_separator="\n",
    before="\n",
    after="\n",
)
GEMMA3_TOOL_CODE = PythonCalls(
    id="gemma3-tool-code",
    marks=Marks(call_open=("```tool_code\n", "```tool_code"), call_close="```"),
    signs=(("tool_code", "<start_of_turn>"),),
    is_list=False,
    unwraps="print",
    item_separator="\n",
    after="\n",
)
PYTHONIC = PythonCalls(
    id="pythonic",
    marks=Marks(more=(Mark("<|python_start|>", "drop"), Mark("<|python_end|>", "drop"))),
    signs=(("[func_name1(",), ("[func_name(",)),
    is_bare=True,
)
LLAMA4_PYTHONIC = replace(
    PYTHONIC,
    id="llama4-pythonic",
    marks=Marks(
        call_open=("<|python_start|>",), call_close="<|python_end|>", more=(Mark("<|python_end|>", "drop"),)
    ),
    signs=(("<|python_start|>",),),
)
FUNCTIONGEMMA = BraceCalls(
    id="functiongemma",
    marks=Marks(
        call_open=("<start_function_call>",),
        call_close="<end_function_call>",
        result_open="<start_function_response>",
        result_close="<end_function_response>",
    ),
    signs=(("<start_function_call>",),),
    vocabulary_sign="<start_function_call>",
    style=Style(delimiter="<escape>", bare_keys=True, words=("true", "false", "null")),
)
GEMMA4 = BraceCalls(
    id="gemma4",
    marks=Marks(
        call_open=("<|tool_call>",),
        call_close="<tool_call|>",
        reasoning_open="<|channel>",
        reasoning_close="<channel|>",
        result_open="<|tool_response>",
        result_close="<tool_response|>",
        more=(
            Mark("<|channel>thought", "reason", "anywhere", "text"),
            Mark("<|channel>thought", "drop", "start", "reasoning"),
            Mark("<channel|>", "drop", "anywhere", "text"),
            Mark("<tool_call|>", "drop", "anywhere", "text"),
            Mark("<|tool_response>", "drop", "anywhere", "text"),
        ),
    ),
    signs=(("<|tool_call>call:",), ("<|tool_call>",)),
    vocabulary_sign="<|tool_call>",
    style=Style(delimiter='<|"|>', bare_keys=True, words=("true", "false", "null")),
)

ALL = (GEMMA4, FUNCTIONGEMMA, LFM2, OLMO3, SMOLLM3_PYTHON, GEMMA3_TOOL_CODE, LLAMA4_PYTHONIC, PYTHONIC)
