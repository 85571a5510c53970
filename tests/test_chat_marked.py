"""Marked text: equal to plain text under every operation, and its origins are never lost to the other side."""

from __future__ import annotations

import copy
import itertools
import pickle

from hypothesis import given
from hypothesis import strategies as st

from edgellm.chat.marked import Marked, joined, mark, plain, runs_of, segments_of
from edgellm.types import Segment, SpanKind

OWN = st.text("AB \n%", max_size=6).map(lambda text: mark(text, SpanKind.GLUE, is_template=True))
CONTENT = st.text("ab \n%", max_size=6).map(lambda text: mark(text, SpanKind.USER))
MIXED = st.lists(st.one_of(OWN, CONTENT), max_size=6).map(joined)
SEPARATOR = st.sampled_from(["a", "A", " ", "\n", "ab", "b\n"])


def assert_origins(text: str) -> None:
    """Lower-case letters were content, upper-case ones the template's."""
    assert sum(length for length, _ in runs_of(text)) == len(text)
    at = 0
    for length, origin in runs_of(text):
        for char in plain(text)[at : at + length]:
            if char in "ab":
                assert not origin.is_template
            elif char in "AB":
                assert origin.is_template
        at += length


@given(MIXED, MIXED, SEPARATOR, st.integers(-8, 8), st.integers(-8, 8), st.sampled_from([1, 1, 2, -1, -3]))
def test_operations_equal_those_of_str_and_keep_origins(
    text: Marked, other: Marked, sep: str, start: int, stop: int, step: int
) -> None:
    raw, raw_other = plain(text), plain(other)
    pairs: list[tuple[object, object]] = [
        (text + other, raw + raw_other),
        (text[start:stop:step], raw[start:stop:step]),
        (text.strip(), raw.strip()),
        (text.lstrip(sep), raw.lstrip(sep)),
        (text.rstrip("\n"), raw.rstrip("\n")),
        (text.removeprefix(sep), raw.removeprefix(sep)),
        (text.removesuffix(sep), raw.removesuffix(sep)),
        (text.replace(sep, other), raw.replace(sep, raw_other)),
        (text.replace(sep, other, 1), raw.replace(sep, raw_other, 1)),
        (text * 3, raw * 3),
        (text.join([other, text, other]), raw.join([raw_other, raw, raw_other])),
        (text.split(sep), raw.split(sep)),
        (text.split(), raw.split()),
        (text.split(None, 1), raw.split(None, 1)),
        (text.rsplit(sep, 1), raw.rsplit(sep, 1)),
        (text.rsplit(None, 1), raw.rsplit(None, 1)),
        (text.splitlines(), raw.splitlines()),
        (text.splitlines(keepends=True), raw.splitlines(keepends=True)),
        (list(text.partition(sep)), list(raw.partition(sep))),
        (list(text.rpartition(sep)), list(raw.rpartition(sep))),
        (list(text), list(raw)),
    ]
    for ours, theirs in pairs:
        assert ours == theirs
        for piece in ours if isinstance(ours, list) else [ours]:
            assert isinstance(piece, str)
            assert_origins(piece)


@given(MIXED)
def test_single_characters_and_case_mapping(text: Marked) -> None:
    for index in range(-len(text), len(text)):
        assert text[index] == plain(text)[index]
        assert_origins(text[index])
    assert text.upper() == plain(text).upper()
    assert runs_of(text.upper()) == text.runs


@given(MIXED, MIXED)
def test_percent_formatting_keeps_origins(left: Marked, right: Marked) -> None:
    pattern = mark("A%sB%%A%s", SpanKind.GLUE, is_template=True)
    made = pattern % (left, right)
    assert made == f"A{plain(left)}B%A{plain(right)}"
    assert_origins(made)


@given(MIXED)
def test_segments_join_to_the_text_and_alternate(text: Marked) -> None:
    segments = segments_of(text)
    assert "".join(segment.text for segment in segments) == text
    assert all(type(segment.text) is str and segment.text for segment in segments)
    assert all((a.kind, a.is_template) != (b.kind, b.is_template) for a, b in itertools.pairwise(segments))


def test_text_without_marks_counts_as_content() -> None:
    assert segments_of("x") == (Segment("x", SpanKind.GLUE, False),)
    own = mark("A", SpanKind.GLUE, is_template=True)
    # A case mapping that changes the length cannot be traced, so the template loses its own text.
    sharp = mark("Aß", SpanKind.GLUE, is_template=True)
    assert segments_of(sharp.upper()) == (Segment("ASS", SpanKind.GLUE, False),)
    assert segments_of(own + "x")[1] == Segment("x", SpanKind.GLUE, False)


def test_marks_survive_copies_and_pickles() -> None:
    text = mark("a", SpanKind.USER) + mark("B", SpanKind.GLUE, is_template=True)
    for other in (copy.deepcopy(text), pickle.loads(pickle.dumps(text))):
        assert other == text
        assert runs_of(other) == runs_of(text)
