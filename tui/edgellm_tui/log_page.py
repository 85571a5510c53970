"""The log page: what llama.cpp and the app have logged."""

from __future__ import annotations

import time
from typing import ClassVar

from textual.binding import Binding

import edgellm
from edgellm_tui.list_page import ListPage
from edgellm_tui.plain import one_line, visible

_LEVELS = ((0, "everything"), (2, "info and above"), (3, "warnings and errors"))
_WORDS = {"DEBUG": 1, "INFO": 2, "WARNING": 3, "ERROR": 4, "CRITICAL": 4}


class LogPage(ListPage):
    """Lines of both logs; `v` shows fewer, `c` copies all."""

    BINDINGS: ClassVar = [
        Binding("v", "level", "level", id="log.level"),
        Binding("c", "copy", "copy all", id="log.copy"),
        Binding("r", "reload", "reload", id="log.reload"),
    ]
    heads: ClassVar = ("log", "the whole line")

    def __init__(self, id: str) -> None:
        super().__init__(id=id)
        self._level = 1
        self._shown: list[str] = []

    def refill(self) -> None:
        """Reads both logs; the end is shown."""
        least, words = _LEVELS[self._level]
        native = edgellm.native_log(min_level=least).splitlines()
        lines = [f"llama.cpp  {line}" for line in native if line.strip()]
        lines += [
            f"{time.strftime('%H:%M:%S', time.localtime(line.at))} {line.level:<8} {line.text}"
            for line in self.edge.app_log.lines
            if _WORDS.get(line.level, 2) >= least
        ]
        self._shown = lines
        self.head(f"log: {words}, {len(lines)} lines (v changes)")
        self.rows.set([one_line(line, 1000) for line in lines] or ["nothing has been logged"], len(lines) - 1)
        self._describe()

    def _describe(self) -> None:
        chosen = self.rows.chosen
        self.pane.set(visible(self._shown[chosen]) if chosen < len(self._shown) else "")

    def on_rows_moved(self) -> None:
        """Another line is read."""
        self._describe()

    def action_level(self) -> None:
        """Shows more or fewer lines."""
        self._level = (self._level + 1) % len(_LEVELS)
        self.refill()

    def action_reload(self) -> None:
        """Reads both logs again."""
        self.refill()

    def action_copy(self) -> None:
        """Copies all lines."""
        self.edge.copy("\n".join(self._shown))
        self.say(f"copied {len(self._shown)} lines")
