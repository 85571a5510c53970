"""The command line before any command: help, start-up cost, usage errors, errors nobody foresaw."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from cli_harness import MAIN, cli

from edgellm.cli import render
from edgellm.cli.main import COMMANDS

HEAVY = (
    "numpy",
    "llama_cpp",
    "jinja2",
    "textual",
    "rich",
    "msgspec",
    "gguf",
    "llguidance",
    "jsonschema",
    "platformdirs",
)


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['edgellm', '--help']\n"
        "from edgellm.cli.main import main\n"
        "main(); print(*sys.modules, sep=',', file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stderr.strip().split(","))
    assert not loaded.intersection(HEAVY)
    assert "usage: edgellm" in done.stdout


def test_help_takes_little_cpu() -> None:
    def seconds() -> float:
        before = os.times()
        subprocess.run([*MAIN, "--help"], capture_output=True, check=True)
        after = os.times()
        return after.children_user + after.children_system - before.children_user - before.children_system

    seconds()  # writes the .pyc files
    assert min(seconds() for _ in range(3)) < 0.2


@pytest.mark.parametrize("command", [*COMMANDS, "models pull", "tools call", "tools show", "samplers show"])
def test_help_of_each_command_has_an_example(command: str) -> None:
    outcome = cli(*command.split(), "--help")
    assert outcome.code == 0
    assert "example" in outcome.out
    assert f"edgellm {command}" in outcome.out.partition("example")[2]
    assert outcome.err == ""
    assert cli("help", *command.split()[:1]).code == 0


def test_the_package_runs_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "edgellm", "--version"], capture_output=True, check=False)
    assert done.stdout == b"edgellm 0.1.0\n"


def test_version() -> None:
    assert cli("--version").out == "edgellm 0.1.0\n"


def test_options_alone_belong_to_chat() -> None:
    outcome = cli("--prompt", "")
    assert outcome.code == 2
    assert "--prompt is empty" in outcome.err


def test_usage_error_is_one_line_without_a_usage_dump() -> None:
    outcome = cli("run", "--seed", "x", "hi")
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.count("\n") == 1
    assert "'x' is not a whole number" in outcome.err
    assert "edgellm run --help" in outcome.err


def test_an_unforeseen_error_is_one_line_and_its_details_lie_in_a_log(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken() -> None:
        raise ZeroDivisionError("by\nnothing")

    monkeypatch.setattr("edgellm.offline.catalog", broken)
    outcome = cli("models", "list")
    assert outcome.code == 70
    assert outcome.err.startswith("edgellm: internal error: ZeroDivisionError: by nothing. Report it")
    assert outcome.err.count("\n") == 1
    log = tmp_path / "home" / "state" / "errors.log"
    assert str(log) in outcome.err
    assert "Traceback" in log.read_text(encoding="utf-8")


def test_closed_stdout_is_quiet() -> None:
    reader = subprocess.Popen(["true"], stdin=subprocess.PIPE)
    reader.wait()
    done = subprocess.run(
        [*MAIN, "samplers", "list"], stdout=reader.stdin, stderr=subprocess.PIPE, text=True, check=False
    )
    assert reader.stdin is not None
    reader.stdin.close()
    assert done.stderr == ""
    assert done.returncode in (0, 120)


def test_full_stdout_is_an_error_with_a_remedy() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full here")
    with open("/dev/full", "w", encoding="utf-8") as full:
        done = subprocess.run(
            [*MAIN, "samplers", "list"], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 1
    assert "Free some space" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_closed_stderr_does_not_send_talk_to_stdout_and_a_closed_stdin_is_empty() -> None:
    for closed, code in (("samplers show minp 2>&-", 1), ("run <&-", 2)):
        words = f"exec {shlex.join(MAIN)} {closed}"
        done = subprocess.run(["sh", "-c", words], stdout=subprocess.PIPE, check=False)
        assert (done.returncode, done.stdout) == (code, b"")
    outcome = subprocess.run(
        ["sh", "-c", f"exec {shlex.join(MAIN)} tools call calculator - <&-"], capture_output=True, check=False
    )
    assert outcome.returncode == 1 and b"not JSON" in outcome.stderr


def test_ascii_locale_shows_other_characters_escaped() -> None:
    env = {**os.environ, "PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    words = ["tools", "call", "calculator", '{"expression": "1·1"}']
    done = subprocess.run([*MAIN, *words], capture_output=True, env=env, check=False)
    assert (done.returncode, done.stdout) == (0, b"1\n")
    words[-1] = '{"expression": "é"}'
    done = subprocess.run([*MAIN, *words], capture_output=True, env=env, check=False)
    assert done.returncode == 1
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("columns", [40, 60, 80])
def test_a_narrow_terminal_loses_nothing_of_what_a_table_explains(
    columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(render, "width", lambda: columns)
    prose = "Keeps the most probable rows, " * 3 + "and no others."
    lines = render.table([("top_p(p=0.9, min_keep=1)", prose), ("top_k", "short")], ("stage", "")).split("\n")
    assert all(len(line) <= columns for line in lines)
    assert " ".join(" ".join(lines[1:-1]).split()) == f"top_p(p=0.9, min_keep=1) {prose}"
    # What is no prose is cut.
    assert render.table([("7" * 30, "8" * 80)]).endswith("8…")


def test_piped_output_has_no_colour() -> None:
    assert "\x1b" not in cli("samplers", "show", "top_k").out
    assert json.loads(cli("models", "list", "--json").out)
