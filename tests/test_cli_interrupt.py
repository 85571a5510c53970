"""Ctrl-C in every phase: it is heard at once, ends with 120 and one line, and loses nothing."""

from __future__ import annotations

import json
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_models
from cli_harness import child, cli, own_catalogue, terminal
from model_server import Served, serving

from edgellm.cli.interrupt import Interrupt

TOOLS = '''
import pathlib, time
import edgellm


@edgellm.tool(permission="auto")
def hang(is_long: bool) -> str:
    """Hangs."""
    pathlib.Path(__file__).with_name("started").touch()
    time.sleep(60)
    return "late"


@edgellm.tool
def launch(is_sure: bool) -> str:
    """Launches."""
    return "launched"
'''
HEARD_WITHIN_S = 1.5


@pytest.fixture(scope="module")
def slow_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose prefill of some thousand tokens takes seconds."""
    shape = tiny_models.Shape(n_layer=6, n_embd=256, n_head=4, n_head_kv=2, head_dim=64, n_ff=512)
    return tiny_models.build(tmp_path_factory.mktemp("slow") / "slow.gguf", n_ctx=32768, shape=shape)


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(TOOLS, encoding="utf-8")
    return path


def interrupt(process: subprocess.Popen[bytes]) -> tuple[int, str, str]:
    """Presses Ctrl-C; gives exit code, rest of stdout, and stderr."""
    started = time.monotonic()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert time.monotonic() - started < HEARD_WITHIN_S
    return process.returncode, out.decode(), err.decode()


def read_until(process: subprocess.Popen[bytes], kind: str) -> list[str]:
    """Reads JSON lines up to the first of a type."""
    lines: list[str] = []
    assert process.stdout is not None
    while not lines or f'"type": "{kind}"' not in lines[-1]:
        line = process.stdout.readline().decode()
        assert line, f"{kind} did not come: {lines}"
        lines.append(line)
    return lines


def assert_clean(code: int, rest: str, err: str) -> dict[str, object]:
    assert code == 120
    assert err.count("\n") <= 1
    assert "Traceback" not in err
    events = [json.loads(line) for line in rest.splitlines()]
    assert events[-1]["type"] == "turn_finished"
    assert events[-1]["finish_reason"] == "cancelled"
    return events[-1]


@pytest.mark.slow
def test_in_prefill(slow_model: Path) -> None:
    with child("run", "--json", "-m", slow_model, "--ctx", 16384, "--no-tools", "Q" * 12000) as process:
        read_until(process, "prefill_progress")
        end = assert_clean(*interrupt(process))
    assert end["text"] == ""


def test_in_decode(slow_model: Path) -> None:
    words = ("--ctx", 16384, "--no-tools", "--sampler", "logit_bias({0: -inf, 2: -inf})", "Hello")
    with child("run", "--json", "-m", slow_model, *words) as process:
        read_until(process, "text_delta")
        end = assert_clean(*interrupt(process))
    assert end["text"]


@pytest.mark.slow
def test_in_a_running_tool(slow_model: Path, tools: Path) -> None:
    words = ("--tools", tools, "--tool", "hang", "--tool-choice", "required", "Hello")
    with child("run", "--json", "-m", slow_model, "--seed", 1, *words) as process:
        read_until(process, "tool_running")
        code, rest, err = interrupt(process)
    assert_clean(code, rest, err)
    assert "cancelled" in rest


def test_while_asked_for_approval(slow_model: Path, tools: Path) -> None:
    words = ("--tools", tools, "--tool", "launch", "--tool-choice", "required", "Hello")
    with terminal("run", "-m", slow_model, "--seed", 1, *words) as tty:
        tty.wait_for("[n]o: ")
        tty.type("\x03")
        assert tty.code() == 120
        assert "launched" not in tty.text
        assert "Traceback" not in tty.text


def test_in_tools_call(tools: Path) -> None:
    with child("tools", "call", "hang", '{"is_long": true}', "--tools", tools) as process:
        deadline = time.monotonic() + 20
        while not tools.with_name("started").exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        code, out, err = interrupt(process)
    assert (code, out) == (120, "")
    assert err.startswith("edgellm: interrupted")
    assert err.count("\n") == 1


@pytest.mark.slow
def test_in_a_download_which_goes_on_later(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    path = tiny_model("llama")
    with serving(Served(files={"tiny.gguf": path.read_bytes()}, slow_s=0.05)) as served:
        own_catalogue(
            tmp_path / "config",
            '[models.far]\ndescription = "x"\nlicence = "MIT"\nfile = "tiny.gguf"\n'
            f'sources = [{{ kind = "url", url = "{served.url("tiny.gguf")}" }}]\n',
        )
        with child("models", "pull", "far") as process:
            deadline = time.monotonic() + 20
            while not any(file.stat().st_size for file in (tmp_path / "home").rglob("*.part")):
                assert time.monotonic() < deadline
                time.sleep(0.01)
            code, out, err = interrupt(process)
        assert (code, out) == (120, "")
        assert "Traceback" not in err
        assert not list((tmp_path / "home" / "models").glob("*"))
        served.slow_s = 0.0
        assert cli("models", "pull", "far").code == 0
        assert any(range_ for range_ in served.ranges())


def test_in_reading_stdin() -> None:
    with child("run", "-m", "nothing.gguf", stdin=subprocess.PIPE) as process:
        time.sleep(1.0)
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        assert process.wait(20) == 120
        assert process.stderr.read().decode().startswith("edgellm: interrupted")


def test_a_wish_to_stop_is_heard_while_the_main_thread_is_busy() -> None:
    heard = threading.Event()
    # A shell lets what it starts in the background ignore SIGINT.
    before = signal.getsignal(signal.SIGINT)
    with Interrupt(heard.set) as pressed:
        threading.Timer(0.05, lambda: signal.raise_signal(signal.SIGINT)).start()
        assert heard.wait(5)
        deadline = time.monotonic() + 5
        while not pressed.is_pressed and time.monotonic() < deadline:
            time.sleep(0.01)
        assert pressed.is_pressed
    assert signal.getsignal(signal.SIGINT) is before


def test_the_third_ctrl_c_raises() -> None:
    with pytest.raises(KeyboardInterrupt), Interrupt(lambda: None):
        for _ in range(3):
            signal.raise_signal(signal.SIGINT)


def test_within_a_question_ctrl_c_raises_at_once() -> None:
    stops: list[int] = []
    with Interrupt(lambda: stops.append(1)) as pressed:
        with pytest.raises(KeyboardInterrupt), pressed.asking():
            signal.raise_signal(signal.SIGINT)
        pressed.press()
    assert stops
