"""The Python of README, quickstart and embedding runs as printed; troubleshooting quotes messages that exist."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import edgellm
from edgellm.models.resolve import resolve
from edgellm.models.store import Store

ROOT = Path(__file__).parent.parent
PAGES = ("README.md", "docs/quickstart.md", "docs/embedding.md", "docs/long-conversations.md")
CATALOGUE = """[models.smollm2-135m]
sources = [{{ kind = "path", path = '{path}' }}]
"""


def blocks(page: str) -> list[str]:
    """The Python blocks of a page, each moved down to its own lines, so that tracebacks name them."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found = re.finditer(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return ["\n" * text.count("\n", 0, block.start(1)) + block.group(1) for block in found]


@pytest.fixture
def run(
    smollm2_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str], dict[str, Any]]]:
    """Runs a page's blocks in one namespace, in a folder of their own."""
    config = tmp_path / "config"
    config.mkdir()
    (config / "models.toml").write_text(CATALOGUE.format(path=smollm2_path), encoding="utf-8")
    resolve("smollm2-135m", edgellm.catalog(), Store(), pull=True)
    monkeypatch.chdir(tmp_path)
    opened: list[edgellm.Runtime] = []

    def run_page(page: str) -> dict[str, Any]:
        module = ModuleType("documented")
        monkeypatch.setitem(sys.modules, module.__name__, module)
        names = module.__dict__
        for block in blocks(page):
            if page == "README.md" and "edgellm.load(" not in block:
                # The one before was closed by its `with` block; readers take one of their own.
                opened.append(edgellm.load("smollm2-135m", n_ctx=1024))
                names["runtime"] = opened[-1]
            exec(compile(block, page, "exec"), names)
        return names

    yield run_page
    for runtime in opened:
        runtime.close()


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.parametrize("page", PAGES)
def test_page_runs_as_printed(
    page: str, run: Callable[[str], dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    run(page)
    said = capsys.readouterr().out
    wanted = {
        "README.md": ["[room_temperature {'room': 'kitchen'} → 21.5]", "tokens at"],
        "docs/quickstart.md": ["21.5"],
        "docs/embedding.md": [
            "room_temperature asks before it runs. room_temperature({'room': 'kitchen'})",
            "[room_temperature {'room': 'kitchen'} → 21.5]",
            "'is_capital': ",
            "cancelled",
            "u = 0.",
            "temperature: ",
            "tokens reused",
            "Paris",
            "b' world'",
            "unknown stage 'topk'",
            "Did you mean 'top_k'?",
        ],
        "docs/long-conversations.md": ["to make room (", "My name is Ada. Who are you?"],
    }
    for text in wanted[page]:
        assert text in said, f"{page} printed: {said}"


def test_troubleshooting_quotes_messages_of_the_code() -> None:
    page = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
    symptoms = [line.split("|")[1] for line in page.splitlines() if line.startswith("| ")]
    quoted = [text for symptom in symptoms for text in re.findall(r'"([^"]+)"', symptom)]
    assert len(quoted) > 25
    files = [path for folder in ("edgellm", "tools") for path in (ROOT / folder).rglob("*.py")]
    # Adjacent literals are one message; so are the two sides of a value.
    code = re.sub(r'"\s*f?"', "", "\n".join(path.read_text(encoding="utf-8") for path in files))
    missing = [
        part
        for text in quoted
        for part in re.split(r"\s*\.\.\.\s*", text)
        if part not in code and part not in THEIRS
    ]
    assert not missing


THEIRS = ("unknown model architecture", "the model's logits hold nan")
"""Words of llama.cpp, and a number as Python writes it."""
