"""Partial states of a memory that cannot be cut: where a rewind goes back to instead of computing all again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgellm.native.context import State

SPACING = 512
"""Tokens after which a checkpoint is taken within a long prompt or answer."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What the memory cannot give back by cutting (recurrent state, sliding window) when it held `length` tokens."""

    length: int
    state: State


class Checkpoints:
    """The checkpoints of one tape, shortest first, at most `limit` of them. Forks share the states."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._points: list[Checkpoint] = []

    def __iter__(self) -> Iterator[Checkpoint]:
        return iter(tuple(self._points))

    def __len__(self) -> int:
        return len(self._points)

    def is_due(self, length: int) -> bool:
        """Is it so long since the last one that another should be taken?"""
        return length >= (self._points[-1].length if self._points else 0) + SPACING

    def has(self, length: int) -> bool:
        """Is there one of this very length?"""
        return any(point.length == length for point in self._points)

    def add(self, point: Checkpoint, *, is_bounded: bool = True) -> None:
        """Keeps one more; where they are too many, the one that is missed least goes."""
        self._points = sorted([*(p for p in self._points if p.length != point.length), point], key=_length)
        while is_bounded and len(self._points) > max(self.limit, 1):
            self.thin()

    def nearest(self, length: int) -> Checkpoint | None:
        """The longest that holds no more than `length` tokens."""
        return next((point for point in reversed(self._points) if point.length <= length), None)

    def cut(self, length: int) -> None:
        """Forgets those that hold more than `length` tokens."""
        self._points = [point for point in self._points if point.length <= length]

    def drop(self, point: Checkpoint) -> None:
        """Forgets one."""
        self._points = [other for other in self._points if other is not point]

    def clear(self) -> None:
        """Forgets all."""
        self._points = []

    def thin(self) -> bool:
        """Forgets the one whose place costs least to reach from the one before it, seen from the end: they get
        rarer with their age. The first and the last stay to the end. False where there was none."""
        points = self._points
        if len(points) <= 2:
            self._points = points[1:]
            return bool(points)
        end = points[-1].length
        gaps = [
            (after.length - before.length) / (end - point.length + 1)
            for before, point, after in zip(points, points[1:], points[2:], strict=False)
        ]
        del points[1 + gaps.index(min(gaps))]
        return True

    def take_from(self, other: Checkpoints, length: int) -> None:
        """Has all of another tape's that hold no more than `length` tokens."""
        self._points = [point for point in other if point.length <= length]


def _length(point: Checkpoint) -> int:
    return point.length
