"""`edgellm compare`: which quantization should I run on this machine?"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from edgellm.cli.arguments import UsageError, text, whole_number
from edgellm.cli.interrupt import raising
from edgellm.cli.progress import shown_steps
from edgellm.cli.quantize import read_text
from edgellm.cli.render import megabytes, table

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from edgellm import Comparison, Measured

_EXAMPLES = """\
examples:
  edgellm compare model-q4_0.gguf model-q8_0.gguf --text notes.txt
  edgellm compare model-*.gguf --text notes.txt --json

Predictions are compared with the largest file's: KL is their divergence from it (nats a token, 0 is equal), "same top"
the share of tokens where both find the same one likeliest. Differences in perplexity are noisier than KL.
"""
_PLOT_WIDTH, _PLOT_HEIGHT = 56, 10


def configure(parser: ArgumentParser) -> None:
    """Options of `edgellm compare`."""
    parser.epilog = _EXAMPLES
    parser.add_argument(
        "models", metavar="MODEL", nargs="+", type=text("the model"), help=".gguf files or catalogue names"
    )
    add_measuring(parser)
    parser.set_defaults(handler=run)


def add_measuring(parser: ArgumentParser) -> None:
    """The options of what is measured, and how it is shown."""
    parser.add_argument(
        "--text",
        metavar="FILE",
        type=text("the file"),
        help="text to predict, like yours (default: one of ours)",
    )
    parser.add_argument(
        "--windows", metavar="N", type=whole_number(0), default=4, help="windows of 512 tokens; 0: all (4)"
    )
    parser.add_argument("--rounds", metavar="N", type=whole_number(1), default=3, help="timing rounds (3)")
    parser.add_argument(
        "--threads", metavar="N", type=whole_number(1, 1024), default=0, help="default: all cores"
    )
    parser.add_argument("--json", action="store_true", help="the figures as one JSON object")


def run(args: Namespace) -> int:
    """Measures and shows."""
    import edgellm

    if len(args.models) < 2:
        raise UsageError("compare needs two models or more.")
    with raising(), shown_steps("comparing") as progress:
        found = edgellm.compare(
            args.models,
            read_text(args.text) if args.text else "",
            windows=args.windows,
            rounds=args.rounds,
            threads=args.threads,
            progress=progress,
        )
    if args.json:
        print(json.dumps(figures(found)))
    else:
        show(found)
    return 0


def figures(found: Comparison) -> dict[str, Any]:
    """All that was measured, for JSON."""
    return {
        "reference": str(found.reference.path),
        "scored_tokens": found.scored_tokens,
        "rounds": found.rounds,
        "threads": found.threads,
        "files": [{**asdict(file), "path": str(file.path), "turn_s": file.turn_s()} for file in found.files],
    }


def show(found: Comparison) -> None:
    """A table, and a plot of loss over time."""
    rows = [
        (
            letter,
            file.path.name,
            megabytes(file.size_bytes),
            f"{file.prefill_tok_s:.0f}",
            f"{file.decode_tok_s:.1f}",
            f"{file.turn_s():.1f}",
            f"{file.perplexity:.2f}",
            "reference" if file is found.reference else f"{file.kl:.4f} ± {file.kl_error:.4f}",
            f"{100 * file.same_top:.1f} %",
        )
        for letter, file in zip(_letters(found), found.files, strict=True)
    ]
    heads = ("", "file", "size", "prefill", "decode", "turn s", "perplexity", "KL", "same top")
    print(table(rows, heads))
    print(
        f"\nprefill, decode: tokens/s here with {found.threads} threads, {found.rounds} rounds in turn; turn: 500"
        f" tokens in, 100 out; {found.scored_tokens} tokens predicted.\n"
    )
    print(plot(found))


def plot(found: Comparison) -> str:
    """Loss (upwards) over seconds a turn (to the right), a letter a file: the best is at the bottom left."""
    files, letters = found.files, _letters(found)
    top = max(file.kl for file in files) or 1.0
    slowest = max(file.turn_s() for file in files)
    grid = [[" "] * (_PLOT_WIDTH + 1) for _ in range(_PLOT_HEIGHT + 1)]
    for letter, file in zip(letters, files, strict=True):
        column = round(_PLOT_WIDTH * file.turn_s() / slowest)
        row = _PLOT_HEIGHT - round(_PLOT_HEIGHT * file.kl / top)
        while grid[row][column] != " " and column:
            column -= 1
        grid[row][column] = letter
    lines = [f"{top:8.4f} |" + "".join(grid[0]).rstrip()]
    lines += [f"{'KL':>8} |" + "".join(row).rstrip() for row in grid[1:2]]
    lines += [" " * 9 + "|" + "".join(row).rstrip() for row in grid[2:-1]]
    lines += [f"{0:8.4f} |" + "".join(grid[-1]).rstrip(), " " * 9 + "+" + "-" * _PLOT_WIDTH]
    return "\n".join([*lines, " " * 10 + "0" + f"seconds a turn {slowest:8.1f}".rjust(_PLOT_WIDTH - 1)])


def named(file: Measured) -> str:
    """A file in words."""
    return f"{file.path.name} ({megabytes(file.size_bytes)})"


def _letters(found: Comparison) -> str:
    every = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
    return "".join(every[index % len(every)] for index in range(len(found.files)))
