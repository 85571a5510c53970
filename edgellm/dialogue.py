"""A chat as scripts, the CLI and the app see it: send, and read events."""

from __future__ import annotations

import threading
from contextlib import aclosing, closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgellm.beginning import beginning_of, take_up_beginning
from edgellm.chat_options import check_message, check_values
from edgellm.draft import Draft
from edgellm.errors import ConfigError
from edgellm.events import Notice, TurnFinished
from edgellm.ledger import head_cost, make_ledger
from edgellm.outlook import outlook
from edgellm.response_format import ResponseFormat
from edgellm.tidying import Tidying
from edgellm.types import Message
from edgellm.usage import Usage
from edgellm.waiting import WAIT_S, Waiting

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Generator, Mapping, Sequence

    from edgellm.agent import Agent, ToolChoice
    from edgellm.chat.formats.wire import WireFormat
    from edgellm.chat.template import ChatTemplate
    from edgellm.chat_options import ChatOptions
    from edgellm.context_policy import ContextPolicy
    from edgellm.conversation import Conversation
    from edgellm.distribution import Step
    from edgellm.engine.speculation import SpeculateMode, Speculation
    from edgellm.events import Event
    from edgellm.ledger import HeadCost, Ledger
    from edgellm.outlook import ContextOutlook
    from edgellm.runtime import Runtime
    from edgellm.sampling.chain import Chain
    from edgellm.sampling.spec import ChainLike
    from edgellm.types import AdapterSet, Resumed, Span

LEGS_KEPT = 256
"""A chat's usage lists so many legs; of the others it has the sums."""


class Chat:
    """One conversation on a runtime. Made by `Runtime.chat`, `Runtime.open_chat` and `Chat.fork`.

    `name` is the caller's: "" at first, also for forks, and saved with the chat.
    Not for two threads at once: `asend` is for many callers.
    """

    def __init__(
        self, runtime: Runtime, conversation: Conversation, agent: Agent, options: ChatOptions
    ) -> None:
        self.runtime = runtime
        self.options = options
        self.conversation = conversation
        self.name = ""
        self._agent = agent
        self._usage = Usage()
        self._resumed: Resumed | None = None
        self._last_speculation: Speculation | None = None
        self._news: list[str] = []
        self._has_new_adapters = False
        self._head: HeadCost | None = None
        self._open = threading.Lock()
        self._draft = Draft(conversation, agent.upkeep)
        self._tidying = Tidying(conversation, agent.upkeep)

    # -- talking ----------------------------------------------------------------------------------------

    def send(
        self,
        text: str | None,
        *,
        tool_choice: ToolChoice = "auto",
        schema: Mapping[str, Any] | None = None,
        response_format: Any = None,
        max_tokens: int | None = None,
    ) -> Generator[Event, None, None]:
        """The events of one turn, ending with TurnFinished. Closing the iterator cancels the turn.

        `text` None lets the model go on without a new message: with an answer that was cut or stopped (TurnFinished
        has the whole of it then), else behind its end. `tool_choice` is auto, none, required or a tool's
        name. `response_format` (a JSON Schema, a pydantic model, {"regex": ...}, {"lark": ...} or a list of choices)
        constrains the answer, behind any reasoning; tools may still be called before it. The answer's value is
        TurnFinished.value (None where it does not fit: a Notice says why). `schema` is a JSON Schema without tools.
        `max_tokens` caps what is decoded in this turn. Raises
        EdgeError; what was on the tape before the failed step stays there.
        """
        with closing(self._turn(text, tool_choice, schema, response_format, max_tokens)) as turn:
            for item in turn:
                if isinstance(item, Waiting):
                    item.sit_out()
                else:
                    yield item

    async def asend(
        self,
        text: str | None,
        *,
        tool_choice: ToolChoice = "auto",
        schema: Mapping[str, Any] | None = None,
        response_format: Any = None,
        max_tokens: int | None = None,
    ) -> AsyncGenerator[Event, None]:
        """`send` for asyncio. Chats of one runtime that are answered at the same time share their batches."""
        self._agent.is_shared = True
        turn = self._turn(text, tool_choice, schema, response_format, max_tokens)
        async with aclosing(self.runtime.thread.stream(turn)) as events:
            async for event in events:
                yield event

    def ask(self, text: str, **options: Any) -> str:
        """The whole answer as text; options as for `send`."""
        answer = ""
        for event in self.send(text, **options):
            if isinstance(event, TurnFinished):
                answer = event.text
        return answer

    def prefill_draft(self, text: str) -> int:
        """Computes what is settled of a message that is still being typed; gives how many tokens are ahead.

        Nothing of it is on the tape. A turn that begins so does not compute it again (`Leg.ahead_tokens`); whatever
        else is done cuts it away. A `send` from another thread ends it at once, and has what is done. Nothing is done
        where memory cannot be cut, in an open turn, or where older turns have to give way first. Batches differ from
        those of a message that is computed whole: near-ties may be drawn otherwise. Raises DecodeError.
        """
        self.conversation.session.check_open()
        return self.runtime.run_turn(self._draft.compute(text, self._open))

    def stop_draft(self) -> None:
        """Ends a `prefill_draft` of another thread; the chunks that are done stay. Without one: nothing."""
        self._draft.stop()

    async def aprefill_draft(self, text: str) -> int:
        """`prefill_draft` for asyncio, beside other chats' turns. Cancelling the task ends it."""
        import asyncio

        self.conversation.session.check_open()
        draft = self.runtime.thread.result_of(self._draft.compute(text, self._open))
        try:
            return await asyncio.wrap_future(draft)
        except asyncio.CancelledError:
            self._draft.stop()
            raise

    def _turn(
        self,
        text: str | None,
        tool_choice: ToolChoice,
        schema: Mapping[str, Any] | None,
        response_format: Any,
        max_tokens: int | None,
    ) -> Generator[Event | Waiting, None, None]:
        session = self.conversation.session
        session.check_open()
        while self._draft.is_running:
            self._draft.stop()
            yield Waiting(self._draft.is_over)
        if not self._open.acquire(blocking=False):
            raise ConfigError(
                "a turn of this chat is still open.",
                hint="Read its events to the end, or close the iterator first.",
            )
        is_counted = False
        try:
            while self._news:
                yield Notice(self._news.pop(0))
            if self._has_new_adapters:
                self._has_new_adapters = False
                if lost := session.memory.lost_tokens:
                    yield Notice(f"The adapters of this chat were changed: {self._price(lost)}.")
            # Of this turn only: a cancel that came when the turn before was as good as over is for nothing.
            session.is_cancelled = False
            check_message(text, max_tokens)
            answer: ResponseFormat | None = None
            if schema is not None:
                tool_choice, response_format = "none", schema
            if response_format is not None:
                answer = ResponseFormat.of(response_format)
                # Compiled once ahead of the turn: a format that cannot be followed is refused before anything runs.
                for note in self.runtime.grammar_constraint(answer.grammar()).notes:
                    yield Notice(f"The schema is not wholly enforced while decoding: {note}")
            self.runtime.in_turn(self.runtime.engine.begin_turn)
            for note in self.runtime.take_notices():
                yield Notice(note)
            message = Message("user", text) if text is not None else None
            run = self._agent.run(message, choice=tool_choice, answer=answer, max_tokens=max_tokens)
            try:
                for item in run:
                    if isinstance(item, TurnFinished):
                        self._add(item.usage)
                        self.runtime.pace.note(item.usage)
                        is_counted = True
                        if answer is not None and item.finish_reason == "eog":
                            value, complaint = answer.read(item.text)
                            item = replace(item, value=value)
                            if complaint:
                                yield Notice(complaint)
                    for note in self.runtime.engine.governor.take_messages():
                        yield Notice(note)
                    yield item
            finally:
                run.close()
                if not is_counted:
                    self._add(self._agent.usage)
        finally:
            session.is_cancelled = False
            self._open.release()

    def _price(self, tokens: int) -> str:
        speed = self.runtime.pace.prefill_tok_s
        price = f" (about {tokens / speed:.1f} s)" if speed else ""
        return f"{tokens} {'token is' if tokens == 1 else 'tokens are'} computed again{price}"

    def _add(self, usage: Usage) -> None:
        self._usage = (self._usage + usage).bounded(LEGS_KEPT)

    def cancel(self) -> None:
        """Ends the open turn in whatever phase it is; safe from any thread. Without an open turn: nothing."""
        if self._open.locked():
            self._agent.cancel()

    # -- looking ------------------------------------------------------------------------------------------

    @property
    def messages(self) -> tuple[Message, ...]:
        """The conversation, a view of the tape."""
        return tuple(self.conversation.messages)

    @property
    def system(self) -> str:
        """The system turn as it was given, without what describes the tools."""
        return self.conversation.system

    @property
    def is_answer_open(self) -> bool:
        """The last answer was cut, stopped or limited before its end: `send(None)` lets it go on."""
        return self.conversation.is_answer_open

    @property
    def usage(self) -> Usage:
        """What all turns so far have cost: sums over all, and the newest legs one by one."""
        return self._usage

    @property
    def tape(self) -> tuple[int, ...]:
        """The exact tokens the model has seen."""
        return tuple(self.conversation.session.tape.tokens)

    @property
    def spans(self) -> list[Span]:
        """Who each stretch of the tape belongs to."""
        return self.conversation.session.tape.spans()

    def ledger(self) -> Ledger:
        """Who owns the context, in tokens and in the seconds that computing them again would take here."""
        if self._head is None:
            self._head = head_cost(self.conversation)
        return make_ledger(self.conversation, self._head, self.runtime.pace)

    def outlook(self) -> ContextOutlook:
        """What the context policy lets go next, and what that will cost. Nothing is done. Raises PluginError."""
        return outlook(self._agent.upkeep, self.runtime.pace)

    @property
    def format(self) -> WireFormat:
        """How calls are written; its `reason` says why it was chosen."""
        return self.conversation.format

    @property
    def template(self) -> ChatTemplate:
        """The chat template in use."""
        return self.conversation.template

    @property
    def strategy(self) -> str:
        """How tools are chosen: "guided" or "free"."""
        return "guided" if self._agent.is_guided else "free"

    @property
    def tools(self) -> tuple[str, ...]:
        """Names of the chat's tools."""
        return self._agent.toolset.names

    @property
    def chain(self) -> Chain:
        """The sampler chain; its `spec` is the text, its `seed` the number draws are made from."""
        return self.conversation.session.chain

    # -- steering -----------------------------------------------------------------------------------------

    def set_sampler(self, sampler: ChainLike, *, seed: int | None = None) -> None:
        """Draws from another chain from here on. Raises SamplerError, and then the old one stays."""
        self._check_closed("change the sampler")
        session = self.conversation.session
        chain = self.runtime.make_chain(sampler, seed)
        chain.replay(session.tape.tokens)
        before, session.chain = session.chain, chain
        before.close()

    @property
    def adapters(self) -> AdapterSet:
        """The LoRA adapters and control vectors that this chat decodes with; those of scale 0 are left out."""
        return self.conversation.session.overlay.chosen

    def set_adapters(self, adapters: AdapterSet | None) -> int:
        """Decodes with other adapters from here on, without loading the weights again. Gives how many tokens the next
        turn computes again: all that is held, for it was computed with the old ones. That turn's Notice and
        `Usage.rebuilt_tokens` say so too. None are those that the model was loaded with, AdapterSet() is none.

        Raises ConfigError for files that are missing or do not fit the model, and in an open turn.
        """
        self._check_closed("change the adapters")
        check_values({"adapters": adapters})
        overlay = self.runtime.overlay(adapters)
        session = self.conversation.session
        self.runtime.in_turn(lambda: session.use_adapters(overlay))
        self.options = replace(self.options, adapters=adapters)
        self._has_new_adapters = True
        return session.memory.lost_tokens

    def set_speculation(self, mode: SpeculateMode, texts: Sequence[str] = ()) -> None:
        """Guesses ahead in another way from the next turn on (`speculate` and `speculate_from` of ChatOptions).

        The texts that it guessed from so far stay known, also while it is off; `texts` are added. What was measured
        begins anew. Raises ConfigError, and then all is as before.
        """
        self._check_closed("change the guesses")
        check_values({"speculate_from": texts})
        session = self.conversation.session
        known = session.speculation or self._last_speculation
        session.speculation = self.runtime.speculation(mode, texts, known=known)
        self._last_speculation = session.speculation or known

    @property
    def speculation(self) -> SpeculateMode:
        """How the chat guesses ahead; "off": it does not."""
        found = self.conversation.session.speculation
        return found.mode if found is not None else "off"

    @property
    def context_policy(self) -> str:
        """The name of what says which turns give way when the context fills."""
        return self._agent.upkeep.name

    def set_context_policy(self, policy: str | ContextPolicy) -> None:
        """Lets another policy say what gives way, from the next turn on: names and functions as in ChatOptions.

        A chat that is full goes on so. Forks take it along. Raises ConfigError for a name that is unknown and in an
        open turn; the former one stays then.
        """
        self._check_closed("change the context policy")
        self._agent.upkeep.use(policy)
        self.options = replace(self.options, context_policy=policy)

    def set_trace(self, rows: int) -> None:
        """How many rows a point TokenDrawn events carry; 0 sends none. Raises ConfigError for what is no count."""
        check_values({"trace": rows})
        self.conversation.session.trace = rows

    def pin(self, message: int) -> None:
        """Keeps the turn of this message (an index into `messages`) when the context fills. Raises ConfigError."""
        self._check_closed("pin a message")
        self.conversation.pin(message)

    def unpin(self, message: int) -> None:
        """Lets the turn of this message go again when the context fills. Raises ConfigError."""
        self._check_closed("unpin a message")
        self.conversation.pin(message, is_pinned=False)

    @property
    def pinned(self) -> tuple[int, ...]:
        """Indices of the pinned messages. They move with their messages when older ones go."""
        return tuple(sorted(self.conversation.pins))

    def tidy(self, *, is_wanted: Callable[[], bool] | None = None) -> tuple[Event, ...]:
        """Makes room ahead of time, between turns: where more than half of the context is taken, the oldest give way as
        the context policy says, and what that costs is computed now. Gives what was done; raises EdgeError.

        `stop_tidy` of another thread ends it, and so does `is_wanted` (asked between steps) when it is false: what went
        by then is given, and what has not been computed is left to the next turn.
        """
        self._check_closed("tidy")
        if not self._open.acquire(blocking=False):
            raise ConfigError("cannot tidy while a turn is open.", hint="Read it to its end, or close it.")
        try:
            return self.runtime.in_turn(lambda: self._tidying.run(is_wanted or (lambda: True)))
        finally:
            self._add(Usage(self._tidying.legs()))
            self._open.release()

    def stop_tidy(self) -> None:
        """Ends a `tidy` of another thread at once. Without one: nothing."""
        self._tidying.stop()

    def rewind(self, to: int, *, redraw: bool = False) -> None:
        """Keeps the first `to` messages. Raises ConfigError for a number out of range, or in an open turn.

        What is said again after a rewind is answered as before: draws depend on seed, branch and position alone.
        `redraw` makes it another branch, so that the answer may differ.
        """
        self._check_closed("rewind")
        self.runtime.in_turn(lambda: self.conversation.rewind(to))
        if redraw:
            self.conversation.session.branch = self.runtime.engine.next_branch()

    def fork(self, *, at: int | None = None) -> Chat:
        """A chat that goes its own way from here, sharing what is computed so far.

        `at` is a tape position inside an answer: the fork's answer is cut there, and `send(None)` lets it go on.
        Raises ConfigError for a position elsewhere.
        """
        self._check_closed("fork")
        session = self.runtime.in_turn(self.conversation.session.fork)
        conversation = self.conversation.fork(session)
        other = Chat(self.runtime, conversation, self._agent.fork(conversation), self.options)
        other._usage = self._usage
        other._last_speculation = self._last_speculation
        self.runtime.adopt(other)
        if at is not None:
            try:
                self.runtime.in_turn(lambda: conversation.reopen(at))
            except BaseException:
                other.close()
                raise
        return other

    def branch(self, position: int, token: int) -> Chat:
        """A fork in which `token` stands at `position` of an answer; `send(None)` lets it go on behind that.

        The KV memory in front of it is shared, nothing is computed again. Raises ConfigError.
        """
        other = self.fork()
        try:
            self.runtime.in_turn(lambda: other.conversation.reopen(position, token))
        except BaseException:
            other.close()
            raise
        return other

    def explain(self, position: int, *, sampler: ChainLike | None = None, rows: int = 20) -> Step:
        """How the token at a tape position is drawn: its distribution, recomputed on a fork with the memory shared.

        `sampler` asks what another chain would have done there; `Step.token` is what it draws, with the same seed
        and the same random number. `position` may be the tape's length: what would come next. Grammars that held
        then are not applied. One token is decoded. Raises ConfigError, SamplerError.
        """
        self._check_closed("explain a token")
        source = self.conversation.session
        if not 0 < position <= len(source.tape):
            raise ConfigError(
                f"there is no position {position}: the tape has {len(source.tape)} tokens.",
                hint="Give one from 1 to that.",
            )
        chain = self.runtime.make_chain(sampler, source.chain.seed) if sampler is not None else None
        return self.runtime.in_turn(lambda: source.explain(position, rows, chain))

    def save(self, path: str | Path, *, branches: Sequence[Chat] = ()) -> None:
        """Writes the chat with its KV memory; `Runtime.open_chat` continues it without computing it again.

        `branches` are chats of the same runtime that go into the same file, such as its forks: `Runtime.open_chats`
        gives all of them. A crash leaves the old file or the new one. Raises ConfigError.
        """
        from edgellm.engine.saving import save_sessions

        chats = (self, *branches)
        for chat in chats:
            chat._check_closed("save")
            if chat.runtime is not self.runtime:
                raise ConfigError(
                    "chats of two runtimes cannot be saved together.", hint="Give each a file of its own."
                )
        sessions = [(chat.conversation.session, chat.state()) for chat in chats]
        self.runtime.in_turn(lambda: save_sessions(Path(path), sessions))

    @property
    def resumed(self) -> Resumed | None:
        """What has become of the memory of a chat that was opened from a file; None for others."""
        return self._resumed

    def state(self) -> dict[str, Any]:
        """What `save` writes beside the tape, as JSON values."""
        results = self._agent.results
        return {
            "name": self.name,
            "system": self.conversation.system,
            **beginning_of(self.conversation),
            **self.conversation.state(),
            "results": results.state() if results is not None else {},
        }

    def restore(self, state: Mapping[str, Any], resumed: Resumed) -> None:
        """Takes up a saved `state`. The first turn tells where the saved memory was of no use, and where the chat was
        begun with other tools. Raises SessionError."""
        self.conversation.restore(state)
        self.name = str(state.get("name", ""))
        if self._agent.results is not None:
            self._agent.results.restore(state.get("results"))
        self._resumed = resumed
        self._news = [str(resumed)] if resumed.verdict == "rebuilt" else []
        self._news += take_up_beginning(
            self.conversation, state, self._agent.toolset.specs, is_guided=self._agent.is_guided
        )

    def _check_closed(self, what: str) -> None:
        self.conversation.session.check_open()
        self._draft.stop()
        while not self._draft.is_over(WAIT_S):
            self._draft.stop()
        if self._open.locked():
            raise ConfigError(f"cannot {what} while a turn is open.", hint="Read it to its end, or close it.")

    def close(self) -> None:
        """Gives the chat's place in the context back. An open turn is cancelled. A second call does nothing."""
        self.cancel()
        self.runtime.in_turn(self.conversation.session.close)
        self.runtime.forget(self)

    def __enter__(self) -> Chat:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()
