"""One small chat template for each wire format, in the way its family writes turns, calls and results.

Made from the format's own data, so that there is no second copy of a marker; the turns are ours.
"""

from __future__ import annotations

from edgellm.chat.formats import WireFormat
from edgellm.chat.formats.channels import Harmony, Inkling, MuseGlimmer
from edgellm.chat.formats.code_calls import BraceCalls, PythonCalls
from edgellm.chat.formats.json_calls import JsonCalls
from edgellm.chat.formats.named_calls import NamedCalls, RecipientCalls
from edgellm.chat.formats.nested_tags import KimiK3, MiniMaxM3
from edgellm.chat.formats.tagged import TaggedCalls

_TURNS = """\
{%%- macro plain(v) -%%}{{ v if v is string else v | tojson }}{%%- endmacro -%%}
{%%- if tools -%%}<|im_start|>system
You may call:
{%% for tool in tools %%}{{ tool.function | tojson }}
{%% endfor %%}<|im_end|>
{%% endif -%%}
{%%- for m in messages -%%}
{{- '<|im_start|>' + ('user' if m.role == 'tool' else m.role) + '\\n' -}}
{%%- if m.role == 'tool' -%%}{{ 'Result: ' + m.content }}
{%%- else -%%}{{ m.content }}{%%- endif -%%}
{%%- if m.tool_calls -%%}%s{%%- endif -%%}
{{- '<|im_end|>\\n' -}}
{%%- endfor -%%}
{%%- if add_generation_prompt -%%}{{ '<|im_start|>assistant\\n' }}{%%- endif -%%}
"""


def quoted(text: str) -> str:
    """A text as a Jinja string."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")
    return "{{- '" + escaped + "' -}}" if text else ""


def small_template(wire_format: WireFormat) -> str:
    """The template's source."""
    return _TURNS % _calls(wire_format)


def _loop(body: str, between: str = "") -> str:
    separator = "{%- if not loop.last -%}" + quoted(between) + "{%- endif -%}" if between else ""
    return "{%- for c in m.tool_calls -%}{%- set f = c.function -%}" + body + separator + "{%- endfor -%}"


def _json(wire_format: JsonCalls) -> str:
    w = wire_format
    if w.name_is_key:
        item = (
            quoted("{")
            + "{{- f.name | tojson -}}"
            + quoted(": ")
            + "{{- f.arguments | tojson -}}"
            + quoted("}")
        )
    else:
        first = quoted(f'"{w.id_key}": ') + "{{- c.id | tojson -}}" + quoted(", ") if w.is_id_first else ""
        last = quoted(f', "{w.id_key}": ') + "{{- c.id | tojson -}}" if w.id_key and not w.is_id_first else ""
        item = (
            quoted("{") + first + quoted(f'"{w.name_key}": ') + "{{- f.name | tojson -}}"
            + quoted(f', "{w.arguments_key}": ') + "{{- f.arguments | tojson -}}" + last + quoted("}")
        )  # fmt: skip
    opening, closing = quoted(_open(w) + w.before), quoted(w.after + w.marks.call_close)
    if w.is_list:
        return (
            opening + quoted(w.brackets[0]) + _loop(item, w.item_separator) + quoted(w.brackets[1]) + closing
        )
    return _loop(opening + item + closing, w.marks.between_calls)


def _open(wire_format: WireFormat) -> str:
    return wire_format.marks.call_open[0] if wire_format.marks.call_open else ""


def _tagged(w: TaggedCalls) -> str:
    key_end = quoted(w.key_end)
    if w.text_key_end:
        key_end = (
            "{%- if v is string -%}" + quoted(w.text_key_end) + "{%- else -%}" + key_end + "{%- endif -%}"
        )
    pair = quoted(w.argument) + "{{- k -}}" + key_end + "{{- plain(v) -}}" + quoted(w.value_end)
    if isinstance(w, KimiK3):
        kind = "{{- 'string' if v is string else 'number' -}}"
        pair = (
            quoted(w.argument) + "{{- k -}}" + quoted('" type="') + kind + quoted('"<|sep|>')
            + "{{- plain(v) -}}" + quoted(w.value_end)
        )  # fmt: skip
    if isinstance(w, MiniMaxM3):
        pair = quoted(w.argument) + "{{- k -}}" + quoted(">") + "{{- plain(v) -}}" + quoted(w.value_end)
        pair += "{{- k -}}" + quoted(">")
    pairs = "{%- for k, v in f.arguments.items() -%}" + pair + "{%- endfor -%}"
    call = quoted(w.head) + "{{- f.name -}}" + quoted(w.name_end) + pairs + quoted(w.call_end)
    mark = _open(w).removesuffix(w.head) if w.head else _open(w)
    opening, closing = quoted(mark + w.before), quoted(w.after + w.marks.call_close)
    if isinstance(w, MuseGlimmer):
        to = quoted(" to=") + "{{- f.name -}}" + quoted("<|message|>")
        return _loop(to + quoted(w.before) + call + closing)
    if w.sections:
        return opening + _loop(call, w.between) + closing
    return _loop(opening + call + closing, w.marks.between_calls)


def _named(w: NamedCalls) -> str:
    if isinstance(w, RecipientCalls):
        return _loop(quoted(w.head) + "{{- f.name -}}" + quoted(w.name_end) + "{{- f.arguments | tojson -}}")
    name = "{{- c.id -}}" if w.counts else quoted(w.prefix) + "{{- f.name -}}"
    before = "{{- c.id -}}" + quoted(w.id_end) if w.id_end else ""
    behind = quoted(w.id_after) + "{{- c.id -}}" if w.id_after else ""
    if w.kind:
        head = quoted(w.head + w.kind + w.name_end) + name + quoted("\n```json\n")
    else:
        head = quoted(w.head) + before + name + behind + quoted(w.name_end)
    call = head + "{{- f.arguments | tojson -}}" + quoted(w.call_end)
    mark = _open(w).removesuffix(w.head) if w.head else _open(w)
    opening, closing = quoted(mark + w.before), quoted(w.after + w.marks.call_close)
    if w.sections:
        return opening + _loop(call, w.between) + closing
    return _loop(opening + call + closing, w.marks.between_calls)


def _code(w: PythonCalls | BraceCalls) -> str:
    if isinstance(w, BraceCalls):
        delimiter = quoted(w.style.delimiter)
        value = (
            "{%- if v is string -%}"
            + delimiter
            + "{{- v -}}"
            + delimiter
            + "{%- else -%}{{- v | tojson -}}{%- endif -%}"
        )
        pair = "{{- k -}}" + quoted(":") + value + "{%- if not loop.last -%}" + quoted(",") + "{%- endif -%}"
        pairs = "{%- for k, v in f.arguments.items() -%}" + pair + "{%- endfor -%}"
        call = (
            quoted(_open(w) + w.head)
            + "{{- f.name -}}"
            + quoted("{")
            + pairs
            + quoted("}" + w.marks.call_close)
        )
        return _loop(call, w.marks.between_calls)
    pair = (
        "{{- k -}}"
        + quoted("=")
        + "{{- v | tojson -}}{%- if not loop.last -%}"
        + quoted(", ")
        + "{%- endif -%}"
    )
    pairs = "{%- for k, v in f.arguments.items() -%}" + pair + "{%- endfor -%}"
    call = "{{- f.name -}}" + quoted(w.name_suffix + "(") + pairs + quoted(")")
    opening = quoted(_open(w) + w.before + ("[" if w.is_list else ""))
    return (
        opening
        + _loop(call, w.item_separator)
        + quoted(("]" if w.is_list else "") + w.after + w.marks.call_close)
    )


def _calls(wire_format: WireFormat) -> str:
    if isinstance(wire_format, JsonCalls):
        return _json(wire_format)
    if isinstance(wire_format, TaggedCalls):
        return _tagged(wire_format)
    if isinstance(wire_format, NamedCalls):
        return _named(wire_format)
    if isinstance(wire_format, (PythonCalls, BraceCalls)):
        return _code(wire_format)
    if isinstance(wire_format, Harmony):
        call = (
            quoted("<|channel|>commentary to=functions.") + "{{- f.name -}}"
            + quoted(" <|constrain|>json<|message|>") + "{{- f.arguments | tojson -}}" + quoted("<|call|>")
        )  # fmt: skip
        return _loop(call)
    assert isinstance(wire_format, Inkling)
    call = (
        quoted(_open(wire_format) + '{"name": ') + "{{- f.name | tojson -}}" + quoted(', "args": ')
        + "{{- f.arguments | tojson -}}" + quoted("}" + wire_format.marks.call_close)
    )  # fmt: skip
    return _loop(call)
