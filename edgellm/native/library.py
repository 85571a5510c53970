"""The loaded llama.cpp library: wait policy set before it loads, its log kept instead of printed."""

from __future__ import annotations

import ctypes
import os
import threading
from collections import deque
from contextlib import contextmanager
from importlib import metadata
from typing import TYPE_CHECKING, Any

from edgellm.errors import ConfigError
from edgellm.native.barrier import SPIN_COUNT, install

if TYPE_CHECKING:
    from collections.abc import Generator
    from types import ModuleType

_LOG_LINES_KEPT = 400
_DEBUG, _WARN, _ERROR, _LEVEL_CONT = 1, 3, 4, 5  # ggml_log_level
_REASON_LINES = 3

_lock = threading.Lock()
_module: ModuleType | None = None
_callback: Any = None  # a ctypes function object; must outlive the library
_log: deque[tuple[int, str]] = deque(maxlen=_LOG_LINES_KEPT)
_logged = 0  # lines ever logged
_is_dropping = False  # the line being continued was left out


def wait_policy() -> str:
    """How llama.cpp's threads wait for each other: as the user has set it, else as it is set when the library loads.

    Set to nothing, OMP_WAIT_POLICY leaves libgomp as it is.
    """
    policy = os.environ.get("OMP_WAIT_POLICY")
    if policy:
        return policy.lower()
    spins = os.environ.get("GOMP_SPINCOUNT", str(SPIN_COUNT) if policy is None else "")
    return f"spin {spins}" if spins else "libgomp's own"


def lib() -> ModuleType:
    """The module `llama_cpp.llama_cpp`, loaded on first use with our wait policy and log callback.

    Raises ConfigError where llama-cpp-python is not installed or its library does not load.
    """
    global _module
    if _module is None:
        with _lock:
            if _module is None:
                _module = _load()
    return _module


def _load() -> ModuleType:
    # libgomp reads this once, when it is loaded. Waiters that spin for long take the core from a busy neighbour, and
    # from the thread they wait for; those that sleep at once pay for being woken, hundreds of times a token.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(SPIN_COUNT))
    try:
        import llama_cpp.llama_cpp as module
    except ImportError as error:
        raise ConfigError(
            f"llama-cpp-python is not installed: {error}.",
            hint='Install it: pip install "llama-cpp-python>=0.3.36,<0.3.37".',
        ) from error
    except (OSError, RuntimeError) as error:
        raise ConfigError(
            f"the llama.cpp library does not load: {error}.",
            hint="Reinstall it: pip install --force-reinstall --no-cache-dir --no-binary llama-cpp-python"
            ' "llama-cpp-python>=0.3.36,<0.3.37".',
        ) from error
    global _callback
    _callback = module.llama_log_callback(_keep_log_line)
    module.llama_log_set(_callback, ctypes.c_void_p(0))
    module.llama_backend_init()
    install(module)
    return module


def _keep_log_line(level: int, text: bytes, _user_data: object) -> None:
    global _logged, _is_dropping
    # A context of a large model writes a line for each of its tensors: they would push out what explains an error.
    if level == _DEBUG or (level == _LEVEL_CONT and _is_dropping):
        _is_dropping = True
        return
    _is_dropping = False
    line = text.decode("utf-8", "replace")
    if level == _LEVEL_CONT and _log:
        last_level, last = _log[-1]
        _log[-1] = (last_level, last + line)
    else:
        _log.append((level, line))
        _logged += 1


def log_text(*, min_level: int = 0) -> str:
    """What llama.cpp has logged of late (the last 400 lines). Levels (ggml.h): 2 info, 3 warn, 4 error."""
    return "".join(line for level, line in list(_log) if level >= min_level)


class CapturedLog:
    """What llama.cpp logged inside a `captured_log` block, complete when the block has ended."""

    def __init__(self) -> None:
        self.entries: list[tuple[int, str]] = []

    @property
    def text(self) -> str:
        """All lines."""
        return "".join(line for _, line in self.entries)

    @property
    def reason(self) -> str:
        """The last errors (or warnings, where there is no error) in one line; empty where there is neither."""
        for wanted in (_ERROR, _WARN):
            lines = [line.strip() for level, line in self.entries if level == wanted and line.strip()]
            if lines:
                return "; ".join(lines[-_REASON_LINES:])
        return ""


@contextmanager
def captured_log(*, is_kept: bool = True) -> Generator[CapturedLog]:
    """Collects what llama.cpp logs inside the block; unless `is_kept`, nobody else gets to see it."""
    # Every decode passes here: where nothing was logged, nothing is looked at.
    before = _logged
    captured = CapturedLog()
    try:
        yield captured
    finally:
        count = min(_logged - before, len(_log))
        if count:
            captured.entries += list(_log)[-count:]
            for _ in range(0 if is_kept else count):
                _log.pop()


def build_info() -> str:
    """What the values of a computation may depend on: the version of the bindings, and `system_info`."""
    return f"{lib().__package__} {metadata.version('llama-cpp-python')}; {system_info()}"


def system_info() -> str:
    """Instruction sets and build features of the loaded library, one line (llama_print_system_info)."""
    info: bytes = lib().llama_print_system_info()
    return info.decode("utf-8", "replace").strip()
