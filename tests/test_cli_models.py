"""`edgellm models`, and model names from the user's and from trusted catalogues."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_harness import cli, own_catalogue, terminal


@pytest.fixture
def entry(tiny_model: Callable[..., Path], tmp_path: Path) -> Path:
    """A user's catalogue with the tiny model as `mine`; gives the model's file."""
    path = tiny_model("llama")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    own_catalogue(
        tmp_path / "config",
        f"""
[models.mine]
description = "A tiny one."
licence = "Own Licence"
licence_url = "https://example.org/licence"
file = "mine.gguf"
size_bytes = {path.stat().st_size}
sha256 = "{digest}"
sources = [{{ kind = "path", path = "{path}" }}]

[models.picky]
description = "Wants a yes."
licence = "Own Licence"
needs_acceptance = true
file = "picky.gguf"
sources = [{{ kind = "path", path = "{path}" }}]
""",
    )
    return path


def test_pull_list_show_path_verify_run_remove(entry: Path, tmp_path: Path) -> None:
    assert "mine" in cli("models", "list").out
    assert "mine" not in cli("models", "list", "--here").out
    pulled = cli("models", "pull", "mine")
    assert pulled.code == 0, pulled.err
    path = Path(pulled.out.strip())
    assert path.is_relative_to(tmp_path / "home" / "models")
    assert "ready" in pulled.err
    assert cli("models", "path", "mine").out.strip() == str(path)
    shown = cli("models", "show", "mine").out
    assert "https://example.org/licence" in shown
    assert str(path) in shown
    assert json.loads(cli("models", "list", "--here", "--json").out)[0]["is_here"] is True
    assert "mine: whole" in cli("models", "verify").out
    assert cli("run", "-m", "mine", "--no-tools", "--max-tokens", 2, "Hello").code == 0
    removed = cli("models", "remove", "mine")
    assert (removed.code, removed.out) == (0, "")
    assert cli("models", "list", "--here").out.count("\n") == 1
    assert entry.exists()


def test_pull_again_says_so_and_quiet_says_nothing(entry: Path) -> None:
    cli("models", "pull", "mine")
    again = cli("models", "pull", "mine")
    assert "here already" in again.err
    quiet = cli("models", "pull", "--quiet", "mine")
    assert (quiet.code, quiet.out, quiet.err) == (0, "", "")


def test_a_licence_is_accepted_first(entry: Path) -> None:
    refused = cli("models", "pull", "picky")
    assert refused.code == 1
    assert "--accept-licence" in refused.err
    assert cli("models", "pull", "picky", "--accept-licence").code == 0


def test_progress_is_a_bar_at_a_terminal(entry: Path) -> None:
    with terminal("models", "pull", "mine") as tty:
        assert tty.code() == 0
        assert "checking llama" in tty.text
        assert "━" in tty.text


def test_verify_finds_the_damaged_one_and_looks_at_all(entry: Path, tmp_path: Path) -> None:
    cli("models", "pull", "mine")
    cli("models", "pull", "picky", "--accept-licence")
    copy = tmp_path / "home" / "models" / "mine" / entry.name
    data = bytearray(entry.read_bytes())
    data[-1] ^= 1
    copy.unlink()
    copy.write_bytes(data)
    outcome = cli("models", "verify")
    assert outcome.code == 1
    assert "Fetch it again" in outcome.err
    assert "picky: whole" in outcome.out


def test_a_trusted_folder_adds_models(
    tiny_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = tmp_path / "project"
    (project / ".edgellm").mkdir(parents=True)
    (project / ".edgellm" / "models.toml").write_text(
        f"""
[models.theirs]
description = "A tiny one."
licence = "MIT"
file = "theirs.gguf"
sources = [{{ kind = "path", path = "{tiny_model("llama")}" }}]
""",
        encoding="utf-8",
    )
    (project / "deep").mkdir()
    monkeypatch.chdir(project / "deep")
    assert "theirs" not in cli("models", "list").out
    trusted = cli("trust", project)
    assert trusted.code == 0
    assert "models.toml" in trusted.out
    assert "theirs" in cli("models", "list").out
    assert str(project) in cli("trust", "--list").out
    (project / ".edgellm" / "models.toml").write_text("# changed\n", encoding="utf-8")
    assert "(changed)" in cli("trust", "--list").out
    assert cli("trust", "--forget", project).code == 0
    assert cli("trust", "--list").out == ""


def test_the_default_model_has_a_name(entry: Path) -> None:
    outcome = cli("run", "Hello")
    assert outcome.code == 1
    assert "edgellm models pull smollm2-135m" in outcome.err
