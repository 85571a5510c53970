"""Asking the user whether a tool may run, and remembering what they said for always."""

from __future__ import annotations

import json
import select
import sys
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import TYPE_CHECKING, Any, cast

from edgellm import grants
from edgellm.cli.render import is_terminal, one_line, say, styled, warn
from edgellm.toolbox.permission import Approval

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from edgellm.toolbox.permission import Approve
    from edgellm.toolbox.toolset import Toolset
    from edgellm.types import ToolCall, ToolSpec

_POLL_S = 0.1
_ANSWERS = {
    "y": "once",
    "yes": "once",
    "s": "session",
    "session": "session",
    "a": "always",
    "always": "always",
}


class Approver:
    """Says whether a call may run: by --allow, by an earlier "always", or by asking at the terminal.

    With nobody at a terminal, and where the input ends, the answer is no. `asking` guards the question;
    `on_interrupt` is called where Ctrl-C came instead of an answer.
    """

    def __init__(
        self,
        toolset: Toolset,
        *,
        allowed: Iterable[str] = (),
        grants: Grants | None = None,
        asking: Callable[[], AbstractContextManager[Any]] = nullcontext,
        on_interrupt: Callable[[], None] | None = None,
    ) -> None:
        self._toolset = toolset
        self._allowed = frozenset(allowed)
        self._grants = grants or Grants()
        self.asking = asking
        self.on_interrupt = on_interrupt

    @property
    def approve(self) -> Approve | None:
        """Itself, or None where nobody and nothing could say yes: such calls are denied without a question."""
        is_useful = (
            self._allowed
            or _is_somebody_there()
            or any(self._grants.holds(spec.name, self._origin(spec.name)) for spec in self._toolset.specs)
        )
        return self if is_useful else None

    def __call__(self, call: ToolCall, spec: ToolSpec, reason: str) -> Approval:
        """Approve, as `edgellm.Chat` wants it."""
        if spec.name in self._allowed:
            return Approval("session", reason="--allow")
        origin = self._origin(spec.name)
        if spec.is_grantable and self._grants.holds(spec.name, origin):
            return Approval("session", reason="allowed for always")
        if not _is_somebody_there():
            return Approval("deny", reason="Nobody is there to ask.")
        return self._ask(call, spec, reason, origin)

    def _ask(self, call: ToolCall, spec: ToolSpec, reason: str, origin: str) -> Approval:
        # All of them: nobody can allow what they were not shown.
        told = json.dumps(call.arguments, ensure_ascii=False)
        arguments = one_line(told, len(told))
        choices = "[y]es once, [s]ession, [a]lways, [n]o" if spec.is_grantable else "[y]es once, [n]o"
        try:
            # Before the question is seen: Ctrl-C may come at once.
            with self.asking():
                _forget_typed()
                say("")
                print(styled(f"{spec.name} {arguments}", "bold", sys.stderr), file=sys.stderr)
                print(f"{one_line(reason)} Allow it? {choices}: ", end="", file=sys.stderr, flush=True)
                answer = _typed_line().strip().lower()
        except KeyboardInterrupt:
            say("")
            if self.on_interrupt is not None:
                self.on_interrupt()
            return Approval("deny")
        decision = _ANSWERS.get(answer, "deny")
        if not spec.is_grantable and decision != "deny":
            decision = "once"
        if decision == "always":
            self._grants.add(spec.name, origin)
        # The answers are Approval's own words.
        return Approval(cast("Any", decision))

    def _origin(self, name: str) -> str:
        return grants.grant_origin(self._toolset.get(name).origin) if name in self._toolset else ""


def _forget_typed() -> None:
    """What was typed before a question is seen is no answer to it."""
    if sys.platform != "win32":
        import termios

        with suppress(termios.error, OSError):
            termios.tcflush(sys.stdin.fileno(), termios.TCIFLUSH)


def _typed_line() -> str:
    # Polled, because a signal that comes just before a blocking read would not be noticed until a key is hit.
    if sys.platform != "win32":
        while not select.select([sys.stdin], [], [], _POLL_S)[0]:
            pass
    return sys.stdin.readline()


def _is_somebody_there() -> bool:
    return is_terminal(sys.stdin) and is_terminal(sys.stderr)


class Grants(grants.Grants):
    """Grants whose keeper is told where they cannot be kept."""

    def add(self, name: str, origin: str) -> None:
        """Remembers a tool; where that fails, the user is told, and asked again next time."""
        try:
            super().add(name, origin)
        except OSError as error:
            warn(
                f"warning: {self.path} cannot be written ({error.strerror}); {name} is allowed for this chat only."
            )
