"""The app in a real terminal (tmux), with the default model: from the first start to a chat that goes on."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

PATIENCE_S = 150.0
TOOL = '''\
import edgellm


@edgellm.tool(permission="ask", examples=[edgellm.ToolExample("How warm is the attic?", {"room": "attic"})])
def room_temperature(room: str) -> str:
    """Measures how warm a room of the house is, in degrees Celsius.

    Args:
        room: Name of the room, such as "kitchen".
    """
    return "21.5 degrees"
'''

pytestmark = [
    pytest.mark.model,
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not here: apt-get install tmux"),
]


class Screen:
    """The app in a tmux session of its own."""

    def __init__(self, environment: dict[str, str], size: tuple[int, int] = (100, 40)) -> None:
        self._socket = f"edgellm-test-{os.getpid()}"
        self._environment = environment
        self._size = size

    def tmux(self, *words: str) -> str:
        """Runs one tmux command; gives what it printed."""
        command = ["tmux", "-L", self._socket, "-f", "/dev/null", *words]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout

    def start(self) -> None:
        """Starts the app."""
        width, height = self._size
        given = [word for name, value in self._environment.items() for word in ("-e", f"{name}={value}")]
        app = f"{sys.executable} -m edgellm.cli.main"
        self.tmux("new-session", "-d", "-x", str(width), "-y", str(height), *given, app)

    def keys(self, *names: str) -> None:
        """Presses keys."""
        self.tmux("send-keys", *names)

    def type(self, text: str) -> None:
        """Types a line and sends it."""
        self.tmux("send-keys", "-l", text)
        self.keys("Enter")

    @property
    def text(self) -> str:
        """What is on the screen."""
        return self.tmux("capture-pane", "-p")

    @property
    def is_open(self) -> bool:
        """The app has not ended."""
        return bool(self.tmux("list-sessions"))

    def wait(self, wanted: str | Callable[[str], object]) -> str:
        """Waits for a text, or for what a function says of the screen; gives the screen."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            text = self.text
            if wanted in text if isinstance(wanted, str) else wanted(text):
                return text
            if time.monotonic() > deadline:
                raise AssertionError(f"{wanted!r} did not come:\n{text}")
            time.sleep(0.1)

    def close(self) -> None:
        """Ends the session."""
        self.tmux("kill-server")


@pytest.fixture
def screen(tmp_path: Path, smollm2_path: Path) -> Iterator[Screen]:
    """Nothing of the user's is here yet; the default model comes from a file instead of the network."""
    config = tmp_path / "new-config"
    (config / "tools").mkdir(parents=True)
    (config / "tools" / "house.py").write_text(TOOL)
    (config / "app.toml").write_text('tools = ["room_temperature"]\n')
    source = f'[models.smollm2-135m]\nsources = [{{ kind = "path", path = "{smollm2_path}" }}]\n'
    (config / "models.toml").write_text(source)
    work = tmp_path / "work"
    work.mkdir()
    opened = Screen(
        {
            "EDGELLM_HOME": str(tmp_path / "new-home"),
            "EDGELLM_CONFIG_DIR": str(config),
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            "LANG": "C.UTF-8",
            "OMP_WAIT_POLICY": "passive",
        }
    )
    try:
        yield opened
    finally:
        opened.close()


def numbers(text: str) -> tuple[int, int]:
    """(prefilled, reused) of the line that /stats prints for the last turn."""
    line = re.search(r"last turn\s+prefill (\d+).*?reused (\d+)", " ".join(text.split()))
    assert line is not None, text
    return int(line[1]), int(line[2])


def used(text: str) -> int:
    """Tokens of the context in use, as the status line says."""
    found = re.search(r"ctx (\d+)/", text)
    assert found is not None, text
    return int(found[1])


def is_idle(text: str) -> bool:
    """No turn is open."""
    return any(word in text for word in ("READY ", "STOPPED ", "FAILED "))


def test_from_the_first_start_to_a_chat_that_goes_on(screen: Screen) -> None:
    screen.start()
    # First start: the default model is offered and fetched.
    screen.wait("smollm2-135m is not on this machine yet.")
    screen.keys("Enter")
    screen.wait("READY ")

    # A tool is asked about; its card is filled.
    screen.type("How warm is the kitchen?")
    asked = screen.wait("PAUSED: the model asks to run a tool")
    assert "room_temperature" in asked and "[a] allow once" in asked
    time.sleep(1.0)  # a yes counts only from somebody who is not typing
    screen.keys("a")
    answered = screen.wait(is_idle)
    assert "21.5 degrees" in answered and re.search(r"OK \d+\.\d s", answered), answered

    # Tokens and their distribution are seen while they come; Esc stops them, and nothing moves after that.
    screen.type("Write a long story about a river and all its towns.")
    running = screen.wait(lambda text: re.search(r"DECODE (\d\d+) tok", text))
    assert re.search(r"raw \.\d\d\d", running), running
    screen.keys("Escape")
    screen.wait("STOPPED ")
    time.sleep(0.5)
    still = screen.text
    time.sleep(1.0)
    assert screen.text == still

    # Back to earlier tokens: the panel shows how each was drawn.
    screen.keys("Tab", "Tab", "Left", "Left", "Left")
    scrubbed = screen.wait(lambda text: re.search(r"token \d+ of \d+", text))
    assert re.search(r"raw \.\d\d\d", scrubbed), scrubbed
    screen.keys("Escape")

    # Another candidate is put in place of an earlier token: a branch, which goes on from there.
    screen.keys("F3")
    screen.wait("INSPECT")
    screen.keys("Home", "Right", "Right", "Down", "Enter")
    screen.wait(lambda text: re.search(r"DECODE (\d\d+) tok", text))
    screen.keys("Escape")
    screen.wait("STOPPED ")
    screen.keys("F2")
    screen.type("/branch")
    branched = screen.wait("* 2")
    assert "  1  main" in branched
    time.sleep(4.0)  # saved by itself a moment after the turn
    still = screen.text

    # It is kept, and goes on after a restart without computing the old turns again.
    before = used(still)
    screen.keys("C-q")
    screen.wait(lambda _text: not screen.is_open)
    screen.start()
    screen.wait("READY ")
    screen.keys("C-o")
    screen.wait("How warm is the kitchen?")
    screen.keys("Enter")
    # The beginning may have been scrolled out of sight by what is said about the reopened memory.
    screen.wait(lambda text: f"ctx {before}/" in text)
    screen.type("/continue")
    screen.wait(lambda text: re.search(r"DECODE (\d\d+) tok", text))
    screen.keys("Escape")
    screen.wait("STOPPED ")
    screen.type("/stats")
    prefilled, reused = numbers(screen.wait("last turn"))
    assert reused >= before - 1
    assert prefilled <= 2
    screen.keys("C-q")
    screen.wait(lambda _text: not screen.is_open)
