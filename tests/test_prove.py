"""The evidence runner: what it reads from others' output, and the pages it writes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import evidence
import prove
import prove_machine
import prove_parts
import pytest

STATISTICS = """\
..                                                                       [100%]
============================ Hypothesis Statistics =============================

tests/test_x.py::test_one[llama]:

  - during generate phase (0.41 seconds):
    - Typical runtimes: ~ 5-9 ms, of which ~ 1-2 ms in data generation
    - 25 passing, 0 failing, and 3 invalid test cases

  - Stopped because settings.max_examples=25

tests/test_x.py::test_two:

  - during reuse phase (0.00 seconds):
    - 1 passing examples, 1 failing examples, 0 invalid examples

  - during shrink phase (0.00 seconds):
    - 3 passing examples, 9 failing examples, 0 invalid examples

2 passed in 1.50s
"""


def test_statistics_of_laws_are_read() -> None:
    assert prove_parts.read_statistics(STATISTICS) == [
        ("tests/test_x.py::test_one[llama]", 25, 0),
        ("tests/test_x.py::test_two", 4, 10),
    ]


def test_a_page_names_what_was_measured_and_says_when_it_was_not_shown() -> None:
    found = evidence.Evidence("Title", "A claim.", False, "body", ("python x.py",))
    text = prove.page(found, {"Commit": prove.commit(), "Machine": prove.machine()})
    assert text.startswith("# Title\n\nA claim.\n\nShown by this run: **No: see below.**\n")
    assert "cores" in text or sys.platform != "linux"
    assert text.endswith("\nbody\n")


def test_tables_survive_bars_and_lines() -> None:
    assert evidence.table(("a",), [("x|y\nz",)]) == "| a |\n| --- |\n| x\\|y<br>z |\n"


def test_figures_are_the_last_line() -> None:
    assert evidence.Ran("c", 0, 'a table\n{"x": 1}\n', "").figures == {"x": 1}
    assert evidence.Ran("c", 0, "a table\n", "").figures == {}
    assert evidence.Ran("c", 0, "", "broken").figures == {}
    assert not prove_parts.valid_calls_page(evidence.Ran("c", 0, "", "broken")).is_shown
    assert not prove_parts.valid_calls_page(evidence.Ran("c", 1, 'x\n{"invalid": 1}', "")).is_shown


def test_long_chats_are_shown_by_their_figures() -> None:
    good = 'a table\n{"is_shown": true}\n'
    assert prove_machine.long_chat_page(evidence.Ran("c", 0, good, "")).is_shown
    assert not prove_machine.long_chat_page(evidence.Ran("c", 1, good, "")).is_shown
    assert not prove_machine.long_chat_page(evidence.Ran("c", 0, 'x\n{"is_shown": false}\n', "")).is_shown
    assert not prove_machine.long_chat_page(evidence.Ran("c", 0, "", "broken")).is_shown


@pytest.mark.parametrize(
    ("idle", "busy", "is_shown"), [(0.93, 10, True), (0.92, 10, False), (0.93, 9.9, False)]
)
def test_neighbours_need_both_figures(idle: float, busy: float, is_shown: bool) -> None:
    figures = json.dumps({"idle_ratio": idle, "busy_ratio": busy, "busy_processes": 16})
    page = prove_machine.neighbours_page(evidence.Ran("c", 0, f"a table\n{figures}\n", ""))
    assert page.is_shown == is_shown and "16 counting processes" in page.claim
    assert not prove_machine.neighbours_page(evidence.Ran("c", 1, f"a table\n{figures}\n", "")).is_shown
    assert not prove_machine.neighbours_page(evidence.Ran("c", 0, "", "broken")).is_shown


@pytest.mark.slow
@pytest.mark.parametrize("outcome", ["passed", "failed"])
def test_commands_of_tests_are_recorded(tmp_path: Path, outcome: str) -> None:
    test = tmp_path / "test_x.py"
    test.write_text(
        "from types import SimpleNamespace\n"
        "def cli(*words, **options): return SimpleNamespace(code=2, err=f'edgellm: {words[1]} is wrong.\\n')\n"
        f"def test_it(tmp_path): assert cli('run', tmp_path / 'a b').code == {2 if outcome == 'passed' else 3}\n",
        encoding="utf-8",
    )
    record = tmp_path / "record"
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "record_cli",
            "-p",
            "no:cacheprovider",
            "--rootdir",
            tmp_path,
            test,
        ],
        env={"EDGELLM_RECORD": str(record), "PYTHONPATH": str(evidence.ROOT / "benchmarks")},
        cwd=tmp_path,
        capture_output=True,
        check=False,
    )
    assert done.returncode == (0 if outcome == "passed" else 1), done.stdout
    assert json.loads(record.read_text(encoding="utf-8")) == {
        "file": "test_x.py",
        "name": "test_it",
        "passed": outcome == "passed",
        "commands": [{"words": "edgellm run 'TMP/a b'", "code": 2, "err": "edgellm: TMP/a b is wrong."}],
    }


def test_page_of_tool_call_formats_needs_every_claim(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    figures = {
        "repair": {"recovered": 0.97},
        "parsing": {"worst_share": 0.002},
        "constraint": {"check_us": 9},
    }

    def run(words: str, *_more: object) -> evidence.Ran:
        name = Path(words).stem
        return evidence.Ran(f"python {words}", 0, f"a table\n{json.dumps(figures[name])}\n", "")

    monkeypatch.setattr(evidence, "run", run)
    monkeypatch.setattr(
        evidence, "pytest", lambda *_a, **_k: evidence.Ran("pytest", 0, "3 passed in 1 s\n", "")
    )
    options = evidence.Options("m", None, 1, 1, tmp_path)
    page = prove_parts.PARTS["tool-call-formats"](options)
    assert page.is_shown
    assert "3 passed" in page.body and '"recovered": 0.97' in page.body
    for name, key, value in (("repair", "recovered", 0.9), ("parsing", "worst_share", 0.02)):
        monkeypatch.setitem(figures, name, {key: value})
        assert not prove_parts.PARTS["tool-call-formats"](options).is_shown
        monkeypatch.setitem(figures, name, {"recovered": 0.97, "worst_share": 0.002})
