"""A call and its result through chat templates: our own for every family, and real ones where a folder names them.

`EDGELLM_TEMPLATES` is a folder of `*.jinja` files (and folders of them): real models' templates are not ours to ship.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from family_templates import small_template

from edgellm.chat.formats import FORMATS, Generic, choose_format
from edgellm.chat.reference import table, written
from edgellm.chat.roundtrip import next_turn, round_trip
from edgellm.chat.template import ChatTemplate
from edgellm.errors import TemplateError
from edgellm.types import Message, ToolCall, ToolSpec

OWN = {name: wire_format for name, wire_format in FORMATS.items() if wire_format.template_takes_tools}


@pytest.mark.parametrize("name", OWN)
def test_call_goes_round_and_the_tape_is_what_the_template_says(name: str) -> None:
    template = ChatTemplate(small_template(OWN[name]), is_guarded=False)
    trip = round_trip(template, OWN[name])
    assert trip.fault == ""
    assert trip.is_read
    assert trip.exactness is not None
    assert trip.exactness.verdict in ("exact", "equivalent"), str(trip.exactness)
    assert "Snow, -3 degrees." in trip.suffix


def test_generic_needs_no_template_that_knows_tools() -> None:
    turns = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    source = turns + "{% if add_generation_prompt %}[assistant]{% endif %}"
    trip = round_trip(ChatTemplate(source, is_guarded=False), Generic())
    assert (trip.is_read, str(trip.exactness)) == (True, "exact")


def real_templates() -> list[Path]:
    folder = os.environ.get("EDGELLM_TEMPLATES", "")
    return sorted(Path(folder).rglob("*.jinja")) if folder else []


@pytest.mark.skipif(not real_templates(), reason="EDGELLM_TEMPLATES names no folder with *.jinja files")
def test_real_templates() -> None:
    """Each one that knows tools is recognised, its call is read back, and what is appended continues it."""
    failed: list[str] = []
    for path in real_templates():
        source = path.read_text("utf-8")
        wire_format = choose_format(source)
        trip = round_trip(
            ChatTemplate(source, bos_text="<s>", eos_text="</s>", is_guarded=False), wire_format
        )
        if trip.fault or not trip.is_read or "Snow" not in trip.suffix:
            failed.append(f"{path.stem} ({wire_format.id}): {trip.fault or trip.suffix!r}")
    # A template that refuses tool results altogether cannot be continued by anybody.
    assert len(failed) <= len(real_templates()) // 30, failed


@pytest.mark.skipif(not real_templates(), reason="EDGELLM_TEMPLATES names no folder with *.jinja files")
def test_table_of_templates_is_current() -> None:
    assert written() == table(Path(os.environ["EDGELLM_TEMPLATES"]))


DATE = re.compile(r"星期.|\d{4}-\d\d-\d\d|\d\d [A-Z][a-z]{2} \d{4}|\d\d:\d\d:\d\d")
PARTS = re.compile(r"^===== (\w).*?=====\n(.*?)(?=^===== \w |\Z)", re.DOTALL | re.MULTILINE)


def golden_conversations() -> dict[str, tuple[Sequence[Message], Sequence[ToolSpec]]]:
    city = {"type": "string", "description": "City name"}
    tools = (
        ToolSpec(
            "get_weather",
            "Get the weather",
            {
                "type": "object",
                "properties": {"city": city, "days": {"type": "integer"}},
                "required": ["city"],
            },
        ),
        ToolSpec(
            "get_time",
            "Get the time",
            {"type": "object", "properties": {"tz": {"type": "string"}}, "required": []},
        ),
    )
    first = ToolCall("call00001", "get_weather", {"city": "Paris", "days": 2})
    second = ToolCall("call00002", "get_time", {"tz": "UTC"})
    said = (Message("system", "SYS"), Message("user", "USER1"))
    results = (
        Message("tool", '{"temp": 20}', tool_call_id=first.id, name=first.name),
        Message("tool", "12:00", tool_call_id=second.id, name=second.name),
    )
    return {
        "A": (said, ()),
        "B": (said, tools),
        "C": ((*said, Message("assistant", "", tool_calls=(first,)), results[0]), tools),
        "D": ((*said, Message("assistant", "", tool_calls=(first, second)), *results), tools),
    }


@pytest.mark.skipif(not real_templates(), reason="EDGELLM_TEMPLATES names no folder with *.jinja files")
def test_renders_are_those_of_plain_jinja() -> None:
    """Compared with recorded renders (`renders/NAME.txt`), dates aside, wherever there is something to compare with."""
    compared, differ = 0, list[str]()
    for path in real_templates():
        recorded = path.parent / "renders" / f"{path.stem}.txt"
        if not recorded.is_file():
            recorded = path.parent.parent / "renders" / recorded.name
        if not recorded.is_file():
            continue
        source = path.read_text("utf-8")
        template = ChatTemplate(source, bos_text="<BOS>", eos_text="<EOS>", is_guarded=False)
        wire_format = choose_format(source)
        parts: dict[str, str] = dict(PARTS.findall(recorded.read_text("utf-8")))
        for name, (messages, tools) in golden_conversations().items():
            golden = DATE.sub("DATE", parts.get(name, "").rstrip())
            # Nothing recorded, or that plain jinja fails, drops the system turn, or escapes JSON as HTML.
            if (
                not golden
                or re.match(r"\w+Error\(", golden)
                or not re.search(r"\bSYS\b", golden)
                or "&#34;" in golden
            ):
                continue
            inputs = wire_format.template_inputs(tools) if tools else {}
            try:
                segments = template.render(messages, tools=tools, **inputs)
            except TemplateError as error:
                differ.append(f"{path.stem} {name}: {error.message}")
                continue
            compared += 1
            if DATE.sub("DATE", "".join(segment.text for segment in segments).rstrip()) != golden:
                differ.append(f"{path.stem} {name}")
    assert not differ
    assert compared == 0 or compared > 2 * len(real_templates())


TURNS = (
    "{% for m in messages %}[{{ m.role }}]{% if m.reasoning_content and KEEPS %}<think>{{ m.reasoning_content }}"
    "</think>\n\n{% endif %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)


@pytest.mark.parametrize(
    ("source", "policy"),
    [
        (TURNS.replace("KEEPS", "true"), "keep"),
        (TURNS.replace("KEEPS", "loop.last"), "excise"),
        (
            TURNS.replace("KEEPS", "false").replace(
                "[assistant]{% endif %}", "[assistant]<think>{% endif %}"
            ),
            "render",
        ),
    ],
    ids=["kept by the template", "dropped by it", "opened by the prompt and dropped"],
)
def test_policy_that_is_exact(source: str, policy: str) -> None:
    thinking = replace(FORMATS["hermes"], is_thinking=True)
    assert next_turn(ChatTemplate(source, is_guarded=False), thinking).exact == policy
