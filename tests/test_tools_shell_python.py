"""shell and python: what they start ends with them, takes no more than its share, and the sandbox is told."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import pytest
from edgellm_tools import confined
from edgellm_tools.confined import Sandbox
from edgellm_tools.python import python
from edgellm_tools.shell import shell

from edgellm.errors import Cancelled, ToolError
from edgellm.toolbox.context import ToolContext

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")

REAL = confined.find_sandbox()
NOTE = "[not sandboxed, only limited: bubblewrap is not installed]"
needs_bwrap = pytest.mark.skipif(not REAL.argv, reason=f"no sandbox: {REAL.reason}")


@pytest.fixture(params=["bare", pytest.param("bwrap", marks=needs_bwrap)])
def sandbox(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "bare":
        monkeypatch.setattr(confined, "find_sandbox", lambda: Sandbox((), "bubblewrap is not installed"))
    return str(request.param)


def sh(command: str, seconds: float = 20) -> str:
    context = ToolContext(deadline=time.monotonic() + confined.REPORT_S + seconds)
    return shell(command, call=context).removesuffix(NOTE).rstrip("\n")


def running(marker: str) -> list[int]:
    found: list[int] = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                line = Path(f"/proc/{entry}/cmdline").read_bytes()
                state = Path(f"/proc/{entry}/stat").read_bytes().rpartition(b")")[2].split()[0]
            except OSError:
                continue
            if marker.encode() in line and state != b"Z":
                found.append(int(entry))
    return found


def assert_gone(marker: str) -> None:
    until = time.monotonic() + 2
    while left := running(marker):
        assert time.monotonic() < until, f"still running: {left}"
        time.sleep(0.02)


def test_output_and_exit_code(sandbox: str) -> None:
    assert sh("echo out; echo err >&2") == "out\nerr"
    assert sh("true") == "[no output]"
    assert sh("echo a; exit 3") == "a\n[exit code 3]"
    assert sh("no-such-command-here").endswith("[exit code 127]")
    assert sh("kill -9 $$") in {"[no output]\n[ended by signal 9]", "[no output]\n[exit code 137]"}


def test_python(sandbox: str) -> None:
    def run(code: str) -> str:
        return python(code, call=ToolContext()).removesuffix(NOTE).rstrip("\n")

    assert run("6 * 7") == "[no output: print() what you want to see]"
    failed = run("1 / 0")
    assert "ZeroDivisionError" in failed and failed.endswith("[exit code 1]")
    assert run("import sys; print(sys.flags.isolated, sys.stdin.read() == '')") == "1 True"
    assert run("print('\u00e9\u4e2d')") == "é中"


def test_the_state_of_the_sandbox_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confined, "find_sandbox", lambda: Sandbox((), "bubblewrap is not installed"))
    assert shell("echo a", call=ToolContext()) == f"a\n{NOTE}"
    assert python("print(1)", call=ToolContext()) == f"1\n{NOTE}"


@needs_bwrap
def test_in_the_sandbox_nothing_is_said_of_it() -> None:
    assert shell("echo a", call=ToolContext()) == "a"


@pytest.mark.parametrize(
    ("which", "reason"),
    [(None, "not installed"), ("/bin/false", "does not work here"), ("/dev/null", "does not")],
)
def test_bubblewrap_is_tried_before_it_is_believed(
    which: str | None, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(confined.shutil, "which", lambda *_, **__: which)
    confined.find_sandbox.cache_clear()
    try:
        found = confined.find_sandbox()
    finally:
        monkeypatch.undo()
        confined.find_sandbox.cache_clear()
    assert not found.argv
    assert reason in found.reason


def test_the_environment_is_scrubbed(sandbox: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "hunter2")
    names = {line.partition("=")[0] for line in sh("env").splitlines()}
    assert names <= {"PATH", "HOME", "TMPDIR", "LANG", "TERM", "PWD", "SHLVL", "_", "OLDPWD"}


def test_no_descriptor_of_ours_leaks(sandbox: str, tmp_path: Path) -> None:
    with open(tmp_path / "secret", "w", encoding="utf-8") as secret:
        os.set_inheritable(secret.fileno(), True)
        assert "secret" not in sh("ls -l /proc/self/fd")


def test_stdin_is_empty(sandbox: str) -> None:
    assert sh("cat; echo end") == "end"


STRAYS = {
    "child": "sleep {n}",
    "grandchild": "bash -c 'bash -c \"sleep {n}\" & wait'",
    "background": "sleep {n} & sleep {n}",
    "own session": "setsid sleep {n} & sleep {n}",
    "double fork": "(setsid bash -c 'sleep {n} & disown' &) ; sleep {n}",
    "deaf": "trap '' TERM INT HUP; sleep {n}; sleep {n}",
}


@pytest.mark.slow
def test_a_timeout_kills_all_that_was_started(sandbox: str) -> None:
    markers = {kind: f"73{os.getpid()}{number}" for number, kind in enumerate(STRAYS)}
    commands = [f"({command.format(n=markers[kind])})" for kind, command in STRAYS.items()]
    started = time.monotonic()
    with pytest.raises(ToolError, match="time was up"):
        sh(" & ".join(commands) + " & wait", seconds=0.8)
    assert time.monotonic() - started < 4
    for marker in markers.values():
        assert_gone(marker)


def test_a_timeout_ends_a_command_that_closed_its_output(sandbox: str) -> None:
    marker = f"72{os.getpid()}"
    with pytest.raises(ToolError, match="time was up"):
        sh(f"exec >/dev/null 2>&1; sleep {marker}", seconds=0.5)
    assert_gone(marker)


def test_what_a_finished_command_left_behind_is_killed(sandbox: str) -> None:
    marker = f"74{os.getpid()}"
    started = time.monotonic()
    assert sh(f"(setsid sleep {marker} &) ; sleep {marker} & echo done") == "done"
    assert time.monotonic() - started < 4
    assert_gone(marker)


def test_cancelling_kills(sandbox: str) -> None:
    marker = f"75{os.getpid()}"
    context = ToolContext()
    threading.Timer(0.3, context.cancel_event.set).start()
    started = time.monotonic()
    with pytest.raises(Cancelled):
        shell(f"sleep {marker} & setsid sleep {marker}", call=context)
    assert time.monotonic() - started < 4
    assert_gone(marker)


def test_if_edgellm_dies_the_command_dies_too(sandbox: str) -> None:
    marker = f"76{os.getpid()}"
    bare = "confined.find_sandbox = lambda: confined.Sandbox((), 'x')" if sandbox == "bare" else ""
    code = f"""
from edgellm_tools import confined
from edgellm_tools.shell import shell
from edgellm.toolbox.context import ToolContext
{bare}
shell("sleep {marker}", call=ToolContext())
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with subprocess.Popen([sys.executable, "-c", code], env=environment) as process:
        try:
            until = time.monotonic() + 8
            while not running(marker):
                assert time.monotonic() < until
                time.sleep(0.05)
        finally:
            process.send_signal(signal.SIGKILL)
    assert_gone(marker)


def test_partial_output_survives_a_timeout(sandbox: str) -> None:
    with pytest.raises(ToolError, match=r"(?s)time was up.*first words"):
        sh("echo first words; sleep 30", seconds=0.5)


def test_too_many_processes_are_killed(sandbox: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fork bomb with a fuse: 60 processes, where 20 are allowed."""
    monkeypatch.setattr(confined, "MAX_PROCESSES", 20)
    marker = f"77{os.getpid()}"
    with pytest.raises(ToolError, match="more than 20 processes"):
        sh(f"for i in $(seq 60); do (setsid sleep {marker} &) ; done; wait; sleep {marker}")
    assert_gone(marker)


def test_too_much_memory_is_killed(sandbox: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confined, "MAX_MEMORY_BYTES", 80 << 20)
    code = "import time\nblocks = [bytearray(1 << 20) for _ in range(150)]\ntime.sleep(20)"
    with pytest.raises(ToolError, match="more than 80 MiB"):
        python(code, call=ToolContext())


LIMITS: list[tuple[str, Callable[[str], bool]]] = [
    ("x = bytearray(3 << 30)", lambda text: "MemoryError" in text),
    ("open('limit', 'wb').truncate(1 << 40)", lambda text: "rror" in text or "signal" in text),
    ("f = [open('/dev/null') for _ in range(2000)]", lambda text: "Too many open files" in text),
    ("import resource as r; print(r.getrlimit(r.RLIMIT_CORE))", lambda text: text.startswith("(0, 0)")),
    ("import resource as r; print(r.getrlimit(r.RLIMIT_CPU)[1] < 100)", lambda text: text.startswith("True")),
    ("import os; print('x' * 70_000_000)", lambda text: "killed" in text),
]


@pytest.mark.parametrize(("code", "is_right"), LIMITS, ids=[code[:24] for code, _ in LIMITS])
def test_limits(code: str, is_right: Callable[[str], bool], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confined, "find_sandbox", lambda: Sandbox((), "bubblewrap is not installed"))
    try:
        text = python(code, call=ToolContext())
    except ToolError as error:
        text = str(error)
    assert is_right(text), text


def test_long_output_keeps_beginning_and_end(sandbox: str) -> None:
    text = sh("echo begin; yes | head -c 300000; echo end")
    assert text.startswith("begin\n") and text.endswith("\nend")
    assert "bytes left out" in text
    assert len(text) < confined.MAX_OUTPUT_BYTES + 100


def test_bytes_that_are_no_text(sandbox: str) -> None:
    assert sh(r"printf 'a\377b'") == "a\ufffdb"


@needs_bwrap
def test_the_sandbox_has_no_network() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        code = f"import socket\nsocket.create_connection(('127.0.0.1', {port}), 2)"
        assert "Connection refused" in python(code, call=ToolContext())
    assert "unreachable" in python(
        "import socket\nsocket.create_connection(('1.1.1.1', 80), 2)", call=ToolContext()
    )


@needs_bwrap
@pytest.mark.parametrize(
    "folder", ["/", "/etc", "/usr", "/root", "/home", "/run", "/var/tmp", "/dev", "/sys"]
)
def test_the_sandbox_is_read_only(folder: str) -> None:
    text = sh(f"touch {folder}/edgellm-was-here")
    assert "touch" in text and "[exit code 1]" in text
    assert not os.path.exists(f"{folder}/edgellm-was-here")


_PREFIXES_IN_TMP = [prefix for prefix in (sys.prefix, sys.base_prefix) if Path(prefix).is_relative_to("/tmp")]


@needs_bwrap
def test_the_sandbox_has_a_tmp_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("x", encoding="utf-8")
    # What Python itself runs from is shown to it, also where that lies below /tmp.
    name = f"/tmp/{uuid4()}"
    *listed, written, folder = sh(f"ls -A /tmp; echo x > {name} && cat {name}; pwd").split("\n")
    assert (written, folder) == ("x", "/tmp")
    assert set(listed) <= {Path(prefix).relative_to("/tmp").parts[0] for prefix in _PREFIXES_IN_TMP}
    assert not os.path.exists(name)
    assert "No such file" in sh(f"cat {tmp_path}/mine")
    assert "No space left" in sh("for i in 1 2 3; do head -c 40000000 /dev/zero > /tmp/$i; done")


@needs_bwrap
def test_the_sandbox_hides_homes_and_processes() -> None:
    assert str(os.getpid()) not in sh("ls /proc").split()
    assert ".ssh" not in sh("ls -A ~ $(getent passwd 0 | cut -d: -f6) /home")


@needs_bwrap
def test_the_sandbox_has_no_capabilities() -> None:
    assert sh("grep CapEff /proc/self/status").split()[1].strip("0") == ""
    assert sh("grep NoNewPrivs /proc/self/status").split()[1] == "1"


def test_bare_commands_gain_no_privileges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confined, "find_sandbox", lambda: Sandbox((), "bubblewrap is not installed"))
    assert sh("grep NoNewPrivs /proc/self/status").split()[1] == "1"


def test_bare_commands_work_in_a_folder_that_is_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confined, "find_sandbox", lambda: Sandbox((), "bubblewrap is not installed"))
    folder = sh("touch left; mkdir -m 0 shut; pwd")
    assert "edgellm-" in folder
    assert not os.path.exists(folder)


def test_they_ask_at_every_call() -> None:
    for tool in (shell, python):
        assert tool.spec.permission == "ask"
        assert not tool.spec.is_grantable


@pytest.mark.parametrize("command", ["echo a\0b", "x" * 30_000])
def test_bad_commands(command: str) -> None:
    with pytest.raises(ToolError):
        shell(command, call=ToolContext())


@pytest.mark.slow
def test_no_descriptor_and_no_process_is_left(sandbox: str) -> None:
    sh("true")
    before = len(os.listdir("/proc/self/fd"))
    sh("no-such-command")
    with pytest.raises(ToolError):
        sh("sleep 5", seconds=0.1)
    assert len(os.listdir("/proc/self/fd")) == before
    # Other people's are none of this test's business.
    lists = Path("/proc/self/task").glob("*/children")
    ours = {int(pid) for each in lists for pid in each.read_text("utf-8").split()}
    assert not ours.intersection(running("supervise.py"))
