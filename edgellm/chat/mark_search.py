"""The search for marks in text that is still being written."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgellm.chat.formats import wire


class MarkSearch:
    """The marks that count in one state, and the search for the first of them."""

    def __init__(self, marks: Sequence[wire.Mark]) -> None:
        # Of two that begin at one place the longer wins.
        self._marks = sorted(marks, key=lambda mark: -len(mark.text))
        self._pattern = re.compile("|".join(re.escape(mark.text) for mark in self._marks) or r"(?!)")
        self._by_text: dict[str, list[wire.Mark]] = {}
        for mark in self._marks:
            self._by_text.setdefault(mark.text, []).append(mark)
        self._longest = max((len(mark.text) for mark in self._marks), default=1) - 1
        first = "".join({re.escape(mark.text[0]) for mark in marks})
        self.is_plain = re.compile(rf"[^{first}\n]*[^{first}\s]").fullmatch
        self._prefixes = {mark.text[:size] for mark in marks for size in range(1, len(mark.text))}

    def first(self, text: str, *, is_start: bool, is_line: bool) -> tuple[int, wire.Mark | None]:
        """(where the first mark begins, it); without one, where what may become a mark begins, and None."""
        at = 0
        while found := self._pattern.search(text, at):
            place, spelled = found.start(), found.group()
            mark = self._allowed(self._by_text[spelled], text, place, is_start, is_line)
            if mark is None:
                shorter = self._shorter(text, place, spelled, is_start, is_line)
                if shorter is None:
                    if text[place:] in self._prefixes:
                        return place, None
                    at = place + 1
                    continue
                mark = shorter
            if text[place:] in self._prefixes:
                # A longer mark may still begin here.
                return place, None
            return place, mark
        return len(text) - self._open_end(text, at), None

    def _shorter(
        self, text: str, place: int, spelled: str, is_start: bool, is_line: bool
    ) -> wire.Mark | None:
        for mark in self._marks:
            if len(mark.text) < len(spelled) and spelled.startswith(mark.text):
                allowed = self._allowed([mark], text, place, is_start, is_line)
                if allowed:
                    return allowed
        return None

    @staticmethod
    def _allowed(
        marks: Sequence[wire.Mark], text: str, place: int, is_start: bool, is_line: bool
    ) -> wire.Mark | None:
        for mark in marks:
            if mark.where == "anywhere":
                return mark
            if mark.where == "start" and is_start and place == 0:
                return mark
            if mark.where == "line" and (is_start or is_line if place == 0 else text[place - 1] == "\n"):
                return mark
        return None

    def _open_end(self, text: str, at: int) -> int:
        for length in range(min(self._longest, len(text) - at), 0, -1):
            if text[-length:] in self._prefixes:
                return length
        return 0
