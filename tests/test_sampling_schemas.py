"""Schemas under llguidance: what it writes is valid for every reader, and what it cannot enforce is said."""

from __future__ import annotations

import json
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from edgellm.sampling.constraint import Constraint
from edgellm.sampling.schema_pattern import portable_pattern
from edgellm.sampling.schema_relax import relax, relax_lark
from edgellm.testing import ByteVocabulary

TOKENIZER = ByteVocabulary().grammar_tokenizer()


def accepts(schema: dict[str, Any], texts: list[str]) -> list[str]:
    """Those of some JSON texts that the grammar of a schema takes."""
    constraint = Constraint.from_json_schema(TOKENIZER, {"type": "array", "items": schema})
    found: list[str] = []
    for text in texts:
        constraint.reset()
        written = f"[{text}]".encode()
        if constraint.try_consume(written) == len(written) and constraint.is_accepting:
            found.append(text)
    return found


NUMBERS = [
    "0",
    "1",
    "-1",
    "0.25",
    "0.5",
    "0.50",
    "-0.5",
    "-0.75",
    "1.25",
    "10",
    "10.1",
    "0.000001",
    "-1.0",
    "2",
]


@pytest.mark.parametrize(
    ("bounds", "valid"),
    [
        ({"exclusiveMinimum": 0, "exclusiveMaximum": 0.5}, ["0.25", "0.000001"]),
        ({"exclusiveMinimum": 0, "maximum": 0.5}, ["0.25", "0.5", "0.000001"]),
        ({"exclusiveMinimum": 1, "maximum": 1.25}, ["1.25"]),
        ({"minimum": -1.5, "exclusiveMaximum": -1}, []),
        ({"minimum": -1, "exclusiveMaximum": -0.25}, ["-1", "-0.5", "-0.75"]),
        ({"exclusiveMinimum": 10, "exclusiveMaximum": 10.25}, ["10.1"]),
        ({"exclusiveMinimum": 0}, ["1", "0.25", "0.5", "1.25", "10", "10.1", "0.000001", "2"]),
    ],
)
def test_exclusive_bounds_leave_the_bound_itself_out(bounds: dict[str, float], valid: list[str]) -> None:
    schema = {"type": "number", **bounds}
    validator = Draft202012Validator(schema)
    taken = accepts(schema, NUMBERS)
    assert [text for text in taken if not validator.is_valid(json.loads(text))] == []
    assert set(valid) <= set(taken)


STRINGS = [
    '"',
    "\\",
    "a",
    "b-",
    "]",
    'a"c',
    "a\\c",
    '"x"',
    '"x"y"',
    "é",
    "日",
    "٣",
    "_",
    " ",
    "\n",
    "\x1c",
    "a,b",
    "7",
    "-",
]


@pytest.mark.parametrize(
    ("pattern", "valid"),
    [
        ('^[^"]$', ["a", "é", "\\"]),
        ("^[^\\\\]+$", ["a", '"', "a,b"]),
        ('^"[^"]{0,8}"$', ['"x"']),
        ('^[^\\\\/:*?"<>|]+$', ["a", "日"]),
        ('^[^]"]$', ["a", "\\"]),
        ('^[^-"]+$', ["a", "a,b"]),
        ('^[^,"]+(,[^,"]+)*$', ["a,b"]),
        ("^\\W$", ["]", " "]),
        ("^[\\W_]$", ["_", '"']),
        ("^\\D$", ["a", "é"]),
        ("^[^\\d]$", ["a", "é"]),
        ("^\\S$", ["a", "日"]),
        ("^[^\\s]+$", ["a", 'a"c']),
        ("^[-a\\D]+$", ["-", "b-"]),
    ],
)
def test_text_that_fits_a_pattern_fits_it_as_python_reads_it(pattern: str, valid: list[str]) -> None:
    schema = {"type": "string", "pattern": pattern}
    validator = Draft202012Validator(schema)
    taken = [
        json.loads(text)
        for text in accepts(schema, [json.dumps(text, ensure_ascii=False) for text in STRINGS])
    ]
    assert [text for text in taken if not validator.is_valid(text)] == []
    assert set(valid) <= set(taken)


@pytest.mark.parametrize(
    "pattern",
    [
        "",
        "^[a-z]+$",
        "[^a]",
        "\\d+\\.\\w",
        "[\\d\\]]",
        "[a",
        "a\\",
        "[^",
        "^(a|b)$",
        "[^\\D]",
        '\\[^"]',
        "[]a]",
    ],
)
def test_other_patterns_stay_as_they_are(pattern: str) -> None:
    assert portable_pattern(pattern) == pattern


@pytest.mark.parametrize("key", ["minProperties", "maxProperties"])
def test_sizes_of_objects_with_optional_properties_are_only_checked(key: str) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, key: 1}
    relaxed, notes = relax(schema)
    assert key not in relaxed
    assert notes == [f"$: {key!r} is not enforced"]


def test_schemas_inside_a_grammar_are_relaxed_and_the_rest_of_it_stays() -> None:
    unique = '{"type": "array", "items": {"enum": ["%json {", "}"]}, "uniqueItems": true}'
    grammar = f'start: "%json {{" a b "%json"\na: %json {unique}\nb: %json {{"type": "boolean"}}\n'
    relaxed, notes = relax_lark(grammar)
    assert relaxed == grammar.replace(', "uniqueItems": true', "")
    assert notes == ["$: 'uniqueItems' is not enforced"]
    constraint = Constraint.from_lark(TOKENIZER, grammar)
    assert constraint.notes == tuple(notes)
    text = b'%json {["}","}"]true%json'
    assert constraint.try_consume(text) == len(text)
    assert relax_lark(relaxed) == (relaxed, [])
