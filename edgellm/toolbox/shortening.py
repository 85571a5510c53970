"""Tool results made to fit the room that is left: cut again, the longest first, and kept whole for read_more."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from edgellm.toolbox.result import LONG_NOTICE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgellm.toolbox.result import Truncate
    from edgellm.toolbox.results import ResultStore
    from edgellm.types import Message

NO_ROOM = "[cut: no room]"
_MOST_CHARACTERS_PER_TOKEN = 16
_LEAST_SAMPLE = 1024


class Shortening:
    """Shortens results that have not reached the tape yet. `results` keeps them whole; None: what is cut is gone."""

    def __init__(self, truncate: Truncate, results: ResultStore | None) -> None:
        self._truncate = truncate
        self._results = results

    def size(self, text: str) -> int:
        """Tokens of a text."""
        return self._truncate(text, 1)[1]

    def sizes(self, messages: Sequence[Message]) -> dict[int, int]:
        """Tokens of the tool results among these messages, by their places."""
        return {
            place: self.size(message.content)
            for place, message in enumerate(messages)
            if message.role == "tool" and message.content != NO_ROOM
        }

    def shortened(self, messages: Sequence[Message], excess: int) -> list[Message]:
        """The messages with `excess` tokens less of tool results, where there is so much of them."""
        sizes = self.sizes(messages)
        # What is no longer than the words for what is gone stays.
        most = _level(list(sizes.values()), sum(sizes.values()) - excess)
        least = max(most, self.size(NO_ROOM))
        return [
            replace(message, content=self.cut(message.content, most))
            if sizes.get(place, 0) > least
            else message
            for place, message in enumerate(messages)
        ]

    def cut(self, text: str, most: int) -> str:
        """A result, cut to about `most` tokens with its notice; one that was cut before is cut anew, shorter."""
        results = self._results
        name, start, rest = results.origin(text) if results is not None else ("", 0, text)
        notice = self.size(LONG_NOTICE)
        if most < notice:
            return NO_ROOM

        def more(shown: int) -> str:
            return (
                results.reading_on(name or results.keep(rest), start + shown) if results is not None else ""
            )

        sample = rest[: max(most, _LEAST_SAMPLE) * _MOST_CHARACTERS_PER_TOKEN]
        shown, total = self._truncate(sample, most - notice) if most > notice else ("", self.size(sample))
        about = ""
        if len(sample) < len(rest):
            about, total = "about ", round(total * len(rest) / len(sample))
        first = f"first {most - notice}" if shown else "none"
        line = f"[cut: {first} of {about}{total} tokens shown{more(len(shown))}]"
        return f"{shown}\n{line}" if shown else line


def _level(sizes: Sequence[int], target: int) -> int:
    """The length to which the longest are cut, so that all together have `target` at most."""
    left, count = target, len(sizes)
    for size in sorted(sizes):
        if size * count > left:
            return max(0, left // count)
        left -= size
        count -= 1
    return max(sizes, default=0)
