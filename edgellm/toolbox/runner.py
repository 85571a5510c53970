"""Running tools: each call on a daemon thread, with a time limit, cancellation and failure as data."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from edgellm.errors import Cancelled, ToolError
from edgellm.toolbox.capture import captured
from edgellm.toolbox.context import ToolContext
from edgellm.toolbox.result import Rendered, Truncate, cap, render
from edgellm.toolbox.results import ResultStore
from edgellm.toolbox.shortening import Shortening
from edgellm.toolbox.tool import Tool
from edgellm.types import ToolCall, ToolResult

_MOST_ERROR_CHARACTERS = 500


class Runner:
    """Starts calls; `start` never blocks and never raises for what a tool or a model did.

    `truncate` cuts results in tokens (see result.Truncate; without it, in characters). `settings` is what
    `ToolContext.setting` reads. `files_dir` takes bytes that tools return. `results` keeps
    what the model does not get at once. Python cannot kill a thread: a call
    that was given up while its code still runs is counted, and with `max_abandoned` of them new calls are
    refused. `on_progress` and `on_output` are called on the tool's thread.
    """

    def __init__(
        self,
        *,
        truncate: Truncate | None = None,
        settings: Mapping[str, Any] | None = None,
        files_dir: Path | None = None,
        max_abandoned: int = 4,
        results: ResultStore | None = None,
        on_progress: Callable[[ToolCall, str], None] | None = None,
        on_output: Callable[[ToolCall, str], None] | None = None,
    ) -> None:
        self.truncate = truncate
        self.settings: Mapping[str, Any] = settings if settings is not None else {}
        self.files_dir = files_dir
        self.max_abandoned = max_abandoned
        self.results = results
        self.on_progress = on_progress
        self.on_output = on_output
        self._lock = threading.Lock()
        self._live: set[Running] = set()

    @property
    def abandoned(self) -> int:
        """Calls that were given up while their code still runs."""
        with self._lock:
            return sum(running.is_settled for running in self._live)

    @property
    def shortening(self) -> Shortening:
        """What cuts results again, where there is less room than they take."""
        return Shortening(self.truncate or _by_characters, self.results)

    def start(self, tool: Tool[..., Any], call: ToolCall) -> Running:
        """Checks the arguments and starts the call; where it may not run, the result says why."""
        running = Running(self, tool, call)
        try:
            values = tool.check(call.arguments)
        except ToolError as error:
            running.settle(_failure(str(error)))
            return running
        if self.abandoned >= self.max_abandoned:
            running.settle(
                _failure(
                    f"{tool.name} was not run: {self.abandoned} earlier tool calls hang and were given up. "
                    "Answer without tools."
                )
            )
            return running
        with self._lock:
            self._live.add(running)
        running.begin(values)
        return running

    def ended(self, running: Running) -> None:
        """The call's thread is over; only Running calls it."""
        with self._lock:
            self._live.discard(running)


class Running:
    """One call under way. `ready`, `wait`, `result` and `cancel` may be called from any thread."""

    def __init__(self, runner: Runner, tool: Tool[..., Any], call: ToolCall) -> None:
        self.call = call
        self.tool = tool
        self.started_s = time.monotonic()
        self._runner = runner
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._outcome: _Outcome | None = None
        self._result: ToolResult | None = None
        self._stop_task: Callable[[], None] | None = None
        self._context = ToolContext(
            call=call,
            deadline=self.started_s + tool.spec.timeout_s,
            settings=runner.settings,
            on_progress=self._progress,
        )

    @property
    def is_settled(self) -> bool:
        """True once there is a result, whether or not the tool's code has ended."""
        return self._done.is_set()

    def begin(self, values: Mapping[str, Any]) -> None:
        """Starts the thread; only Runner calls it."""
        threading.Thread(
            target=self._work, args=(values,), name=f"edgellm-tool-{self.tool.name}", daemon=True
        ).start()

    def ready(self) -> bool:
        """True once `result` would not block; a call whose time is up is ready."""
        return self.wait(0.0)

    def wait(self, timeout_s: float | None = None) -> bool:
        """Waits for the result, at most `timeout_s` seconds and never past the call's own limit."""
        left = self._context.remaining_s()
        self._done.wait(left if timeout_s is None else min(left, max(0.0, timeout_s)))
        if not self._done.is_set() and self._context.remaining_s() <= 0:
            self.settle(_failure(f"{self.tool.name} timed out after {self.tool.spec.timeout_s:g} s."))
            self._stop()
        return self._done.is_set()

    def cancel(self) -> None:
        """Gives the call up at once, unless it is done; the tool is told through its ToolContext."""
        self.settle(_failure(f"{self.tool.name} was cancelled."))
        self._stop()

    def result(self) -> ToolResult:
        """The result; blocks until there is one, at most until the time is up."""
        while not self.wait():
            pass
        with self._lock:
            assert self._outcome is not None
            if self._result is None:
                outcome = self._outcome
                rendered, store = outcome.rendered, self._runner.results
                text, is_truncated = cap(
                    rendered,
                    self.tool.spec.max_result_tokens,
                    self._runner.truncate,
                    None if store is None else lambda shown: store.cut(self.call, rendered.whole, shown),
                )
                self._result = ToolResult(
                    text=text,
                    is_ok=outcome.rendered.is_ok,
                    is_truncated=is_truncated,
                    duration_s=outcome.ended_s - self.started_s,
                    data=outcome.data,
                )
            return self._result

    @property
    def whole(self) -> str:
        """All of a result, also what was cut from it; "" where there is none yet."""
        return self._outcome.rendered.whole if self._outcome is not None else ""

    def settle(self, outcome: _Outcome) -> None:
        """Takes the outcome, if it is the first."""
        with self._lock:
            if self._outcome is None:
                self._outcome = outcome
                self._done.set()

    def _stop(self) -> None:
        self._context.cancel_event.set()
        stop_task = self._stop_task
        if stop_task is not None:
            # The task's loop may have closed in the meantime.
            with contextlib.suppress(RuntimeError):
                stop_task()

    def _progress(self, text: str) -> None:
        if self._runner.on_progress is not None and not self._done.is_set():
            self._runner.on_progress(self.call, text)

    def _work(self, values: Mapping[str, Any]) -> None:
        outcome, printed = self._run(values)
        try:
            if printed and self._runner.on_output is not None:
                self._runner.on_output(self.call, printed)
        finally:
            self.settle(outcome)
            self._runner.ended(self)

    def _run(self, values: Mapping[str, Any]) -> tuple[_Outcome, str]:
        name, limit = self.tool.name, self.tool.spec.max_result_tokens
        with captured() as output:
            try:
                value = self.tool.invoke(values, self._context)
                if inspect.isawaitable(value):
                    value = asyncio.run(self._awaited(value))
                rendered = render(
                    value, max_tokens=limit, files_dir=self._runner.files_dir, printed=output.text("stdout")
                )
                outcome = _Outcome(rendered, value)
            except BaseException as raised:  # SystemExit and KeyboardInterrupt of a tool are its own failures
                error = _alone(raised)
                if isinstance(error, ToolError):
                    outcome = _failure(str(error) or f"{name} failed.", limit)
                elif isinstance(error, (Cancelled, asyncio.CancelledError)):
                    outcome = _failure(f"{name} was cancelled.")
                else:
                    outcome = _failure(f"{name} failed: {_words(error)}")
        return outcome, output.text("stdout") + output.text("stderr")

    async def _awaited(self, awaitable: Awaitable[Any]) -> Any:
        loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None
        self._stop_task = lambda: loop.call_soon_threadsafe(task.cancel) and None
        if self._context.cancelled():
            raise Cancelled(f"{self.tool.name} was cancelled.")
        return await awaitable


class _Outcome:
    """A rendered result, the value behind it and when it was there."""

    __slots__ = ("data", "ended_s", "rendered")

    def __init__(self, rendered: Rendered, data: Any = None) -> None:
        self.rendered = rendered
        self.data = data
        self.ended_s = time.monotonic()


def _by_characters(text: str, max_tokens: int) -> tuple[str, int]:
    """Four characters a token, where nobody counts."""
    return text[: max_tokens * 4], -(-len(text) // 4)


def _failure(text: str, max_tokens: int = 1024) -> _Outcome:
    return _Outcome(Rendered(render(text, max_tokens=max_tokens).text, len(text), is_ok=False, whole=text))


def _alone(error: BaseException) -> BaseException:
    """What a group of one holds, as a TaskGroup raises it; else the error itself."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def _words(error: BaseException) -> str:
    try:
        text = " ".join(str(error).split())
    except BaseException:  # an exception whose own __str__ raises
        text = ""
    if len(text) > _MOST_ERROR_CHARACTERS:
        text = text[:_MOST_ERROR_CHARACTERS] + "..."
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
