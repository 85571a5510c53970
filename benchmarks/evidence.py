"""A page of evidence: what it says, and running the commands whose output it is read from."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RECORD = "EDGELLM_RECORD"


@dataclass(frozen=True, slots=True)
class Options:
    """What the run was asked for. `folder` is for files on the way."""

    model: str
    bfcl: Path | None
    count: int
    scale: int
    folder: Path


@dataclass(frozen=True, slots=True)
class Evidence:
    """One page: the claim in words, whether the run shows it, Markdown, and the commands that were run."""

    title: str
    claim: str
    is_shown: bool
    body: str
    commands: tuple[str, ...] = field(default=())


@dataclass(frozen=True, slots=True)
class Ran:
    """A command that has ended."""

    command: str
    code: int
    out: str
    err: str

    @property
    def figures(self) -> dict[str, Any]:
        """The JSON object in the last line; empty where there is none."""
        lines = self.out.strip().splitlines()
        try:
            found = json.loads(lines[-1]) if lines else {}
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    @property
    def table(self) -> str:
        """What stands before the last line, as a block."""
        return block("\n".join(self.out.strip().splitlines()[:-1] or [self.err.strip()]))


def block(text: str, kind: str = "text") -> str:
    """Markdown of a block of code."""
    return f"```{kind}\n{text}\n```\n"


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(map(_cell, line)) + " |\n" for line in lines)


def _cell(value: object) -> str:
    return str(value).replace("|", "\\|").replace("\n", "<br>")


def run(*words: object, env: Mapping[str, str] | None = None) -> Ran:
    """Runs Python with some arguments from the project's folder; what it says on stderr is passed on, too."""
    arguments = [str(word) for word in words]
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, **(env or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    shown = " ".join(f'"{word}"' if " " in word else word for word in arguments)
    settings = "".join(f"{name}={value} " for name, value in (env or {}).items() if name != RECORD)
    command = f"{settings}python {shown}".replace("python -m edgellm.cli.main", "edgellm")
    return Ran(command, done.returncode, done.stdout, done.stderr)


def pytest(files: Sequence[str], options: Options, *words: object, env: Mapping[str, str]) -> Ran:
    """Runs test files, with the model where it is in the store."""
    from edgellm.models.store import Store

    path = Store().path_of(options.model) or Path(options.model)
    known = {"EDGELLM_TEST_MODEL": str(path)} if path.is_file() else {}
    files = [file for file in files if (ROOT / file).is_file()]
    ran = run("-m", "pytest", "-q", "--timeout", 7200, *words, *files, env={**known, **env})
    return Ran(ran.command.replace(str(Path.home()), "~"), ran.code, ran.out, ran.err)
