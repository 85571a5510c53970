"""Token bytes to text: whole characters, nothing lost, however the bytes are cut."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edgellm.chat.utf8 import TextDecoder


def feed_all(pieces: list[bytes]) -> str:
    decoder = TextDecoder()
    return "".join([decoder.feed(piece) for piece in pieces]) + decoder.finish()


def test_character_split_over_tokens_is_shown_once_whole() -> None:
    decoder = TextDecoder()
    first, *rest = [bytes([byte]) for byte in "€".encode()]
    assert decoder.feed(first) == ""
    assert decoder.pending == first
    assert "".join(decoder.feed(piece) for piece in rest) == "€"
    assert decoder.finish() == ""


def test_broken_sequence_is_replaced_when_that_is_certain() -> None:
    decoder = TextDecoder()
    assert decoder.feed(b"\xf0\x9f") == ""
    assert decoder.feed(b"A") == "\ufffdA"
    assert decoder.feed(b"\xff") == "\ufffd"
    assert decoder.feed(b"\xc3") == ""
    assert decoder.finish() == "\ufffd"
    assert decoder.feed(b"\xa9") == "\ufffd"


@given(st.lists(st.binary(max_size=5), max_size=8))
def test_any_cut_of_any_bytes_gives_the_same_text(pieces: list[bytes]) -> None:
    assert feed_all(pieces) == b"".join(pieces).decode("utf-8", "replace")
