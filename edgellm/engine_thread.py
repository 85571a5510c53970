"""The one adapter for many callers: a thread that owns the engine and takes every turn in rotation."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from concurrent.futures import Future
from typing import TYPE_CHECKING, Generic, TypeVar

from edgellm.errors import Cancelled, ConfigError
from edgellm.waiting import Waiting

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

T = TypeVar("T")
_IDLE_WAIT_S = 0.02


class EngineThread:
    """Runs the turns of many chats on one thread, so that tokens due at the same time share a batch.

    Each turn is advanced until it waits; then the next. The first that asks for its token makes the engine
    decode for all that asked. A slow reader never holds up the thread: events are queued for it.
    """

    def __init__(self) -> None:
        self._tasks: deque[_Turn[object]] = deque()
        self._wake = threading.Condition()
        self._is_closed = False
        self._thread: threading.Thread | None = None

    def start_turn(self, turn: Iterator[T | Waiting], deliver: Callable[[T | _End], None]) -> _Turn[T]:
        """Advances a turn until it ends; `deliver` gets its items, then an end. It is called on the thread."""
        task = _Turn(turn, deliver)
        self._put(task)
        return task

    def call(self, function: Callable[[], T]) -> Future[T]:
        """Runs a function on the thread between two steps: for whatever else touches the engine."""
        future: Future[T] = Future()

        def once() -> Iterator[T | Waiting]:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(function())
                except BaseException as error:
                    future.set_exception(error)
            return iter(())

        def forget(_end: object) -> None:
            future.cancel()  # where the thread is closed first, the caller must not wait forever

        self._put(_Turn(_lazily(once), forget))
        return future

    @property
    def is_current(self) -> bool:
        """True on the thread itself."""
        return self._thread is threading.current_thread()

    def _put(self, task: _Turn[T]) -> None:
        with self._wake:
            if self._is_closed:
                raise ConfigError("the runtime is closed.", hint="Load the model again.")
            self._tasks.append(task)  # type: ignore[arg-type]  # a queue of turns of any item type
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="edgellm-engine", daemon=True)
                self._thread.start()
            self._wake.notify()

    def stream(self, turn: Iterator[T | Waiting]) -> Stream[T]:
        """Starts a turn for the asyncio loop that is running, and gives its items. Close it when it is left early."""
        return Stream(self, turn)

    def result_of(self, turn: Generator[Waiting, None, T]) -> Future[T]:
        """Starts a turn that gives no items; the future has what it returns."""
        future: Future[T] = Future()
        # It cannot be cancelled by its future: what it has begun, it ends itself.
        future.set_running_or_notify_cancel()

        def whole() -> Iterator[Waiting]:
            try:
                future.set_result((yield from turn))
            except GeneratorExit:
                future.set_exception(Cancelled("the runtime was closed."))
                raise
            except BaseException as error:
                future.set_exception(error)

        def forget(end: object) -> None:
            if not future.done():
                # The thread was closed before it began.
                future.set_exception(getattr(end, "error", None) or Cancelled("the runtime was closed."))

        self._put(_Turn(whole(), forget))
        return future

    def _run(self) -> None:
        while True:
            with self._wake:
                while not self._tasks and not self._is_closed:
                    self._wake.wait()
                if self._is_closed:
                    return
                tasks = list(self._tasks)
            has_moved = False
            for task in tasks:
                has_moved |= task.advance()
                if task.is_done:
                    with self._wake:
                        self._tasks.remove(task)
            if not has_moved:
                with self._wake:
                    self._wake.wait(_IDLE_WAIT_S)

    def close(self) -> None:
        """Ends the thread; turns that are open are closed, and their readers get Cancelled."""
        with self._wake:
            self._is_closed = True
            self._wake.notify()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        with self._wake:
            tasks, self._tasks = list(self._tasks), deque()
        for task in tasks:
            task.end(Cancelled("the runtime was closed while this turn was open."))


class Stream(Generic[T]):
    """The items of a turn, as an asynchronous iterator.

    No asynchronous generator: a loop that shuts down closes those all at once, this one beside the one that
    reads it, and neither would wait for the other.
    """

    def __init__(self, thread: EngineThread, turn: Iterator[T | Waiting]) -> None:
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[T | _End] = asyncio.Queue()
        self._is_over = False
        self._task = thread.start_turn(turn, self._deliver)

    def _deliver(self, item: T | _End) -> None:
        # Raises RuntimeError where the loop is closed: the turn ends then.
        self._loop.call_soon_threadsafe(self._queue.put_nowait, item)

    def __aiter__(self) -> Stream[T]:
        return self

    async def __anext__(self) -> T:
        if self._is_over:
            raise StopAsyncIteration
        item = await self._queue.get()
        if isinstance(item, _End):
            self._is_over = True
            raise item.error or StopAsyncIteration
        return item

    async def aclose(self) -> None:
        """Closes the turn, and waits until it is closed."""
        self._task.close()
        # A reader that is collected after its loop was closed has nobody to wait for.
        while not self._is_over and not self._loop.is_closed():
            self._is_over = isinstance(await self._queue.get(), _End)


class _End:
    """The end of a turn, with the error that ended it or None."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


class _Turn(Generic[T]):
    """One turn on the thread."""

    def __init__(self, turn: Iterator[T | Waiting], deliver: Callable[[T | _End], None]) -> None:
        self._turn = turn
        self._deliver = deliver
        self._waiting: Waiting | None = None
        self._is_closing = False
        self.is_done = False

    def close(self) -> None:
        """Asks for the end of the turn. Safe from any thread; the engine's thread does it."""
        self._is_closing = True

    def advance(self) -> bool:
        """Runs the turn until it waits or ends; false where it still waits."""
        if self.is_done:
            return True
        if self._is_closing:
            self.end(None)
            return True
        try:
            if self._waiting is not None and not self._waiting.wait(0.0):
                return False
            self._waiting = None
            for item in self._turn:
                if isinstance(item, Waiting):
                    self._waiting = item
                    return True
                self._deliver(item)
                if self._is_closing:
                    self.end(None)
                    return True
        except BaseException as error:
            self.end(error)
        else:
            self.end(None)
        return True

    def end(self, error: BaseException | None) -> None:
        """Closes the turn and tells its reader. Never raises: the thread belongs to the other turns, too."""
        self.is_done = True
        try:
            close = getattr(self._turn, "close", None)
            if close is not None:
                close()
        except BaseException as raised:
            error = error or raised
        with contextlib.suppress(Exception):  # a reader whose event loop is closed is not there any more
            self._deliver(_End(error))


def _lazily(make: Callable[[], Iterator[T]]) -> Iterator[T]:
    yield from make()
