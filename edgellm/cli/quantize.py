"""`edgellm quantize`: a model in another quantization."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from edgellm.cli.arguments import text, whole_number
from edgellm.cli.failure import INTERRUPTED
from edgellm.cli.interrupt import raising
from edgellm.cli.render import megabytes, say, warn

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

_EXAMPLES = """\
examples:
  edgellm quantize model-f16.gguf model-q4.gguf Q4_K_M
  edgellm quantize smollm2-135m ./smollm2-q8.gguf Q8_0
"""
_POLL_S = 0.2


def configure(parser: ArgumentParser) -> None:
    """Options of `edgellm quantize`."""
    parser.epilog = _EXAMPLES
    parser.add_argument(
        "source", metavar="SRC", type=text("the model"), help="a .gguf file, or a catalogue name"
    )
    parser.add_argument(
        "target", metavar="DST", type=text("the file"), help="the file to write; it must not exist"
    )
    parser.add_argument("kind", metavar="TYPE", type=text("the type"), help="Q4_K_M, Q8_0, F16 ...")
    parser.add_argument(
        "--threads", metavar="N", type=whole_number(1, 1024), default=0, help="default: all cores"
    )
    parser.set_defaults(handler=run)


def run(args: Namespace) -> int:
    """Quantizes; prints the path of the new file."""
    from edgellm.offline import inspect, quantize

    source = inspect(args.source)
    target = Path(args.target).expanduser()
    failures: list[BaseException] = []

    def work() -> None:
        try:
            quantize(source.path, target, args.kind, threads=args.threads)
        except BaseException as error:
            failures.append(error)

    # llama.cpp's quantizer cannot be stopped: on a thread of its own, at least Ctrl-C is heard.
    thread = threading.Thread(target=work, name="edgellm-quantize", daemon=True)
    before = set(_unfinished(target))
    try:
        with raising():
            thread.start()
            while thread.is_alive():
                thread.join(_POLL_S)
    except KeyboardInterrupt:
        warn("interrupted. No file was written.")
        for path in set(_unfinished(target)) - before:
            path.unlink(missing_ok=True)
        os._exit(INTERRUPTED)
    if failures:
        raise failures[0]
    say(f"{megabytes(source.size_bytes)} became {megabytes(target.stat().st_size)}.")
    print(target)
    return 0


def _unfinished(target: Path) -> list[Path]:
    # The quantizer writes under such a name until the file is whole.
    return list(target.parent.glob(f".{target.name}.*.part"))
