"""`edgellm chat`: a conversation, line by line."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgellm.cli import arguments
from edgellm.cli.arguments import UsageError, text, utf8
from edgellm.cli.failure import ERROR, INTERRUPTED
from edgellm.cli.interrupt import raising
from edgellm.cli.render import has_colour, is_terminal, say, styled, warn
from edgellm.errors import ConfigError, EdgeError

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from edgellm.cli.talk import Talk

_EXAMPLES = """\
examples:
  edgellm chat
  edgellm chat -m qwen3-0.6b --system "Be brief." --sampler "min_p(0.05) | temperature(0.8)"
  edgellm chat --tools my_tools.py --tool calculator
  edgellm chat --tool files --set files.root=./notes --allow write_file
  edgellm chat --prompt "What is 23 * 17 + 4?"
  edgellm chat --load trip.chat

In the chat /help lists the commands; a line that ends in \\ goes on in the next one. Ctrl-C stops the answer,
Ctrl-D leaves.
"""


def configure(parser: ArgumentParser) -> None:
    """Options of `edgellm chat`."""
    parser.epilog = _EXAMPLES
    parser.add_argument(
        "--prompt", metavar="TEXT", type=utf8, help="one turn only: print call, result and answer, and leave"
    )
    parser.add_argument(
        "--plain",
        action="store_true",
        help="in words, for screen readers and logs: whole lines behind you:, model:, tool:",
    )
    parser.add_argument("--load", metavar="FILE", type=text("the file"), help="go on with a saved chat")
    arguments.add_loading(parser)
    arguments.add_chatting(parser)
    parser.set_defaults(handler=run)


def run(args: Namespace) -> int:
    """Talks until the user leaves."""
    from edgellm.cli.opening import (
        chat_options,
        check_chain,
        check_choice,
        check_policy,
        choose_tools,
        open_runtime,
    )
    from edgellm.cli.talk import Talk

    if args.plain and args.logprobs:
        raise UsageError("--plain and --logprobs exclude each other. Leave one of them out.")
    if args.load is not None and args.system is not None:
        raise UsageError(
            "--load and --system exclude each other: a saved chat keeps its system turn. Leave one of them out."
        )
    if args.prompt is not None and not args.prompt.strip():
        raise UsageError('--prompt is empty. Write edgellm chat --prompt "...", or leave it out to chat.')
    check_chain(args.sampler)
    check_policy(args.when_full)
    options = chat_options(args)
    toolset = choose_tools(args)
    check_choice(args, toolset)
    saved = _saved(args.load)
    with open_runtime(args) as runtime, contextlib.closing(Talk(runtime, toolset, options, args)) as talk:
        talk.open(saved)
        if args.prompt is not None:
            return INTERRUPTED if talk.send(args.prompt) == "cancelled" else 0
        return _loop(talk)


def _saved(name: str | None) -> Path | None:
    """The file of a saved chat, whose head is read before the model is loaded for it. Raises SessionError."""
    if name is None:
        return None
    from edgellm.engine.session_file import read_record

    # Path.expanduser raises where there is no such user; this leaves the name as it is.
    path = Path(os.path.expanduser(name))
    read_record(path)
    return path


def _loop(talk: Talk) -> int:
    from edgellm.cli.commands import COMMANDS, Leave, obey
    from edgellm.cli.opening import explained

    is_interactive = is_terminal(sys.stdin)
    if is_interactive:
        say(f"{talk.title}. /help lists commands, Ctrl-D leaves.")
    with raising(), _history(is_interactive, [f"/{name}" for name in COMMANDS]):
        has_failed, interrupts = False, 0
        while True:
            try:
                message = _waited(talk) if is_interactive else _read(talk, is_interactive)
            except ConfigError as error:
                has_failed = True
                warn(explained(error))
                continue
            except EOFError:
                if is_interactive:
                    print()
                break
            except KeyboardInterrupt:
                interrupts += 1
                if interrupts > 1 or not is_interactive:
                    raise
                say("\n(once more, or Ctrl-D, leaves)")
                continue
            interrupts = 0
            if not message.strip():
                continue
            try:
                if message.startswith("/"):
                    obey(talk, message)
                else:
                    talk.send(message)
            except Leave:
                break
            except EdgeError as error:
                has_failed = True
                warn(explained(error))
    return ERROR if has_failed and not is_interactive else 0


def _waited(talk: Talk) -> str:
    """One message of somebody who takes their time, in which room is made in the context. Raises as `_read`."""
    from edgellm.cli.idle import Idle

    idle = Idle(talk.chat)
    try:
        with idle:
            return _read(talk, is_interactive=True)
    finally:
        talk.tell(idle.events)


def _read(talk: Talk, is_interactive: bool) -> str:
    """One message: a line, and those after it while they end in a backslash. Raises EOFError and ConfigError."""
    lines: list[str] = []
    while True:
        prompt = (". " if lines else talk.label) if is_interactive else ""
        try:
            line = input(_guarded(prompt)) if is_interactive else _piped_line()
            line.encode()
        except UnicodeError:
            raise ConfigError(
                "that line is not UTF-8 text.", hint="Convert it first, for example with iconv."
            ) from None
        except EOFError:
            if lines and not is_interactive:
                return "\n".join(lines)
            raise
        if not line.endswith("\\"):
            return "\n".join([*lines, line])
        lines.append(line[:-1])


def _piped_line() -> str:
    # By bytes: a text stream that meets a byte which is no UTF-8 loses the lines behind it.
    line = sys.stdin.buffer.readline().decode("utf-8")
    if not line:
        raise EOFError
    return line.rstrip("\r\n")


def _guarded(prompt: str) -> str:
    # readline must know which bytes take no room on the line; without it they would be printed.
    if not prompt or not has_colour(sys.stdout):
        return prompt
    if "readline" not in sys.modules:
        return styled(prompt, "bold", sys.stdout)
    return "".join(
        f"\x01{part}\x02" if part.startswith("\x1b") else part
        for part in styled(prompt, "bold", sys.stdout)
        .replace("\x1b", "\0\x1b")
        .replace("m", "m\0", 1)
        .split("\0")
    )


@contextlib.contextmanager
def _history(is_interactive: bool, words: list[str]) -> Any:
    """Lines of earlier chats under the arrow keys; where they cannot be kept, it is said once."""
    try:
        import readline
    except ImportError:  # not on every system
        readline = None
    if not is_interactive or readline is None:
        yield
        return
    from edgellm.folders import private_dir, state_dir

    # macOS and some builds of Python have it in place of GNU's: it refuses an empty file, and appends no head to one.
    is_libedit = "libedit" in (readline.__doc__ or "")
    path = state_dir() / "history"
    before = 0
    try:
        private_dir(path.parent)
        path.touch(mode=0o600)
        if path.stat().st_size:
            readline.read_history_file(path)
        before = readline.get_current_history_length()
    except OSError as error:
        warn(f"warning: {path} cannot be used ({error.strerror}): this chat's lines are not kept.")
        readline.clear_history()
        path = None

    def complete(start: str, index: int) -> str | None:
        found = [word for word in words if word.startswith(start)] if start.startswith("/") else []
        return found[index] if index < len(found) else None

    readline.set_completer_delims(" ")
    readline.set_completer(complete)
    readline.parse_and_bind("bind ^I rl_complete" if is_libedit else "tab: complete")
    try:
        yield
    finally:
        readline.set_completer(None)
        if path is not None:
            new = readline.get_current_history_length() - before
            with contextlib.suppress(OSError):
                if is_libedit:
                    readline.write_history_file(path)
                else:
                    readline.append_history_file(max(0, new), path)
