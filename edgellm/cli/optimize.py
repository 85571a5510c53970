"""`edgellm optimize`: the type of a model that is quick on this machine, found by measuring, and kept if wanted."""

from __future__ import annotations

import json
import os
import shutil
import sys
from argparse import ArgumentTypeError
from pathlib import Path
from typing import TYPE_CHECKING

from edgellm.atomic import temporary_folder
from edgellm.cli.arguments import text
from edgellm.cli.compare import add_measuring, figures, named, show, svg_file, write_plot
from edgellm.cli.interrupt import raising
from edgellm.cli.progress import shown_steps
from edgellm.cli.quantize import read_text
from edgellm.cli.render import is_terminal, say
from edgellm.errors import ConfigError

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from edgellm import Optimization

_EXAMPLES = """\
examples:
  edgellm optimize smollm2-135m                  measure, then ask whether to keep the copy
  edgellm optimize smollm2-135m --keep           keep it as smollm2-135m-TYPE, in your own catalogue
  edgellm optimize ./model.gguf --output fast.gguf
"""


def configure(parser: ArgumentParser) -> None:
    """Options of `edgellm optimize`."""
    parser.epilog = _EXAMPLES
    parser.add_argument(
        "model", metavar="MODEL", type=text("the model"), help="a catalogue name or a .gguf file"
    )
    parser.add_argument(
        "--types", metavar="A,B", type=_types, help="types to try (default: Q8_0,Q4_0,IQ4_NL)"
    )
    parser.add_argument(
        "--bound",
        metavar="NATS",
        type=_bound,
        help="most that a copy may lose: mean divergence a token (default: 0.02)",
    )
    keeping = parser.add_mutually_exclusive_group()
    keeping.add_argument("--keep", action="store_true", help="keep the better copy under a name of its own")
    keeping.add_argument(
        "--output", metavar="FILE", type=text("the file"), help="keep the better copy as this file"
    )
    add_measuring(parser)
    parser.set_defaults(handler=run)


def _bound(given: str) -> float:
    try:
        value = float(given)
    except ValueError:
        value = 0.0
    if not 0 < value < 10:
        raise ArgumentTypeError(f"{given!r} is not a number of nats between 0 and 10")
    return value


def _types(given: str) -> tuple[str, ...]:
    found = tuple(kind.strip() for kind in given.split(",") if kind.strip())
    if not found:
        raise ArgumentTypeError(f"{given!r} names no type; write, for example, Q8_0,Q4_0")
    return found


def run(args: Namespace) -> int:
    """Measures, says what is best, and keeps it where that is wanted."""
    import edgellm
    from edgellm.models.store import default_root
    from edgellm.native.quantizer import check_target

    output = Path(args.output).expanduser() if args.output else None
    if output is not None:
        check_target(output)
    refusal = _keeping_refusal(args)
    if args.keep and refusal is not None:
        raise refusal  # before anything is measured
    drawn = svg_file(args.plot)
    # On the store's disk: in /tmp, which is often memory, the copies could be larger than what is left.
    with temporary_folder(default_root() / "optimizing") as folder:
        with raising(), shown_steps("optimizing") as progress:
            found = edgellm.optimize(
                args.model,
                folder,
                read_text(args.text) if args.text else None,
                kinds=args.types or (),
                bound=args.bound,
                windows=args.windows,
                rounds=args.rounds,
                threads=args.threads,
                progress=progress,
            )
        if drawn is not None:
            write_plot(found.comparison, drawn)
        if not args.json:
            show(found.comparison, drawn)
            print("\n" + _verdict(found))
        kept = ""
        if found.is_better and output is not None:
            _move(found.best.path, output)
            kept = str(output)
        elif found.is_better and refusal is not None and not args.json:
            say(f"To keep the copy: --output FILE ({refusal.message.rstrip('.')}).")
        elif found.is_better and (args.keep or (not args.json and _is_wanted(found))):
            kept = edgellm.keep_copy(args.model, found.best.path)
            say(f"Kept: edgellm run -m {kept} ... ({args.model} is what it was).")
    if args.json:
        told = {"best": found.best_kind, "bound": found.bound, "kept": kept}
        print(json.dumps({**figures(found.comparison), **told}))
    elif kept:
        print(kept)
    return 0


def _keeping_refusal(args: Namespace) -> ConfigError | None:
    """Why no copy can be kept under a name of its own; None where one can."""
    from edgellm.requantizing import check_keep

    try:
        check_keep(args.model, args.types or ())
    except ConfigError as error:
        return error
    return None


def _move(copy: Path, output: Path) -> None:
    """Moves the copy to where it is wanted, perhaps on another disk: it appears there as a whole."""
    output.parent.mkdir(parents=True, exist_ok=True)
    beside = output.with_name(f".{output.name}.{os.getpid()}.part")
    try:
        shutil.move(copy, beside)
        os.replace(beside, output)
    finally:
        beside.unlink(missing_ok=True)


def _verdict(found: Optimization) -> str:
    bound = f"{found.bound:g} nats"
    if not found.is_better:
        return f"Keep {named(found.original)}: nothing here is 5 % quicker and loses at most {bound} a token."
    gain = found.original.turn_s() / found.best.turn_s()
    return (
        f"{found.best_kind} is {gain:.1f} times as quick here ({found.best.turn_s():.1f} s a turn instead of"
        f" {found.original.turn_s():.1f}) and loses {found.best.kl:.4f} nats a token, within the bound of {bound}."
    )


def _is_wanted(found: Optimization) -> bool:
    """Asks at a terminal; nothing is kept where nobody answers."""
    if not (is_terminal(sys.stdin) and is_terminal(sys.stderr)):
        return False
    say(f"Keep {named(found.best)}? [y/N]")
    return sys.stdin.readline().strip().lower() in ("y", "yes")
