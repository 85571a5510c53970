"""The line chat in words, for screen readers and logs: who speaks is said, whole lines come, nothing is drawn over."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from edgellm.cli.render import escape, one_line
from edgellm.cli.transcript import FINISHES, Transcript, call_text
from edgellm.events import (
    ContextEvicted,
    Notice,
    PrefillProgress,
    ReasoningDelta,
    TextDelta,
    ToolCallBroken,
    ToolDenied,
    ToolFinished,
    ToolRunning,
    TurnFinished,
)

if TYPE_CHECKING:
    from edgellm.events import Event
    from edgellm.types import ToolCall

_LONG_PREFILL = 256


class PlainTranscript(Transcript):
    """Prints on stdout alone, in order, a line at a time, each part behind the word for who speaks."""

    def __init__(self) -> None:
        super().__init__(calls=sys.stdout)
        self._speaker = ""
        self._line_so_far = ""
        self._has_told_prefill = False
        self._denied: set[str] = set()

    def show(self, event: Event) -> None:
        """One event."""
        match event:
            case PrefillProgress(done=done, total=total):
                if total - done >= _LONG_PREFILL and not self._has_told_prefill:
                    self._has_told_prefill = True
                    self._say("status", f"reading {total} tokens")
            case TextDelta(text=text):
                self._stream("model", text)
            case ReasoningDelta(text=text):
                self._stream("thinking", text)
            case ToolRunning(call=call):
                self._announce(call)
            case ToolFinished(call=call, result=result):
                self._announce(call)
                # What the model reads of a call that was denied has been said with the denial.
                if call.id not in self._denied:
                    self._say("result" if result.is_ok else "failed", result.text)
            case ToolDenied(call=call, reason=reason):
                self._announce(call)
                self._denied.add(call.id)
                self._say("not allowed", f"{call.name}: {reason}")
            case ToolCallBroken(error=error):
                self._say("status", f"a call that could not be read: {error}")
            case Notice(message=message):
                self._say("status", message)
            case ContextEvicted():
                self._say("status", str(event))
            case TurnFinished(finish_reason=reason):
                self.end_turn()
                if reason in FINISHES:
                    self._say("status", FINISHES[reason])
            case _:
                pass

    def end_turn(self) -> None:
        """Ends the line, and forgets what belongs to the turn."""
        super().end_turn()
        self._has_told_prefill = False
        self._denied.clear()

    def _stream(self, speaker: str, text: str) -> None:
        if speaker != self._speaker:
            self.end_line()
            self._speaker = speaker
            self._line_so_far = f"{speaker}: "
        *whole, self._line_so_far = (self._line_so_far + escape(text)).split("\n")
        for line in whole:
            print(line, flush=True)

    def _announce(self, call: ToolCall) -> None:
        if self._is_new(call):
            self._say("tool", call_text(call, 2000))

    def _say(self, speaker: str, text: str) -> None:
        self.end_line()
        print(f"{speaker}: {one_line(text, 2000)}", flush=True)

    def end_line(self) -> None:
        """Prints what was held back of a line."""
        if self._line_so_far.strip():
            print(self._line_so_far, flush=True)
        self._line_so_far, self._speaker = "", ""
