"""Families whose calls are tags with tagged arguments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from edgellm.chat.formats.tagged import TaggedCalls
from edgellm.chat.formats.wire import CallReader, Mark, Marks
from edgellm.types import ToolSpec

_THINK = Marks(reasoning_open="<think>", reasoning_close="</think>")
_RESPONSE = {"result_open": "<tool_response>", "result_close": "</tool_response>"}


def _marks(opening: str | tuple[str, ...], close: str, *more: Mark, between: str = "\n") -> Marks:
    opens = (opening,) if isinstance(opening, str) else opening
    return replace(_THINK, call_open=opens, call_close=close, between_calls=between, more=more)


QWEN3_CODER = TaggedCalls(
    id="qwen3-coder",
    marks=replace(_marks(("<tool_call>", "<function="), "</tool_call>"), **_RESPONSE),
    signs=(("<tool_call>", "<function=", "<parameter=", "!'<tool_call><function=' ~"),),
    before="\n",
    head="<function=",
    name_end=">\n",
    argument="<parameter=",
    key_end=">\n",
    value_end="\n</parameter>\n",
    call_end="</function>",
    after="\n",
    pads=True,
)
MIMO_V2 = replace(
    QWEN3_CODER,
    id="mimo-v2",
    marks=replace(QWEN3_CODER.marks, between_calls=""),
    signs=(("<tool_call>", "<function=", "<parameter="),),
    before="",
    name_end=">",
    key_end=">",
    value_end="</parameter>",
    after="",
    pads=False,
)
SEED_OSS = replace(
    QWEN3_CODER,
    id="seed-oss",
    marks=Marks(
        call_open=("<seed:tool_call>",),
        call_close="</seed:tool_call>",
        between_calls="\n",
        reasoning_open="<seed:think>",
        reasoning_close="</seed:think>",
    ),
    signs=(("<seed:tool_call>",),),
    vocabulary_sign="<seed:tool_call>",
    key_end=">",
    value_end="</parameter>\n",
    pads=False,
)
GLM_45 = TaggedCalls(
    id="glm-4.5",
    # The last one ends a turn of Ling 3, which shares the syntax.
    marks=replace(
        _marks("<tool_call>", "</tool_call>", Mark("<|role_end|>", "drop", "anywhere", "text")), **_RESPONSE
    ),
    signs=(("<tool_call>", "<arg_key>", "\\n<arg_value>"), ("<tool_call>", "<arg_key>", "</arg_key>\n")),
    name_end="\n",
    argument="<arg_key>",
    key_end="</arg_key>\n<arg_value>",
    value_end="</arg_value>\n",
    is_lenient=True,
    unquotes=True,
    may_hold_json=True,
    takes_only_offered=True,
)
GLM_47 = replace(
    GLM_45,
    id="glm-4.7",
    marks=replace(GLM_45.marks, between_calls=""),
    signs=(("<tool_call>", "<arg_key>"),),
    name_end="",
    key_end="</arg_key><arg_value>",
    value_end="</arg_value>",
)
LAGUNA = replace(
    GLM_45,
    id="poolside-laguna",
    marks=replace(GLM_45.marks, more=(Mark("</assistant>", "drop", "anywhere", "text"),)),
    signs=(("<tool_call>", "<arg_key>", "</assistant>"),),
    alias=("<user>", "</user>"),
    joins_repeats=True,
)
_OPEN_WEIGHTS = ":opensource>"


@dataclass(frozen=True, slots=True, kw_only=True)
class Hunyuan(TaggedCalls):
    """Hy3: its open weights write every tag with a suffix. Both spellings are read, by the opening mark."""

    def reader(self, tools: Sequence[ToolSpec] = (), mark: str = "") -> CallReader:
        spelled = HUNYUAN_OPEN if mark.endswith(_OPEN_WEIGHTS) else HUNYUAN
        return TaggedCalls.reader(spelled, tools, mark)


HUNYUAN = Hunyuan(
    id="hunyuan",
    marks=Marks(
        call_open=("<tool_calls>", "<tool_calls:opensource>"),
        call_close="</tool_calls>",
        reasoning_open="<think>",
        reasoning_close="</think>",
        more=(
            Mark("<think:opensource>", "reason", "start", "text"),
            Mark("</think:opensource>", "answer", "anywhere", "reasoning"),
        ),
    ),
    signs=(("<tool_sep",),),
    before="\n",
    head="<tool_call>",
    name_end="<tool_sep>\n",
    argument="<arg_key>",
    key_end="</arg_key>\n<arg_value>",
    value_end="</arg_value>\n",
    call_end="</tool_call>",
    between="\n",
    after="\n",
    sections=True,
    takes_only_offered=True,
)
HUNYUAN_OPEN = replace(
    HUNYUAN,
    marks=Marks(
        call_open=("<tool_calls:opensource>", "<tool_calls>"),
        call_close="</tool_calls:opensource>",
        reasoning_open="<think:opensource>",
        reasoning_close="</think:opensource>",
        more=(
            Mark("<think>", "reason", "start", "text"),
            Mark("</think>", "answer", "anywhere", "reasoning"),
        ),
    ),
    signs=(("<tool_sep", ":opensource"),),
    head="<tool_call:opensource>",
    name_end="<tool_sep:opensource>\n",
    argument="<arg_key:opensource>",
    key_end="</arg_key:opensource>\n<arg_value:opensource>",
    value_end="</arg_value:opensource>\n",
    call_end="</tool_call:opensource>",
)
MINIMAX_M2 = TaggedCalls(
    id="minimax-m2",
    marks=_marks("<minimax:tool_call>", "</minimax:tool_call>"),
    signs=(("<minimax:tool_call>",),),
    vocabulary_sign="<minimax:tool_call>",
    before="\n",
    head='<invoke name="',
    name_end='">\n',
    argument='<parameter name="',
    key_end='">',
    value_end="</parameter>\n",
    call_end="</invoke>",
    between="\n",
    after="\n",
    sections=True,
)
_BAR = "｜DSML｜"
DEEPSEEK_DSML = TaggedCalls(
    id="deepseek-dsml",
    marks=_marks(
        (f"<{_BAR}tool_calls>", f"<{_BAR}function_calls>", f'<{_BAR}invoke name="'),
        f"</{_BAR}tool_calls>",
        Mark(f"</{_BAR}function_calls>", "drop"),
    ),
    signs=(("DSML", "tool_calls"), ("DSML", "function_calls")),
    before="\n",
    head=f'<{_BAR}invoke name="',
    name_end='">\n',
    argument=f'<{_BAR}parameter name="',
    key_end='" string="false">',
    text_key_end='" string="true">',
    value_end=f"</{_BAR}parameter>\n",
    call_end=f"</{_BAR}invoke>",
    between="\n",
    after="\n",
    sections=True,
    self_close='"/>',
)
DEEPSEEK_DSML_32 = replace(
    DEEPSEEK_DSML,
    marks=replace(
        DEEPSEEK_DSML.marks,
        call_open=(f"<{_BAR}function_calls>", f"<{_BAR}tool_calls>", f'<{_BAR}invoke name="'),
        call_close=f"</{_BAR}function_calls>",
        more=(Mark(f"</{_BAR}tool_calls>", "drop"),),
    ),
    signs=(("DSML", "function_calls>", "!tool_calls>"),),
)
STEP3 = TaggedCalls(
    id="step3",
    marks=_marks(
        ("<｜tool_calls_begin｜>",),
        "<｜tool_calls_end｜>",
    ),
    signs=(("<steptml:invoke",),),
    head='<｜tool_call_begin｜>function<｜tool_sep｜><steptml:invoke name="',
    core='<steptml:invoke name="',
    name_end='">',
    argument='<steptml:parameter name="',
    key_end='">',
    value_end="</steptml:parameter>",
    call_end="</steptml:invoke><｜tool_call_end｜>",
    sections=True,
)
MINICPM5 = TaggedCalls(
    id="minicpm5",
    marks=_marks('<function name="', ""),
    signs=(("<function name=", "<param name="),),
    head='<function name="',
    name_end='">',
    argument='<param name="',
    key_end='">',
    value_end="</param>",
    call_end="</function>",
    cdata=True,
    is_strict=True,
    takes_only_offered=True,
    # A tag of the same shape stands in source code too.
    broken_is_text=True,
)
DOTS = replace(
    MINIMAX_M2,
    id="dots",
    marks=_marks("<dots_function_call>", "</dots_function_call>"),
    signs=(("<dots_function_call>",),),
    vocabulary_sign="",
    may_hold_json=True,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class K2Horizon(TaggedCalls):
    """K2 Horizon has marks of reasoning for each of three efforts; those of `marks` are for the highest."""

    def _efforts(self) -> tuple[tuple[str, str], ...]:
        opens, closes = self.marks.reasoning_open, self.marks.reasoning_close
        return tuple(
            (f"{opens[:-1]}{effort}>", f"{closes[:-1]}{effort}>") for effort in ("", "_fast", "_faster")
        )

    def scan_marks(self) -> tuple[Mark, ...]:
        found = list(TaggedCalls.scan_marks(self))
        for opens, closes in self._efforts()[1:]:
            if self.is_thinking:
                found.append(Mark(opens, "reason", "start", "text"))
                found.append(Mark(opens, "drop", "start", "reasoning"))
            found.append(Mark(closes, "answer", "anywhere", "reasoning"))
        return tuple(found)

    def opens_reasoning(self, prefix: str) -> bool:
        return any(prefix.rfind(opens) > prefix.rfind(closes) for opens, closes in self._efforts())


K2_HORIZON = K2Horizon(
    id="k2-horizon",
    marks=Marks(
        call_open=("<ifm|tool_calls>", "<ifm|tool_call>"),
        call_close="</ifm|tool_calls>",
        reasoning_open="<ifm|think>",
        reasoning_close="</ifm|think>",
    ),
    signs=(("<ifm|tool_call",),),
    vocabulary_sign="<ifm|tool_calls>",
    before="\n",
    head="<ifm|tool_call>",
    name_end="\n",
    argument="<ifm|arg_key>",
    key_end="</ifm|arg_key>\n<ifm|arg_value>",
    value_end="</ifm|arg_value>\n",
    kind_marks=("<ifm|arg_type>", "</ifm|arg_type>"),
    call_end="</ifm|tool_call>",
    between="\n",
    after="\n",
    sections=True,
    may_hold_json=True,
    takes_only_offered=True,
)

# The same formats as some templates spell them.
VARIANTS = (DEEPSEEK_DSML_32, HUNYUAN_OPEN)
ALL = (
    DOTS,
    K2_HORIZON,
    MINICPM5,
    SEED_OSS,
    HUNYUAN,
    LAGUNA,
    GLM_45,
    GLM_47,
    MINIMAX_M2,
    DEEPSEEK_DSML,
    STEP3,
    QWEN3_CODER,
    MIMO_V2,
)
