"""A pytest plugin for benchmarks/prove.py: writes down what each command line of a test printed, and its exit code."""

from __future__ import annotations

import json
import os
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

RECORD = "EDGELLM_RECORD"


_CHECKOUT = f"{Path(__file__).resolve().parents[1]}/"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """Runs a test; its name, its commands and how it ended become one line of JSON in the file named by RECORD."""
    commands: list[dict[str, Any]] = []
    arguments: dict[str, Any] = getattr(item, "funcargs", {})
    folder = str(arguments.get("tmp_path", "\0"))
    module: Any = getattr(item, "module", None)
    real = getattr(module, "cli", None)

    def short(text: str) -> str:
        """Without the names of this run's folders."""
        text = text.replace(folder, "TMP")
        for part in {str(Path(folder).parents[1]), str(Path(folder).parent)} if folder != "\0" else ():
            text = text.replace(part, "TMP")
        return text.replace(_CHECKOUT, "").strip()

    def recording(*words: object, **options: Any) -> Any:
        outcome = real(*words, **options)
        said = short(
            " ".join(repr(str(word)) if " " in str(word) or not str(word) else str(word) for word in words)
        )
        commands.append(
            {"words": f"edgellm {said}"[:200], "code": outcome.code, "err": short(outcome.err)[:600]}
        )
        return outcome

    if real is not None:
        module.cli = recording
    passed = False
    try:
        result = yield
        passed = True
        return result
    finally:
        if real is not None:
            module.cli = real
        file, _, name = item.nodeid.partition("::")
        line = {"file": file, "name": name, "passed": passed, "commands": commands}
        with Path(os.environ[RECORD]).open("a", encoding="utf-8") as record:
            record.write(json.dumps(line) + "\n")
