"""The loaded llama.cpp library: wait policy set before it loads, its log kept instead of printed."""

from __future__ import annotations

import ctypes
import os
import threading
from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from edgellm.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

_LOG_LINES_KEPT = 400
_LEVEL_CONT = 5

_lock = threading.Lock()
_module: ModuleType | None = None
_callback: Any = None  # a ctypes function object; must outlive the library
_log: deque[tuple[int, str]] = deque(maxlen=_LOG_LINES_KEPT)


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
    # libgomp reads this once, when it is loaded. With spinning waiters, one busy neighbour on a core makes a
    # token take seconds; passive waiting costs a few percent on an idle machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
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
    return module


def _keep_log_line(level: int, text: bytes, _user_data: object) -> None:
    line = text.decode("utf-8", "replace")
    if level == _LEVEL_CONT and _log:
        last_level, last = _log[-1]
        _log[-1] = (last_level, last + line)
    else:
        _log.append((level, line))


def log_text(*, min_level: int = 0) -> str:
    """What llama.cpp has logged of late (the last 400 lines). Levels (ggml.h): 1 info, 2 warn, 3 error, 4 debug."""
    return "".join(line for level, line in list(_log) if level >= min_level)


@contextmanager
def captured_log() -> Iterator[list[str]]:
    """Collects what llama.cpp logs inside the block; the list is filled when the block ends."""
    # A ring buffer has no stable index, so the block is marked by a line of its own.
    mark = (-1, "")
    _log.append(mark)
    lines: list[str] = []
    try:
        yield lines
    finally:
        entries = list(_log)
        start = next((i for i in range(len(entries) - 1, -1, -1) if entries[i] is mark), -1)
        lines.extend(line for level, line in entries[start + 1 :] if level >= 0)


def last_errors(lines: list[str], *, limit: int = 3) -> str:
    """The lines of a captured log that say what went wrong, the last ones first in worth; one line of text."""
    words = ("error", "fail", "unable", "unknown", "invalid", "corrupt", "missing", "out of", "not ")
    telling = [line.strip() for line in lines if any(word in line.lower() for word in words)]
    return "; ".join(telling[-limit:])


def system_info() -> str:
    """Instruction sets and build features of the loaded library, one line (llama_print_system_info)."""
    info: bytes = lib().llama_print_system_info()
    return info.decode("utf-8", "replace").strip()
