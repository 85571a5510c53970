"""Formats read off templates whose text tells nothing: the signs are not looked at here."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from family_templates import small_template

from edgellm.chat.formats import FORMATS, WireFormat, choose_format
from edgellm.chat.formats.differential import derive_format
from edgellm.chat.formats.json_calls import JsonCalls
from edgellm.chat.formats.named_calls import KimiCalls, NamedCalls, RecipientCalls
from edgellm.chat.formats.nested_tags import KimiK3, MiniMaxM3
from edgellm.chat.formats.tagged import TaggedCalls
from edgellm.chat.roundtrip import round_trip
from edgellm.chat.template import ChatTemplate

SHAPES = (JsonCalls, NamedCalls, TaggedCalls)
# Nested tags, names that are keys, ids in place of names, recipients: none of the three shapes.
OTHERS = (MiniMaxM3, KimiK3, KimiCalls, RecipientCalls)

# Ids in the object, or types in the tags, are read over but not written.
SAYS_MORE = ("deepseek-dsml", "apriel", "mistral-array")


def has_shape(wire_format: WireFormat) -> bool:
    return isinstance(wire_format, SHAPES) and not isinstance(wire_format, OTHERS)


KNOWN = [
    name
    for name, wire_format in FORMATS.items()
    if has_shape(wire_format)
    and wire_format.template_takes_tools
    and name not in ("apertus", "muse-glimmer", "mistral-callid", "solar-open", "command-r7b")
]


@pytest.mark.parametrize("name", KNOWN)
def test_format_is_read_off_its_template(name: str) -> None:
    template = ChatTemplate(small_template(FORMATS[name]), is_guarded=False)
    derived = derive_format(template.text)
    assert derived is not None
    trip = round_trip(template, derived)
    assert trip.is_read, trip.call
    assert trip.exactness is not None
    if name not in SAYS_MORE:
        assert trip.exactness.verdict in ("exact", "equivalent"), str(trip.exactness)


def test_unknown_marks_are_found() -> None:
    source = small_template(FORMATS["hermes"]).replace("tool_call>", "my_own_call>")
    template = ChatTemplate(source, is_guarded=False)
    chosen = choose_format(source, render=template.text)
    assert chosen.marks.call_open == ("<my_own_call>",)
    assert "rendering its template" in chosen.reason
    assert round_trip(template, chosen).is_read


def test_template_that_writes_no_calls_gives_nothing() -> None:
    source = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{{ tools }}"
    assert derive_format(ChatTemplate(source, is_guarded=False).text) is None


FOLDER = os.environ.get("EDGELLM_TEMPLATES", "")


@pytest.mark.skipif(not FOLDER, reason="EDGELLM_TEMPLATES names no folder with *.jinja files")
def test_real_templates_of_the_three_shapes() -> None:
    total = read = 0
    for path in sorted(Path(FOLDER).rglob("*.jinja")):
        source = path.read_text("utf-8")
        if not has_shape(choose_format(source)) or choose_format(source).id == "generic":
            continue
        total += 1
        template = ChatTemplate(source, bos_text="<s>", eos_text="</s>", is_guarded=False)
        derived = derive_format(template.text)
        read += derived is not None and round_trip(template, derived).is_read
    assert read >= 0.75 * total, f"{read} of {total}"


def test_tagged_arguments_without_any_mark_are_no_format() -> None:
    source = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% for c in m.tool_calls %}{{ c.function.name }}"
        "{% for key, value in c.function.arguments.items() %}<key>{{ key }}</key>{{ value }}</value>\n{% endfor %}"
        "{% endfor %}{% endfor %}{{ tools }}"
    )
    derived = derive_format(ChatTemplate(source, is_guarded=False).text)
    assert derived is None
