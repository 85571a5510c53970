"""Tape against full render: the three verdicts."""

from __future__ import annotations

from collections.abc import Sequence

from edgellm.chat.exactness import compare
from edgellm.types import SpanKind


def text_of(tokens: Sequence[int]) -> bytes:
    # Token 300 is the bytes of 97 and 98 in one.
    return b"".join(b"ab" if token == 300 else bytes([token]) for token in tokens)


def verdict(tape: bytes, rendered: bytes, kind: SpanKind = SpanKind.TEXT) -> str:
    return str(compare(list(tape), [kind] * len(tape), list(rendered), text_of))


def test_same_tokens_are_exact() -> None:
    assert verdict(b"abc", b"abc") == "exact"


def test_same_text_is_equivalent() -> None:
    kinds = [SpanKind.TEXT] * 2
    result = compare([300, 99], kinds, list(b"abc"), text_of)
    assert (result.verdict, result.position) == ("equivalent", 0)
    assert verdict(b'{"a": 1}', b'{"a":1}') == "equivalent (the same but for white space)"


def test_difference_names_place_and_owner() -> None:
    assert (
        verdict(b"abXcd", b"abYcd", SpanKind.TOOL_CALL)
        == "diverges at token 2 because in a call as the model wrote it the tape has 'Xcd' and the template 'Ycd'"
    )
    assert "drops or moves earlier reasoning" in verdict(b"ab<think>", b"abcd", SpanKind.REASONING)
    assert "the tape's end" in verdict(b"ab", b"abc")
