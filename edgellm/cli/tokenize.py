"""`edgellm tokenize`: a text as the model's tokens."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

from edgellm.cli.arguments import UsageError, add_model, utf8
from edgellm.cli.render import escape, has_colour, one_line, table

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

_EXAMPLES = """\
examples:
  edgellm tokenize "Donaudampfschiffahrt"
  edgellm tokenize -m ./model.gguf --json < prompt.txt
  edgellm tokenize --special "<|im_start|>user"
"""
# Backgrounds that are told apart without telling colours apart: light and dark alternate.
_BACKGROUNDS = ("48;5;254;38;5;16", "48;5;110;38;5;16", "48;5;252;38;5;16", "48;5;180;38;5;16")


def configure(parser: ArgumentParser) -> None:
    """Options of `edgellm tokenize`."""
    parser.epilog = _EXAMPLES
    parser.add_argument("text", metavar="TEXT", nargs="*", type=utf8, help="the text (default: stdin)")
    add_model(parser)
    parser.add_argument(
        "--special", action="store_true", help="spellings of control tokens become those, and BOS is added"
    )
    parser.add_argument("--json", action="store_true", help="print a JSON array")
    parser.add_argument("--ids", action="store_true", help="print the ids alone, on one line")
    parser.set_defaults(handler=run)


def run(args: Namespace) -> int:
    """Prints the tokens of a text."""
    from edgellm.cli.run import piped_text
    from edgellm.offline import read_vocabulary

    if args.json and args.ids:
        raise UsageError("--json and --ids exclude each other. Leave one of them out.")
    text = " ".join(args.text) if args.text else piped_text()
    if not text:
        raise UsageError('There is no text. Write edgellm tokenize "...", or pipe one into it.')
    with read_vocabulary(args.model or "") as vocabulary:
        tokens = vocabulary.tokenize(text, parse_special=args.special, add_special=args.special)
        pieces = [vocabulary.piece(token) for token in tokens]
        controls = [vocabulary.is_control(token) for token in tokens]
    if args.ids:
        print(*tokens)
    elif args.json:
        print(json.dumps(_records(tokens, pieces, controls)))
    else:
        if has_colour(sys.stdout):
            print(_coloured(pieces) + "\n")
        rows = [
            (str(number), str(token), piece.hex(" "), _shown(piece), "control" if is_control else "")
            for number, (token, piece, is_control) in enumerate(zip(tokens, pieces, controls, strict=True))
        ]
        print(table(rows, ("at", "id", "bytes", "piece", "")))
        print(f"\n{len(tokens)} tokens, {len(text)} characters, {len(text.encode('utf-8', 'replace'))} bytes")
    return 0


def _records(tokens: list[int], pieces: list[bytes], controls: list[bool]) -> list[dict[str, Any]]:
    return [
        {
            "id": token,
            "piece": piece.decode("utf-8", "replace"),
            "bytes": piece.hex(),
            "is_control": is_control,
        }
        for token, piece, is_control in zip(tokens, pieces, controls, strict=True)
    ]


def _shown(piece: bytes) -> str:
    return f"'{one_line(piece.decode('utf-8', 'backslashreplace'))}'"


def _coloured(pieces: list[bytes]) -> str:
    parts: list[str] = []
    for number, piece in enumerate(pieces):
        background = _BACKGROUNDS[number % len(_BACKGROUNDS)]
        for part in escape(piece.decode("utf-8", "backslashreplace")).splitlines(keepends=True):
            body = part.rstrip("\n")
            parts.append(f"\x1b[{background}m{body or ' '}\x1b[0m" + part[len(body) :])
    return "".join(parts)
