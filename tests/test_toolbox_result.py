"""Results as text: JSON, file references, honest cuts."""

import array
import collections
import dataclasses
import datetime
import enum
import pathlib
import time
from typing import Any

import numpy as np
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgellm.toolbox.result import Rendered, cap, render
from edgellm.types import ToolResult


class Colour(enum.Enum):
    RED = "red"


@dataclasses.dataclass
class Reading:
    room: str
    degrees: float


class Model(pydantic.BaseModel):
    x: int


Named = collections.namedtuple("Named", ["a", "b"])


def words(text: str, most: int) -> tuple[str, int]:
    """A tokenizer for tests: a token is a character and the spaces behind it."""
    starts = [i for i, c in enumerate(text) if c != " " or i == 0]
    return (text if len(starts) <= most else text[: starts[most]]), len(starts)


def text_of(value: Any, **options: Any) -> str:
    return render(value, max_tokens=1000, **options).text


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("as it\nis ", "as it\nis "),
        ("", ""),
        (None, "ok"),
        (395, "395"),
        (2**80, str(2**80)),
        (2.5, "2.5"),
        (float("nan"), "nan"),
        (float("-inf"), "-inf"),
        (True, "true"),
        (Colour.RED, "red"),
        ({"a": [1, None], "ü": "ß"}, '{"a":[1,null],"ü":"ß"}'),
        ({"big": 2**70}, '{"big":1180591620717411303424}'),
        ({(1, 2): 3}, "{(1, 2): 3}"),
        ({1: "a"}, '{"1":"a"}'),
        (Reading("hall", 20.5), '{"room":"hall","degrees":20.5}'),
        ([Reading("hall", 1.0)], '[{"room":"hall","degrees":1.0}]'),
        (Model(x=1), '{"x":1}'),
        ([Model(x=1)], '[{"x":1}]'),
        (Named(1, 2), "[1,2]"),
        ((1, "x"), '[1,"x"]'),
        ({1}, "[1]"),
        ((n for n in range(3)), "[0,1,2]"),
        (range(3), "[0,1,2]"),
        (array.array("i", [1, 2]), "[1,2]"),
        (np.arange(3), "[0,1,2]"),
        (np.float32(0.5), "0.5"),
        ({"x": np.int64(3)}, '{"x":3}'),
        (datetime.date(2026, 1, 2), "2026-01-02"),
        ([pathlib.PurePosixPath("a/b")], '["a/b"]'),
        (ToolResult(text="own words"), "own words"),
        ("\ud800", "?"),
        ({"x": "\ud800"}, '{"x":"\\ud800"}'),
    ],
)
def test_value_as_text(value: Any, expected: str) -> None:
    assert text_of(value) == expected


def test_objects_without_a_json_form_are_their_str() -> None:
    class Odd:
        def __str__(self) -> str:
            return "odd"

    assert text_of({"x": Odd()}) == '{"x":"odd"}'
    circular: list[Any] = []
    circular.append(circular)
    assert "[...]" in text_of(circular)


def test_none_with_prints_is_what_was_printed() -> None:
    assert text_of(None, printed="hello\n") == "hello"
    assert text_of("x", printed="hello\n") == "x"


def test_failure_stays_a_failure() -> None:
    assert not render(ToolResult(text="no", is_ok=False), max_tokens=9).is_ok


def test_path_is_a_reference(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(b"123")
    assert text_of(file) == f"[file {file}, 3 bytes, image/png]"
    assert text_of(tmp_path) == f"[folder {tmp_path}]"
    assert "does not exist" in text_of(tmp_path / "none")


@pytest.mark.parametrize(
    ("content", "suffix"),
    [(b"\x89PNG\r\n\x1a\n", ".png"), (b"plain", ".txt"), (b"a\0b", ".bin"), (b"", ".txt")],
)
def test_bytes_become_a_file(tmp_path: pathlib.Path, content: bytes, suffix: str) -> None:
    text = text_of(content, files_dir=tmp_path / "new")
    (file,) = (tmp_path / "new").iterdir()
    assert file.read_bytes() == content
    assert file.suffix == suffix
    assert str(file) in text
    assert f"{len(content)} bytes" in text


def test_cut_says_how_much_is_shown() -> None:
    text, is_truncated = cap(render("a" * 200, max_tokens=100), 100, words)
    assert is_truncated
    assert text == "a" * 76 + "\n[cut: first 76 of 200 tokens shown]"


def test_cut_without_a_tokenizer_counts_characters() -> None:
    text, is_truncated = cap(render("a" * 50, max_tokens=10), 10)
    assert (text, is_truncated) == ("a" * 40 + "\n[cut: first 40 of 50 characters shown]", True)
    assert cap(render("a" * 40, max_tokens=10), 10) == ("a" * 40, False)


def test_megabytes_are_cheap_and_their_size_is_estimated() -> None:
    huge = "word " * 4_000_000
    seen: list[int] = []

    def counting(text: str, most: int) -> tuple[str, int]:
        seen.append(len(text))
        return words(text, most)

    started = time.process_time()
    text, is_truncated = cap(render(huge, max_tokens=100), 100, counting)
    assert time.process_time() - started < 1.0
    assert is_truncated
    assert max(seen) <= 1600
    assert "of about 16000000 tokens shown" in text


@given(st.text(alphabet="ab é\n", max_size=300), st.integers(60, 120))
def test_capped_text_never_has_more_tokens_than_allowed(text: str, most: int) -> None:
    capped, is_truncated = cap(render(text, max_tokens=most), most, lambda t, n: (t[:n], len(t)))
    # One character a token here, so the notice itself takes its 40 characters.
    assert len(capped) <= most + 40
    assert is_truncated == (len(text) > most)
    assert is_truncated or capped == text


def test_short_text_is_left_alone() -> None:
    assert cap(Rendered("abc", 3), 3, words) == ("abc", False)
