"""Text that knows where each of its characters comes from.

A chat template mixes its own text with the conversation's. Both go through the same string operations
(strip, split, +, join, format ...); `Marked` carries the origin of every character through them, so a
render says afterwards which stretch is whose. What an operation cannot trace becomes content: the safe
side, because only the template's own text may yield control tokens.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, SupportsIndex

from edgellm.types import Segment, SpanKind

MAX_CHARS = 64 * 1024 * 1024
_DIRECTIVE = re.compile(r"%(?:%|[-+ #0]*(?:\d+|\*)?(?:\.(?:\d+|\*))?[a-zA-Z]|\([^)]*\)[^a-zA-Z]*[a-zA-Z])")


@dataclass(frozen=True, slots=True)
class Origin:
    """Who wrote a stretch of text. `source` tells one content from another ("message:0", "tools")."""

    kind: SpanKind
    is_template: bool = False
    source: str = ""


TEMPLATE = Origin(SpanKind.GLUE, is_template=True)
UNKNOWN = Origin(SpanKind.GLUE)

Runs = tuple[tuple[int, Origin], ...]


class Marked(str):
    """A str, equal to any other of the same characters, with `runs`: lengths and their origins, in order."""

    __slots__ = ("runs",)

    runs: Runs

    def __new__(cls, text: str, runs: Runs) -> Marked:
        made = str.__new__(cls, text)
        made.runs = runs
        return made

    def __getnewargs__(self) -> tuple[str, Runs]:  # type: ignore[override]
        return str.__str__(self), self.runs

    def __str__(self) -> str:
        # A subclass is a legal answer of __str__, and keeps the marks through the str() of compiled templates.
        return self

    def __add__(self, other: object) -> str:  # type: ignore[override]
        return joined((self, other)) if isinstance(other, str) else NotImplemented

    def __radd__(self, other: object) -> str:
        return joined((other, self)) if isinstance(other, str) else NotImplemented

    def __mul__(self, count: SupportsIndex) -> str:
        return joined([self] * max(0, count.__index__()))

    def __rmul__(self, count: SupportsIndex) -> str:
        return self * count

    def __mod__(self, values: Any) -> str:
        return _percent(self, values)

    def __iter__(self) -> Iterator[str]:
        for length, origin, start in _placed(self.runs):
            for index in range(start, start + length):
                yield Marked(str.__getitem__(self, index), ((1, origin),))

    def __getitem__(self, key: SupportsIndex | slice) -> str:
        if not isinstance(key, slice):
            index = range(len(self))[key]
            return self._part(index, index + 1)
        start, stop, step = key.indices(len(self))
        if step == 1:
            return self._part(start, max(start, stop))
        return joined([self._part(index, index + 1) for index in range(start, stop, step)])

    def _part(self, start: int, stop: int) -> str:
        runs: list[tuple[int, Origin]] = []
        for length, origin, at in _placed(self.runs):
            if at >= stop:
                break
            shared = min(stop, at + length) - max(start, at)
            if shared > 0:
                runs.append((shared, origin))
        return Marked(str.__getitem__(self, slice(start, stop)), tuple(runs))

    def lstrip(self, chars: str | None = None, /) -> str:
        return self._part(len(self) - len(str.lstrip(self, chars)), len(self))

    def rstrip(self, chars: str | None = None, /) -> str:
        return self._part(0, len(str.rstrip(self, chars)))

    def strip(self, chars: str | None = None, /) -> str:
        start = len(self) - len(str.lstrip(self, chars))
        return self._part(start, max(start, len(str.rstrip(self, chars))))

    def removeprefix(self, prefix: str, /) -> str:
        return self._part(len(self) - len(str.removeprefix(self, prefix)), len(self))

    def removesuffix(self, suffix: str, /) -> str:
        return self._part(0, len(str.removesuffix(self, suffix)))

    def _located(self, pieces: Iterable[str]) -> list[str]:
        found: list[str] = []
        at = 0
        for piece in pieces:
            at = str.find(self, piece, at)
            found.append(self._part(at, at + len(piece)))
            at += len(piece)
        return found

    def split(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:  # type: ignore[override]
        return self._spread(str.split(self, sep, maxsplit), sep)

    def rsplit(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:  # type: ignore[override]
        return self._spread(str.rsplit(self, sep, maxsplit), sep)

    def _spread(self, pieces: list[str], sep: str | None) -> list[str]:
        if sep is None:
            return self._located(pieces)
        found: list[str] = []
        at = 0
        for piece in pieces:
            found.append(self._part(at, at + len(piece)))
            at += len(piece) + len(sep)
        return found

    def splitlines(self, keepends: bool = False) -> list[str]:  # type: ignore[override]
        return self._located(str.splitlines(self, keepends))

    def partition(self, sep: str, /) -> tuple[str, str, str]:
        head, middle, _ = str.partition(self, sep)
        cut, end = len(head), len(head) + len(middle)
        return self._part(0, cut), self._part(cut, end), self._part(end, len(self))

    def rpartition(self, sep: str, /) -> tuple[str, str, str]:
        head, middle, _ = str.rpartition(self, sep)
        cut, end = len(head), len(head) + len(middle)
        return self._part(0, cut), self._part(cut, end), self._part(end, len(self))

    def replace(self, old: str, new: str, count: SupportsIndex = -1, /) -> str:  # type: ignore[override]
        if not old:
            return _recast(self, str.replace(self, old, new, count))
        # split drops what joined adds, so this is replace by its own definition.
        return joined(_between(self.split(old, count), new))

    def join(self, pieces: Iterable[str], /) -> str:
        return joined(_between(pieces, self))

    def lower(self) -> str:
        return _recast(self, str.lower(self))

    def upper(self) -> str:
        return _recast(self, str.upper(self))

    def title(self) -> str:
        return _recast(self, str.title(self))

    def capitalize(self) -> str:
        return _recast(self, str.capitalize(self))


def mark(text: str, kind: SpanKind, *, source: str = "", is_template: bool = False) -> Marked:
    """`text` with one origin for all of it; text that has marks keeps them."""
    if isinstance(text, Marked):
        return text
    return Marked(text, ((len(text), Origin(kind, is_template, source)),) if text else ())


def runs_of(text: str) -> Runs:
    """The runs of `text`; a plain str is content of unknown origin."""
    if isinstance(text, Marked):
        return text.runs
    return ((len(text), UNKNOWN),) if text else ()


def joined(pieces: Iterable[str]) -> Marked:
    """The pieces as one text, marks kept. Raises OverflowError past 64 Mi characters."""
    parts = list(pieces)
    runs: list[tuple[int, Origin]] = []
    total = 0
    for part in parts:
        for length, origin in runs_of(part):
            total += length
            if runs and runs[-1][1] == origin:
                runs[-1] = (runs[-1][0] + length, origin)
            else:
                runs.append((length, origin))
        if total > MAX_CHARS:
            raise OverflowError("the rendered text is longer than 64 MiB")
    return Marked("".join(parts), tuple(runs))


def segments_of(text: str) -> tuple[Segment, ...]:
    """The text as segments, neighbours of one kind and origin merged."""
    found: list[Segment] = []
    at = 0
    for length, origin in runs_of(text):
        stretch = plain(text)[at : at + length]
        at += length
        last = found[-1] if found else None
        if last and last.kind == origin.kind and last.is_template == origin.is_template:
            found[-1] = Segment(last.text + stretch, last.kind, last.is_template)
        elif stretch:
            found.append(Segment(stretch, origin.kind, origin.is_template))
    return tuple(found)


def plain(text: str) -> str:
    """The text as an exact str, without marks."""
    return str.__str__(text)


def formatted(pattern: str, pieces: Iterable[tuple[str, str | None]]) -> str:
    """`str.format`'s result from its parsed pieces: (literal, value or None) in order."""
    origins = {origin for _, origin in runs_of(pattern)}
    literal_origin = origins.pop() if len(origins) == 1 else UNKNOWN
    parts: list[str] = []
    for literal, value in pieces:
        if literal:
            parts.append(Marked(literal, ((len(literal), literal_origin),)))
        if value is not None:
            parts.append(value)
    return joined(parts)


def _placed(runs: Runs) -> Iterator[tuple[int, Origin, int]]:
    at = 0
    for length, origin in runs:
        yield length, origin, at
        at += length


def _between(pieces: Iterable[str], separator: str) -> Iterator[str]:
    for index, piece in enumerate(pieces):
        if index:
            yield separator
        yield piece


def _recast(before: Marked, after: str) -> str:
    # Case mapping keeps places as long as it keeps the length; otherwise nothing is known any more.
    return Marked(after, before.runs) if len(after) == len(before) else after


def _percent(pattern: Marked, values: Any) -> str:
    directives = list(_DIRECTIVE.finditer(plain(pattern)))
    if any(re.search(r"\d{5}|\*", match.group()) for match in directives):
        raise OverflowError("a % format asks for a width of its own choice, or one above 9999")
    if isinstance(values, Mapping) or any(match.group() not in ("%s", "%%") for match in directives):
        return plain(pattern) % values
    arguments = list(values) if isinstance(values, tuple) else [values]
    if len(arguments) != sum(match.group() == "%s" for match in directives):
        return plain(pattern) % values
    parts: list[str] = []
    at = 0
    take: Callable[[], Any] = iter(arguments).__next__
    for match in directives:
        parts.append(pattern[at : match.start()])
        parts.append(str(take()) if match.group() == "%s" else pattern[match.start() : match.start() + 1])
        at = match.end()
    parts.append(pattern[at:])
    return joined(parts)
