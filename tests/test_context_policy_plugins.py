"""Context policies of plugins: found, named, warned about; and the documented one works as printed."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from cli_harness import cli
from edgellm_tui.app import EdgeApp
from edgellm_tui.settings import Settings
from edgellm_tui.settings_page import SettingsPage, check_value
from textual.pilot import Pilot
from tui_harness import run, shown, wait_until

import edgellm
from edgellm.context_policy import (
    CONTEXT_POLICIES,
    POLICIES,
    ContextTurn,
    Crowding,
    Drop,
    Shorten,
    find_policy,
)
from edgellm.types import Message

PAGE = Path(__file__).parent.parent / "docs" / "writing-a-policy.md"
POLICY = """
import edgellm

@edgellm.policy
def {name}(crowding):
    "The newest goes."
    return [edgellm.Drop(len(crowding.turns) - 2)] if len(crowding.turns) > 1 else []
"""


@pytest.fixture(autouse=True)
def _none_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(POLICIES, "_others", {})
    monkeypatch.setattr(POLICIES, "finder", None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the user's own policies lie."""
    found = tmp_path / "config" / "context_policies"
    found.mkdir(parents=True)
    return found


@pytest.fixture
def documented(monkeypatch: pytest.MonkeyPatch) -> Any:
    module = ModuleType("documented_policy")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert len(blocks) == 2
    for block in blocks:
        exec(compile(block, PAGE.name, "exec"), module.__dict__)
    return module


def test_a_policy_in_the_users_folder_goes_by_its_name(folder: Path) -> None:
    (folder / "mine.py").write_text(POLICY.format(name="newest"), encoding="utf-8")
    assert edgellm.context_policies() == CONTEXT_POLICIES
    assert edgellm.discover_policies() == ()
    assert edgellm.context_policies() == (*CONTEXT_POLICIES, "newest")
    name, policy = find_policy("newest")
    turns = tuple(ContextTurn(place, (), 10) for place in range(3))
    assert (name, policy(Crowding(turns, 100, 90, 5))) == ("newest", [Drop(1)])
    assert find_policy(policy)[0] == "newest"


def test_an_entry_point_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "pkg_with_policy.py").write_text(POLICY.format(name="packed"), encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    points = metadata.EntryPoints(
        [metadata.EntryPoint("packed", "pkg_with_policy", "edgellm.context_policies")]
    )

    def select(*, group: str) -> metadata.EntryPoints:
        return points.select(group=group)

    monkeypatch.setattr(metadata, "entry_points", select)
    assert edgellm.discover_policies() == ()
    assert "packed" in edgellm.context_policies()


def test_a_folder_counts_once_it_is_trusted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    work = tmp_path / "work"
    inner = work / ".edgellm" / "context_policies"
    inner.mkdir(parents=True)
    (inner / "theirs.py").write_text(POLICY.format(name="theirs"), encoding="utf-8")
    monkeypatch.chdir(work)
    (failure,) = edgellm.discover_policies()
    assert "is not trusted" in failure.error.message
    assert "theirs" not in edgellm.context_policies()
    assert cli("trust", work, stdin="y\n").code == 0
    assert edgellm.discover_policies() == ()
    assert "theirs" in edgellm.context_policies()


def test_what_cannot_be_taken_is_left_out_and_said(folder: Path) -> None:
    (folder / "broken.py").write_text("import nowhere_to_be_found\n", encoding="utf-8")
    (folder / "taken.py").write_text(POLICY.format(name="evict"), encoding="utf-8")
    (folder / "odd.py").write_text(
        "import edgellm\n\n@edgellm.policy\ndef odd():\n    return []\n", encoding="utf-8"
    )
    said = {failure.name: str(failure.error) for failure in edgellm.discover_policies()}
    assert set(said) == {"broken", "evict", "odd"}
    assert "Policy plugin 'broken' does not load" in said["broken"]
    assert "has the name of a built-in one" in said["evict"]
    assert "no function of one argument" in said["odd"]
    assert find_policy("evict")[1] is edgellm.context_policy.evict  # type: ignore[attr-defined]


def test_only_functions_of_one_argument_are_decorated() -> None:
    def none() -> list[Drop]:
        return []

    def two(_crowding: Crowding, _other: int) -> list[Drop]:
        return []

    for wrong in (none, two, int):
        with pytest.raises(edgellm.ConfigError, match="no function of one argument"):
            edgellm.policy(wrong)  # type: ignore[type-var]

    @edgellm.policy(name="by another name")
    def right(crowding: Crowding) -> list[Drop]:
        return []

    POLICIES.register(right)
    assert find_policy("by another name") == ("by another name", right)


def test_a_chat_finds_it_by_name(folder: Path, tiny_model: Callable[..., Path]) -> None:
    (folder / "mine.py").write_text(POLICY.format(name="newest"), encoding="utf-8")
    with edgellm.load(tiny_model("llama"), n_ctx=512) as runtime:
        assert runtime.chat(context_policy="newest").outlook().policy == "newest"
        with pytest.raises(edgellm.ConfigError, match="Did you mean 'newest'"):
            runtime.chat(context_policy="newset")


def test_the_command_line_takes_its_name_and_refuses_others_before_it_loads(
    folder: Path, tiny_model: Callable[..., Path]
) -> None:
    (folder / "mine.py").write_text(POLICY.format(name="newest"), encoding="utf-8")
    words = ("run", "-m", tiny_model("llama"), "--no-tools", "--max-tokens", 2, "Hello")
    assert cli(*words, "--when-full", "newest").code == 0
    refused = cli("run", "-m", "./none.gguf", "--when-full", "newset", "Hello")
    assert refused.code != 0
    assert "Did you mean 'newest'" in refused.err
    (folder / "broken.py").write_text("import nowhere_to_be_found\n", encoding="utf-8")
    warned = cli("run", "-m", "./none.gguf", "--when-full", "other", "Hello")
    assert "warning: Policy plugin 'broken' does not load" in warned.err


def test_the_apps_setting_takes_its_name(folder: Path) -> None:
    (folder / "mine.py").write_text(POLICY.format(name="newest"), encoding="utf-8")
    check_value("context_policy", "newest", (), Settings())
    with pytest.raises(edgellm.ConfigError, match="drop-results, newest"):
        check_value("context_policy", "forget", (), Settings())
    (folder / "broken.py").write_text("import nowhere_to_be_found\n", encoding="utf-8")
    check_value("context_policy", "newest", (), Settings())
    with pytest.raises(edgellm.ConfigError, match="Left out: Policy plugin 'broken' does not load"):
        check_value("context_policy", "broken", (), Settings())


def test_the_apps_settings_page_says_which_were_left_out(folder: Path) -> None:
    (folder / "broken.py").write_text("import nowhere_to_be_found\n", encoding="utf-8")

    async def play(app: EdgeApp, pilot: Pilot[Any]) -> None:
        await pilot.press("f9")
        await wait_until(pilot, lambda: isinstance(app.page, SettingsPage))
        page: Any = app.page
        at = next(at for at, entry in enumerate(page._entries) if entry.name == "context_policy")
        await pilot.press(*["down"] * at, "right")
        await shown(pilot, "Left out: Policy plugin 'broken' does not load")
        assert app.settings.context_policy == "evict"

    run(play)


def test_doctor_lists_them(folder: Path) -> None:
    (folder / "mine.py").write_text(POLICY.format(name="newest"), encoding="utf-8")
    assert "policy newest" in json.loads(cli("doctor", "--json").out)["plugins"]
    (folder / "broken.py").write_text("import nowhere_to_be_found\n", encoding="utf-8")
    outcome = cli("doctor")
    assert "Policy plugin 'broken' does not load" in outcome.out + outcome.err


def test_the_documented_policy_shortens_where_dropping_is_not_enough(documented: Any) -> None:
    result = Message("tool", "First line.\nAnd much more.", tool_call_id="call_0")
    turns = (
        ContextTurn(0, (Message("user", "Go."), result), 400, results=((1, 300),)),
        ContextTurn(2, (), 100),
        ContextTurn(3, (), 100, is_fixed=True),
    )
    found = documented.middle_out(Crowding(turns, 1024, 900, 200))
    assert found == [Drop(1), Shorten(1, "First line. [cut: 300 tokens]")]


def test_the_documented_policy_works_in_a_chat(folder: Path, tiny_model: Callable[..., Path]) -> None:
    (code, _) = re.findall(
        r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )
    (folder / "middle_out.py").write_text(code, encoding="utf-8")
    with edgellm.load(tiny_model("llama"), n_ctx=512, n_gpu_layers=0) as runtime:
        chat = runtime.chat(context_policy="middle_out", seed=1)
        evicted: list[edgellm.ContextEvicted] = []
        for turn in range(10):
            events = chat.send(f"Question {turn}? " + "why " * 30, max_tokens=20)
            evicted += [event for event in events if isinstance(event, edgellm.ContextEvicted)]
        assert {event.policy for event in evicted} == {"evict"}  # what was done
        assert chat.messages[0].content.startswith("Question 0?")
        assert chat.messages[-2].content.startswith("Question 9?")
        assert not any(message.content.startswith("Question 1?") for message in chat.messages)
