"""Written outputs of every family, read as they should be, and the same however they are cut."""

from __future__ import annotations

import itertools
import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from format_laws import merged, read

import edgellm
from edgellm.chat.formats import FORMATS, WireFormat
from edgellm.chat.parser import OutputParser
from edgellm.chat.utf8 import TextDecoder
from edgellm.events import Event
from edgellm.types import ToolSpec

CORPUS = Path(__file__).parent / "data" / "corpus"
OPENAI_TOOLS: list[dict[str, Any]] = json.loads((CORPUS / "tools.json").read_text("utf-8"))
TOOLS = tuple(ToolSpec(tool["function"]["name"], "", tool["function"]["parameters"]) for tool in OPENAI_TOOLS)
CASES = {
    path.stem: [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    for path in sorted(CORPUS.glob("*.jsonl"))
}


def test_every_family_is_there() -> None:
    assert CASES.keys() == FORMATS.keys()
    assert sum(map(len, CASES.values())) >= 300
    assert all(len(cases) >= 6 for cases in CASES.values())


def thinking(name: str) -> WireFormat:
    return replace(FORMATS[name], is_thinking=True)


def in_bytes(wire_format: WireFormat, pieces: list[bytes]) -> list[Event]:
    """Events of output that is cut between bytes, as tokens cut it."""
    parser, decoder = OutputParser(wire_format, tools=TOOLS), TextDecoder()
    events: list[Event] = []
    for piece in pieces:
        events += parser.feed(decoder.feed(piece))
    return merged(events + parser.feed(decoder.finish()) + parser.finish())


@pytest.mark.parametrize("name", CASES)
def test_outputs_are_read_as_they_should(name: str) -> None:
    for case in CASES[name]:
        parsed = edgellm.parse(case["output"], format=name, tools=OPENAI_TOOLS)
        assert " ".join(parsed.content.split()) == " ".join(case["content"].split()), case["name"]
        assert " ".join(parsed.reasoning.split()) == " ".join(case["reasoning"].split()), case["name"]
        calls = [{"name": call.name, "arguments": call.arguments} for call in parsed.calls]
        assert calls == case["calls"], case["name"]


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_any_cut_gives_the_same_events(name: str) -> None:
    wire_format = thinking(name)
    chance = random.Random(name)
    for case in CASES[name]:
        output = case["output"]
        parser, whole = read(wire_format, [output], tools=TOOLS)
        assert "".join(piece.text for piece in parser.pieces) == output
        raw = output.encode()
        for at in range(1, len(raw)):
            assert in_bytes(wire_format, [raw[:at], raw[at:]]) == whole, (case["name"], at)
        assert in_bytes(wire_format, [bytes([byte]) for byte in raw]) == whole
        for _ in range(5):
            places = sorted({0, len(raw), *(chance.randrange(len(raw)) for _ in range(8))})
            assert in_bytes(wire_format, [raw[a:b] for a, b in itertools.pairwise(places)]) == whole


@pytest.mark.model
def test_tokens_give_the_same_events(smollm2_path: Path) -> None:
    with edgellm.read_vocabulary(smollm2_path) as vocabulary:
        for name, cases in CASES.items():
            wire_format = thinking(name)
            for case in cases:
                tokens = vocabulary.tokenize(case["output"])
                pieces = [vocabulary.piece(token) for token in tokens]
                assert b"".join(pieces).decode() == case["output"]
                whole = read(wire_format, [case["output"]], tools=TOOLS)[1]
                assert in_bytes(wire_format, pieces) == whole, (name, case["name"])
