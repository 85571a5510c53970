"""Does the request give a value for an optional parameter? Optional arguments are written only where it does."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

NOTHING = object()
"""The request says nothing about the parameter (None would be a value)."""

_NUMBER_WORDS = {
    word: number
    for number, word in enumerate(
        (
            "zero",
            "one",
            "two",
            "three",
            "four",
            "five",
            "six",
            "seven",
            "eight",
            "nine",
            "ten",
            "eleven",
            "twelve",
        )
    )
}
# ruff would turn the split into a list one word a line.
_COMMON = frozenset(
    "a an the of to in on at is are for and or whether if from by with what which how it its this that be "  # noqa: SIM905
    "use using value name type number default user".split()
)
_NEGATION = re.compile(r"\b(no|not|without|don't|do not|exclud\w*)\b")


class Unused:
    """The request, less the spans that arguments have taken already."""

    def __init__(self, request: str) -> None:
        self.request = request
        self.text = request

    def take(self, value: Any) -> None:
        """A value has been given: its span is used up."""
        if isinstance(value, bool) or value is None:
            return
        for item in value if isinstance(value, list) else [value]:
            for text in (str(item), f"{item:g}" if isinstance(item, float) else str(item)):
                at = self.text.lower().find(text.lower())
                if text and at >= 0:
                    self.text = self.text[:at] + "\0" * len(text) + self.text[at + len(text) :]
                    break

    @property
    def words(self) -> str:
        """Lower-case words between single spaces, with a space at both ends."""
        return f" {_plain(self.text)} "

    def numbers(self) -> list[float]:
        """Numbers of the request that no argument has used, written in digits or words up to twelve."""
        digits = [float(text) for text in re.findall(r"(?<![\w.])\d+(?:\.\d+)?", self.text)]
        return digits + [
            float(_NUMBER_WORDS[word])
            for word in re.findall(r"[a-z]+", self.text.lower())
            if word in _NUMBER_WORDS
        ]


def stated_choice(schema: Mapping[str, Any], unused: Unused) -> Any:
    """The one value of an enum that stands in the request, or NOTHING. Any: enums hold any JSON value."""
    found = [
        value
        for value in schema["enum"]
        if isinstance(value, str) and len(value) > 1 and f" {_plain(value)} " in unused.words
    ]
    return found[0] if len(found) == 1 else NOTHING


def stated_flag(name: str, unused: Unused) -> Any:
    """True or false where a word of the parameter's name stands in the request, else NOTHING."""
    words = [word for word in _words(name) if len(word) > 3]
    if not any(f" {word[: max(4, len(word) - 2)]}" in unused.words for word in words):
        return NOTHING
    return not _NEGATION.search(unused.request.lower())


def is_stated(name: str, schema: Mapping[str, Any], value: Any, unused: Unused) -> bool:
    """Is a decoded string or number grounded in what is left of the request?"""
    if isinstance(value, str):
        return _is_stated_text(name, value, unused)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    if float(value) not in unused.numbers():
        return False
    described = _words(f"{name} {schema.get('description', '')}")
    return any(f" {word[: max(3, len(word) - 1)]}" in unused.words for word in described if len(word) > 2)


def _is_stated_text(name: str, value: str, unused: Unused) -> bool:
    plain = _plain(value)
    if not [word for word in plain.split() if word not in _COMMON] or f" {plain} " not in unused.words:
        return False
    if any(f" {word}" in f" {unused.text.lower()}" for word in _words(name) if len(word) > 2):
        return True
    led = r"\b(?:in|at|on|for|from|to|as|by|with)\s+(?:the |my |a )?" + re.escape(plain.split()[0])
    return re.search(led, unused.text.lower()) is not None


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", " ", text.lower()).strip()


def _words(text: str) -> list[str]:
    return [word for word in re.findall(r"[a-z]+", text.lower().replace("_", " ")) if word not in _COMMON]
