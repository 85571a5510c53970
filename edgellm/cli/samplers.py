"""`edgellm samplers`: the stages that a chain is made of."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgellm.cli.arguments import Parser, nearest, text
from edgellm.cli.render import styled, table, warn

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

_EXAMPLES = """\
examples:
  edgellm samplers list
  edgellm samplers show min_p
  edgellm run --sampler "penalties(1.1) | top_k(40) | temperature(0.7) | dist(seed=7)" "Tell a story."
"""


def configure(parser: ArgumentParser) -> None:
    """Options of `edgellm samplers`."""
    parser.epilog = _EXAMPLES
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=Parser)
    one = commands.add_parser("list", help="all stages", description="All stages, llama.cpp's and plugins'.")
    one.set_defaults(handler=list_stages)
    one = commands.add_parser(
        "show",
        help="one stage, with its arguments",
        description="One stage, with its arguments.",
        epilog="example:\n  edgellm samplers show min_p",
    )
    one.add_argument("name", metavar="NAME", type=text("the name"))
    one.set_defaults(handler=show)


def discover() -> None:
    """Makes sampler plugins known by name; warns of those that do not load."""
    from edgellm.discovery import discover_samplers

    for failure in discover_samplers():
        warn(f"warning: {failure.error}")


def discover_when_needed() -> None:
    """The same, once a chain names a stage that is not known yet."""
    from edgellm.sampling.registry import REGISTRY

    REGISTRY.finder = discover


def list_stages(_args: Namespace) -> int:
    """Prints all stages."""
    from edgellm.sampling.registry import REGISTRY
    from edgellm.sampling.spec import DEFAULT_CHAIN

    discover()
    rows = [
        (info.signature() if len(info.signature()) < 60 else f"{info.name}(...)", info.doc)
        for info in REGISTRY.all()
    ]
    print(table(rows, ("stage", "what it does")))
    print(f"\nThe default chain: {DEFAULT_CHAIN}")
    return 0


def show(args: Namespace) -> int:
    """Prints one stage."""
    import sys

    from edgellm.errors import SamplerError
    from edgellm.sampling.registry import REGISTRY

    info = REGISTRY.get(args.name)
    if info is None:
        discover()
        info = REGISTRY.get(args.name)
    if info is None:
        near = nearest(args.name, (one.name for one in REGISTRY.all()))
        meant = f"Did you mean {near!r}?" if near else "`edgellm samplers list` shows all stages."
        raise SamplerError(f"There is no sampler stage {args.name!r}.", hint=meant)
    print(styled(info.signature(), "bold", sys.stdout))
    print(f"\n{info.doc}\n")
    if info.params:
        rows = [
            (
                param.name,
                param.expected(),
                "required" if param.is_required else repr(param.default),
                param.doc,
            )
            for param in info.params
        ]
        print(table(rows, ("argument", "value", "default", "")) + "\n")
    if info.chooses:
        print("It chooses the token: it must be the last stage.")
    print(f"From: {info.source}" + (f"  {info.reference}" if info.reference else ""))
    return 0
