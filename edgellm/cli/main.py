"""`edgellm`: finds the command, runs it, and turns every failure into one line and an exit code."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING

from edgellm.cli.arguments import Parser, UsageError, nearest

if TYPE_CHECKING:
    from collections.abc import Sequence

_COMMANDS: dict[str, tuple[str, str]] = {
    # name: (module, what it does); modules are imported when their command is run
    "chat": ("chat", "talk to a model, line by line"),
    "run": ("run", "answer one prompt; stdin is appended to it"),
    "models": ("models", "list, fetch, check and remove models"),
    "inspect": ("inspect", "what a GGUF file says of itself, and how chats are written for it"),
    "tokenize": ("tokenize", "a text as the model's tokens"),
    "tools": ("tools", "list, show and call tools"),
    "samplers": ("samplers", "list and show sampler stages"),
    "parse": ("parse", "read a model's raw output: text, reasoning, tool calls"),
    "quantize": ("quantize", "write a model in another quantization"),
    "trust": ("trust", "let edgellm load the plugins of a project folder"),
    "doctor": ("doctor", "what this machine and installation offer, and what is wrong with them"),
}
_DEFAULT = "chat"
_EXAMPLES = """\
examples:
  edgellm models pull smollm2-135m            fetch the default model (98 MB)
  edgellm                                     chat with it
  edgellm run "What is 23 * 17 + 4?"          one answer, with calculator and clock at hand
  edgellm run --json "Why is the sky blue?"   the same as JSON lines
  edgellm chat -m ./model.gguf --system "Be brief."
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; gives the exit code: 0, 1 for errors, 2 for wrong usage, 120 for an interrupt."""
    from edgellm.cli.failure import reported
    from edgellm.cli.render import prepare_streams

    words = list(sys.argv[1:] if argv is None else argv)
    prepare_streams()
    return reported(lambda: _run(words))


def _run(words: list[str]) -> int:
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
    if first in _COMMANDS:
        words = words[1:]
    elif first.startswith("-"):
        # Options without a command belong to the default one: `edgellm -m FILE`.
        first = _DEFAULT
    else:
        near = nearest(first, _COMMANDS)
        meant = f"Did you mean {near!r}? " if near else ""
        raise UsageError(f"There is no command {first!r}. {meant}See `edgellm --help`.")
    module_name, summary = _COMMANDS[first]
    module = import_module(f"edgellm.cli.{module_name}")
    parser = Parser(prog=f"edgellm {first}", description=summary[0].upper() + summary[1:] + ".")
    module.configure(parser)
    args = parser.parse_args(words)
    return int(args.handler(args))


def _help() -> str:
    commands = "\n".join(f"  {name:<10}  {summary}" for name, (_, summary) in _COMMANDS.items())
    return (
        "usage: edgellm [COMMAND] [OPTIONS]\n\n"
        "Quantized language models on small machines. Without a command: a chat.\n\n"
        f"commands (`edgellm COMMAND --help` tells more):\n{commands}\n\n{_EXAMPLES}"
    )


if __name__ == "__main__":
    sys.exit(main())
