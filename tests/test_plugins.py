"""Discovery: entry points, files and folders named by hand, the user's folders, trusted folders."""

import json
import os
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from edgellm.errors import ConfigError, PluginError
from edgellm.plugins import (
    CHECK_ATTRIBUTE,
    GROUPS,
    NAME_ATTRIBUTE,
    PLUGIN_ATTRIBUTE,
    Plugins,
    object_name,
    warnings_of,
)
from edgellm.toolbox.tool import tool
from edgellm.trust import Trust

TOOL = """
from edgellm.toolbox.tool import Tool, tool

@tool
def {name}(x: int) -> int:
    "Does something."
    return x
"""


class Home:
    """A configuration folder and a working directory of the test's own."""

    def __init__(self, root: Path) -> None:
        self.config = root / "config"
        self.cwd = root / "work" / "inner"
        self.cwd.mkdir(parents=True)

    @property
    def plugins(self) -> Plugins:
        return Plugins(config=self.config, cwd=self.cwd)

    def write(self, path: Path, text: str) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setattr(metadata, "entry_points", lambda **_: metadata.EntryPoints())
    return Home(tmp_path)


def entry_points(monkeypatch: pytest.MonkeyPatch, **modules: str) -> None:
    points = metadata.EntryPoints(
        metadata.EntryPoint(name, module, GROUPS["tool"]) for name, module in modules.items()
    )
    monkeypatch.setattr(metadata, "entry_points", lambda *, group: points.select(group=group))


def names(items: tuple[Any, ...]) -> list[str]:
    return [object_name(item) for item in items]


def test_decorated_tools_carry_the_marks() -> None:
    @tool(name="other")
    def f() -> None: ...

    assert getattr(f, PLUGIN_ATTRIBUTE) == "tool"
    assert getattr(f, NAME_ATTRIBUTE) == "other"
    assert callable(getattr(f, CHECK_ATTRIBUTE))


def test_names_import_nothing(home: Home) -> None:
    home.write(home.config / "tools" / "bomb.py", "raise SystemExit('imported')")
    home.write(home.config / "tools" / "_hidden.py", "")
    home.write(home.config / "tools" / "notes.txt", "")
    home.write(home.config / "samplers" / "warm.py", "")
    home.write(home.config / "tools" / "pack" / "__init__.py", "")
    assert home.plugins.names("tool") == ("bomb", "pack")
    assert home.plugins.names("sampler") == ("warm",)


def test_file_named_by_hand(home: Home) -> None:
    path = home.write(home.cwd / "mine.py", TOOL.format(name="mine") + TOOL.format(name="yours"))
    found = home.plugins.load_path("tool", path)
    assert names(found) == ["mine", "yours"]
    assert home.plugins.load_path("tool", path) == found
    assert found[0].spec.parameters["required"] == ["x"]


def test_changed_file_is_imported_again(home: Home) -> None:
    path = home.write(home.cwd / "mine.py", TOOL.format(name="one"))
    home.plugins.load_path("tool", path)
    home.write(path, TOOL.format(name="two"))
    assert names(home.plugins.load_path("tool", path)) == ["two"]


def test_folder_and_package_named_by_hand(home: Home) -> None:
    home.write(home.cwd / "many" / "b.py", TOOL.format(name="b"))
    home.write(home.cwd / "many" / "a.py", TOOL.format(name="a"))
    assert names(home.plugins.load_path("tool", home.cwd / "many")) == ["a", "b"]
    home.write(home.cwd / "pack" / "inner.py", TOOL.format(name="inner"))
    home.write(home.cwd / "pack" / "__init__.py", "from .inner import inner")
    assert names(home.plugins.load_path("tool", home.cwd / "pack")) == ["inner"]
    assert not (home.cwd / "pack" / "__pycache__").exists()


def test_two_of_one_name_in_a_named_folder(home: Home) -> None:
    home.write(home.cwd / "many" / "a.py", TOOL.format(name="same"))
    home.write(home.cwd / "many" / "b.py", TOOL.format(name="same"))
    with pytest.raises(PluginError, match="called 'same'"):
        home.plugins.load_path("tool", home.cwd / "many")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x = 1\n1 / 0\n", ["ZeroDivisionError", "line 2", "mine.py"]),
        ("def f(:\n", ["SyntaxError", "line 1", "mine.py"]),
        ("\nimport no_such_module_at_all\n", ["no_such_module_at_all", "line 2", "Install"]),
        ("import sys\nsys.exit(2)\n", ["SystemExit", "line 2", "must not exit"]),
        ("x = 1\n", ["nothing decorated with @edgellm.tool"]),
        ("# \0", ["null bytes"]),
        (
            "from edgellm.toolbox.tool import tool\n@tool\ndef f(x): ...\n",
            ["'x'", "no type hint", "`x: str`", "mine.py"],
        ),
        (
            "from edgellm.toolbox.tool import tool\n@tool\ndef f(x: complex): ...\n",
            ["'x'", "complex"],
        ),
    ],
)
def test_named_file_that_is_broken_says_where_and_what_to_do(home: Home, text: str, words: list[str]) -> None:
    path = home.write(home.cwd / "mine.py", text)
    with pytest.raises(PluginError) as caught:
        home.plugins.load_path("tool", path)
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not [
        name for name in sys.modules if name.startswith("edgellm_user_plugins.mine_") and not words[0]
    ]


def test_named_path_that_is_not_there(home: Home) -> None:
    with pytest.raises(PluginError, match="does not exist"):
        home.plugins.load_path("tool", home.cwd / "none.py")
    with pytest.raises(PluginError, match=r"no \.py file"):
        home.plugins.load_path("tool", home.cwd)


def test_broken_import_leaves_no_module_behind(home: Home) -> None:
    path = home.write(home.cwd / "half.py", "x = 1\n1 / 0\n")
    with pytest.raises(PluginError):
        home.plugins.load_path("tool", path)
    assert not [name for name in sys.modules if "half_" in name]


def test_prints_of_an_import_go_to_stderr(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    path = home.write(home.cwd / "loud.py", "print('hello')\n" + TOOL.format(name="loud"))
    home.plugins.load_path("tool", path)
    assert capsys.readouterr() == ("", "hello\n")


def test_keyboard_interrupt_is_not_a_broken_plugin(home: Home) -> None:
    path = home.write(home.cwd / "mine.py", "raise KeyboardInterrupt\n")
    with pytest.raises(KeyboardInterrupt):
        home.plugins.load_path("tool", path)


def test_one_broken_discovered_plugin_only_warns(home: Home) -> None:
    home.write(home.config / "tools" / "bad.py", "1 / 0\n")
    home.write(home.config / "tools" / "good.py", TOOL.format(name="good"))
    plugins = home.plugins
    assert names(plugins.load_all("tool")) == ["good"]
    plugins.load_all("tool")
    (failure,) = plugins.failures
    assert (failure.name, failure.kind) == ("bad", "tool")
    (line,) = warnings_of(plugins.failures)
    assert "ZeroDivisionError" in line
    assert "line 1" in line


def test_one_named_plugin_raises(home: Home) -> None:
    home.write(home.config / "tools" / "bad.py", "1 / 0\n")
    with pytest.raises(PluginError, match="ZeroDivisionError"):
        home.plugins.load("tool", "bad")


def test_name_of_a_plugin_or_of_a_tool_within(home: Home) -> None:
    home.write(
        home.config / "tools" / "files.py", TOOL.format(name="read_file") + TOOL.format(name="write_file")
    )
    assert names(home.plugins.load("tool", "files")) == ["read_file", "write_file"]
    assert names(home.plugins.load("tool", "write_file")) == ["write_file"]


def test_unknown_name_names_the_nearest_and_the_broken(home: Home) -> None:
    home.write(home.config / "tools" / "bad.py", "1 / 0\n")
    home.write(home.config / "tools" / "files.py", TOOL.format(name="read_file"))
    with pytest.raises(PluginError) as caught:
        home.plugins.load("tool", "read_fil")
    assert "Did you mean 'read_file'?" in str(caught.value)
    assert "do not load: bad" in str(caught.value)


def test_kinds_do_not_mix(home: Home) -> None:
    path = home.write(home.cwd / "mine.py", TOOL.format(name="mine"))
    with pytest.raises(PluginError, match=r"@edgellm\.sampler"):
        home.plugins.load_path("sampler", path)


def test_entry_points_come_first_and_keep_their_name(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    home.write(home.cwd / "installed_plugin.py", TOOL.format(name="first"))
    monkeypatch.syspath_prepend(str(home.cwd))
    entry_points(monkeypatch, clock="installed_plugin")
    home.write(home.config / "tools" / "clock.py", TOOL.format(name="second"))
    home.write(home.config / "tools" / "third.py", TOOL.format(name="first"))
    plugins = home.plugins
    assert plugins.names("tool") == ("clock", "third")
    assert "installed_plugin" not in sys.modules
    assert names(plugins.load_all("tool")) == ["first"]
    assert all("name is taken by" in failure.error.message for failure in plugins.failures)
    assert len(plugins.failures) == 2
    del sys.modules["installed_plugin"]


def test_entry_point_that_does_not_import(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    entry_points(monkeypatch, gone="no_such_package_here.tools")
    plugins = home.plugins
    assert plugins.load_all("tool") == ()
    assert "no_such_package_here" in plugins.failures[0].error.message
    with pytest.raises(PluginError, match="no_such_package_here"):
        plugins.load("tool", "gone")


def test_installed_plugin_that_lacks_a_part_of_itself(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    entry_points(monkeypatch, gone="json.no_such_part")
    with pytest.raises(PluginError, match="reinstall or uninstall"):
        home.plugins.load("tool", "gone")


def test_nothing_of_the_working_directory_is_imported_unasked(home: Home) -> None:
    home.write(home.cwd / "tools" / "a.py", "raise AssertionError")
    home.write(home.cwd / "a.py", "raise AssertionError")
    home.write(home.cwd / ".edgellm" / "tools" / "a.py", "raise AssertionError")
    plugins = home.plugins
    assert plugins.load_all("tool") == ()
    (failure,) = plugins.failures
    assert "is not trusted" in failure.error.message
    assert "edgellm trust" in failure.error.hint


def test_trusted_folder_counts_until_it_changes(home: Home) -> None:
    directory = home.cwd.parent
    file = home.write(directory / ".edgellm" / "tools" / "a.py", TOOL.format(name="a"))
    trust = Trust(home.config)
    assert trust.state(directory) == "unknown"
    trust.trust(directory)
    assert trust.state(directory) == "trusted"
    assert names(home.plugins.load_all("tool")) == ["a"]
    assert trust.state(directory) == "trusted"
    home.write(file, TOOL.format(name="b"))
    plugins = home.plugins
    assert plugins.load_all("tool") == ()
    assert "has changed since it was trusted" in plugins.failures[0].error.message
    trust.trust(directory)
    assert names(home.plugins.load_all("tool")) == ["b"]
    assert trust.forget(directory)
    assert not trust.forget(directory)
    assert trust.state(directory) == "unknown"


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: (folder / "new.py").write_text("", encoding="utf-8"),
        lambda folder: (folder / "a.py").rename(folder / "b.py"),
        lambda folder: (folder / "a.py").unlink(),
        lambda folder: (
            (folder / "__pycache__").mkdir(),
            (folder / "__pycache__" / "a.pyc").write_bytes(b"x"),
        ),
        lambda folder: (folder.parent / "models.toml").write_text("", encoding="utf-8"),
    ],
)
def test_any_change_below_asks_again(home: Home, change: Any) -> None:
    home.write(home.cwd / ".edgellm" / "tools" / "a.py", TOOL.format(name="a"))
    trust = Trust(home.config)
    trust.trust(home.cwd)
    change(home.cwd / ".edgellm" / "tools")
    assert trust.state(home.cwd) == "changed"


def test_links_are_not_trusted(home: Home) -> None:
    outside = home.write(home.cwd / "outside.py", "")
    folder = home.cwd / ".edgellm"
    folder.mkdir()
    (folder / "a.py").symlink_to(outside)
    with pytest.raises(ConfigError, match="symbolic link"):
        Trust(home.config).trust(home.cwd)


def test_link_planted_later_is_a_failure_not_a_crash(home: Home) -> None:
    folder = home.cwd / ".edgellm" / "tools"
    file = home.write(folder / "a.py", TOOL.format(name="a"))
    Trust(home.config).trust(home.cwd)
    outside = home.write(home.cwd / "outside.py", file.read_text(encoding="utf-8"))
    file.unlink()
    file.symlink_to(outside)
    plugins = home.plugins
    assert plugins.load_all("tool") == ()
    assert "symbolic link" in plugins.failures[0].error.message


def test_trust_needs_a_folder(home: Home) -> None:
    assert Trust(home.config).state(home.cwd) == "absent"
    with pytest.raises(ConfigError, match="is not a folder"):
        Trust(home.config).trust(home.cwd)


@pytest.mark.parametrize("content", ["{", "[]", '{"a": 1}', "\xff\x00"])
def test_broken_trust_list_is_told(home: Home, content: str) -> None:
    home.write(home.config / "trusted.json", content)
    with pytest.raises(ConfigError, match="trust the folders again"):
        Trust(home.config).trusted()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_unwritable_configuration_is_told(home: Home) -> None:
    (home.cwd / ".edgellm").mkdir()
    home.config.mkdir()
    home.config.chmod(0o500)
    with pytest.raises(ConfigError, match="cannot be written"):
        Trust(home.config).trust(home.cwd)


def test_unreadable_folder_only_warns(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    home.write(home.config / "tools" / "a.py", TOOL.format(name="a"))

    def refuse(path: Path) -> Any:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", refuse)
    plugins = home.plugins
    assert plugins.load_all("tool") == ()
    assert "Permission denied" in plugins.failures[0].error.message


def test_configuration_that_is_a_file_is_told(home: Home) -> None:
    (home.cwd / ".edgellm").mkdir()
    home.config.write_text("", encoding="utf-8")
    with pytest.raises(ConfigError, match="EDGELLM_CONFIG_DIR"):
        Trust(home.config).trust(home.cwd)


def test_environment_names_the_configuration_folder(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGELLM_CONFIG_DIR", str(home.config))
    home.write(home.config / "tools" / "a.py", TOOL.format(name="a"))
    (home.cwd / ".edgellm").mkdir()
    assert Plugins(cwd=home.cwd).names("tool") == ("a",)
    Trust().trust(home.cwd)
    assert list(json.loads((home.config / "trusted.json").read_text(encoding="utf-8"))) == [str(home.cwd)]
