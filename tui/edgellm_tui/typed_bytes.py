"""What comes from the terminal, whatever bytes it is."""

from __future__ import annotations

import sys
from codecs import getincrementaldecoder
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from codecs import IncrementalDecoder
    from collections.abc import Callable

    from textual.driver import Driver


def take_any_bytes(kind: type[Driver]) -> None:
    """Bytes that are no UTF-8, of a paste or a terminal in Latin-1, become U+FFFD; Textual ends the app there."""
    module = sys.modules[kind.__module__]
    if hasattr(module, "getincrementaldecoder"):
        # It has no other seam: its thread of input makes its decoder itself.
        setattr(module, "getincrementaldecoder", _lenient)  # noqa: B010


def _lenient(encoding: str) -> Callable[[], IncrementalDecoder]:
    return partial(getincrementaldecoder(encoding), errors="replace")
