"""Keeping a conversation within its context: asks the policy what gives way, does it, and tells of it."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

from edgellm.context_policy import ContextTurn, Crowding, Drop, Shorten, Summarize, find_policy, stop
from edgellm.decoding import Decoding
from edgellm.errors import Cancelled, ContextFull, TemplateError
from edgellm.events import ContextEvicted, Notice, PrefillProgress
from edgellm.remedies import answer_of
from edgellm.rewriting import Rewritten, rewrite
from edgellm.types import Message
from edgellm.usage import Leg
from edgellm.waiting import NEXT_TOKEN, Waiting

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    from edgellm.context_policy import ContextPolicy, Remedy
    from edgellm.conversation import Conversation
    from edgellm.events import Event
    from edgellm.rewriting import Kept
    from edgellm.sampling.chain import Chain

SUMMARY_REQUEST = (
    "Sum up our conversation so far in a few sentences. Keep names, numbers, decisions and open questions."
)
SUMMARY_QUESTION = "What have we talked about so far, in short?"

_GLUE_TOKENS = 8
_RESERVE = 8
"""An answer gets 1/8 of the context before anything gives way in the middle of it."""
_AIM = 4
"""What gives way leaves 1/4 of the context free: where memory is computed anew, not at every turn."""
_TIDY = 2
_SUMMARY_TOKENS = 192
_SUMMARY_REASONING = 128
_ERA = 1 << 32


@dataclass(slots=True)
class Tally:
    """What upkeep came to since it was last asked."""

    removed_tokens: int = 0
    prefill_tokens: int = 0
    rebuilt_tokens: int = 0
    prefill_s: float = 0.0


class Upkeep:
    """Applies a chat's context policy to its conversation.

    `make_chain` gives the chain that summaries are drawn with. `legs` are the decodes of summaries, to be counted.
    """

    def __init__(
        self,
        conversation: Conversation,
        policy: str | ContextPolicy,
        *,
        make_chain: Callable[[str], Chain],
    ) -> None:
        self.conversation = conversation
        self.use(policy)
        self.make_chain = make_chain
        self.tally = Tally()
        self.legs: list[Leg] = []

    def use(self, policy: str | ContextPolicy) -> None:
        """Asks this policy from here on. Raises ConfigError for a name that is unknown, and the former one stays."""
        self.name, self._policy = find_policy(policy)
        self.given = policy

    @property
    def is_off(self) -> bool:
        """Nothing ever gives way."""
        return self._policy is stop

    @property
    def n_ctx(self) -> int:
        """Tokens that the context holds."""
        return self.conversation.session.engine.context.n_ctx

    @property
    def limit_tokens(self) -> int:
        """From this length of the tape on something gives way before an answer begins."""
        return self.n_ctx if self.is_off else self.n_ctx - self.n_ctx // _RESERVE

    @property
    def wanted_tokens(self) -> int:
        """How many tokens should give way when the tape has that length."""
        return self.n_ctx // _AIM - self.n_ctx // _RESERVE

    @property
    def is_movable(self) -> bool:
        """What stands behind a cut is moved up in the memory, and not computed again."""
        return self.conversation.session.memory.is_movable

    def fork(self, conversation: Conversation) -> Upkeep:
        """The same policy for a fork of the conversation."""
        return Upkeep(conversation, self.given, make_chain=self.make_chain)

    def taken(self) -> Tally:
        """What was tallied since the last call."""
        tally, self.tally = self.tally, Tally()
        return tally

    # -- when ------------------------------------------------------------------------------------------

    def excess(self, new: int, answer: int) -> int:
        """How many tokens should give way before `new` ones are appended and an answer of at most `answer` begins."""
        if self.is_off or not self.overflow(new, answer):
            return 0
        return len(self.conversation.session.tape) + new + self.n_ctx // _AIM - self.n_ctx

    def overflow(self, new: int, answer: int) -> int:
        """How many tokens there are too many for `new` ones and the beginning of an answer of at most `answer`."""
        needed = len(self.conversation.session.tape) + new + min(answer, self.n_ctx // _RESERVE)
        return max(0, needed - self.n_ctx)

    def in_answer(self, current: int) -> Generator[Event | Waiting, None, int]:
        """Makes room in the middle of an answer; gives by how many tokens the tape is shorter: 0, none was made.

        `current` is the index of the open turn's first message. What has to be computed anew is computed.
        """
        session = self.conversation.session
        # What was drawn ahead of the reader goes first: only what stands in front of the answer is counted.
        session.settle()
        before = len(session.tape)
        # The context may be full of other chats: this one's turns would go for nothing.
        is_own = before > self.n_ctx - self.n_ctx // _AIM
        if self.is_off or not is_own or self.conversation.reasoning_policy == "render":
            return 0
        yield from self.make_room(self.n_ctx // _AIM, current)
        if len(session.tape) == before:
            return 0
        yield from self._compute()
        return before - len(session.tape)

    def tidy(self) -> Generator[Event | Waiting, None, None]:
        """Ahead of time, between turns: where more than half of the context is taken, lets the oldest quarter go (or
        more, down to half), and computes what that costs, so that the next turn need not."""
        conversation = self.conversation
        n_ctx, used = self.n_ctx, len(conversation.session.tape)
        if self.is_off or used <= n_ctx // _TIDY or not conversation.is_begun:
            return
        current = len(conversation.messages)
        if conversation.postponed or conversation.is_answer_open:
            current = self.turn_of_last()
        yield from self.make_room(max(n_ctx // _AIM, used - n_ctx // _TIDY), current)
        yield from self._compute()

    def turn_of_last(self) -> int:
        """The index of the message with which the newest turn begins."""
        bounds = self._bounds()
        return bounds[-1] if bounds else 0

    def _compute(self) -> Generator[Event | Waiting, None, None]:
        session = self.conversation.session
        if not self.conversation.is_begun:
            return
        prefilled, rebuilt, started = session.prefilled_tokens, session.rebuilt_tokens, time.perf_counter()
        try:
            for done, total in session.prefill(()):
                yield PrefillProgress(done, total)
                yield NEXT_TOKEN
        finally:
            self.tally.prefill_tokens += session.prefilled_tokens - prefilled
            self.tally.rebuilt_tokens += session.rebuilt_tokens - rebuilt
            self.tally.prefill_s += time.perf_counter() - started

    # -- what ------------------------------------------------------------------------------------------

    def make_room(self, wanted: int, current: int) -> Generator[Event | Waiting, None, None]:
        """Lets give way what the policy names, for `wanted` tokens; turns from message `current` on stay."""
        turns = self._turns(current)
        crowding = Crowding(turns, self.n_ctx, len(self.conversation.session.tape), wanted)
        remedies = self.asked(crowding)
        for remedy in remedies:
            if isinstance(remedy, Summarize):
                yield from self._summarize([turns[place] for place in sorted(remedy.turns)])
                # Indices have moved: what else was to be done waits until the context fills again.
                return
        dropped = [turns[one.turn] for one in remedies if isinstance(one, Drop)]
        texts = {one.message: one.text for one in remedies if isinstance(one, Shorten)}
        if dropped or texts:
            yield self._let_go(dropped, texts, name="drop-results" if texts else "evict")

    def asked(self, crowding: Crowding) -> Sequence[Remedy]:
        """What the policy answers, once it is sure that it can be done. Raises PluginError, ConfigError."""
        return answer_of(self.name, self._policy, crowding)

    def _let_go(
        self,
        dropped: Sequence[ContextTurn],
        texts: dict[int, str],
        *,
        name: str,
        summary: str = "",
        started: float | None = None,
    ) -> ContextEvicted:
        conversation = self.conversation
        started = time.perf_counter() if started is None else started
        gone = {index for turn in dropped for index in range(turn.first, turn.first + len(turn.messages))}
        old = conversation.messages
        lost = [old[index] for index in sorted({*gone, *texts})]
        kept: list[Kept] = []
        for index, message in enumerate(old):
            if summary and index == dropped[-1].first:
                # Behind pinned turns that are older than the newest of those that it sums up.
                kept += [(said, None) for said in _summary_turn(summary)]
            if index in texts:
                message = replace(message, content=texts[index])
            if index not in gone:
                kept.append((message, index))
        done: Rewritten = rewrite(conversation, kept)
        if len(old) - 1 in gone:
            # Results that wait belong to the newest turn.
            lost += conversation.postponed
            conversation.wait_with(())
        if done.removed_tokens:
            # The same positions come again: their draws must not repeat those of the turns before.
            conversation.session.branch += _ERA
        self.tally.removed_tokens += done.removed_tokens
        return ContextEvicted(
            policy=name,
            messages=tuple(lost),
            removed_tokens=done.removed_tokens,
            added_tokens=done.added_tokens,
            recomputed_tokens=done.recomputed_tokens,
            is_approximate=done.is_approximate,
            summary=summary,
            duration_s=time.perf_counter() - started,
        )

    # -- summaries -------------------------------------------------------------------------------------

    def _summarize(self, turns: Sequence[ContextTurn]) -> Generator[Event | Waiting, None, None]:
        started = time.perf_counter()
        end = turns[-1].first + len(turns[-1].messages)
        summary, refusal = "", ""
        try:
            summary = yield from self._summary_of(end)
        except (ContextFull, TemplateError) as error:
            refusal = error.message.rstrip(".")
        size = sum(self._size(message) + _GLUE_TOKENS for message in _summary_turn(summary))
        if not summary:
            yield Notice(f"The turns that go were not summarized: {refusal or 'the model wrote nothing'}.")
        elif 2 * size > sum(turn.tokens for turn in turns):
            yield Notice("The turns that go were not summarized: it would save less than half of them.")
            summary = ""
        if summary:
            try:
                event = self._let_go(turns, {}, name="summarize", summary=summary, started=started)
            except TemplateError as error:
                yield Notice(f"The turns that go were summarized in vain: {error.message}")
            else:
                yield event
                return
        yield self._let_go(turns, {}, name="evict", started=started)

    def _summary_of(self, end: int) -> Generator[Event | Waiting, None, str]:
        """What the model says of the messages before `end`, on a fork that shares the memory of them."""
        own = self.conversation.session
        fork = own.fork(branch=own.branch)
        started = time.perf_counter()
        try:
            fork.trace = 0
            fork.chain.close()
            fork.chain = self.make_chain("greedy")
            fork.constraint = None
            conversation = self.conversation.fork(fork)
            conversation.rewind(end)
            reused = fork.kv_length
            plan = conversation.plan([Message("user", SUMMARY_REQUEST)])
            for _ in fork.prefill(plan.entries):
                self._check_cancelled()
                yield NEXT_TOKEN
            decoding = Decoding(
                fork,
                conversation.format,
                specs=(),
                prefix=plan.prefix,
                start_index=0,
                max_tokens=min(_SUMMARY_TOKENS, self.n_ctx // _RESERVE),
                max_calls=1,
                make_constraint=None,
                reasoning_budget=min(_SUMMARY_REASONING, self.n_ctx // _RESERVE // 2),
                is_shared=True,
            )
            cost = Leg(
                prefill_tokens=fork.prefilled_tokens,
                reused_tokens=reused,
                decode_tokens=0,
                rebuilt_tokens=fork.rebuilt_tokens,
                prefill_s=time.perf_counter() - started,
            )
            for item in decoding.run():
                self._check_cancelled()
                if isinstance(item, Waiting):
                    yield item
            self.legs.append(replace(decoding.leg(cost), finish_reason="summary"))
            return " ".join(decoding.text.split())
        finally:
            fork.close()

    def _check_cancelled(self) -> None:
        if self.conversation.session.is_cancelled:
            raise Cancelled("the summary was cancelled.")

    # -- turns -----------------------------------------------------------------------------------------

    def _bounds(self) -> list[int]:
        """Indices at which turns begin: at messages of the user, but for those that were appended with what came
        before them."""
        messages, starts = self.conversation.messages, self.conversation.starts
        bounds = [
            index
            for index, message in enumerate(messages)
            if message.role == "user"
            and (index == 0 or starts[index] == 0 or starts[index] != starts[index - 1])
        ]
        return [0, *bounds[1:]] if bounds else [0] * bool(messages)

    def turns(self) -> tuple[ContextTurn, ...]:
        """The turns as they stand between two of them: the newest may go too, once there is another one."""
        return self._turns(len(self.conversation.messages))

    def _turns(self, current: int) -> tuple[ContextTurn, ...]:
        conversation = self.conversation
        messages, starts = conversation.messages, conversation.starts
        bounds = [*self._bounds(), len(messages)]
        end = len(conversation.session.tape)
        newest = max((i for i, message in enumerate(messages) if message.role == "assistant"), default=-1)
        turns: list[ContextTurn] = []
        for first, behind in pairwise(bounds):
            own = messages[first:behind]
            is_on_tape = conversation.is_begun and (behind == len(messages) or starts[behind] > 0)
            if is_on_tape and starts[first] > 0:
                tokens = (starts[behind] if behind < len(messages) else end) - starts[first]
            else:
                # Of a first prompt the tape does not say where each message stands.
                tokens = sum(self._size(message) + _GLUE_TOKENS for message in own)
            results = tuple(
                (index, self._size(messages[index]))
                for index in range(first, behind)
                if messages[index].role == "tool" and index < newest and index not in conversation.pins
            )
            is_fixed = behind > current or any(index in conversation.pins for index in range(first, behind))
            turns.append(ContextTurn(first, tuple(own), tokens, is_fixed, results))
        return tuple(turns)

    def _size(self, message: Message) -> int:
        text = message.content + message.reasoning + "".join(call.raw for call in message.tool_calls)
        return len(self.conversation.session.engine.vocabulary.tokenize(text))


def _summary_turn(summary: str) -> tuple[Message, Message]:
    """What stands in the place of turns that were summarized."""
    return Message("user", SUMMARY_QUESTION), Message("assistant", summary)
