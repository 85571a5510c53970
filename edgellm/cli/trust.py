"""`edgellm trust`: which project folders may bring plugins and models of their own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edgellm.cli.arguments import UsageError
from edgellm.cli.render import one_line, say

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

_EXAMPLES = """\
examples:
  edgellm trust .                 load what lies in ./.edgellm (tools/, samplers/, context_policies/, models.toml)
  edgellm trust --list
  edgellm trust --forget ~/project

A hash of the folder is kept: when anything in it changes, nothing of it is loaded until you trust it again.
"""


def configure(parser: ArgumentParser) -> None:
    """Options of `edgellm trust`."""
    parser.epilog = _EXAMPLES
    parser.add_argument("folder", metavar="DIR", nargs="?", type=Path, help="the folder that holds .edgellm/")
    parser.add_argument("--list", action="store_true", help="print the trusted folders")
    parser.add_argument("--forget", action="store_true", help="trust DIR no longer")
    parser.set_defaults(handler=run)


def run(args: Namespace) -> int:
    """Trusts, forgets or lists."""
    from edgellm.errors import ConfigError
    from edgellm.trust import FOLDER, Trust

    trust = Trust()
    if args.list:
        for name in sorted(trust.trusted()):
            state = trust.state(Path(name)) if Path(name).is_dir() else "absent"
            print(f"{one_line(name, 1000)}" + ("" if state == "trusted" else f"  ({state})"))
        return 0
    if args.folder is None:
        raise UsageError("A folder is missing. Write edgellm trust DIR, or edgellm trust --list.")
    folder = args.folder.expanduser()
    if args.forget:
        if not trust.forget(folder):
            raise ConfigError(f"{folder} is not trusted.", hint="`edgellm trust --list` shows what is.")
        say(f"{folder} is trusted no longer.")
        return 0
    if not folder.is_dir():
        raise ConfigError(f"{folder} is not a folder.", hint="Name the folder that holds .edgellm/.")
    trust.trust(folder)
    files = sorted(path for path in (folder / FOLDER).rglob("*") if path.is_file())
    say(f"{folder / FOLDER} is trusted as it is now ({len(files)} files):")
    for path in files:
        print(one_line(str(path), 1000))
    return 0
