"""Families whose calls are a name between marks, and JSON."""

from __future__ import annotations

from dataclasses import replace

from edgellm.chat.formats.interpreter import PYTHON_TAG
from edgellm.chat.formats.named_calls import (
    DeepSeekCalls,
    FunctionTags,
    KimiCalls,
    MistralCalls,
    NamedCalls,
    RecipientCalls,
)
from edgellm.chat.formats.wire import Mark, Marks

_THINK = Marks(reasoning_open="<think>", reasoning_close="</think>")
_MISTRAL = Marks(
    call_open=("[TOOL_CALLS]",),
    reasoning_open="[THINK]",
    reasoning_close="[/THINK]",
    result_open="[TOOL_RESULTS]",
    result_close="[/TOOL_RESULTS]",
    more=(Mark("[THINK]", "reason", "anywhere", "text"),),
)

MISTRAL_ARGS = NamedCalls(
    id="mistral-args",
    marks=_MISTRAL,
    signs=(("[TOOL_CALLS]", "[ARGS]", "![CALL_ID]"),),
    name_end="[ARGS]",
    has_arrays=True,
)
MISTRAL_CALLID = MistralCalls(
    id="mistral-callid",
    marks=_MISTRAL,
    signs=(("[TOOL_CALLS]", "[CALL_ID]"),),
    name_end="[ARGS]",
    name_ends=("[CALL_ID]", "[ARGS]"),
    id_after="[CALL_ID]",
    has_arrays=True,
)
FUNCTIONARY_31 = FunctionTags(
    id="functionary-v3.1",
    marks=Marks(call_open=("<function=",), more=(Mark(PYTHON_TAG, "maybe"),)),
    signs=(("<function=", "</function>", "!<tool_call>", "!<parameter="),),
    head="<function=",
    name_end=">",
    call_end="</function>",
)
FUNCTIONARY_32 = RecipientCalls(
    id="functionary-v3.2",
    marks=Marks(),
    signs=((">>>all", ">>>${recipient}"), (">>>${recipient}",)),
    head=">>>",
    name_end="\n",
    sections=True,
)
_SECTION = ("<｜tool▁calls▁begin｜>", "<|tool▁calls▁begin|>")
_CALL = ("<｜tool▁call▁begin｜>", "<|tool▁call▁begin|>")
_SEP = ("<｜tool▁sep｜>", "<|tool▁sep|>")
DEEPSEEK_V31 = DeepSeekCalls(
    id="deepseek-v3.1",
    marks=replace(
        _THINK,
        call_open=(*_SECTION, *_CALL),
        call_close="<｜tool▁calls▁end｜>",
        result_open="<｜tool▁output▁begin｜>",
        result_close="<｜tool▁output▁end｜>",
        more=(
            Mark("<|tool▁calls▁end|>", "drop"),
            Mark("<|end▁of▁sentence|>", "drop"),
            Mark("<｜tool▁calls▁end｜>", "drop"),
            Mark("<｜end▁of▁sentence｜>", "drop"),
            Mark("<｜tool▁outputs▁end｜>", "drop"),
            Mark("<｜tool▁output▁begin｜>", "drop"),
            Mark("<｜tool▁output▁end｜>", "drop"),
        ),
    ),
    signs=(("tool▁sep", "!```json"),),
    vocabulary_sign="<｜tool▁calls▁begin｜>",
    head=_CALL[0],
    heads=_CALL,
    name_end=_SEP[0],
    name_ends=_SEP,
    call_end="<｜tool▁call▁end｜>",
    call_ends=("<|tool▁call▁end|>",),
    results=("<｜tool▁outputs▁begin｜>", "<｜tool▁outputs▁end｜>"),
    sections=True,
    skips_junk=True,
)
DEEPSEEK_R1 = replace(
    DEEPSEEK_V31,
    id="deepseek-r1",
    signs=(("tool▁sep", "```json"),),
    vocabulary_sign="",
    kind="function",
    call_end="\n```<｜tool▁call▁end｜>",
    between="\n",
)
COGITO = replace(DEEPSEEK_R1, id="cogito", signs=(("Cogito", "tool▁sep"),))
KIMI_K2 = KimiCalls(
    id="kimi-k2",
    marks=replace(
        _THINK,
        call_open=("<|tool_calls_section_begin|>", "<|tool_call_begin|>"),
        call_close="<|tool_calls_section_end|>",
        more=(
            Mark("<|tool_calls_section_end|>", "drop"),
            Mark("<|tool_call_end|>", "drop"),
            Mark("<|tool_call_argument_begin|>", "drop"),
        ),
    ),
    signs=(("<|tool_calls_section_begin|>",), ("<|tool_call_begin|>",)),
    vocabulary_sign="<|tool_calls_section_begin|>",
    head="<|tool_call_begin|>",
    name_end="<|tool_call_argument_begin|>",
    prefix="functions.",
    call_end="<|tool_call_end|>",
    sections=True,
    skips_junk=True,
    counts=True,
)
SOLAR_OPEN = NamedCalls(
    id="solar-open",
    marks=Marks(
        call_open=("<|tool_calls|>",),
        call_close="<|calls|>",
        reasoning_open="<|think|>",
        reasoning_close="<|end|>",
        more=(Mark("<|content|>", "answer"), Mark("<|calls|>", "drop"), Mark("<|begin|>assistant", "drop")),
    ),
    signs=(("<|tool_call:begin|>",),),
    head="<|tool_call:begin|>",
    id_end="<|tool_call:name|>",
    name_end="<|tool_call:args|>",
    call_end="<|tool_call:end|>",
    sections=True,
)
_ARGUMENTS = ("<|plamo:begin_tool_arguments:plamo|>", "<|plamo:constrain|>json", "<|plamo:msg|>")
_REQUEST, _NAME = "<|plamo:begin_tool_request:plamo|>", "<|plamo:begin_tool_name:plamo|>"
PLAMO3 = NamedCalls(
    id="plamo3",
    marks=Marks(
        call_open=("<|plamo:begin_tool_requests:plamo|>", _REQUEST),
        call_close="<|plamo:end_tool_requests:plamo|>",
        reasoning_open="<|plamo:begin_think:plamo|>",
        reasoning_close="<|plamo:end_think:plamo|>",
        more=(Mark("<|plamo:tag|>", "drop"),),
    ),
    signs=(("plamo:", "tool_request"),),
    vocabulary_sign="<|plamo:begin_",
    head=_REQUEST + _NAME,
    heads=(_REQUEST, _NAME),
    name_end="<|plamo:end_tool_name:plamo|>" + "".join(_ARGUMENTS),
    name_ends=("<|plamo:end_tool_name:plamo|>",),
    argument_marks=_ARGUMENTS,
    call_end="<|plamo:end_tool_arguments:plamo|><|plamo:end_tool_request:plamo|>",
    call_ends=("<|plamo:end_tool_arguments:plamo|>", "<|plamo:end_tool_request:plamo|>"),
    sections=True,
    skips_junk=True,
)

ALL = (
    PLAMO3,
    MISTRAL_CALLID,
    MISTRAL_ARGS,
    FUNCTIONARY_32,
    KIMI_K2,
    SOLAR_OPEN,
    COGITO,
    DEEPSEEK_R1,
    DEEPSEEK_V31,
    FUNCTIONARY_31,
)
