"""`edgellm tools`: what a model may be offered, and calling it by hand."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from edgellm.cli.arguments import Parser, text
from edgellm.cli.render import escape, one_line, say, styled, table

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from edgellm.plugins import Plugins
    from edgellm.toolbox.tool import Tool

_EXAMPLES = """\
examples:
  edgellm tools list
  edgellm tools show calculator
  edgellm tools call calculator '{"expression": "23 * 17 + 4"}'
  edgellm tools call read_file '{"path": "todo.txt"}' --set files.root=./notes
  edgellm tools list --tools my_tools.py
"""
_WAIT_S = 0.1


def configure(parser: ArgumentParser) -> None:
    """Options of `edgellm tools`."""
    parser.epilog = _EXAMPLES
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=Parser)
    one = commands.add_parser("list", help="all tools", description="All tools that can be found.")
    _add_paths(one)
    one.add_argument("--json", action="store_true", help="print a JSON array")
    one.set_defaults(handler=list_tools)
    one = commands.add_parser(
        "show",
        help="one tool: what the model is told of it, and what holds for it",
        description="One tool: what the model is told of it, and what holds for it.",
        epilog="example:\n  edgellm tools show calculator",
    )
    one.add_argument("name", metavar="NAME", type=text("the name"))
    _add_paths(one)
    one.add_argument("--json", action="store_true", help="print the description that a chat template gets")
    one.set_defaults(handler=show)
    one = commands.add_parser(
        "call",
        help="call a tool; its result goes to stdout",
        description="Call a tool; its result goes to stdout.",
        epilog='example:\n  edgellm tools call calculator \'{"expression": "23 * 17 + 4"}\'',
    )
    one.add_argument("name", metavar="NAME", type=text("the name"))
    one.add_argument(
        "arguments", metavar="JSON", nargs="?", default="{}", help="a JSON object; - reads stdin"
    )
    _add_paths(one)
    one.add_argument("--allow", metavar="TOOL", action="append", default=[], help="do not ask for this tool")
    one.add_argument(
        "--set",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        dest="settings",
        help="a setting of the tool",
    )
    one.add_argument("--json", action="store_true", help="print one JSON object: ok, result, duration_s")
    one.set_defaults(handler=call)


def _add_paths(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--tools",
        metavar="PATH",
        action="append",
        default=[],
        help="a .py file or folder with tools; repeatable",
    )


def _from_paths(plugins: Plugins, paths: list[str]) -> list[Tool[..., Any]]:
    return [item for path in paths for item in plugins.load_path("tool", Path(path))]


def _find(args: Namespace) -> Tool[..., Any]:
    """The one tool of that name. Raises PluginError."""
    from edgellm.cli.opening import tell_failures
    from edgellm.errors import PluginError
    from edgellm.plugins import Plugins, object_name

    plugins = Plugins()
    given = [item for item in _from_paths(plugins, args.tools) if object_name(item) == args.name]
    found = given or list(plugins.load("tool", args.name))
    tell_failures(plugins)
    exact = [item for item in found if object_name(item) == args.name]
    if not exact and len(found) != 1:
        names = ", ".join(map(object_name, found))
        raise PluginError(f"{args.name!r} is a plugin with several tools.", hint=f"Name one of {names}.")
    return (exact or found)[0]


def list_tools(args: Namespace) -> int:
    """Prints all tools."""
    from edgellm.cli.opening import tell_failures
    from edgellm.plugins import Plugins

    plugins = Plugins()
    found = [*_from_paths(plugins, args.tools), *plugins.load_all("tool")]
    if args.json:
        print(json.dumps([_record(item) for item in found], indent=1))
    else:
        rows = [
            (item.name, item.spec.permission, item.spec.description.partition("\n")[0])
            for item in sorted(found, key=lambda item: item.name)
        ]
        print(table(rows, ("tool", "permission", "what it does")))
    tell_failures(plugins)
    return 0


def _record(item: Tool[..., Any]) -> dict[str, Any]:
    spec = item.spec
    return {
        "name": spec.name,
        "description": spec.description,
        "parameters": spec.parameters,
        "permission": spec.permission,
        "is_grantable": spec.is_grantable,
        "timeout_s": spec.timeout_s,
        "max_result_tokens": spec.max_result_tokens,
        "origin": item.origin,
    }


def show(args: Namespace) -> int:
    """Prints one tool."""
    from edgellm.sampling.schema_relax import relax

    item = _find(args)
    spec = item.spec
    if args.json:
        print(json.dumps(spec.to_openai(), indent=1))
        return 0
    asks = {"auto": "runs without asking", "ask": "asks before it runs", "deny": "never runs"}[
        spec.permission
    ]
    if not spec.is_grantable:
        asks += ", every time"
    print(styled(spec.name, "bold", sys.stdout) + f"  ({asks})")
    print(f"\n{escape(spec.description)}\n")
    print(escape(json.dumps(spec.parameters, indent=2, ensure_ascii=False)))
    for example in spec.examples:
        arguments = json.dumps(example.arguments, ensure_ascii=False)
        print(f"\nexample: {one_line(example.request)} → {one_line(arguments)}")
    print(f"\ntime limit {spec.timeout_s:g} s, result at most {spec.max_result_tokens} tokens")
    print(f"from {one_line(item.origin, 1000)}")
    for note in relax(spec.parameters)[1]:
        print(f"not enforced while the model writes, only checked afterwards: {one_line(note, 500)}")
    return 0


def call(args: Namespace) -> int:
    """Calls a tool; 1 where it fails."""
    from edgellm.cli.approval import Approver
    from edgellm.cli.interrupt import Interrupt
    from edgellm.cli.opening import settings
    from edgellm.errors import ConfigError, ToolError
    from edgellm.toolbox.permission import Permissions
    from edgellm.toolbox.runner import Runner
    from edgellm.toolbox.toolset import Toolset
    from edgellm.types import ToolCall

    given, chosen = _arguments(args.arguments), settings(args.settings)
    item = _find(args)
    for name in args.allow:
        if name != item.name:
            raise ConfigError(
                f"--allow {name!r} is not the tool that is called.", hint=f"Write --allow {item.name}."
            )
    toolset = Toolset(item)
    request = ToolCall("call_0", item.name, given)
    item.check(given)
    decision = Permissions(approve=Approver(toolset, allowed=args.allow).approve).decide(item, request)
    if decision.refusal is not None and item.spec.permission == "deny":
        raise ToolError(f"{item.name} is declared never to run.", hint=f"Change that in {item.origin}.")
    if decision.refusal is not None:
        raise ToolError(
            f"{item.name} was not allowed to run.",
            hint=f"Answer y at a terminal, or add --allow {item.name}.",
        )
    runner = Runner(settings=chosen, on_output=lambda _call, printed: say(printed.rstrip("\n")))
    running = runner.start(item, decision.call)
    with Interrupt(running.cancel) as interrupt:
        while not running.wait(_WAIT_S):
            pass
    result = running.result()
    if interrupt.is_pressed and not result.is_ok:
        raise KeyboardInterrupt
    if args.json:
        record = {"ok": result.is_ok, "result": result.text, "is_truncated": result.is_truncated}
        print(json.dumps({**record, "duration_s": round(result.duration_s, 6)}))
        return 0 if result.is_ok else 1
    if not result.is_ok:
        failure = result.text if result.text.endswith((".", "!", "?")) else f"{result.text}."
        raise ToolError(failure, hint=f"`edgellm tools show {item.name}` tells what it takes.")
    print(escape(result.text))
    return 0


def _arguments(given: str) -> dict[str, Any]:
    """The arguments as an object. Raises ConfigError."""
    from edgellm.cli.run import piped_text
    from edgellm.errors import ConfigError

    source = piped_text() if given == "-" else given
    hint = 'Write, for example, \'{"expression": "1 + 1"}\'.'
    try:
        found: Any = json.loads(source)
    except json.JSONDecodeError as error:
        raise ConfigError(
            f"The arguments are not JSON: column {error.colno}: {error.msg}.", hint=hint
        ) from None
    except RecursionError:
        raise ConfigError("The arguments are nested too deeply.", hint=hint) from None
    if not isinstance(found, dict):
        raise ConfigError("The arguments are no JSON object.", hint=hint)
    return cast("dict[str, Any]", found)
