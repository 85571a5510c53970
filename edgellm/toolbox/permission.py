"""Who may say yes to a call: the tool's declaration, settings that only tighten it, and the user."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

from edgellm.errors import ConfigError, ToolError
from edgellm.toolbox.tool import Tool
from edgellm.types import Permission, ToolCall, ToolResult, ToolSpec

# From lax to strict.
_STRICTNESS: tuple[Permission, ...] = ("auto", "ask", "deny")
_MOST_EDITS = 5
EVERY_TOOL = "*"


Word = Literal["once", "session", "always", "deny"]


@dataclass(frozen=True, slots=True)
class Approval:
    """An answer to "may this call run?".

    `once`: this call. `session`: this tool, for as long as these Permissions live. `always`: the same, and
    the caller is told to remember it. `deny`: no. `call` is the call with edited arguments, None: unchanged.
    """

    decision: Word
    call: ToolCall | None = None
    reason: str = ""


Approve = Callable[[ToolCall, ToolSpec, str], Approval | Word]
"""approve(call, spec, reason) -> Approval, or its decision alone; blocks until the user has answered."""


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether a call runs. `call` has the arguments as approved; `by` says who or what decided.

    `refusal` is the result that the model reads in place of the tool's; None where the call may run.
    """

    call: ToolCall
    by: str
    refusal: ToolResult | None = None

    @property
    def is_allowed(self) -> bool:
        """True where the call may run."""
        return self.refusal is None


class Permissions:
    """Decides about calls. `settings` maps tool names, or "*" for all, to a permission.

    A setting laxer than what a tool declares has no effect. `approve` None means that nobody is there to ask:
    such calls are denied at once. `granted` are tools the user allowed for always, earlier; `remember` is
    called with a tool's spec when they say so now. Raises ConfigError for an unknown permission.
    """

    def __init__(
        self,
        settings: Mapping[str, Permission] | None = None,
        *,
        approve: Approve | None = None,
        granted: Iterable[str] = (),
        remember: Callable[[ToolSpec], None] | None = None,
    ) -> None:
        self.settings = dict(settings or {})
        for name, permission in self.settings.items():
            if permission not in _STRICTNESS:
                raise ConfigError(
                    f"The permission of tool {name!r} is {permission!r}.", hint="Use auto, ask or deny."
                )
        self.approve = approve
        self._granted = set(granted)
        self._remember = remember

    def required(self, spec: ToolSpec) -> Permission:
        """The strictest of declaration and settings, before any grant of the user."""
        stated = (spec.permission, *(self.settings.get(name, "auto") for name in (EVERY_TOOL, spec.name)))
        return _STRICTNESS[max(_STRICTNESS.index(one) for one in stated)]

    def must_ask(self, spec: ToolSpec) -> bool:
        """True where `decide` would turn to the user now."""
        return self.approve is not None and self._open_question(spec)

    def _open_question(self, spec: ToolSpec) -> bool:
        is_granted = spec.is_grantable and spec.name in self._granted
        return self.required(spec) == "ask" and not is_granted

    def reason(self, spec: ToolSpec) -> str:
        """Why the user is asked, in words for them."""
        if spec.permission != "auto":
            return f"{spec.name} asks before it runs."
        return f"Your settings ask before {spec.name} runs."

    def decide(self, tool: Tool[..., Any], call: ToolCall) -> Decision:
        """Asks where it must, blocking. Look at the arguments (`tool.check`) before: nobody should be asked
        about a call that cannot run. Arguments the user edits are checked here, and asked for again. Raises
        ConfigError where `approve` gives no answer that is known: nothing runs on such a word."""
        spec = tool.spec
        if self.required(spec) == "deny":
            return _denied(call, "settings", f"{spec.name} is not allowed by the settings.")
        if not self._open_question(spec):
            return Decision(call, "auto" if self.required(spec) == "auto" else "grant")
        if self.approve is None:
            return _denied(
                call, "nobody", f"{spec.name} needs the user's permission, and nobody is there to ask."
            )
        reason = self.reason(spec)
        for _ in range(_MOST_EDITS):
            approval = _checked(self.approve(call, spec, reason))
            if approval.decision == "deny":
                said = f" They said: {approval.reason}" if approval.reason else ""
                return _denied(call, "user", f"the user did not allow {spec.name}.{said}")
            if approval.call is not None and approval.call != call:
                # An edit changes arguments only: another name would run a tool that was not asked about.
                call = ToolCall(call.id, call.name, approval.call.arguments, call.raw)
                try:
                    tool.check(call.arguments)
                except ToolError as error:
                    reason = f"The edited arguments do not fit: {error.message}"
                    continue
            if approval.decision in ("session", "always") and spec.is_grantable:
                self._granted.add(spec.name)
                if approval.decision == "always" and self._remember is not None:
                    self._remember(spec)
            return Decision(call, "user")
        return _denied(call, "user", f"the edited arguments of {spec.name} did not fit.")

    def forget(self, name: str | None = None) -> None:
        """Takes back the grant of one tool, or all of them."""
        if name is None:
            self._granted.clear()
        else:
            self._granted.discard(name)


def _checked(answer: object) -> Approval:
    approval = Approval(cast("Word", answer)) if isinstance(answer, str) else answer
    if (
        not isinstance(approval, Approval)
        or approval.decision not in get_args(Word)
        or not isinstance(cast("object", approval.call), ToolCall | None)
    ):
        raise ConfigError(
            f"approve answered {answer!r}.",
            hint='Give "once", "session", "always" or "deny", or an edgellm.Approval of one of these.',
        )
    return approval


def _denied(call: ToolCall, by: str, why: str) -> Decision:
    text = f"Not run: {why} Do not call it again; answer without it."
    return Decision(call, by, ToolResult(text=text, is_ok=False))
