"""The calls of an answer: approved, run beside each other, and their results as messages."""

from __future__ import annotations

import contextlib
import threading
import time
from concurrent.futures import Future
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import msgspec

from edgellm.errors import Cancelled, ContextFull, TemplateError, ToolError
from edgellm.events import (
    ApprovalRequested,
    Notice,
    ToolApproved,
    ToolDenied,
    ToolFinished,
    ToolRunning,
)
from edgellm.toolbox.permission import Decision
from edgellm.types import Message, ToolResult
from edgellm.waiting import NEXT_TOKEN, Waiting

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Generator, Sequence

    from edgellm.agent import AgentLimits
    from edgellm.conversation import Conversation
    from edgellm.events import Event
    from edgellm.offer import Offer
    from edgellm.toolbox.permission import Permissions
    from edgellm.toolbox.runner import Runner, Running
    from edgellm.toolbox.tool import Tool
    from edgellm.types import ToolCall

_MOST_READ = 1 << 18
_CANCELLED_TEXT = "The user cancelled this call before it finished."
_NOT_RUN = ToolResult("This call was cancelled before it was run.", is_ok=False)


def not_run(call: ToolCall) -> Message:
    """The result of a call that a cancel came before."""
    return _result_message(call, _NOT_RUN)


class Calling:
    """Runs the calls of one conversation's answers with the tools that are offered."""

    def __init__(
        self,
        conversation: Conversation,
        offer: Offer,
        runner: Runner,
        permissions: Permissions,
        limits: AgentLimits,
    ) -> None:
        self._conversation = conversation
        self._offer = offer
        self._runner = runner
        self._permissions = permissions
        self._limits = limits
        self._running: list[Running] = []

    def cancel(self) -> None:
        """Ends the tools that run. Safe from any thread."""
        for running in list(self._running):
            running.cancel()

    def end(self) -> None:
        """The turn is over: what still runs is cancelled and forgotten."""
        self.cancel()
        self._running.clear()

    @property
    def _is_cancelled(self) -> bool:
        return self._conversation.session.is_cancelled

    def run(
        self, calls: Sequence[ToolCall], repeats: Counter[str], *, is_shared: bool
    ) -> Generator[Event | Waiting, None, list[Message]]:
        """Approves and runs the calls, all at once; their results in the order of the calls.

        `repeats` counts what has been called in this turn. `is_shared`: nobody may wait here for an approval. Where
        the turn is left in here, what there is of results waits for the next message.
        """
        results: list[ToolResult | Running] = []
        approved: list[ToolCall] = []
        messages: list[Message] = []
        try:
            for call in calls:
                call, outcome = yield from self._start(call, repeats, is_shared=is_shared)
                approved.append(call)
                results.append(outcome)
            if self._running:
                yield from self._compute_ahead(approved, results)
            for call, outcome in zip(approved, results, strict=True):
                if isinstance(outcome, ToolResult):
                    result = outcome
                else:
                    while not outcome.wait(0.0):
                        yield Waiting(outcome.wait)
                    result = outcome.result()
                    self._running.remove(outcome)
                    if result.is_truncated:
                        self._guess_from(outcome.whole)
                    if self._is_cancelled and not result.is_ok:
                        result = replace(result, text=_CANCELLED_TEXT)
                messages.append(_result_message(call, result))
                yield ToolFinished(call, result)
        except BaseException:
            # The turn is left here. What tools have done reaches the model all the same, with the next message.
            for call, outcome in zip(approved[len(messages) :], results[len(messages) :], strict=True):
                messages.append(_result_message(call, _result_so_far(outcome)))
            messages += [not_run(call) for call in calls[len(messages) :]]
            self._conversation.postpone(messages)
            raise
        return messages

    def _guess_from(self, text: str) -> None:
        """What was cut from a result may be quoted all the same, once it is read on."""
        session = self._conversation.session
        if session.speculation is not None:
            session.speculation.read(session.engine.vocabulary.tokenize(text[:_MOST_READ]))

    def _compute_ahead(
        self, calls: Sequence[ToolCall], outcomes: Sequence[ToolResult | Running]
    ) -> Generator[Waiting, None, None]:
        """While the tools run: the template's text in front of the first result that is not there yet.

        Also where a tool is quick: the same batches, the same text, however long it takes.
        """

        def results(stand_in: str) -> list[Message]:
            return [
                _result_message(call, outcome if isinstance(outcome, ToolResult) else ToolResult(stand_in))
                for call, outcome in zip(calls, outcomes, strict=True)
            ]

        # A cancel, or a full context, is met where the results are appended.
        with contextlib.suppress(Cancelled, ContextFull, TemplateError):
            tokens, _ = self._conversation.foresee(results("?"), results("1x"))
            for _ in self._conversation.session.prefill_ahead(tokens):
                yield NEXT_TOKEN

    def _start(
        self, call: ToolCall, repeats: Counter[str], *, is_shared: bool
    ) -> Generator[Event | Waiting, None, tuple[ToolCall, ToolResult | Running]]:
        """Starts one call, or says at once why it does not run."""
        if self._is_cancelled:
            return call, _NOT_RUN
        try:
            tool = self._offer.tool(call.name)
            tool.check(call.arguments)
        except ToolError as error:
            return call, ToolResult(f"Error: {error}", is_ok=False)
        key = call.name + msgspec.json.encode(call.arguments, order="sorted").decode()
        repeats[key] += 1
        if repeats[key] > self._limits.max_repeats:
            yield Notice(f"{call.name} was called again with the same arguments; it was not run.")
            return call, ToolResult(
                "Error: this exact call has already been made in this turn. Use its earlier result, and answer.",
                is_ok=False,
            )
        if self._permissions.must_ask(tool.spec):
            yield ApprovalRequested(call, self._permissions.reason(tool.spec))
        decision = yield from self._decide(tool, call, is_shared=is_shared)
        call = decision.call
        if decision.refusal is not None:
            yield ToolDenied(call, decision.refusal.text)
            return call, decision.refusal
        yield ToolApproved(call, decision.by)
        yield ToolRunning(call)
        running = self._runner.start(tool, call)
        self._running.append(running)
        if self._is_cancelled:
            # The cancel came while the call was being started, and did not see it.
            running.cancel()
        return call, running

    def _decide(
        self, tool: Tool[..., Any], call: ToolCall, *, is_shared: bool
    ) -> Generator[Event | Waiting, None, Decision]:
        """Asks the user where that is needed: here, or on a thread where others must not wait for the answer."""
        timeout_s = self._limits.approval_timeout_s
        if not self._permissions.must_ask(tool.spec) or not (is_shared or timeout_s):
            return self._permissions.decide(tool, call)
        answer: Future[Decision] = Future()

        def ask() -> None:
            try:
                answer.set_result(self._permissions.decide(tool, call))
            except BaseException as error:
                answer.set_exception(error)

        threading.Thread(target=ask, name="edgellm-approval", daemon=True).start()
        deadline = time.monotonic() + (timeout_s or float("inf"))

        def is_over(wait_s: float) -> bool:
            with contextlib.suppress(TimeoutError):
                answer.exception(timeout=wait_s)
            return answer.done() or self._is_cancelled or time.monotonic() > deadline

        while not is_over(0.0):
            yield Waiting(is_over)
        if answer.done():
            return answer.result()
        refusal = ToolResult("Not run: nobody allowed it in time. Answer without it.", is_ok=False)
        return Decision(call, "nobody", refusal)


def _result_message(call: ToolCall, result: ToolResult) -> Message:
    return Message("tool", result.text, tool_call_id=call.id, name=call.name)


def _result_so_far(outcome: ToolResult | Running) -> ToolResult:
    """The result of a call that nobody waits for any more."""
    if isinstance(outcome, ToolResult):
        return outcome
    outcome.cancel()
    result = outcome.result()
    return result if result.is_ok else replace(result, text=_CANCELLED_TEXT)
