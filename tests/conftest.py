"""Fixtures: the real default model where it is present, tiny models made on the spot, homes of their own."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import tiny_models
from hypothesis import settings
from scale import SCALE

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # As where a shell has started all this in the background: the processes of tests would never hear Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# Models of a module outlive a test, and what one test left on disk would change the token counts of the next.
os.environ["EDGELLM_PREFIX_CACHE"] = "off"
# Equal text needs equal threads, and a machine that runs tests is busy.
os.environ.setdefault("EDGELLM_GOVERNOR", "off")
# Pages are laid out with the next tick of the screen: where nobody looks on, it comes at once.
os.environ["TEXTUAL_FPS"] = "500"

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tiny_models import Arch

    import edgellm
    from edgellm.engine.engine import Engine
    from edgellm.native.model import Model

TOOLS = '''
import edgellm


@edgellm.tool(permission="auto")
def flip(is_heads: bool) -> str:
    """Flips a coin."""
    print("noise")
    return f"it was {is_heads}\\x1b[31m"


@edgellm.tool
def launch(is_sure: bool) -> str:
    """Launches."""
    return "launched"
'''

# Two noisy cores: a slow example is no failure.
settings.register_profile("edgellm", deadline=None, max_examples=100 * SCALE)
settings.load_profile("edgellm")


def _find_default_model() -> Path | None:
    named = os.environ.get("EDGELLM_TEST_MODEL")
    if named:
        return Path(named)
    from edgellm.models.store import Store

    path = Store().path_of("smollm2-135m")
    return path if path is not None and path.is_file() else None


_REAL_MODEL = _find_default_model()


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """The default model's file; skips with a reason where it is absent."""
    if _REAL_MODEL is None or not _REAL_MODEL.is_file():
        pytest.skip(
            "the default model is not here: edgellm models pull smollm2-135m, or set EDGELLM_TEST_MODEL"
        )
    return _REAL_MODEL


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's own store, cache or configuration."""
    monkeypatch.setenv("EDGELLM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("EDGELLM_CONFIG_DIR", str(tmp_path / "config"))


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """tiny_model("llama") -> the path of a tiny random model of that architecture, made once a session."""
    folder = tmp_path_factory.mktemp("tiny")
    made: dict[str, Path] = {}

    def make(arch: Arch = "llama", **options: Any) -> Path:
        key = arch + repr(sorted(options.items()))
        if key not in made:
            made[key] = tiny_models.build(folder / f"{arch}-{len(made)}.gguf", arch, **options)
        return made[key]

    return make


@pytest.fixture(scope="module")
def llama(tiny_model: Callable[..., Path], request: pytest.FixtureRequest) -> Iterator[Model]:
    """A tiny llama, loaded with the OPTIONS of the module."""
    from edgellm.native.model import Model

    model = Model.load(tiny_model("llama"), request.module.OPTIONS)
    yield model
    model.close()


@pytest.fixture
def engine(llama: Model, request: pytest.FixtureRequest) -> Iterator[Engine]:
    """An engine on `llama`, with the OPTIONS of the module."""
    from edgellm.engine.engine import Engine

    engine = Engine(llama, request.module.OPTIONS)
    yield engine
    engine.close()


@pytest.fixture
def model(tiny_model: Callable[..., Path]) -> Path:
    """The file of a tiny llama with 2,048 tokens of context."""
    return tiny_model("llama", n_ctx=2048)


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A file of two tools: `flip` runs unasked, `launch` asks."""
    path = tmp_path / "tools_of_mine.py"
    path.write_text(TOOLS, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def runtime(tiny_model: Callable[..., Path]) -> Iterator[edgellm.Runtime]:
    """A tiny llama with room for four chats, one a module."""
    import edgellm

    with edgellm.load(tiny_model("llama", n_ctx=4096), n_ctx=4096, n_seq_max=4, threads=1) as runtime:
        yield runtime
