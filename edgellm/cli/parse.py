"""`edgellm parse`: a model's raw output, read as edgellm reads it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from edgellm.cli.arguments import UsageError, add_model, text, whole_number

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Iterator

_EXAMPLES = """\
examples:
  edgellm parse --format hermes < output.txt
  edgellm parse --template chat_template.jinja --tools tools.json < output.txt
  edgellm parse --format hermes --chunk 3 --events < output.txt

Prints {"content": ..., "reasoning": ..., "calls": [{"name": ..., "arguments": ...}]}.
"""


def configure(parser: ArgumentParser) -> None:
    """Options of `edgellm parse`."""
    parser.epilog = _EXAMPLES
    parser.add_argument("--format", metavar="NAME", type=text("the format"), help="a wire format by name")
    parser.add_argument(
        "--template",
        metavar="FILE",
        type=text("the template"),
        help="choose the format for this chat template",
    )
    add_model(parser)
    parser.add_argument(
        "--tools", metavar="FILE", type=text("the file"), help="JSON array of OpenAI tool objects"
    )
    parser.add_argument(
        "--prefix", metavar="TEXT", default="", help="the prompt's end that the output continues"
    )
    parser.add_argument("--chunk", metavar="N", type=whole_number(1), help="feed it N bytes at a time")
    parser.add_argument("--events", action="store_true", help="print the events as JSON lines instead")
    parser.set_defaults(handler=run)


def run(args: Namespace) -> int:
    """Reads stdin, prints what it says."""
    from edgellm.chat.utf8 import TextDecoder
    from edgellm.cli.json_lines import event_line
    from edgellm.raw_output import implied_prefix, stream_parser

    name, template = _choice(args)
    data = _stdin()
    format = name or "auto"
    prefix = args.prefix or implied_prefix(data.decode("utf-8", "replace"), format=format, template=template)
    parser = stream_parser(format=format, template=template, tools=_tools(args.tools), prefix=prefix)
    decoder = TextDecoder()

    def show(events: Any) -> None:
        if args.events:
            for event in events:
                print(event_line(event, lambda _token: b""))

    for piece in _pieces(data, args.chunk):
        show(parser.feed(decoder.feed(piece)))
    show(parser.feed(decoder.finish()))
    show(parser.finish())
    if not args.events:
        calls = [{"name": call.name, "arguments": call.arguments} for call in parser.calls]
        print(json.dumps({"content": parser.text, "reasoning": parser.reasoning, "calls": calls}))
    return 0


def _choice(args: Namespace) -> tuple[str | None, str | None]:
    """The format asked for, and the template to choose by, if there is one."""
    from edgellm.cli.opening import template_text
    from edgellm.errors import TemplateError

    if args.format is None and args.template is None and args.model is None:
        raise UsageError("A format is missing. Give --format NAME, --template FILE or --model NAME.")
    source = ""
    if args.template is not None:
        from edgellm.chat.template import BUILTIN

        given = template_text(args.template)
        source = BUILTIN.get(given, given)
    elif args.model is not None:
        from edgellm.chat.template import select_template
        from edgellm.offline import inspect

        templates = dict(inspect(args.model).chat_templates)
        if not templates and args.format is None:
            raise TemplateError("The model has no chat template.", hint="Name the format with --format.")
        source = select_template(templates, True)[1] if templates else ""
    return args.format, source or None


def _stdin() -> bytes:
    if sys.stdin is None:  # pyright: ignore[reportUnnecessaryComparison]
        return b""
    raw = getattr(sys.stdin, "buffer", None)
    return raw.read() if raw is not None else sys.stdin.read().encode("utf-8", "surrogatepass")


def _pieces(data: bytes, size: int | None) -> Iterator[bytes]:
    step = size or max(1, len(data))
    for start in range(0, len(data), step):
        yield data[start : start + step]


def _tools(name: str | None) -> list[dict[str, Any]]:
    from edgellm.cli.opening import read_json
    from edgellm.errors import ConfigError

    if name is None:
        return []
    found: Any = read_json(Path(name), "tools")
    if isinstance(found, dict):
        found = cast("dict[str, Any]", found).get("tools", [found])
    if not isinstance(found, list):
        raise ConfigError(
            f"{name} holds no array of tools.", hint='Write [{"name": "...", "parameters": {...}}].'
        )
    return cast("list[dict[str, Any]]", found)
