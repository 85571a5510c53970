"""A call and its result through chat templates: our own for every family, and real ones where a folder names them.

`EDGELLM_TEMPLATES` is a folder of `*.jinja` files (and folders of them): real models' templates are not ours to ship.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from family_templates import small_template

from edgellm.chat.formats import FORMATS, Generic, choose_format
from edgellm.chat.roundtrip import round_trip
from edgellm.chat.template import ChatTemplate

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
