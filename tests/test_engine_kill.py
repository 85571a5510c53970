"""A writer that is killed while it saves leaves the former state or a newer one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from edgellm.atomic import replacing

if TYPE_CHECKING:
    from collections.abc import Callable

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "resume.py"


@pytest.mark.slow
def test_chat_survives_a_writer_that_is_killed(tiny_model: Callable[..., Path]) -> None:
    words = [
        sys.executable,
        SCRIPT,
        "--model",
        tiny_model("llama", n_ctx=2048),
        "--tokens",
        "600",
        "--kills",
        "5",
    ]
    done = subprocess.run(
        list(map(str, words)), capture_output=True, text=True, timeout=240, env=os.environ, check=False
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert (figures["kills"], figures["lost"], figures["leftovers"]) == (5, 0, 0)
    assert figures["former"] + figures["newer"] == 5
    assert set(figures["verdicts"]) == {"exact"}


def test_leftover_of_a_dead_writer_is_removed_and_a_live_ones_stays(tmp_path: Path) -> None:
    target = tmp_path / "a[1].chat"
    dead = tmp_path / ".a[1].chat.xyz.part"
    dead.write_bytes(b"half")
    long_ago = time.time() - 60
    os.utime(dead, (long_ago, long_ago))
    with replacing(target) as file:
        file.write(b"new")
        file.flush()
        assert not dead.exists()
        (own,) = tmp_path.glob(".*.part")
        os.utime(own, (long_ago, long_ago))
        with replacing(target) as other:
            other.write(b"newer")
        assert own.exists()
        assert target.read_bytes() == b"newer"
    assert target.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [target]


def test_failed_writer_leaves_the_old_file_alone(tmp_path: Path) -> None:
    target = tmp_path / "a.chat"
    target.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), replacing(target) as file:
        file.write(b"half")
        raise ZeroDivisionError
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]
