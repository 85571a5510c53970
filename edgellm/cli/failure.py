"""Every failure as one line on stderr that says what to do, and an exit code from 1 to 123."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from typing import TYPE_CHECKING

from edgellm.cli.arguments import UsageError
from edgellm.cli.render import escape
from edgellm.errors import EdgeError, SamplerError, SessionError, ToolError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ERROR, USAGE, INTERNAL, INTERRUPTED = 1, 2, 70, 120
_MOST_LINES = 8
_MOST_CHARACTERS = 2000
_FALLBACKS: tuple[tuple[type[EdgeError], str], ...] = (
    (SamplerError, "`edgellm samplers show NAME` tells a stage's arguments."),
    (ToolError, "`edgellm tools show NAME` tells what a tool takes."),
    (SessionError, "Start a new chat, or give another file."),
    (EdgeError, "`edgellm doctor` may tell more."),
)
# Hints speak to Python callers; here the same things have other names.
_OPTIONS = (
    ("kv_type_k='q8_0'", "--kv-type q8_0"),
    ('kv_type_k="f16" and kv_type_v="f16"', "--kv-type f16"),
    ('flash_attention="auto" or "on", or kv_type_v="f16"', "--kv-type f16"),
    ("draft_model=NAME", "--draft-model NAME"),
    ("adapters=AdapterSet(...), AdapterSet() for none", "--lora FILE or --control-vector FILE"),
    ("kv_type_k", "--kv-type"),
    ("n_ctx", "--ctx"),
    ("n_gpu_layers", "--gpu-layers"),
    ("fit='off'", "--fit off"),
)
_OS_HINTS = {
    errno.ENOSPC: "Free some space.",
    errno.EDQUOT: "Free some space.",
    errno.EACCES: "Check its permissions.",
    errno.EPERM: "Check its permissions.",
    errno.EROFS: "Choose a folder you may write to.",
    errno.ENOENT: "Check the path.",
    errno.ENOTDIR: "Check the path.",
    errno.EISDIR: "Name a file, not a folder.",
    errno.EMFILE: "Close some programs, or raise `ulimit -n`.",
}


class StdoutClosed(Exception):
    """The reader of stdout has gone: nothing to report."""


def reported(command: Callable[[], int]) -> int:
    """Runs a command; whatever it raises is told on stderr and becomes the exit code."""
    try:
        try:
            code = command()
        finally:
            _flush()
    except SystemExit as leave:
        # argparse leaves this way after --help.
        return leave.code if isinstance(leave.code, int) else 0
    except KeyboardInterrupt:
        _tell("interrupted. What was saved before is untouched.")
        return INTERRUPTED
    except (BrokenPipeError, StdoutClosed):
        _silence_stdout()
        return INTERRUPTED
    except UsageError as error:
        _tell(str(error))
        return USAGE
    except EdgeError as error:
        _tell(error_text(error))
        return ERROR
    except OSError as error:
        _tell(os_error_text(error))
        _silence_stdout()
        return ERROR
    except Exception as error:
        _tell(_internal(error))
        return INTERNAL
    return code


def error_text(error: EdgeError) -> str:
    """The error and its remedy."""
    if error.hint:
        return str(error).removesuffix(error.hint) + in_options(error.hint)
    remedy = next(text for kind, text in _FALLBACKS if isinstance(error, kind))
    # Behind a picture of several lines, a line of its own.
    separator = "\n" if "\n" in str(error) else " "
    return f"{error}{separator}{remedy}"


def in_options(hint: str) -> str:
    """A hint with the names that the command line has for things."""
    for ours, option in _OPTIONS:
        hint = hint.replace(ours, option)
    return hint


def os_error_text(error: OSError) -> str:
    """What the system refused, and a remedy."""
    if isinstance(error, FileNotFoundError) and error.filename is None:
        return "The working folder does not exist any more. Change to another one."
    what = (error.strerror or str(error) or type(error).__name__).rstrip(".")
    place = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, (str, bytes)) else ""
    return f"{place}{what}. {_OS_HINTS.get(error.errno or 0, '`edgellm doctor` may tell more.')}"


def _tell(text: str) -> None:
    lines = escape(text).strip()[:_MOST_CHARACTERS].splitlines()[:_MOST_LINES]
    # stderr may be closed; then there is nobody to tell.
    with contextlib.suppress(OSError, ValueError):
        print("edgellm: " + "\n".join(lines), file=sys.stderr, flush=True)


def _internal(error: Exception) -> str:
    words = " ".join(str(error).split())[:300]
    what = f"{type(error).__name__}: {words}" if words else type(error).__name__
    log = _write_log(error)
    where = f"details in {log}" if log is not None else "no log could be written"
    return f"internal error: {what}. Report it; {where}."


def _write_log(error: Exception) -> Path | None:
    import traceback
    from datetime import datetime

    from edgellm.folders import private_dir, state_dir

    try:
        path = private_dir(state_dir()) / "errors.log"
        with path.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(f"--- {datetime.now().isoformat(timespec='seconds')} {sys.argv!r}\n")
            file.writelines(traceback.format_exception(error))
    except OSError:
        return None
    return path


def _flush() -> None:
    if sys.stdout is not None:  # pyright: ignore[reportUnnecessaryComparison]
        sys.stdout.flush()


def _silence_stdout() -> None:
    """Python flushes stdout once more at its end: there must be nothing left that could fail."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        handle = os.open(os.devnull, os.O_WRONLY)
        os.dup2(handle, sys.stdout.fileno())
        os.close(handle)
