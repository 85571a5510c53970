"""What tests of wire formats share: feeding in pieces, joining deltas, asking a grammar."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from edgellm.chat.formats import WireFormat
from edgellm.chat.parser import OutputParser
from edgellm.events import Event, ReasoningDelta, TextDelta, ToolCallDelta


def merged(events: Sequence[Event]) -> list[Event]:
    """The events with neighbouring deltas joined."""
    out: list[Event] = []
    for event in events:
        last = out[-1] if out else None
        if isinstance(event, TextDelta) and isinstance(last, TextDelta):
            out[-1] = TextDelta(last.text + event.text)
        elif isinstance(event, ReasoningDelta) and isinstance(last, ReasoningDelta):
            out[-1] = ReasoningDelta(last.text + event.text)
        elif (
            isinstance(event, ToolCallDelta) and isinstance(last, ToolCallDelta) and last.index == event.index
        ):
            out[-1] = ToolCallDelta(last.index, last.fragment + event.fragment)
        else:
            out.append(event)
    return out


def read(wire_format: WireFormat, pieces: Sequence[str], **options: Any) -> tuple[OutputParser, list[Event]]:
    """The parser after these pieces, and its events."""
    parser = OutputParser(wire_format, **options)
    events: list[Event] = []
    for piece in pieces:
        events += parser.feed(piece)
    return parser, merged(events + parser.finish())


def cuts(text: str, seed: int = 0) -> Iterator[list[str]]:
    """The text whole, cut in two at every place, cut into single characters, and in threes from `seed` on."""
    yield [text]
    for at in range(1, len(text)):
        yield [text[:at], text[at:]]
    yield list(text)
    places = sorted({0, *range(1 + seed % 3, len(text), 3), len(text)})
    yield [text[a:b] for a, b in itertools.pairwise(places)]


def consumed(grammar: str, text: str) -> tuple[int, bool]:
    """How many bytes of `text` the grammar takes, and whether it may end there."""
    llguidance = pytest.importorskip("llguidance")
    matcher = llguidance.LLMatcher(llguidance.LLTokenizer("byte"), grammar)
    assert not matcher.is_error(), matcher.get_error()
    return matcher.try_consume_tokens(list(text.encode())), matcher.is_accepting()
