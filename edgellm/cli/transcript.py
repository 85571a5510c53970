"""A turn's events as text on a terminal: the answer on stdout, talk about it on stderr."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, TextIO

from edgellm.cli.render import escape, has_colour, is_terminal, one_line, styled
from edgellm.events import (
    ContextEvicted,
    Notice,
    PrefillProgress,
    ReasoningDelta,
    TextDelta,
    TokenDrawn,
    ToolCallBroken,
    ToolDenied,
    ToolFinished,
    ToolRunning,
    TurnFinished,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgellm.distribution import Step
    from edgellm.events import Event
    from edgellm.types import ToolCall

_SHOWN_PREFILL = 256
FINISHES = {
    "length": "cut off at the most tokens of an answer; --max-tokens raises that",
    "budget": "cut off at the token budget of a turn; --max-tokens raises that",
    "max_steps": "stopped: too many tool calls in one turn",
    "context_full": "cut off: the context is full; --ctx makes it longer, --when-full or /when-full lets old turns go",
    "cancelled": "stopped",
}


class Transcript:
    """Prints events as they come. `calls` is where tool calls and their results are shown.

    `piece` gives a token's bytes; with it, the alternatives of TokenDrawn events are shown after the answer.
    """

    def __init__(self, *, calls: TextIO, piece: Callable[[int], bytes] | None = None) -> None:
        self._calls = calls
        self._piece = piece
        self._is_at_start = True
        self._is_progress_shown = False
        self._steps: list[Step] = []
        self._announced: set[str] = set()

    def show(self, event: Event) -> None:
        """One event."""
        match event:
            case PrefillProgress(done=done, total=total):
                self._progress(done, total)
            case TextDelta(text=text):
                self._write(escape(text), sys.stdout)
            case ReasoningDelta(text=text):
                self._write(styled(escape(text), "dim", sys.stderr), sys.stderr)
            case ToolRunning(call=call):
                self._announce(call)
            case ToolFinished(call=call, result=result):
                self._announce(call)
                self._line(f"← {one_line(result.text, 500)}", self._calls, "dim" if result.is_ok else "red")
            case ToolDenied(call=call):
                self._announce(call)
            case ToolCallBroken(error=error):
                self._line(f"a call that could not be read: {one_line(error)}", sys.stderr, "yellow")
            case Notice(message=message):
                self._line(one_line(message, 500), sys.stderr, "yellow")
            case ContextEvicted():
                self._line(f"({one_line(str(event), 500)})", sys.stderr, "yellow")
            case TokenDrawn(step=step):
                self._steps.append(step)
            case TurnFinished(finish_reason=reason):
                self.end_line()
                if reason in FINISHES:
                    self._line(f"({FINISHES[reason]})", sys.stderr, "yellow")
                self._alternatives()
                self.end_turn()
            case _:
                pass

    def end_line(self) -> None:
        """Ends a line that was begun; takes the progress line away."""
        self._clear_progress()
        if not self._is_at_start:
            print(flush=True)
            self._is_at_start = True

    def end_turn(self) -> None:
        """Ends the line, and forgets what belongs to the turn; also where an error has ended it."""
        self.end_line()
        self._steps.clear()
        self._announced.clear()

    def _write(self, text: str, stream: TextIO) -> None:
        self._clear_progress()
        print(text, end="", file=stream, flush=True)
        self._is_at_start = text.endswith("\n")

    def _line(self, text: str, stream: TextIO, style: str) -> None:
        self.end_line()
        print(styled(text, style, stream), file=stream, flush=True)

    def _announce(self, call: ToolCall) -> None:
        if self._is_new(call):
            self._line(f"→ {call_text(call, 500)}", self._calls, "cyan")

    def _is_new(self, call: ToolCall) -> bool:
        """True the first time a call of this turn is met."""
        is_new = call.id not in self._announced
        self._announced.add(call.id)
        return is_new

    def _progress(self, done: int, total: int) -> None:
        if total < _SHOWN_PREFILL or not is_terminal(sys.stderr):
            return
        if done >= total:
            self._clear_progress()
            return
        self.end_line()
        print(f"\r(reading: {done} of {total} tokens)", end="", file=sys.stderr, flush=True)
        self._is_progress_shown = True

    def _clear_progress(self) -> None:
        if self._is_progress_shown:
            print("\r\x1b[K" if has_colour(sys.stderr) else "\n", end="", file=sys.stderr, flush=True)
            self._is_progress_shown = False

    def _alternatives(self) -> None:
        if self._piece is None:
            return
        for step in self._steps:
            rows = step.distribution.raw if step.distribution is not None else None
            drawn = _shown(step.piece)
            if rows is None:
                print(f"{drawn:<16} {'forced' if step.is_forced else ''}".rstrip(), file=sys.stderr)
                continue
            own = "" if step.logprob is None else f"{step.logprob:8.3f}"
            others = "  ".join(
                f"{_shown(self._piece(token))} {100 * p:.1f}%"
                for token, p in zip(rows.ids.tolist(), rows.probs.tolist(), strict=True)
            )
            print(f"{drawn:<16} {own}   {others}", file=sys.stderr, flush=True)


def call_text(call: ToolCall, limit: int) -> str:
    """A call on one line: the tool's name, and its arguments as JSON, cut to `limit` characters."""
    arguments = json.dumps(call.arguments, ensure_ascii=False)
    return f"{one_line(call.name)} {one_line(arguments, limit)}"


def _shown(piece: bytes) -> str:
    return f"'{one_line(piece.decode('utf-8', 'backslashreplace'))}'"
