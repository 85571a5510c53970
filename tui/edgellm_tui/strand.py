"""One branch of a conversation as the screen knows it: a function of the events that came."""

from __future__ import annotations

import math
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import edgellm
from edgellm import Step, Usage
from edgellm_tui.blocks import AnswerBlock, Block, NoteBlock, ReasoningBlock, UserBlock
from edgellm_tui.cards import CardBlock
from edgellm_tui.kept import thinned
from edgellm_tui.read_back import blocks_of
from edgellm_tui.transcript import Transcript

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from edgellm import Event, Message, ToolCall

_FULL_STEPS = 256
_RATE_WINDOW = 32
_RATE_EVERY = 4
_MOST_RATES = 512
_LEGS_KEPT = 256


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a branch began: in which other one, at which tape position, with which token in place of the old."""

    parent: int
    position: int | None = None
    token: str = ""
    why: str = "fork"


class Strand:
    """What is shown of one branch, and the steps its tokens were drawn in.

    `steps` maps tape positions to steps: all rows of the last 256, raw and final rows of those before.
    """

    def __init__(self, key: int, chat: Any, *, origin: Origin | None = None, name: str = "") -> None:
        # Any: a Chat, or what plays one in tests.
        self.key = key
        self.chat = chat
        self.origin = origin
        self.name = name
        self.blocks: list[Block] = []
        self.steps: dict[int, Step] = {}
        self.usage = Usage()
        self.turn_usage: Usage | None = None
        self.state = "READY"
        self.prefill = (0, 0)
        self.prefill_started = 0.0
        self.started = 0.0
        self.first_token_s: float | None = None
        self.turn_tokens = 0
        self.finish_reason = ""
        self.created = time.time()
        # Which file of the chat holds this branch, and whether it holds all of it.
        self.number_on_disk = 0
        self.is_written = False
        self.transcript = Transcript()
        # What was said of a saved chat's memory when it was opened: its first turn would say so again.
        self._resumed = ""
        self._full: deque[int] = deque()
        # Tokens a second, over the turn.
        self.rates: deque[float] = deque(maxlen=_MOST_RATES)
        self._times: deque[float] = deque(maxlen=_RATE_WINDOW)
        self._cards: dict[int, CardBlock] = {}
        self._calls: dict[str, CardBlock] = {}

    # -- what is there ------------------------------------------------------------------------------------

    @property
    def is_running(self) -> bool:
        """A turn is open."""
        return self.state in ("PREFILL", "DECODE", "TOOL", "PAUSED")

    @property
    def last_step(self) -> Step | None:
        """The newest token with a distribution, else the newest."""
        newest: Step | None = None
        for position in reversed(self.steps):
            step = self.steps[position]
            newest = newest or step
            if step.distribution is not None:
                return step
            if position < newest.position - 64:
                break
        return newest

    @property
    def _newest_position(self) -> int:
        return next(reversed(self.steps), 0)

    def steps_between(self, first: int, last: int) -> list[Step]:
        """The tokens at these tape positions, both included."""
        return [self.steps[at] for at in range(first, last + 1) if at in self.steps]

    def step_list(self) -> list[Step]:
        """The tokens whose drawing was seen, in order."""
        return list(self.steps.values())

    @property
    def tok_s(self) -> float:
        """Tokens a second over the last ones."""
        times = self._times
        return (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 and times[-1] > times[0] else 0.0

    @property
    def last_answer(self) -> str:
        """The newest answer's text."""
        return next((block.plain() for block in reversed(self.blocks) if isinstance(block, AnswerBlock)), "")

    @property
    def growing_answer(self) -> str:
        """The text so far of the answer to the newest message."""
        for block in reversed(self.blocks):
            if isinstance(block, AnswerBlock):
                return block.plain()
            if isinstance(block, UserBlock):
                break
        return ""

    @property
    def title(self) -> str:
        """The first thing the user said."""
        return next((block.text for block in self.blocks if isinstance(block, UserBlock)), "")

    def card_of(self, call: ToolCall) -> CardBlock | None:
        """The card of a call."""
        return self._calls.get(call.id)

    # -- turns --------------------------------------------------------------------------------------------

    def begin(self, text: str | None, at: float) -> None:
        """A turn begins."""
        if text is not None:
            self.blocks.append(UserBlock(text))
        else:
            self._reopen()
        self.state, self.finish_reason = "PREFILL", ""
        self.prefill = (0, 0)
        self.started = at
        self.first_token_s = None
        self.turn_tokens = 0
        self._times.clear()
        self.rates.clear()
        self._cards.clear()

    def _reopen(self) -> None:
        """The last answer goes on where it was stopped; the notes about its end are void."""
        end = len(self.blocks)
        while end and isinstance(self.blocks[end - 1], NoteBlock):
            end -= 1
        last = self.blocks[end - 1] if end else None
        if isinstance(last, AnswerBlock):
            del self.blocks[end:]
            last.reopen()

    def end(self, error: Exception | None = None) -> None:
        """The turn is over."""
        self._close_open()
        for card in self._cards.values():
            if card.state in ("WRITING", "ASKS", "RUNNING"):
                card.set(state="STOPPED")
        self.state = "STOPPED" if self.finish_reason == "cancelled" else "READY"
        if error is not None:
            self.state = "FAILED"
            self.note(told(error), is_error=True)

    def note(self, text: str, *, is_error: bool = False) -> None:
        """Adds a notice."""
        self.blocks.append(NoteBlock(text, is_error=is_error))

    def say_resumed(self, resumed: edgellm.Resumed | None) -> None:
        """Tells what has become of the memory of a chat that was opened from a file."""
        if resumed is not None:
            self._resumed = str(resumed)
            nothing = " Nothing is computed again." if resumed.verdict != "rebuilt" else ""
            self.note(self._resumed + nothing)

    def hear(self, event: Event, at: float) -> None:
        """Takes one event of the open turn."""
        match event:
            case edgellm.TokenDrawn(step):
                self._drawn(step, at)
            case edgellm.TextDelta(text):
                self._answer(text)
            case edgellm.ReasoningDelta(text):
                self._reasoning(text)
            case edgellm.PrefillProgress(done, total):
                if self.state != "PREFILL" or not self.prefill[0]:
                    self.prefill_started = at
                self.state = "PREFILL" if done < total else "DECODE"
                self.prefill = (done, total)
            case edgellm.Notice(message):
                if message != self._resumed:
                    self.note(message)
            case edgellm.ContextEvicted(messages=messages):
                self._let_go([message.content for message in messages if message.role == "user"])
                self.note(str(event))
            case edgellm.HistoryRewritten(policy, removed):
                self.note(f"{removed} tokens of earlier reasoning were taken off the tape ({policy})")
            case edgellm.TurnFinished(_, reason, usage):
                self.finish_reason = reason
                self.turn_usage = usage
                self.usage = (self.usage + usage).bounded(_LEGS_KEPT)
                self._told_why(reason)
            case _:
                self._heard_of_call(event)

    def _let_go(self, texts: Sequence[str]) -> None:
        """The user's messages with these texts cannot be gone back to any more."""
        living = [block for block in self.blocks if isinstance(block, UserBlock) and not block.is_gone]
        for text in texts:
            found = next((block for block in living if block.text == text), None)
            if found is not None:
                living.remove(found)
                found.is_gone, found.message = True, None

    def _told_why(self, reason: str) -> None:
        words = {
            "cancelled": "stopped; the text so far stays",
            "length": "the answer reached its limit of tokens (/continue goes on)",
            "context_full": "the context is full: begin a new chat, rewind, or set context_policy (F9)",
            "max_steps": "too many tool calls in one turn; it was ended",
        }
        if reason in words:
            self._close_open()
            self.note(words[reason])

    def _heard_of_call(self, event: Event) -> None:
        match event:
            case edgellm.ToolCallStarted(index):
                self._close_open()
                card = self._card(index)
                card.positions = (self._newest_position, self._newest_position)
            case edgellm.ToolCallName(index, name):
                self._card(index).set(name=name)
            case edgellm.ToolCallDelta(index, fragment):
                card = self._card(index)
                card.set(written=card.written + fragment)
            case edgellm.ToolCallReady(index, call):
                card = self._card(index)
                card.set(name=call.name, arguments=call.arguments, id=call.id, state="READY")
                card.positions = (card.positions[0], self._newest_position)
                self._calls[call.id] = card
            case edgellm.ToolCallBroken(index, raw, error):
                self._card(index).set(state="BROKEN", written=raw, note=error)
            case edgellm.CallRepaired(index, _, _, error):
                self._card(index).set(
                    state="WRITING", written="", arguments=None, note=f"written again: {error}"
                )
            case edgellm.ApprovalRequested(call, reason):
                self.state = "PAUSED"
                self._card_for(call).set(state="ASKS", note=reason)
            case edgellm.ToolApproved(call, by):
                self._card_for(call).set(
                    arguments=call.arguments, note="" if by == "auto" else f"allowed by {by}"
                )
            case edgellm.ToolDenied(call, reason):
                self._card_for(call).set(state="DENIED", note=reason)
            case edgellm.ToolRunning(call):
                self.state = "TOOL"
                self._card_for(call).set(state="RUNNING")
            case edgellm.ToolFinished(call, result):
                self._card_for(call).finish(result)
                # The time in which the tool ran, or was asked about, is not the model's.
                self._times.clear()
            case _:
                pass

    def _card(self, index: int) -> CardBlock:
        card = self._cards.get(index)
        if card is None:
            card = self._cards[index] = CardBlock(index)
            self.blocks.append(card)
        return card

    def _card_for(self, call: ToolCall) -> CardBlock:
        card = self._calls.get(call.id)
        if card is None:
            card = self._calls[call.id] = CardBlock()
            card.set(name=call.name, arguments=call.arguments, id=call.id)
            self.blocks.append(card)
        return card

    def _growing(self) -> AnswerBlock | ReasoningBlock | None:
        """The block that is being written; notices that came meanwhile do not end it."""
        last = next((block for block in reversed(self.blocks) if not isinstance(block, NoteBlock)), None)
        return last if isinstance(last, AnswerBlock | ReasoningBlock) and not last.is_over else None

    def _answer(self, text: str) -> None:
        block = self._growing()
        if not isinstance(block, AnswerBlock):
            if not text.strip():
                return
            self._close_open()
            block = AnswerBlock()
            self.blocks.append(block)
        block.append(text)

    def _reasoning(self, text: str) -> None:
        block = self._growing()
        if not isinstance(block, ReasoningBlock):
            if not text.strip():
                return
            self._close_open()
            block = ReasoningBlock()
            self.blocks.append(block)
        block.append(text)

    def _close_open(self) -> None:
        block = self._growing()
        if block is not None:
            block.finish()

    # -- tokens -------------------------------------------------------------------------------------------

    def _drawn(self, step: Step, at: float) -> None:
        if self.first_token_s is None:
            self.first_token_s = at - self.started
        self.state = "DECODE"
        self.turn_tokens += 1
        if not step.is_forced:
            # Forced tokens come in one batch: they say nothing of the speed.
            self._times.append(at)
        if self.turn_tokens % _RATE_EVERY == 0:
            self.rates.append(self.tok_s)
        self.keep(step)

    def keep(self, step: Step) -> None:
        """Takes a step into the books; tokens at and behind its place were taken back."""
        while self.steps and next(reversed(self.steps)) >= step.position:
            self.steps.popitem()
        self.steps[step.position] = step
        self._full.append(step.position)
        if len(self._full) > _FULL_STEPS:
            position = self._full.popleft()
            old = self.steps.get(position)
            if old is not None:
                self.steps[position] = thinned(old)

    def forget_from(self, position: int) -> None:
        """Drops the steps of tokens that are not on the tape any more."""
        while self.steps and next(reversed(self.steps)) >= position:
            self.steps.popitem()

    def load(self, *, is_open: bool = False) -> None:
        """The blocks of the transcript's conversation; `is_open`: its last answer goes on."""
        told = self.transcript
        self.blocks[:], self._calls = blocks_of(told.messages, gone=told.gone, is_open=is_open)
        if self.chat is not None:
            self.mark(self.chat.pinned)

    def mark(self, pinned: Collection[int]) -> None:
        """Marks the turns of these messages of the chat as those that stay when the context fills."""
        end: float = math.inf
        for block in reversed(self.blocks):
            if isinstance(block, UserBlock) and block.message is not None and not block.is_gone:
                first = block.message
                block.pin(any(first <= index < end for index in pinned))
                end = first

    def number(self, messages: Sequence[Message]) -> None:
        """Tells the user's blocks which message of the chat each of them is.

        One that was stopped before it was read is none: it stands for the place where it would be.
        """
        indices = [index for index, message in enumerate(messages) if message.role == "user"]
        place = len(messages)
        own = [block for block in self.blocks if isinstance(block, UserBlock) and not block.is_gone]
        for block in reversed(own):
            while indices and messages[indices[-1]].content != block.text:
                if all(messages[index].content != block.text for index in indices):
                    break
                indices.pop()
            else:
                place = indices.pop() if indices else place
            block.message = place


def told(error: Exception) -> str:
    """An error in words."""
    if isinstance(error, edgellm.EdgeError):
        return str(error)
    return f"{type(error).__name__}: {error}. The app goes on; the log page has the details."
