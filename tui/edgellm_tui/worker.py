"""The engine's side of the app: a thread that runs jobs and turns, and a queue that the screen empties."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from edgellm import Approval, EdgeError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Generator, Sequence

    from edgellm import Event, Message, ToolCall, ToolSpec


@dataclass(frozen=True, slots=True)
class Heard:
    """An event of a turn, with the time it came (of the worker's clock)."""

    key: int
    event: Event
    at: float


@dataclass(frozen=True, slots=True)
class Ended:
    """A turn is over; `error` is what ended it early, or None. `messages` are those of the chat now."""

    key: int
    error: Exception | None
    messages: tuple[Message, ...] = ()


@dataclass(frozen=True, slots=True)
class Called:
    """A job is over: the screen calls `then`."""

    then: Callable[[], None]


@dataclass(eq=False)
class Question:
    """A call that waits for the user's yes. No answer in time, and no answer at all, are a no."""

    call: ToolCall
    spec: ToolSpec
    reason: str
    key: int = 0
    timeout_s: float | None = None
    _answer: Approval = field(default_factory=lambda: Approval("deny", reason="Nobody answered."))
    _is_answered: threading.Event = field(default_factory=threading.Event)

    @property
    def is_open(self) -> bool:
        """Nobody has answered yet."""
        return not self._is_answered.is_set()

    def answer(self, approval: Approval) -> None:
        """The first answer counts."""
        if self.is_open:
            self._answer = approval
            self._is_answered.set()

    def wait(self) -> Approval:
        """Blocks until somebody has answered, or the time is over."""
        self._is_answered.wait(self.timeout_s)
        self._is_answered.set()
        return self._answer


Item = Heard | Ended | Called | Question


class EngineWorker:
    """Runs what touches the engine, one job after the other, on a thread of its own.

    `items` is what the screen has to know, in order; `wake` is called (on the thread) when it stops being empty.
    The thread never waits for the screen, but for the answer to a Question. `clock` gives the events' times; `listen`
    hears of each event on the thread itself, before the screen.
    """

    def __init__(self, wake: Callable[[], None], clock: Callable[[], float] = time.perf_counter) -> None:
        self.items: deque[Item] = deque()
        self._wake = wake
        self.clock = clock
        self.listen: Callable[[int, Event], None] = _no_one
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="edgellm-app", daemon=True)
        self._open: dict[int, Any] = {}
        # What ends the job that runs just now and that nobody waits for.
        self._end_aside: Callable[[], None] | None = None
        self._is_tidying = False
        self._stopped: set[int] = set()
        self._questions: list[Question] = []
        self._lock = threading.Lock()
        self.approval_timeout_s: float | None = 600.0
        self.asking_key = 0

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def close(self, timeout_s: float = 10.0) -> None:
        """Ends open turns and the thread, after the jobs that are waiting."""
        self.stop()
        self._add(None)
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    @property
    def is_busy(self) -> bool:
        """True while a turn is open."""
        return bool(self._open)

    @property
    def is_tidying(self) -> bool:
        """True while room is made ahead of time: the tape changes, and asking for anything would end it."""
        return self._is_tidying

    # -- jobs ---------------------------------------------------------------------------------------------

    def submit(
        self,
        job: Callable[[], Any],
        done: Callable[[Any], None] | None = None,
        failed: Callable[[Exception], None] | None = None,
    ) -> None:
        """Runs `job` on the thread; then the screen calls `done` with what it gave, or `failed`."""

        # Any: what the job gives is what `done` takes.
        def run() -> None:
            try:
                value = job()
            except Exception as raised:
                if failed is not None:
                    self.put(Called(partial(failed, raised)))
            else:
                if done is not None:
                    self.put(Called(partial(done, value)))

        self._add(run)

    def draft(self, chat: Any, text: str) -> None:
        """Computes what is settled of a text that is being typed, while there is nothing else to do. Whatever comes
        ends it at once."""

        # Any: a Chat, or what plays one in tests.
        def run() -> None:
            self._end_aside = chat.stop_draft
            try:
                if self._jobs.empty():
                    chat.prefill_draft(text)
            except EdgeError:
                pass  # nobody has asked for it, and the turn itself will say what is wrong
            finally:
                self._end_aside = None

        self._add(run)

    def tidy(
        self,
        key: int,
        chat: Any,
        done: Callable[[Sequence[Event]], None],
        failed: Callable[[Exception], None],
    ) -> None:
        """Makes room in a chat's context ahead of time, while there is nothing else to do. Whatever comes ends it at
        once; `done` gets what was done by then."""

        # Any: a Chat, or what plays one in tests.
        def run() -> None:
            if not self._jobs.empty():
                return
            self._end_aside, self._is_tidying = chat.stop_tidy, True
            try:
                events = chat.tidy(is_wanted=self._jobs.empty)
                for event in events:
                    self.listen(key, event)
                then = partial(done, events)
            except Exception as raised:
                then = partial(failed, raised)
            finally:
                self._end_aside, self._is_tidying = None, False
            self.put(Called(then))

        self._add(run)

    def end_aside(self) -> None:
        """Ends what is done ahead of time just now, a draft or room that is made. Safe from any thread."""
        if (end := self._end_aside) is not None:
            end()

    def _add(self, job: Callable[[], None] | None) -> None:
        self._jobs.put(job)
        self.end_aside()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()

    def put(self, item: Item) -> None:
        """Gives the screen something to read. Safe from any thread."""
        self.items.append(item)
        self._wake()

    # -- turns --------------------------------------------------------------------------------------------

    def turn(self, key: int, chat: Any, text: str | None, **options: Any) -> None:
        """One turn of a chat; its events come as Heard(key, ...), its end as Ended(key, ...)."""
        # Any: a Chat, or what plays one in tests.
        self._begin([(key, chat)])
        self._add(lambda: self._play(key, chat, text, options))

    def _play(self, key: int, chat: Any, text: str | None, options: dict[str, Any]) -> None:
        error: Exception | None = None
        events: Generator[Event, None, None] | None = None
        self.asking_key = key
        try:
            if key not in self._stopped:
                turn: Generator[Event, None, None] = chat.send(text, **options)
                events = turn
                for event in turn:
                    self.listen(key, event)
                    self.put(Heard(key, event, self.clock()))
                    if key in self._stopped:
                        chat.cancel()
        except Exception as raised:
            error = raised
        finally:
            if events is not None:
                events.close()
        self._end(key, error)

    def race(self, runners: Sequence[tuple[int, Any]], **options: Any) -> None:
        """Lets several chats go on at the same time, their tokens in shared batches."""
        self._begin(runners)
        self._add(lambda: asyncio.run(self._run_together(runners, options)))

    async def _run_together(self, runners: Sequence[tuple[int, Any]], options: dict[str, Any]) -> None:
        async def one(key: int, chat: Any) -> None:
            error: Exception | None = None
            events: AsyncGenerator[Event, None] = chat.asend(None, **options)
            try:
                async for event in events:
                    self.listen(key, event)
                    self.put(Heard(key, event, self.clock()))
                    if key in self._stopped:
                        chat.cancel()
            except Exception as raised:
                error = raised
            finally:
                await events.aclose()
            self._end(key, error)

        await asyncio.gather(*(one(key, chat) for key, chat in runners))

    def _begin(self, runners: Sequence[tuple[int, Any]]) -> None:
        with self._lock:
            for key, chat in runners:
                self._open[key] = chat
                self._stopped.discard(key)

    def _end(self, key: int, error: Exception | None) -> None:
        with self._lock:
            chat = self._open.pop(key, None)
        self.put(Ended(key, error, tuple(chat.messages) if chat is not None else ()))

    def stop(self) -> bool:
        """Stops all open turns and answers open questions with no. False: there was no turn. Safe from any thread."""
        with self._lock:
            running = dict(self._open)
            questions = list(self._questions)
        self._stopped.update(running)
        for question in questions:
            question.answer(Approval("deny", reason="The user stopped the answer."))
        for chat in running.values():
            chat.cancel()
        return bool(running)

    # -- approvals ----------------------------------------------------------------------------------------

    def ask(self, call: ToolCall, spec: ToolSpec, reason: str) -> Approval:
        """`approve` of a chat: shows the question, and blocks until it is answered."""
        question = Question(call, spec, reason, self.asking_key, self.approval_timeout_s)
        with self._lock:
            self._questions.append(question)
            is_stopped = bool(self._open) and self._stopped.issuperset(self._open)
        if is_stopped:
            question.answer(Approval("deny", reason="The user stopped the answer."))
        self.put(question)
        try:
            return question.wait()
        finally:
            with self._lock:
                self._questions.remove(question)
            self.put(Called(lambda: None))


def _no_one(_key: int, _event: Event) -> None:
    return None
