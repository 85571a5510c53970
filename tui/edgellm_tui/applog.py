"""The app's own log, kept in memory for the log page: nothing is printed over the screen."""

from __future__ import annotations

import logging
import traceback
from collections import deque
from dataclasses import dataclass

_KEPT = 500
_LOGGERS = ("edgellm", "edgellm_tui")


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line: `at` in seconds since the epoch, the level's word, the text."""

    at: float
    level: str
    text: str


class AppLog(logging.Handler):
    """Keeps the last lines; `attach` begins, `detach` ends."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.lines: deque[LogLine] = deque(maxlen=_KEPT)

    def attach(self) -> None:
        """Listens to edgellm and the app."""
        for name in _LOGGERS:
            logger = logging.getLogger(name)
            logger.addHandler(self)
            if logger.level == logging.NOTSET:
                logger.setLevel(logging.INFO)

    def detach(self) -> None:
        """Listens no more."""
        for name in _LOGGERS:
            logging.getLogger(name).removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Takes a record, an error with its traceback."""
        text = record.getMessage()
        if record.exc_info and record.exc_info[1] is not None:
            text += "\n" + "".join(traceback.format_exception(record.exc_info[1])).rstrip()
        self.lines += [LogLine(record.created, record.levelname, line) for line in text.split("\n")]
