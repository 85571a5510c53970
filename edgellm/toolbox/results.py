"""Results too long for the model to read at once: kept whole, and read on by a tool of the runtime's own."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from edgellm.errors import ToolError
from edgellm.toolbox.tool import ToolOptions, raw_tool

if TYPE_CHECKING:
    from edgellm.toolbox.tool import Tool
    from edgellm.types import ToolCall

READ_MORE = "read_more"
MAX_CHARACTERS = 2_000_000
"""All that is kept for one chat; what was kept first goes first."""


_READ_ON = re.compile(
    rf"(?:^|\n)\[cut: [^\n]*; to read on, call {READ_MORE} with "
    r'{"result": "(?P<name>[^"\n]+)", "start": (?P<start>[0-9]{1,12})}\]$'
)


class ResultStore:
    """The whole texts of results that were cut, by names such as "r1". Bounded; forks of a chat share it."""

    def __init__(self, *, max_characters: int = MAX_CHARACTERS) -> None:
        self._max_characters = max_characters
        self._texts: dict[str, str] = {}
        self._numbers = itertools.count(1)
        self.tool: Tool[..., Any] = raw_tool(
            {
                "name": READ_MORE,
                "description": "Reads on in a tool result that was cut.",
                "parameters": {
                    "type": "object",
                    "properties": {
                        "result": {"type": "string", "description": "Name of the result, such as r1."},
                        "start": {"type": "integer", "description": "Where to read on.", "minimum": 0},
                    },
                    "required": ["result", "start"],
                },
            },
            self.read,
            ToolOptions(permission="auto"),
        )

    def __len__(self) -> int:
        return len(self._texts)

    def cut(self, call: ToolCall, text: str, shown: int) -> str:
        """A result of which `shown` characters are given to the model: keeps it, and gives words for the notice."""
        if call.name == READ_MORE and call.arguments.get("result") in self._texts:
            # What was cut is part of a result that is kept already.
            name, start = str(call.arguments["result"]), int(call.arguments["start"]) + shown
        else:
            name, start = self.keep(text), shown
        return self.reading_on(name, start)

    def reading_on(self, name: str, start: int) -> str:
        """Words for a notice: how to read on in the result of that name; "" is one that is not kept."""
        arguments = json.dumps({"result": name, "start": start})
        return f"; to read on, call {READ_MORE} with {arguments}" if name else "; it is too long to be kept"

    def origin(self, text: str) -> tuple[str, int, str]:
        """(name, start, what is left to read from there on) of a result that the model would be given: which kept one
        it is the beginning or the end of; the name is "" where it is none."""
        found = _READ_ON.search(text)
        if found is not None:
            name, shown = found["name"], text[: found.start()]
            whole, start = self._texts.get(name, ""), int(found["start"]) - len(shown)
            if name in self._texts and start >= 0 and whole.startswith(shown, start):
                return name, start, whole[start:]
        for name, whole in self._texts.items():
            if whole.endswith(text):
                return name, len(whole) - len(text), text
        return "", 0, text

    def keep(self, text: str) -> str:
        """Keeps a result whole and gives its name; "" where it is too long for that."""
        if len(text) > self._max_characters:
            return ""
        while self._texts and sum(map(len, self._texts.values())) + len(text) > self._max_characters:
            del self._texts[next(iter(self._texts))]
        name = next(name for number in self._numbers if (name := f"r{number}") not in self._texts)
        self._texts[name] = text
        return name

    def read(self, result: str, start: int) -> str:
        """The text of a kept result from character `start` on. Raises ToolError in words for the model."""
        text = self._texts.get(result)
        if text is None:
            known = ", ".join(self._texts) or "none"
            raise ToolError(f"There is no result {result!r} any more.", hint=f"There is: {known}.")
        if start >= len(text):
            raise ToolError(f"Result {result!r} ends at {len(text)}.", hint="There is no more to read.")
        return text[start:]

    def state(self) -> dict[str, str]:
        """What is kept, as JSON values."""
        return dict(self._texts)

    def restore(self, state: object) -> None:
        """Takes up what was saved; what is not text by its name is left out."""
        if isinstance(state, Mapping):
            for name, text in cast("Mapping[str, Any]", state).items():
                if isinstance(text, str):
                    self._texts[name] = text
