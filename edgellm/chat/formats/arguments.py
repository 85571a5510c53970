"""The arguments of a call that is being read, given out as JSON text while they come."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from edgellm.chat.formats.json_text import loads
from edgellm.chat.formats.script import Fault, Source
from edgellm.chat.formats.wire import Fragment


@dataclass(slots=True)
class Arguments:
    """Collects one object. All fragments joined are its JSON text. `allowed`: the keys that `check` lets pass."""

    source: Source
    parts: list[str] = field(default_factory=list[str])
    count: int = 0
    allowed: frozenset[str] | None = None
    keys: set[str] = field(default_factory=set[str])

    def give(self, text: str) -> None:
        """A piece of JSON text."""
        self.parts.append(text)
        self.source.tell(Fragment(text))

    def key(self, name: str) -> None:
        """The next argument begins."""
        self.give(("{" if not self.count else ", ") + json.dumps(name, ensure_ascii=False) + ": ")
        self.count += 1
        self.keys.add(name)

    def check(self, name: str) -> None:
        """Before `key`, where the syntax is strict. Raises Fault for a key that is there already, or not allowed."""
        if name in self.keys:
            raise Fault(f"the parameter {name!r} is written twice")
        if self.allowed is not None and name not in self.allowed:
            raise Fault(f"{name!r} is not a parameter, there is {', '.join(sorted(self.allowed))}")

    def text(self, piece: str) -> None:
        """More of a string whose opening quote was given."""
        self.give(json.dumps(piece, ensure_ascii=False)[1:-1])

    def end(self) -> dict[str, Any]:
        """The whole object."""
        self.give("}" if self.count else "{}")
        return loads("".join(self.parts))
