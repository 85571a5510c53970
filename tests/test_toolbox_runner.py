"""Running tools: time limits, cancellation, prints, failures, threads that hang."""

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from edgellm.errors import ToolError
from edgellm.toolbox.context import ToolContext
from edgellm.toolbox.runner import Runner
from edgellm.toolbox.tool import Tool, tool
from edgellm.types import ToolCall, ToolResult


def call_of(one: Tool[..., Any], **arguments: Any) -> ToolCall:
    return ToolCall(id="1", name=one.name, arguments=arguments)


def run(function: Any, runner: Runner | None = None, **arguments: Any) -> ToolResult:
    one = function if isinstance(function, Tool) else tool(function)
    return (runner or Runner()).start(one, call_of(one, **arguments)).result()


def until(predicate: Callable[[], bool], timeout_s: float = 5.0) -> bool:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if predicate():
            return True
        time.sleep(0.005)
    return predicate()


@pytest.fixture
def gate() -> Any:
    """Tools of a test may wait for it; it opens when the test ends, so that no thread outlives it for long."""
    event = threading.Event()
    yield event
    event.set()


def test_sync_and_async_results() -> None:
    async def later(x: int) -> dict[str, int]:
        await asyncio.sleep(0.01)
        return {"x": x}

    def now(x: int) -> int:
        return x + 1

    assert run(now, x="2").text == "3"
    result = run(later, x=2)
    assert (result.text, result.is_ok, result.data) == ('{"x":2}', True, {"x": 2})
    assert 0.009 < result.duration_s < 5


def test_wrong_arguments_never_reach_the_code() -> None:
    def never(x: int) -> None:
        raise AssertionError

    result = run(never, x="many")
    assert not result.is_ok
    assert "argument 'x' should be an integer" in result.text


class OddError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


class ExitingError(Exception):
    def __str__(self) -> str:
        raise SystemExit


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("bad\nday"), "broken failed: ValueError: bad day"),
        (KeyError("x"), "broken failed: KeyError: 'x'"),
        (ToolError("The door is shut.", hint="Open it."), "The door is shut. Open it."),
        (SystemExit(3), "broken failed: SystemExit: 3"),
        (KeyboardInterrupt(), "broken failed: KeyboardInterrupt"),
        (OddError(), "broken failed: OddError"),
        (ExitingError(), "broken failed: ExitingError"),
        (ExceptionGroup("in tasks", [ToolError("The door is shut.")]), "The door is shut."),
        (ExceptionGroup("in tasks", [ValueError("bad day")]), "broken failed: ValueError: bad day"),
        (RecursionError("deep"), "broken failed: RecursionError: deep"),
    ],
)
def test_exceptions_are_results(error: BaseException, text: str) -> None:
    def broken() -> None:
        raise error

    result = run(broken)
    assert (result.text, result.is_ok) == (text, False)


def test_long_error_is_cut() -> None:
    def broken() -> None:
        raise ValueError("x" * 1_000_000)

    assert len(run(broken).text) < 600


def test_time_limit_is_reported_and_the_tool_is_told(gate: threading.Event) -> None:
    told = threading.Event()

    @tool(timeout_s=0.05)
    def slow(call: ToolContext) -> None:
        call.cancel_event.wait(5)
        told.set()
        gate.wait(5)

    runner = Runner()
    running = runner.start(slow, call_of(slow))
    assert not running.ready()
    result = running.result()
    assert (result.text, result.is_ok) == ("slow timed out after 0.05 s.", False)
    assert told.wait(5)
    assert runner.abandoned == 1
    gate.set()
    assert until(lambda: runner.abandoned == 0)


def test_async_tool_is_stopped_by_its_time_limit() -> None:
    ended = threading.Event()

    @tool(timeout_s=0.05)
    async def slow() -> None:
        try:
            await asyncio.sleep(30)
        finally:
            ended.set()

    assert "timed out" in run(slow).text
    assert ended.wait(5)


def test_too_many_hanging_tools_refuse_new_ones(gate: threading.Event) -> None:
    @tool(timeout_s=0.01)
    def hang() -> None:
        gate.wait(10)

    @tool
    def fine() -> str:
        return "fine"

    runner = Runner(max_abandoned=2)
    for _ in range(2):
        run(hang, runner)
    result = run(fine, runner)
    assert not result.is_ok
    assert "2 earlier tool calls hang" in result.text
    gate.set()
    assert until(lambda: runner.abandoned == 0)
    assert run(fine, runner).text == "fine"


def test_cancel_ends_at_once_and_late_results_are_dropped(gate: threading.Event) -> None:
    @tool
    def slow() -> str:
        gate.wait(5)
        return "late"

    runner = Runner()
    running = runner.start(slow, call_of(slow))
    started = time.monotonic()
    running.cancel()
    assert running.result().text == "slow was cancelled."
    assert time.monotonic() - started < 1
    gate.set()
    assert until(lambda: runner.abandoned == 0)
    assert running.result().text == "slow was cancelled."


def test_context_sleep_ends_on_cancel() -> None:
    ended = threading.Event()

    @tool
    def slow(call: ToolContext) -> None:
        try:
            call.sleep(30)
        finally:
            ended.set()

    running = Runner().start(slow, call_of(slow))
    running.cancel()
    assert ended.wait(5)


def test_cancel_after_the_end_changes_nothing() -> None:
    @tool
    def quick() -> str:
        return "done"

    running = Runner().start(quick, call_of(quick))
    assert running.wait(5)
    running.cancel()
    assert running.result().text == "done"


def test_parallel_calls_run_at_once() -> None:
    both = threading.Barrier(2, timeout=5)

    @tool
    def meet() -> int:
        return both.wait()

    runner = Runner()
    runs = [runner.start(meet, call_of(meet)) for _ in range(2)]
    assert sorted(one.result().text for one in runs) == ["0", "1"]


def test_prints_are_kept_off_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    heard: list[str] = []

    @tool
    def noisy() -> str:
        print("to stdout")
        print("to stderr", file=sys.stderr)
        sys.stdout.buffer.write(b"raw\n")
        return "x"

    @tool
    async def noisy_async() -> None:
        await asyncio.to_thread(print, "from a thread")

    real = sys.stdout
    runner = Runner(on_output=lambda call, text: heard.append(f"{call.name}: {text}"))
    assert run(noisy, runner).text == "x"
    assert run(noisy_async, runner).text == "from a thread"
    assert until(lambda: sys.stdout is real)
    assert capsys.readouterr() == ("", "")
    assert heard == ["noisy: to stdout\nraw\nto stderr\n", "noisy_async: from a thread\n"]


def test_other_threads_still_print_while_a_tool_runs(
    capsys: pytest.CaptureFixture[str], gate: threading.Event
) -> None:
    @tool
    def slow() -> None:
        print("hidden")
        gate.wait(5)

    running = Runner().start(slow, call_of(slow))
    print("seen")
    gate.set()
    running.result()
    assert capsys.readouterr().out == "seen\n"


def test_endless_printing_is_bounded() -> None:
    heard: list[int] = []

    @tool
    def chatty() -> str:
        for _ in range(40):
            print("x" * 65536)
        return "done"

    runner = Runner(on_output=lambda call, text: heard.append(len(text)))
    assert run(chatty, runner).text == "done"
    assert heard == [256 * 1024]


def test_a_tool_cannot_read_the_users_keyboard() -> None:
    @tool
    def ask() -> str:
        return input("name? ")

    assert run(ask).text == "ask failed: EOFError: EOF when reading a line"


def test_progress_and_settings_reach_the_right_place() -> None:
    heard: list[str] = []

    @tool
    def steps(call: ToolContext) -> str:
        call.progress("half")
        return f"{call.setting('steps.unit')} {call.remaining_s() > 0}"

    runner = Runner(
        settings={"steps": {"unit": "m"}}, on_progress=lambda call, text: heard.append(f"{call.name} {text}")
    )
    assert run(steps, runner).text == "m True"
    assert heard == ["steps half"]


def test_megabytes_are_capped() -> None:
    @tool(max_result_tokens=50)
    def huge() -> str:
        return "word " * 2_000_000

    def truncate(text: str, most: int) -> tuple[str, int]:
        parts = text.split()
        return " ".join(parts[:most]), len(parts)

    result = run(huge, Runner(truncate=truncate))
    assert result.is_truncated
    assert len(result.text.split()) <= 50
    assert "[cut: first 26 of about" in result.text


def test_failed_render_is_a_result() -> None:
    class Hostile:
        def __str__(self) -> str:
            raise RuntimeError("no text")

    @tool
    def odd() -> Hostile:
        return Hostile()

    result = run(odd)
    assert not result.is_ok
    assert "RuntimeError" in result.text


def test_hanging_tool_does_not_keep_the_process_alive() -> None:
    code = (
        "import time\nfrom edgellm.toolbox.tool import tool\nfrom edgellm.toolbox.runner import Runner\n"
        "from edgellm.types import ToolCall\n"
        "@tool(timeout_s=0.05)\ndef hang() -> None:\n    print('hidden')\n    time.sleep(60)\n"
        "print(Runner().start(hang, ToolCall('1', 'hang', {})).result().text)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=True
    )
    assert done.stdout == "hang timed out after 0.05 s.\n"
    assert done.stderr == ""
