"""Families whose calls are JSON between marks of their own."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from edgellm.chat.formats.json_calls import JsonCalls
from edgellm.chat.formats.wire import Mark, Marks
from edgellm.types import ToolSpec

THINK = Marks(reasoning_open="<think>", reasoning_close="</think>")
RESULT = ("<tool_response>", "</tool_response>")


def _marks(opening: str | tuple[str, ...], close: str = "", *more: Mark, between: str = "\n") -> Marks:
    opens = (opening,) if isinstance(opening, str) else opening
    return replace(THINK, call_open=opens, call_close=close, between_calls=between, more=more)


@dataclass(frozen=True, slots=True, kw_only=True)
class MistralArray(JsonCalls):
    """Mistral's ids are nine letters and digits: its templates refuse others."""

    def call_id(self, index: int, name: str) -> str:
        return f"call{index:05d}"

    def id_pattern(self, name: str) -> str:
        return "[a-zA-Z0-9]{9}"


SMOLLM2 = JsonCalls(
    id="smollm2-list",
    marks=replace(
        _marks("<tool_call>", "</tool_call>"), result_open="<tool_response>", result_close="</tool_response>"
    ),
    signs=(("<tool_call>[", "tools", "!<|tool_call|>"),),
    is_list=True,
)
MISTRAL_ARRAY = MistralArray(
    id="mistral-array",
    marks=_marks("[TOOL_CALLS]", ""),
    signs=(("[TOOL_CALLS]", "![ARGS]"),),
    closes=("[/TOOL_CALLS]",),
    vocabulary_sign="[TOOL_CALLS]",
    is_list=True,
    id_key="id",
)
GRANITE_3 = JsonCalls(
    id="granite-3",
    marks=_marks(
        ("<|tool_call|>", "<tool_call>"),
        "",
        Mark("<response>", "drop", "start", "text"),
        Mark("</response>", "drop", "anywhere", "text"),
    ),
    signs=(("<|tool_call|>", "available_tools"), ("available_tools", "<|start_of_role|>", "!</tool_call>")),
    closes=("</tool_call>", "<|/tool_call|>"),
    is_list=True,
)
GRANITE_20B_FC = JsonCalls(
    id="granite-20b-fc",
    marks=_marks("<function_call>", ""),
    signs=(("<function_call>", "tools"),),
    before=" ",
)
PHI4_MINI = JsonCalls(
    id="phi4-mini",
    marks=_marks(("<|tool_call|>", "functools"), "<|/tool_call|>"),
    signs=(("<|/tool_call|>",), ("<|/tool|>",), ("functools[", "<|end|>")),
    is_list=True,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FireFunction(JsonCalls):
    """FireFunction's template wants the tools as one text, and the date."""

    def template_inputs(self, tools: Sequence[ToolSpec]) -> Mapping[str, Any]:
        functions = [tool.to_openai()["function"] for tool in tools]
        return {
            "functions": json.dumps(functions, ensure_ascii=False, indent=4) if functions else "",
            "datetime": time.strftime("%b %d %Y %H:%M:%S GMT", time.gmtime()),
        }


FIREFUNCTION = FireFunction(
    id="firefunction-v2",
    marks=_marks(("functools", " functools"), ""),
    signs=(("functools[",),),
    is_list=True,
)
XLAM = JsonCalls(
    id="xlam",
    # Trained to write a bare list; other ways are read.
    marks=_marks(
        (),
        "",
        Mark("[TOOL_CALLS]", "call"),
        Mark("<tool_call>", "call"),
        Mark("```json", "maybe", "line"),
        Mark("```", "maybe", "line"),
    ),
    signs=(("xlam",), ("xLAM",)),
    closes=("</tool_call>", "[/TOOL_CALLS]"),
    is_bare=True,
    is_list=True,
)
INTERNLM2 = JsonCalls(
    id="internlm2",
    marks=_marks(("<|action_start|><|plugin|>", "<|action_start|> <|plugin|>"), "<|action_end|>"),
    signs=(("<|action_start|>",), ("<|plugin|>",)),
    vocabulary_sign="<|action_start|>",
    before="\n",
    arguments_key="parameters",
)
JAMBA = JsonCalls(
    id="jamba",
    marks=_marks("<tool_calls>", "</tool_calls>"),
    signs=(("<tool_calls>", "<|bom|>"), ("<tool_calls>[",)),
    is_list=True,
)
HUNYUAN_A13B = JsonCalls(
    id="hunyuan-a13b",
    marks=_marks(
        "<tool_calls>",
        "</tool_calls>",
        Mark("<answer>", "drop", "start", "text"),
        Mark("</answer>", "drop", "anywhere", "text"),
    ),
    signs=(
        ("<tool_calls>", "<answer>"),
        ("<tool_calls>", "<|startoftext|>"),
        ("<tool_calls>", "ns.tool_calls"),
    ),
    is_list=True,
)
NEMOTRON_V2 = JsonCalls(
    id="nemotron-v2",
    marks=replace(
        _marks("<TOOLCALL>", "</TOOLCALL>"), result_open="<TOOL_RESPONSE>", result_close="</TOOL_RESPONSE>"
    ),
    signs=(("<TOOLCALL>",),),
    is_list=True,
)
APERTUS = JsonCalls(
    id="apertus",
    marks=Marks(
        call_open=("<|tools_prefix|>",),
        call_close="<|tools_suffix|>",
        reasoning_open="<|inner_prefix|>",
        reasoning_close="<|inner_suffix|>",
    ),
    signs=(("<|tools_prefix|>",),),
    vocabulary_sign="<|tools_prefix|>",
    is_list=True,
    name_is_key=True,
)
APRIEL = JsonCalls(
    id="apriel",
    marks=Marks(
        call_open=("<tool_calls>",),
        call_close="</tool_calls>",
        between_calls="\n",
        reasoning_open="Here are my reasoning steps:\n",
        reasoning_close="[BEGIN FINAL RESPONSE]",
        more=(
            Mark("[END FINAL RESPONSE]", "drop", "anywhere", "text"),
            Mark("[BEGIN FINAL RESPONSE]", "drop", "anywhere", "text"),
            Mark("<thinking>", "reason", "start", "text"),
            Mark("</thinking>", "answer", "anywhere", "reasoning"),
        ),
    ),
    signs=(
        ("<tool_calls>[", "reasoning steps"),
        ("<tool_calls>[", "<thinking>"),
        ("<tool_calls>[", "<|begin_assistant|>"),
    ),
    is_list=True,
    id_key="id",
)
ERNIE = JsonCalls(
    id="ernie-4.5",
    marks=_marks(
        "<tool_call>",
        "</tool_call>",
        Mark("<response>", "drop", "start", "text"),
        Mark("</response>", "drop", "anywhere", "text"),
    ),
    signs=(("<tool_call>", "<response>"),),
    before="\n",
    after="\n",
)
MINIMAX_M1 = JsonCalls(
    id="minimax-m1",
    marks=_marks("<tool_calls>", "</tool_calls>"),
    signs=(("<tool_calls>", "<beginning_of_sentence>"),),
    before="\n",
    after="\n",
    item_separator="\n",
)
LONGCAT = JsonCalls(
    id="longcat",
    marks=Marks(
        call_open=("<longcat_tool_call>",),
        call_close="</longcat_tool_call>",
        between_calls="\n",
        reasoning_open="<longcat_think>",
        reasoning_close="</longcat_think>",
    ),
    signs=(("<longcat_tool_call>",),),
    before="\n",
    after="\n",
)
_GIGA_CALL = "<|message_sep|>\n\nfunction call<|role_sep|>\n"
GIGACHAT_3 = JsonCalls(
    id="gigachat3",
    marks=_marks((_GIGA_CALL, "<|function_call|>"), "", Mark("</s>", "drop")),
    signs=(("<|role_sep|>", "<|message_sep|>", "!<|function_call|>"),),
    needs_arguments=True,
)
GIGACHAT_31 = replace(
    GIGACHAT_3,
    id="gigachat3.1",
    marks=_marks(("<|function_call|>", _GIGA_CALL), "", Mark("</s>", "drop")),
    signs=(("<|function_call|>",),),
    vocabulary_sign="<|function_call|>",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CohereCalls(JsonCalls):
    """Command R7B counts its calls."""

    def call_id(self, index: int, name: str) -> str:
        return str(index)

    def id_pattern(self, name: str) -> str:
        return "[0-9]{1,3}"


COMMAND_R_PLUS = JsonCalls(
    id="command-r-plus",
    marks=_marks(
        "Action:\n```json\n",
        "```",
        Mark("Action: ```json\n", "call"),
        Mark("<|CHATBOT_TOKEN|>", "drop", "start", "text"),
        Mark("<|END_OF_TURN_TOKEN|>", "drop", "anywhere", "text"),
    ),
    signs=(("Action:", "```json", "tool_name"),),
    name_key="tool_name",
    arguments_key="parameters",
    after="\n",
    is_list=True,
)
COMMAND_R7B = CohereCalls(
    id="command-r7b",
    marks=Marks(
        call_open=("<|START_ACTION|>",),
        call_close="<|END_ACTION|>",
        reasoning_open="<|START_THINKING|>",
        reasoning_close="<|END_THINKING|>",
        more=(
            Mark("<|START_RESPONSE|>", "answer"),
            Mark("<|START_TEXT|>", "answer"),
            Mark("<|END_RESPONSE|>", "drop"),
            Mark("<|END_TEXT|>", "drop"),
            Mark("<|END_OF_TURN_TOKEN|>", "drop"),
        ),
    ),
    signs=(("<|START_ACTION|>",),),
    vocabulary_sign="<|START_ACTION|>",
    name_key="tool_name",
    arguments_key="parameters",
    is_list=True,
    brackets=("[\n    ", "\n]"),
    item_separator=",\n    ",
    id_key="tool_call_id",
    is_id_first=True,
)
BARE_JSON = JsonCalls(id="bare-json", marks=THINK, is_bare=True)
BARE_JSON_LIST = JsonCalls(
    id="bare-json-list", marks=THINK, is_bare=True, is_list=True, arguments_key="parameters"
)

ALL = (
    COMMAND_R7B,
    COMMAND_R_PLUS,
    APERTUS,
    APRIEL,
    GIGACHAT_31,
    GIGACHAT_3,
    LONGCAT,
    NEMOTRON_V2,
    HUNYUAN_A13B,
    JAMBA,
    MINIMAX_M1,
    INTERNLM2,
    PHI4_MINI,
    FIREFUNCTION,
    GRANITE_3,
    GRANITE_20B_FC,
    SMOLLM2,
    XLAM,
    ERNIE,
    BARE_JSON,
    BARE_JSON_LIST,
)
