"""`edgellm run`: one prompt, one answer."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgellm.cli import arguments
from edgellm.cli.arguments import UsageError, text, utf8
from edgellm.cli.failure import INTERRUPTED
from edgellm.cli.interrupt import Interrupt
from edgellm.cli.render import is_terminal

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Callable

    from edgellm.events import Event, TurnFinished

_MOST_STDIN_BYTES = 16 * 1024 * 1024
_EXAMPLES = """\
examples:
  edgellm run "What is 23 * 17 + 4?"
  edgellm run "Summarize this:" < notes.txt
  edgellm run --json --seed 7 "Name three rivers." | jq -r 'select(.type == "text_delta").text'
  edgellm run --schema person.json "Ada Lovelace, born 1815"
  edgellm run --logprobs 5 --no-tools --sampler greedy "The capital of France is"

Without --json the answer alone goes to stdout; calls, reasoning and warnings go to stderr.
"""


def configure(parser: ArgumentParser) -> None:
    """Options of `edgellm run`."""
    parser.epilog = _EXAMPLES
    parser.add_argument(
        "prompt", metavar="PROMPT", nargs="*", type=utf8, help="what to answer; stdin is appended to it"
    )
    parser.add_argument("--json", action="store_true", help="print events as JSON lines, and nothing else")
    parser.add_argument(
        "--schema",
        metavar="FILE",
        type=text("the file"),
        help="the answer fits this JSON Schema; goes without tools",
    )
    arguments.add_loading(parser)
    arguments.add_chatting(parser)
    parser.set_defaults(handler=run)


def run(args: Namespace) -> int:
    """Answers one prompt. 0 where there is a whole answer."""
    from edgellm.cli.opening import check_chain, check_choice, check_policy, choose_tools, open_runtime
    from edgellm.toolbox.toolset import Toolset

    schema = _schema(args)
    prompt = _prompt(args.prompt)
    check_chain(args.sampler)
    check_policy(args.when_full)
    options = _options(args)
    toolset = Toolset() if schema is not None else choose_tools(args)
    check_choice(args, toolset)
    with open_runtime(args) as runtime:
        show: Callable[[Event], None]
        if args.json:
            from edgellm.cli.json_lines import event_line

            show = lambda event: print(event_line(event, runtime.vocabulary.piece), flush=True)  # noqa: E731
        else:
            from edgellm.cli.transcript import Transcript

            piece = runtime.vocabulary.piece if args.logprobs else None
            show = Transcript(calls=sys.stderr, piece=piece).show
        return _answer(runtime, toolset, options, prompt, schema, args, show)


def _answer(
    runtime: Any,
    toolset: Any,
    options: dict[str, Any],
    prompt: str,
    schema: dict[str, Any] | None,
    args: Namespace,
    show: Callable[[Event], None],
) -> int:
    from edgellm.cli.approval import Approver
    from edgellm.events import TurnFinished

    approver = Approver(toolset, allowed=args.allow)
    end: TurnFinished | None = None
    with (
        runtime.chat(tools=toolset, approve=approver.approve, **options) as chat,
        Interrupt(chat.cancel) as interrupt,
    ):
        approver.asking, approver.on_interrupt = interrupt.asking, interrupt.press
        for event in chat.send(
            prompt, tool_choice=args.tool_choice, schema=schema, max_tokens=args.max_tokens
        ):
            if interrupt.is_pressed:
                chat.cancel()
            show(event)
            if isinstance(event, TurnFinished):
                end = event
    assert end is not None
    return _code(end, schema)


def _code(end: TurnFinished, schema: dict[str, Any] | None) -> int:
    from edgellm.errors import ConstraintError, ContextFull

    if end.finish_reason == "cancelled":
        return INTERRUPTED
    if end.finish_reason == "context_full":
        raise ContextFull(
            "The answer was cut off: the context is full.", hint="Raise --ctx, or shorten the prompt."
        )
    if schema is not None and end.value is None and end.finish_reason != "eog":
        raise ConstraintError(
            f"The answer was cut off after {end.usage.decode_tokens} tokens and does not fit the schema.",
            hint="Raise --max-tokens.",
        )
    return 0


def _options(args: Namespace) -> dict[str, Any]:
    from edgellm.cli.opening import chat_options

    return chat_options(args)


def _prompt(words: list[str]) -> str:
    parts = [" ".join(words), piped_text()]
    prompt = "\n\n".join(part for part in parts if part.strip())
    if not prompt:
        raise UsageError('There is no prompt. Write edgellm run "...", or pipe a text into it.')
    return prompt


def piped_text() -> str:
    """What is piped in; "" at a terminal. Raises ConfigError."""
    from edgellm.errors import ConfigError

    if sys.stdin is None or is_terminal(sys.stdin):  # pyright: ignore[reportUnnecessaryComparison]
        return ""
    raw = getattr(sys.stdin, "buffer", None)
    if raw is None:
        return sys.stdin.read()
    data: bytes = raw.read(_MOST_STDIN_BYTES + 1)
    if len(data) > _MOST_STDIN_BYTES:
        raise ConfigError(
            "stdin holds more than 16 MiB.", hint="No context is that long; pipe in a part of it."
        )
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"stdin is not UTF-8 text (byte {error.start}).", hint="Convert it first, for example with iconv."
        ) from None


def _schema(args: Namespace) -> dict[str, Any] | None:
    from edgellm.cli.opening import read_json
    from edgellm.errors import ConfigError

    if args.schema is None:
        return None
    if args.tool or args.tools or args.tool_choice not in ("auto", "none"):
        raise UsageError("--schema goes without tools. Leave --tool, --tools and --tool-choice out.")
    found = read_json(Path(args.schema), "JSON Schema")
    if not isinstance(found, dict):
        raise ConfigError(
            f"{args.schema} is no JSON Schema: it holds no object.", hint='Write {"type": "object", ...}.'
        )
    return found
