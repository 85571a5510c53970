"""`ToolContext`: what a running tool may know of its own call, and how it is told to stop."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from edgellm.errors import Cancelled
from edgellm.types import ToolCall


def _say_nothing(text: str) -> None:
    """Progress of a call that nobody watches."""


@dataclass(frozen=True, slots=True)
class ToolContext:
    """One call, seen from inside the tool.

    A tool that wants it has a parameter `call: ToolContext`, which never reaches the schema. Every field has
    a default, so that `my_tool(x, call=ToolContext())` works in a test.

    `deadline` is on the clock of `time.monotonic()`; infinity where the call has no time limit.
    """

    call: ToolCall = field(default_factory=lambda: ToolCall(id="", name="", arguments={}))
    cancel_event: threading.Event = field(default_factory=threading.Event)
    deadline: float = float("inf")
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    on_progress: Callable[[str], None] = _say_nothing

    def cancelled(self) -> bool:
        """True once the user cancelled, or the time is up: the tool should return soon."""
        return self.cancel_event.is_set()

    def check(self) -> None:
        """Raises Cancelled if the tool should stop; for use in loops."""
        if self.cancel_event.is_set():
            raise Cancelled(f"{self.call.name} was cancelled.")

    def sleep(self, seconds: float) -> None:
        """Waits; raises Cancelled as soon as the tool should stop."""
        self.cancel_event.wait(seconds)
        self.check()

    def remaining_s(self) -> float:
        """Seconds left before the call is given up; at least 0, infinity without a limit."""
        return max(0.0, self.deadline - time.monotonic())

    def progress(self, text: str) -> None:
        """Tells whoever watches how far the tool is. Never reaches the model."""
        self.on_progress(text)

    def setting(self, name: str, default: Any = None) -> Any:
        """The value of a dotted setting, such as "files.root"; `default` where it is not set."""
        value: Any = self.settings
        for part in name.split("."):
            if not isinstance(value, Mapping) or part not in value:
                return default
            value = cast("Mapping[str, Any]", value)[part]
        return value
