"""`edgellm compare`: which quantization should I run on this machine?"""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgellm.atomic import replacing
from edgellm.cli.arguments import MAX_THREADS, UsageError, text, whole_number
from edgellm.cli.interrupt import raising
from edgellm.cli.plot import Plot, Point, svg_plot, text_plot
from edgellm.cli.progress import shown_steps
from edgellm.cli.quantize import read_text
from edgellm.cli.render import megabytes, one_line, table
from edgellm.errors import ConfigError

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from edgellm import Comparison, Measured

_EXAMPLES = """\
examples:
  edgellm compare model-q4_0.gguf model-q8_0.gguf --text notes.txt
  edgellm compare model-*.gguf --text notes.txt --plot sizes.svg
  edgellm compare model-*.gguf --text notes.txt --json

Predictions are compared with the largest file's: KL is their divergence from it (nats a token, 0 is equal), "same top"
the share of tokens where both find the same one likeliest. Differences in perplexity are noisier than KL.
"""
_LABEL = 28


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
        "--threads", metavar="N", type=whole_number(1, MAX_THREADS), default=0, help="default: all cores"
    )
    parser.add_argument(
        "--plot", metavar="FILE.svg", type=text("the file"), help="write a plot of loss over size, as SVG"
    )
    parser.add_argument("--json", action="store_true", help="the figures as one JSON object")


def run(args: Namespace) -> int:
    """Measures and shows."""
    import edgellm

    if len(args.models) < 2:
        raise UsageError("compare needs two models or more.")
    file = svg_file(args.plot)
    with raising(), shown_steps("comparing") as progress:
        found = edgellm.compare(
            args.models,
            read_text(args.text) if args.text else None,
            windows=args.windows,
            rounds=args.rounds,
            threads=args.threads,
            progress=progress,
        )
    if file is not None:
        write_plot(found, file)
    if args.json:
        print(json.dumps(figures(found)))
    else:
        show(found, file)
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


def show(found: Comparison, file: Path | None = None) -> None:
    """A table, and a plot of loss over time; where one over size was written to `file`, that too."""
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
    if file is not None:
        print(f"\n{text_plot(size_plot(found, y_name='KL'))}\n\nWritten: {one_line(str(file))}")


def plot(found: Comparison) -> str:
    """Loss (upwards) over seconds a turn (to the right), a letter a file: the best is at the bottom left."""
    points = [
        Point(letter, file.turn_s(), file.kl)
        for letter, file in zip(_letters(found), found.files, strict=True)
    ]
    return text_plot(Plot("", "seconds a turn", "KL", tuple(points)))


def size_plot(found: Comparison, y_name: str = "") -> Plot:
    """Loss over size, dots as large as the files are quick."""
    points = [
        Point(
            letter,
            file.size_bytes / 1e6,
            file.kl,
            label=f"{_short(file)} · {file.decode_tok_s:.3g} tokens/s",
            weight=file.decode_tok_s,
            error=file.kl_error,
            note=f"{one_line(file.path.name)}: {megabytes(file.size_bytes)}, KL {file.kl:.4f} ± {file.kl_error:.4f},"
            f" perplexity {file.perplexity:.2f}, {file.decode_tok_s:.3g} tokens/s",
        )
        for letter, file in zip(_letters(found), found.files, strict=True)
    ]
    return Plot(
        "What each file loses, over its size",
        "size, MB",
        y_name or f"KL from {_short(found.reference)}, nats a token",
        tuple(points),
        legend="dot area: tokens/s in decode",
    )


def svg_file(name: str | None) -> Path | None:
    """The file that --plot names, looked at before anything is measured. Raises ConfigError."""
    if name is None:
        return None
    file = Path(name).expanduser()
    if file.suffix.lower() != ".svg":
        raise ConfigError(f"--plot writes SVG, and {file} is called otherwise.", hint="Name it FILE.svg.")
    if file.is_dir() or not file.parent.is_dir() or not os.access(file.parent, os.W_OK):
        raise ConfigError(f"{file} cannot be written.", hint="Name a file in a folder that you may write to.")
    return file


def write_plot(found: Comparison, file: Path) -> None:
    """Writes the SVG. Raises OSError."""
    with replacing(file) as opened:
        opened.write(svg_plot(size_plot(found)).encode())


def _short(file: Measured) -> str:
    name = one_line(file.path.stem)
    return name if len(name) <= _LABEL else f"…{name[1 - _LABEL :]}"  # the type stands at the end


def named(file: Measured) -> str:
    """A file in words."""
    return f"{file.path.name} ({megabytes(file.size_bytes)})"


def _letters(found: Comparison) -> str:
    every = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
    return "".join(every[index % len(every)] for index in range(len(found.files)))
