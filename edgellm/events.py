"""What a turn tells its reader: frozen events, in the order they happen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgellm.distribution import Step
    from edgellm.types import FinishReason, Message, ToolCall, ToolResult
    from edgellm.usage import Usage


@dataclass(frozen=True, slots=True)
class PrefillProgress:
    """`done` of `total` new tokens are in the KV cache."""

    done: int
    total: int


@dataclass(frozen=True, slots=True)
class TokenDrawn:
    """One token, as the sampler saw it. Only sent when the chat was opened with `trace` above 0."""

    step: Step


@dataclass(frozen=True, slots=True)
class TextDelta:
    """More of the answer's text."""

    text: str


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    """More of the model's reasoning."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCallStarted:
    """A call has begun. `index` counts calls within the turn, from 0."""

    index: int


@dataclass(frozen=True, slots=True)
class ToolCallName:
    """The name of call `index` is complete."""

    index: int
    name: str


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """More of the arguments of call `index`, as JSON text; all fragments joined are a valid JSON object."""

    index: int
    fragment: str


@dataclass(frozen=True, slots=True)
class ToolCallReady:
    """Call `index` is complete and parsed. Its arguments are not yet checked against the tool."""

    index: int
    call: ToolCall


@dataclass(frozen=True, slots=True)
class ToolCallBroken:
    """Call `index` began and does not parse. `raw` is what the model wrote; it was also sent as text, unless
    the output ended inside it."""

    index: int
    raw: str
    error: str


@dataclass(frozen=True, slots=True)
class CallRepaired:
    """Call `index` did not parse or did not fit its tool's schema, and was written again in its place.

    `before` is what the model wrote, `after` what stands on the tape now, `error` what was wrong. What was sent of
    the call before is void: its events follow once more.
    """

    index: int
    before: str
    after: str
    error: str


@dataclass(frozen=True, slots=True)
class HistoryRewritten:
    """Tokens of earlier turns were taken off the tape, as the reasoning policy says.

    `removed_tokens` of it went; `prefill_tokens` were computed for this turn in all. `is_approximate`: later tokens
    keep what they were computed with, only their positions have moved.
    """

    policy: str
    removed_tokens: int
    prefill_tokens: int
    is_approximate: bool


@dataclass(frozen=True, slots=True)
class ContextEvicted:
    """The context was filling, and something gave way, as the context policy says.

    `policy` is what was done: "evict", "summarize" or "drop-results". `messages` went, whole (dropped or summarized
    turns) or in their content (tool results that were replaced by a notice). `removed_tokens` were taken off the
    tape, `added_tokens` put there in their place (a summary, notices), and `recomputed_tokens` have to be computed
    again. `is_approximate`: what stands behind the cut keeps what it was computed with, and only its positions have
    moved. `duration_s` does not count what is computed again.
    """

    policy: str
    messages: tuple[Message, ...]
    removed_tokens: int
    added_tokens: int = 0
    recomputed_tokens: int = 0
    is_approximate: bool = False
    summary: str = ""
    duration_s: float = 0.0

    def __str__(self) -> str:
        count = len(self.messages)
        what = {"summarize": "summed up", "drop-results": "shortened or taken out"}
        text = (
            f"context: {count} old message{'s' * (count != 1)} {what.get(self.policy, 'taken out')} to make room"
            f" ({self.removed_tokens} tokens"
        )
        if self.added_tokens:
            text += f", {self.added_tokens} put in their place"
        if self.recomputed_tokens:
            text += f", {self.recomputed_tokens} computed again"
        return text + (", the rest was moved: approximate)" if self.is_approximate else ")")


@dataclass(frozen=True, slots=True)
class ExactnessChecked:
    """The tape compared with a full render of the conversation: "exact", "equivalent" or "diverges".

    `position` is the first token that differs, `reason` says in what. Sent where the chat asks for the check.
    """

    verdict: str
    position: int | None
    reason: str


@dataclass(frozen=True, slots=True)
class ApprovalRequested:
    """A call waits for somebody's yes."""

    call: ToolCall
    reason: str


@dataclass(frozen=True, slots=True)
class ToolApproved:
    """A call may run. `call` has the arguments as approved (they may have been edited)."""

    call: ToolCall
    by: str


@dataclass(frozen=True, slots=True)
class ToolDenied:
    """A call may not run; the model is told."""

    call: ToolCall
    reason: str


@dataclass(frozen=True, slots=True)
class ToolRunning:
    """A tool has been started."""

    call: ToolCall


@dataclass(frozen=True, slots=True)
class ToolFinished:
    """A tool has ended, well or not; `result.text` is what the model reads."""

    call: ToolCall
    result: ToolResult


@dataclass(frozen=True, slots=True)
class ToolChoiceScored:
    """The `guided` strategy chose: a score (natural log) for each candidate; `chosen` None is a plain answer."""

    scores: tuple[tuple[str, float], ...]
    chosen: str | None
    threshold: float


@dataclass(frozen=True, slots=True)
class Notice:
    """Something the reader should know, which is not an error."""

    message: str


@dataclass(frozen=True, slots=True)
class TurnFinished:
    """The turn is over. `text` is the whole answer; `messages` are all messages of the turn; `usage` its cost."""

    text: str
    finish_reason: FinishReason
    usage: Usage
    messages: tuple[Message, ...] = ()
    value: Any = None


Event = (
    PrefillProgress
    | TokenDrawn
    | TextDelta
    | ReasoningDelta
    | ToolCallStarted
    | ToolCallName
    | ToolCallDelta
    | ToolCallReady
    | ToolCallBroken
    | CallRepaired
    | HistoryRewritten
    | ContextEvicted
    | ExactnessChecked
    | ApprovalRequested
    | ToolApproved
    | ToolDenied
    | ToolRunning
    | ToolFinished
    | ToolChoiceScored
    | Notice
    | TurnFinished
)
