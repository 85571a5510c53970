"""Prompts that the guided strategy keeps computed, for each set of adapters by itself."""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Generator

    from edgellm.engine.session import Session
    from edgellm.native.overlay import Overlay

_MOST_SETS = 3


class SessionsByAdapters:
    """Sessions by name, a table of them for each of the sets of adapters that were used last."""

    def __init__(self) -> None:
        self._tables: dict[Overlay, dict[str, Session]] = {}
        self._users: Counter[Overlay] = Counter()

    def of(self, overlay: Overlay) -> dict[str, Session]:
        """The sessions computed with these adapters."""
        return self._tables.setdefault(overlay, {})

    @contextmanager
    def held(self, overlay: Overlay) -> Generator[None]:
        """The sessions of this set are kept inside the block. Behind it those of sets that were unused for longest are
        closed, where there are many."""
        self._tables[overlay] = self._tables.pop(overlay, {})
        self._users[overlay] += 1
        try:
            yield
        finally:
            self._users[overlay] -= 1
            idle = [one for one in self._tables if not self._users[one]]
            for one in idle[: max(0, len(self._tables) - _MOST_SETS)]:
                del self._users[one]
                for session in self._tables.pop(one).values():
                    session.close()
