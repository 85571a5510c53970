"""`edgellm`: finds the command, runs it, and turns every failure into one line and an exit code."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

COMMANDS: dict[str, tuple[str, str]] = {
    # name: (module, what it does); modules are imported when their command is run
    "chat": ("chat", "talk to a model, line by line"),
    "run": ("run", "answer one prompt; stdin is appended to it"),
    "models": ("models", "list, fetch, check and remove models"),
    "inspect": ("inspect", "what a GGUF file says of itself, and how chats are written for it"),
    "plan": ("plan", "what a model takes on this machine, and the settings that fit"),
    "bench": ("bench", "how fast this machine runs a model, beside an earlier run or llama-bench"),
    "tokenize": ("tokenize", "a text as the model's tokens"),
    "tools": ("tools", "list, show and call tools"),
    "samplers": ("samplers", "list and show sampler stages"),
    "parse": ("parse", "read a model's raw output: text, reasoning, tool calls"),
    "quantize": ("quantize", "write a model in another quantization"),
    "compare": ("compare", "quantizations of a model beside each other: speed here, and loss"),
    "optimize": ("optimize", "find the type of a model that is quick here, and keep that copy"),
    "trust": ("trust", "let edgellm load the plugins of a project folder"),
    "doctor": ("doctor", "what this machine and installation offer, and what is wrong with them"),
}
_DEFAULT = "chat"
_INTERRUPTED = 120  # failure.INTERRUPTED, which may not have been imported yet
_EXAMPLES = """\
examples:
  edgellm models pull smollm2-135m            fetch the default model (98 MB)
  edgellm                                     the app: chat with it, see every token
  edgellm run "What is 23 * 17 + 4?"          one answer, with calculator and clock at hand
  edgellm run --json "Why is the sky blue?"   the same as JSON lines
  edgellm chat -m ./model.gguf --system "Be brief."
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; gives the exit code: 0, 1 for errors, 2 for wrong usage, 120 for an interrupt."""
    try:
        if argv is None:
            _leave_on_ctrl_c()
        from edgellm.cli.failure import reported
        from edgellm.cli.render import prepare_streams

        words = list(sys.argv[1:] if argv is None else argv)
        prepare_streams()
        code = reported(lambda: _run(words))
        if argv is None:
            _ignore_ctrl_c()
    except KeyboardInterrupt:
        code = _INTERRUPTED
    if code == _INTERRUPTED and argv is None:
        # Python kills itself at its end if Ctrl-C came inside code that a library had put together (a dataclass,
        # say), though it was caught: the exit code would be the signal's. All streams are flushed by now.
        os._exit(code)
    return code


def _leave_on_ctrl_c() -> None:
    """Until a command has something to tidy up, Ctrl-C ends the process there and then.

    A KeyboardInterrupt would come in the middle of an import, where Python may print it and go on.
    """
    import signal

    def leave(_number: int, _frame: object) -> None:
        os.write(2, b"edgellm: interrupted. What was saved before is untouched.\n")
        os._exit(_INTERRUPTED)

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, leave)


def _ignore_ctrl_c() -> None:
    # All is done and printed: a late Ctrl-C must not turn that into a death by signal.
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _run(words: list[str]) -> int:
    from importlib import import_module

    from edgellm.cli.arguments import Parser, UsageError, nearest

    if not words and _has_screen():
        from edgellm_tui.app import run_app

        return run_app()
    if not words and os.environ.get("TERM") == "dumb":
        words = [_DEFAULT, "--plain"]
    first = words[0] if words else _DEFAULT
    if first == "help" and len(words) > 1:
        words = [words[1], "--help"]
        first = words[0]
    if first in ("-h", "--help", "help"):
        print(_help(), end="")
        return 0
    if first in ("-V", "--version"):
        from edgellm import __version__

        print(f"edgellm {__version__}")
        return 0
    if first in COMMANDS:
        words = words[1:]
    elif first.startswith("-"):
        # Options without a command belong to the default one: `edgellm -m FILE`.
        first = _DEFAULT
    else:
        near = nearest(first, COMMANDS)
        meant = f"Did you mean {near!r}? " if near else ""
        raise UsageError(f"There is no command {first!r}. {meant}See `edgellm --help`.")
    module_name, summary = COMMANDS[first]
    module = import_module(f"edgellm.cli.{module_name}")
    parser = Parser(prog=f"edgellm {first}", description=summary[0].upper() + summary[1:] + ".")
    module.configure(parser)
    args = parser.parse_args(words)
    return int(args.handler(args))


def _has_screen() -> bool:
    """Whether the app can draw on this terminal; where it cannot, the chat goes line by line."""
    if os.environ.get("TERM", "dumb" if os.name != "nt" else "") in ("dumb", "unknown"):
        return False
    streams = (sys.stdin, sys.stdout, sys.stderr)
    return all(stream is not None and stream.isatty() for stream in streams)


def _help() -> str:
    commands = "\n".join(f"  {name:<10}  {summary}" for name, (_, summary) in COMMANDS.items())
    return (
        "usage: edgellm [COMMAND] [OPTIONS]\n\n"
        "Quantized language models on small machines. Without a command: the app.\n\n"
        f"commands (`edgellm COMMAND --help` tells more):\n{commands}\n\n{_EXAMPLES}"
    )


if __name__ == "__main__":
    sys.exit(main())
