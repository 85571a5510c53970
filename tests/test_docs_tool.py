"""The example in docs/writing-a-tool.md works as printed."""

import re
from pathlib import Path
from typing import Any

import pytest

from edgellm.plugins import Plugins
from edgellm.toolbox.runner import Runner
from edgellm.toolbox.toolset import Toolset
from edgellm.types import ToolCall

PAGE = Path(__file__).parent.parent / "docs" / "writing-a-tool.md"


@pytest.fixture
def tools(tmp_path: Path) -> Toolset:
    (code,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    file = tmp_path / "home.py"
    file.write_text(code, encoding="utf-8")
    return Toolset(*Plugins(config=tmp_path, cwd=tmp_path).load_path("tool", file))


def call(tools: Toolset, runner: Runner, name: str, **arguments: Any) -> str:
    return runner.start(tools.get(name), ToolCall("1", name, arguments)).result().text


def test_example_has_the_two_tools_it_says(tools: Toolset) -> None:
    assert tools.names == ("room_temperature", "dim_lights")
    first, second = tools.specs
    assert (first.permission, second.permission, second.timeout_s) == ("auto", "ask", 5)
    assert second.parameters == {
        "type": "object",
        "properties": {
            "room": {"description": "Which room.", "enum": ["kitchen", "hall"]},
            "percent": {
                "description": "Brightness; 0 is off.",
                "type": "integer",
                "minimum": 0,
                "maximum": 100,
                "default": 50,
            },
        },
        "required": ["room"],
        "additionalProperties": False,
    }


def test_example_runs(tools: Toolset, tmp_path: Path) -> None:
    progress: list[str] = []
    runner = Runner(
        settings={"home": {"state": str(tmp_path / "lights.json")}},
        on_progress=lambda _, text: progress.append(text),
    )
    assert call(tools, runner, "room_temperature", room="Hall") == "17.0"
    assert (
        call(tools, runner, "dim_lights", room="kitchen", percent="20") == '{"room":"kitchen","percent":20}'
    )
    assert (tmp_path / "lights.json").read_text(encoding="utf-8") == '{"kitchen": 20}'
    assert progress == ["step 1 of 3", "step 2 of 3", "step 3 of 3"]
    assert "from 0 to 100, got 120" in call(tools, runner, "dim_lights", room="hall", percent=120)


def test_example_fails_in_its_own_words(tools: Toolset, tmp_path: Path) -> None:
    runner = Runner(settings={"home": {"state": str(tmp_path / "none" / "x.json")}})
    assert call(tools, runner, "dim_lights", room="hall").startswith("The lights cannot be reached")
