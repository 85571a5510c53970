"""The bundled tools as a whole: names, permissions, and schemas that a Raspberry Pi can afford to prefill."""

from __future__ import annotations

import importlib
import json

import pytest

from edgellm.plugins import collect
from edgellm.toolbox.runner import Runner
from edgellm.toolbox.tool import Tool
from edgellm.toolbox.toolset import Toolset
from edgellm.types import Permission, ToolCall

EXPECTED: dict[str, dict[str, Permission]] = {
    "calculator": {"calculator": "auto"},
    "clock": {"clock": "auto"},
    "files": {"list_files": "auto", "read_file": "auto", "search_files": "auto", "write_file": "ask"},
    "system": {"system_info": "auto"},
    "sqlite": {"sqlite_query": "auto", "sqlite_tables": "auto"},
    "http_get": {"http_get": "ask"},
    "shell": {"shell": "ask"},
    "python": {"python": "ask"},
}


def tools(module: str) -> tuple[Tool[..., object], ...]:
    return collect("tool", importlib.import_module(f"edgellm_tools.{module}"))


@pytest.mark.parametrize("module", EXPECTED)
def test_a_module_gives_its_tools(module: str) -> None:
    assert {tool.name: tool.spec.permission for tool in tools(module)} == EXPECTED[module]


@pytest.mark.parametrize("module", EXPECTED)
def test_schemas_are_short(module: str) -> None:
    for tool in tools(module):
        # About 3.7 characters a token.
        assert len(json.dumps(tool.spec.to_openai()["function"])) <= 330, tool.name
        assert tool.spec.description.count("\n") == 0
        assert "call" not in tool.spec.parameters["properties"]


def test_only_shell_and_python_cannot_be_granted() -> None:
    every = [tool for module in EXPECTED for tool in tools(module)]
    assert {tool.name for tool in every if not tool.spec.is_grantable} == {"shell", "python"}


@pytest.mark.parametrize(
    ("name", "arguments", "text", "is_ok"),
    [
        ("calculator", {"expression": "23 * 17 + 4"}, "395", True),
        ("calculator", {"expression": "9**9**9"}, "too large", False),
        ("clock", {"timezone": "UTC"}, "UTC+00:00", True),
        ("system_info", {}, "cores", True),
        ("http_get", {"url": "http://127.0.0.1/"}, "not fetched", False),
    ],
)
def test_they_run_as_the_agent_runs_them(
    name: str, arguments: dict[str, object], text: str, is_ok: bool
) -> None:
    every = Toolset(*(importlib.import_module(f"edgellm_tools.{module}") for module in EXPECTED))
    result = Runner().start(every.get(name), ToolCall("1", name, arguments)).result()
    assert result.is_ok is is_ok
    assert text in result.text


def test_settings_reach_the_tools(tmp_path_factory: pytest.TempPathFactory) -> None:
    root = tmp_path_factory.mktemp("root")
    (root / "a.txt").write_text("hello", encoding="utf-8")
    every = Toolset(importlib.import_module("edgellm_tools.files"))
    runner = Runner(settings={"files": {"root": str(root)}})
    assert (
        runner.start(every.get("read_file"), ToolCall("1", "read_file", {"path": "a.txt"})).result().text
        == "hello"
    )
