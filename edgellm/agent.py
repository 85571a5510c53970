"""The loop of a turn: prefill, decode, run the tools that were called, append their results, go on."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from edgellm.calling import Calling, not_run
from edgellm.decoding import Decoding
from edgellm.errors import Cancelled
from edgellm.events import (
    ExactnessChecked,
    HistoryRewritten,
    Notice,
    PrefillProgress,
    TurnFinished,
)
from edgellm.fitting import Fitting
from edgellm.offer import Offer
from edgellm.types import Message
from edgellm.usage import Leg, Usage
from edgellm.waiting import NEXT_TOKEN, Waiting

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    from edgellm.conversation import Conversation
    from edgellm.events import Event
    from edgellm.guided.strategy import Guided
    from edgellm.response_format import ResponseFormat
    from edgellm.sampling.constraint import Constraint
    from edgellm.toolbox.permission import Permissions
    from edgellm.toolbox.results import ResultStore
    from edgellm.toolbox.runner import Runner
    from edgellm.toolbox.toolset import Toolset
    from edgellm.types import ConstraintMode, FinishReason, ToolSpec
    from edgellm.upkeep import Upkeep

ToolChoice = str
"""auto, none, required, or the name of one tool."""

_MAX_COMPLAINTS = 1


@dataclass(frozen=True, slots=True)
class AgentLimits:
    """Where a turn stops by itself.

    `max_steps` legs; `max_tokens` decoded in all; `max_calls_per_step`; the same call with the same arguments is
    run `max_repeats` times at most; an approval not given within `approval_timeout_s` is a denial (None: waits);
    after `reasoning_budget` tokens of reasoning in a leg it is closed with a sentence (None: no limit).
    """

    max_steps: int = 8
    max_tokens: int = 4096
    max_calls_per_step: int = 8
    max_repeats: int = 2
    approval_timeout_s: float | None = None
    reasoning_budget: int | None = None


@dataclass(slots=True)
class _Turn:
    """What has come of the turn so far."""

    choice: ToolChoice
    legs: list[Leg] = field(default_factory=list[Leg])
    messages: list[Message] = field(default_factory=list[Message])
    text: list[str] = field(default_factory=list[str])
    calls: int = 0
    repeats: Counter[str] = field(default_factory=Counter[str])
    finish_reason: FinishReason = "eog"
    value: Any = None
    # What was wrong with a call of the last leg that could not be repaired, and how often the model was told so.
    fault: str = ""
    complaints: int = 0

    @property
    def decoded(self) -> int:
        return sum(leg.decode_tokens for leg in self.legs if leg.finish_reason != "summary")


class Agent:
    """Runs turns on one conversation. It knows nothing of ctypes, files or user interfaces."""

    def __init__(
        self,
        conversation: Conversation,
        toolset: Toolset,
        runner: Runner,
        permissions: Permissions,
        *,
        limits: AgentLimits,
        make_constraint: Callable[[str], Constraint],
        constraint_mode: ConstraintMode = "check",
        guided: Guided | None = None,
        upkeep: Upkeep,
    ) -> None:
        self.conversation = conversation
        self.upkeep = upkeep
        self.toolset = toolset
        self.limits = limits
        self._runner = runner
        self._permissions = permissions
        self._make_constraint = make_constraint
        self._constraint_mode: ConstraintMode = constraint_mode
        self._guided = guided
        self._offer = Offer(conversation, toolset, runner.results)
        self._fitting = Fitting(conversation, upkeep, runner.shortening)
        self._calling = Calling(conversation, self._offer, runner, permissions, limits)
        self._legs: list[Leg] = []
        self.is_shared = False
        self._is_past_training = False
        self.checks_exactness = False

    @property
    def is_cancelled(self) -> bool:
        """True between a cancel and the end of its turn."""
        return self.conversation.session.is_cancelled

    @property
    def results(self) -> ResultStore | None:
        """Results that were cut, whole; None where they are not kept."""
        return self._runner.results

    @property
    def usage(self) -> Usage:
        """What the newest turn has cost so far."""
        return Usage(tuple(self._legs))

    @property
    def is_guided(self) -> bool:
        """True where tools are chosen by scoring instead of by free decoding."""
        return self._guided is not None

    def fork(self, conversation: Conversation) -> Agent:
        """An agent with the same tools and limits for a fork of the conversation."""
        twin = Agent(
            conversation,
            self.toolset,
            self._runner,
            self._permissions,
            limits=self.limits,
            make_constraint=self._make_constraint,
            constraint_mode=self._constraint_mode,
            guided=self._guided,
            upkeep=self.upkeep.fork(conversation),
        )
        twin.checks_exactness = self.checks_exactness
        twin._is_past_training = self._is_past_training
        return twin

    def cancel(self) -> None:
        """Ends the turn in whatever phase it is. Safe from any thread."""
        self.conversation.session.cancel()
        self._calling.cancel()

    def run(
        self,
        message: Message | None,
        *,
        choice: ToolChoice = "auto",
        answer: ResponseFormat | None = None,
        max_tokens: int | None = None,
    ) -> Generator[Event | Waiting, None, None]:
        """One turn: the user's message (None: go on from where the tape stands) to the end of the answer.

        Yields events and `Waiting`. Raises EdgeError; what was on the tape before the failed step stays.
        """
        turn = _Turn(choice)
        self._fitting.begin(message)
        self._legs = turn.legs
        specs = self._offer.chosen(choice)
        budget = self.limits.max_tokens if max_tokens is None else max_tokens
        tail = [message] if message is not None else []
        try:
            for step in range(self.limits.max_steps):
                is_done = yield from self._leg(turn, tail, specs, budget, step, answer)
                if turn.fault and turn.complaints < _MAX_COMPLAINTS:
                    turn.complaints += 1
                    tail = [Message("user", self._complaint(turn.fault))]
                    continue
                if is_done:
                    break
                calls = turn.messages[-1].tool_calls
                tail = yield from self._calling.run(calls, turn.repeats, is_shared=self.is_shared)
            else:
                turn.finish_reason = "max_steps"
                self.conversation.postpone(tail)
        finally:
            self._end()
        yield TurnFinished(
            text="".join(turn.text),
            finish_reason=turn.finish_reason,
            usage=Usage(tuple(turn.legs)),
            messages=tuple(turn.messages),
        )

    def _end(self) -> None:
        self._calling.end()
        session = self.conversation.session
        session.constraint = None
        session.settle()
        session.is_cancelled = False

    # -- one leg -----------------------------------------------------------------------------------------

    def _leg(
        self,
        turn: _Turn,
        tail: Sequence[Message],
        specs: tuple[ToolSpec, ...],
        budget: int,
        step: int,
        answer_format: ResponseFormat | None,
    ) -> Generator[Event | Waiting, None, bool]:
        """Prefill and decode. True where the turn is over, false where calls wait for their tools."""
        session = self.conversation.session
        reused, prefilled, rebuilt = 0, session.prefilled_tokens, session.rebuilt_tokens
        taken, ahead = session.snapshot_tokens, session.ahead_tokens
        started = time.perf_counter()
        is_on_tape = False
        try:
            is_resumed = step == 0 and not tail and self.conversation.is_answer_open
            plan, tail = yield from self._fitting.plan(tail, max(0, budget - turn.decoded))
            reused = session.kv_length
            for done, total in session.prefill(plan.entries, head=plan.head):
                if done == total:
                    # It stays on the tape also where the reader leaves at this very event.
                    self.conversation.commit(plan)
                    is_on_tape = True
                yield PrefillProgress(done, total)
                yield NEXT_TOKEN
        except Cancelled:
            self.conversation.give_up()
            if step > 0:
                self.conversation.postpone(tail)
            turn.finish_reason = "cancelled"
            return True
        except BaseException:
            if not is_on_tape:
                self.conversation.give_up()
                if step > 0:
                    self.conversation.postpone(tail)
            raise
        if not is_on_tape:
            self.conversation.commit(plan)
        turn.messages += tail
        specs = self._offer.with_more(specs)
        self._count_summaries(turn)
        if plan.removed_tokens:
            policy = self.conversation.reasoning_policy
            yield HistoryRewritten(
                policy, plan.removed_tokens, session.prefilled_tokens - prefilled, plan.is_shifted
            )
        if note := self._past_training():
            yield Notice(note)
        if self.checks_exactness and step > 0:
            found = self.conversation.exactness()
            yield ExactnessChecked(found.verdict, found.position, found.reason)
        decoding = Decoding(
            session,
            self.conversation.format,
            specs=specs,
            prefix=plan.prefix,
            start_index=turn.calls,
            max_tokens=max(0, budget - turn.decoded),
            max_calls=self.limits.max_calls_per_step,
            make_constraint=self._make_constraint,
            constraint_mode=self._constraint_mode,
            find_fault=self._offer.fault_of,
            answer=answer_format,
            reasoning_budget=self.limits.reasoning_budget,
            is_shared=self.is_shared,
            resumed=self.conversation.open_answer() if is_resumed else None,
            make_room=self._fitting.in_answer,
        )
        cost = Leg(
            prefill_tokens=session.prefilled_tokens - prefilled,
            removed_tokens=plan.removed_tokens + self.upkeep.taken().removed_tokens,
            reused_tokens=reused + session.snapshot_tokens - taken,
            decode_tokens=0,
            ahead_tokens=session.ahead_tokens - ahead,
            rebuilt_tokens=session.rebuilt_tokens - rebuilt,
            prefill_s=time.perf_counter() - started,
        )
        is_first, has_call, is_left = step == 0, False, True
        try:
            is_forced = is_first and turn.choice not in ("auto", "none")
            if is_first and specs and self._guided is not None:
                request = next((m.content for m in reversed(tail) if m.role == "user"), "")
                if request:
                    decide = self._guided.decide(decoding, request, specs, is_required=is_forced)
                    # It decodes in sessions of its own, for seconds on a small board: a cancel is heard there too.
                    has_call = yield from session.engine.serving(session, decide)
            elif is_forced and session.constraint is None:
                session.constraint = decoding.required()
            if has_call:
                yield from decoding.end()
            else:
                yield from decoding.run()
            is_left = False
        finally:
            tally = self.upkeep.taken()
            cost = replace(
                cost,
                prefill_tokens=cost.prefill_tokens + tally.prefill_tokens,
                rebuilt_tokens=cost.rebuilt_tokens + tally.rebuilt_tokens,
                removed_tokens=cost.removed_tokens + tally.removed_tokens,
                prefill_s=cost.prefill_s + tally.prefill_s,
            )
            turn.legs.append(decoding.leg(cost))
            self._count_summaries(turn)
            answer = Message(
                "assistant", decoding.text, reasoning=decoding.reasoning, tool_calls=tuple(decoding.calls)
            )
            self.conversation.answered(answer)
            turn.messages.append(answer)
            turn.text.append(decoding.text)
            turn.calls += len(decoding.calls)
            is_left = is_left or decoding.finish_reason in ("cancelled", "context_full")
            if is_left:
                # A call without a result would stand there for good, and some templates refuse that.
                self.conversation.postpone([not_run(call) for call in decoding.calls])
        turn.finish_reason = decoding.finish_reason
        # Where the budget is spent there is nothing left to write it better with.
        is_over = is_left or bool(decoding.calls) or decoding.finish_reason == "length"
        turn.fault = "" if is_over else decoding.fault
        return is_left or not decoding.calls

    def _past_training(self) -> str:
        """Said once, in the turn in which the conversation grows longer than what the model was trained for."""
        session = self.conversation.session
        trained = session.engine.model.n_ctx_train
        if self._is_past_training or not trained or len(session.tape) <= trained:
            return ""
        self._is_past_training = True
        return (
            f"The conversation is longer now than the {trained:,} tokens that this model was trained for: "
            "its answers may be worse."
        )

    def _count_summaries(self, turn: _Turn) -> None:
        turn.legs += self.upkeep.legs
        self.upkeep.legs.clear()

    def _complaint(self, fault: str) -> str:
        wire_format = self.conversation.format
        form = (
            wire_format.render_call_head("NAME")
            + '{"ARGUMENT": VALUE}'
            + wire_format.render_call_tail("NAME")
        )
        return f"Your tool call could not be read: {fault}. Write it like this:\n{form}"
