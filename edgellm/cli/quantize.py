"""`edgellm quantize`: a model in another quantization."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from edgellm.cli.arguments import MAX_THREADS, UsageError, text, whole_number
from edgellm.cli.interrupt import raising
from edgellm.cli.progress import shown_steps
from edgellm.cli.render import megabytes, say, table
from edgellm.errors import ConfigError

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

_EXAMPLES = """\
examples:
  edgellm quantize model-f16.gguf model-q4.gguf Q4_K_M
  edgellm quantize smollm2-135m ./smollm2-q8.gguf --type Q8_0
  edgellm quantize smollm2-135m --dry-run                      the size of every type
  edgellm quantize smollm2-135m --dry-run --type Q4_0 --tensor attn_v=Q8_0
  edgellm quantize model-f16.gguf small.gguf IQ2_XS --calibrate notes.txt
"""


def configure(parser: ArgumentParser) -> None:
    """Options of `edgellm quantize`."""
    parser.epilog = _EXAMPLES
    parser.add_argument(
        "source", metavar="SRC", type=text("the model"), help="a .gguf file, or a catalogue name"
    )
    parser.add_argument(
        "target", metavar="DST", nargs="?", type=text("the file"), help="the file to write; it must not exist"
    )
    parser.add_argument(
        "kind", metavar="TYPE", nargs="?", type=text("the type"), help="Q4_K_M, Q8_0, F16 ..."
    )
    parser.add_argument("--type", metavar="TYPE", type=text("the type"), help="the same as an option")
    parser.add_argument(
        "--dry-run", action="store_true", help="show types and sizes of the tensors; write nothing"
    )
    parser.add_argument(
        "--tensor",
        metavar="PATTERN=TYPE",
        action="append",
        default=[],
        help="another type for tensors whose name matches, such as attn_v=Q8_0; repeatable",
    )
    parser.add_argument("--pure", action="store_true", help="all tensors the same type, none with more bits")
    parser.add_argument(
        "--imatrix", metavar="FILE", type=text("the file"), help="an importance matrix (GGUF or .dat)"
    )
    parser.add_argument(
        "--calibrate", metavar="FILE", type=text("the file"), help="make an importance matrix of this text"
    )
    parser.add_argument(
        "--save-imatrix",
        metavar="FILE",
        type=text("the file"),
        help="keep that matrix in this file; it must not exist",
    )
    parser.add_argument(
        "--threads", metavar="N", type=whole_number(1, MAX_THREADS), default=0, help="default: all cores"
    )
    parser.set_defaults(handler=run)


def run(args: Namespace) -> int:
    """Quantizes, and prints the path of the new file; or shows what would be written."""
    import edgellm
    from edgellm.native.quantizer import QuantizeOptions, check_quantization

    kind: str = args.type or args.kind or ""
    tensors = _tensors(args.tensor)
    if args.type and args.kind:
        raise UsageError("The type is given twice.")
    if args.dry_run:
        # Without a file to write, the type stands where the file would.
        kind = kind or (args.target or "")
        if not kind and (tensors or args.pure):
            raise UsageError("--tensor and --pure change the plan of a type: name one with --type.")
        _show_plan(args.source, kind, tensors, args.pure) if kind else _show_all(args.source)
        return 0
    if not args.target or not kind:
        raise UsageError("quantize needs a file to write and a type. See `edgellm quantize --help`.")
    if args.imatrix and args.calibrate:
        raise UsageError("Give --imatrix or --calibrate, not both.")
    if args.save_imatrix and not args.calibrate:
        raise UsageError("--save-imatrix keeps what --calibrate makes; there is none.")
    target = Path(args.target).expanduser()
    source = edgellm.inspect(args.source)
    written = read_text(args.calibrate) if args.calibrate else None
    kept = _matrix_file(args.save_imatrix) if args.save_imatrix else None
    with raising(), shown_steps(f"quantizing {source.path.name}") as progress:
        importance: str | Path = args.imatrix or ""
        if written is not None and kept is not None:
            # What is wrong is said before the text is read.
            options = QuantizeOptions(tensors=tensors, pure=args.pure)
            check_quantization(source.path, target, kind, options, has_importance=True)
            edgellm.calibrate(
                source.path, written, source=args.calibrate, threads=args.threads, progress=progress
            ).save(kept)
            importance, written = kept, None
        edgellm.quantize(
            source.path,
            target,
            kind,
            importance=importance,
            calibrate_text=written,
            tensors=tensors,
            pure=args.pure,
            threads=args.threads,
            progress=progress,
        )
    say(f"{megabytes(source.size_bytes)} became {megabytes(target.stat().st_size)}.")
    print(target)
    return 0


def _matrix_file(name: str) -> Path:
    """The file that --save-imatrix names. Raises ConfigError where it cannot be written."""
    file = Path(name).expanduser()
    if file.is_file():
        raise ConfigError(f"{file} exists already.", hint="Name another file, or move that one away.")
    if file.is_dir() or not os.access(file.parent, os.W_OK):
        raise ConfigError(f"{file} cannot be written.", hint="Name a file in a folder that you may write to.")
    return file


def read_text(file: str) -> str:
    """A text file with something in it; "-" is stdin. Raises ConfigError."""
    try:
        data = sys.stdin.buffer.read() if file == "-" else Path(file).expanduser().read_bytes()
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}.", hint="Check the path.") from None
    if not data.strip():
        raise ConfigError(f"{'stdin' if file == '-' else file} is empty.", hint="Give a text like yours.")
    return data.decode("utf-8", "replace")


def _tensors(given: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for item in given:
        pattern, sign, kind = item.rpartition("=")
        if not sign or not pattern:
            raise UsageError(f"--tensor {item!r} is not PATTERN=TYPE, such as attn_v=Q8_0.")
        found[pattern] = kind
    return found


def _show_plan(source: str, kind: str, tensors: dict[str, str], pure: bool) -> None:
    import edgellm

    plan = edgellm.plan_quantize(source, kind, tensors=tensors, pure=pure)
    rows = [
        (item.name, item.old_type, item.new_type, _size(item.old_bytes), _size(item.new_bytes))
        for item in plan.tensors
    ]
    print(table(rows, ("tensor", "is", "becomes", "from", "to")))
    print(f"{plan.kind}: {megabytes(plan.old_bytes)} would become {megabytes(plan.new_bytes)}.")
    if plan.fallback_tensors:
        print(
            f"{plan.fallback_tensors} tensors have rows that its blocks do not fit; they get a similar type."
        )
    if plan.needs_importance:
        print("It needs an importance matrix: --imatrix FILE, or --calibrate TEXT.")


def _show_all(source: str) -> None:
    import edgellm
    from edgellm.errors import ModelCorrupt

    rows: list[tuple[str, ...]] = []
    for kind, plan in edgellm.plan_every_quantize(source).items():
        if isinstance(plan, ModelCorrupt):
            rows.append((kind, "", f"not for this model: {plan.message.rpartition(': ')[2]}"))
            continue
        notes = ["needs an importance matrix"] if plan.needs_importance else []
        if plan.fallback_tensors:
            notes.append(f"{plan.fallback_tensors} of {len(plan.tensors)} tensors get a similar type")
        rows.append((kind, megabytes(plan.new_bytes), "; ".join(notes)))
    print(table(rows, ("type", "size", "")))


def _size(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.2f} MB"
