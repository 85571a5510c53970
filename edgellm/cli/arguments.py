"""Command-line options that several commands share, and a parser whose errors are one line."""

from __future__ import annotations

import argparse
import difflib
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


# Written out: the modes themselves import what --help need not wait for.
SPECULATE = ("auto", "ngram", "draft", "off")
MAX_CTX, MAX_THREADS = 2**31 - 1, 1024  # of edgellm.load_check


class UsageError(Exception):
    """The command line does not make sense; the text says what would."""


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that keeps examples as written, abbreviates nothing and raises UsageError."""

    def __init__(self, **options: Any) -> None:
        # Any: whatever argparse takes.
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        options.setdefault("allow_abbrev", False)
        super().__init__(**options)

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message[:1].upper()}{message[1:]}. See `{self.prog} --help`.")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        # argparse lists all choices; the nearest one helps more.
        if action.choices is not None and value not in action.choices:
            near = nearest(str(value), map(str, action.choices))
            meant = f"did you mean {near!r}" if near else f"choose from {', '.join(map(str, action.choices))}"
            raise argparse.ArgumentError(action, f"there is no {value!r}; {meant}")


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word closest in spelling, if one is close."""
    found = difflib.get_close_matches(word, list(known), n=1)
    return found[0] if found else None


def whole_number(low: int, high: int | None = None) -> Callable[[str], int]:
    """A converter for argparse: a whole number from `low` to `high`."""

    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = None
        if value is None or value < low or (high is not None and value > high):
            wanted = (
                f"a whole number from {low} to {high}"
                if high is not None
                else f"a whole number, {low} or more"
            )
            raise argparse.ArgumentTypeError(f"{text!r} is not {wanted}")
        return value

    return convert


def text(what: str) -> Callable[[str], str]:
    """A converter for argparse: a text that is not empty, such as an unset variable leaves it."""

    def convert(value: str) -> str:
        if not value.strip():
            raise argparse.ArgumentTypeError(f"{what} is empty; leave the option out, or give one")
        return value

    return convert


def utf8(value: str) -> str:
    """A converter for argparse: a text for the model. Bytes that are no UTF-8 come as lone surrogates."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError(
            "the text is not UTF-8; convert it first, for example with iconv"
        ) from None
    return value


def _gpu_layers(value: str) -> int | str:
    try:
        return value if value in ("all", "auto") else whole_number(0)(value)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{error}, all or auto") from None


def add_model(parser: argparse.ArgumentParser) -> None:
    """-m/--model."""
    parser.add_argument(
        "-m",
        "--model",
        metavar="NAME|FILE",
        type=text("the model"),
        help="a name of `edgellm models list`, or a .gguf file (default: the catalogue's default)",
    )


def add_loading(parser: argparse.ArgumentParser) -> None:
    """How the model is loaded."""
    add_model(parser)
    group = parser.add_argument_group("loading")
    group.add_argument("--ctx", metavar="N", type=whole_number(1, MAX_CTX), help="context length in tokens")
    group.add_argument(
        "--threads", metavar="N", type=whole_number(1, MAX_THREADS), help="threads for decoding and prefill"
    )
    group.add_argument("--gpu-layers", metavar="N|all|auto", type=_gpu_layers, help="layers on the GPU")
    group.add_argument(
        "--kv-type", metavar="TYPE", type=text("the type"), help="type of the KV cache: f16, q8_0, q4_0 ..."
    )
    group.add_argument(
        "--prefix-cache",
        metavar="MB",
        type=whole_number(0),
        help="disk space for computed system prompts and tools; 0 keeps none",
    )
    group.add_argument(
        "--draft-model",
        metavar="NAME|FILE",
        type=text("the draft model"),
        help="a small model of the same vocabulary that guesses what comes next",
    )
    group.add_argument(
        "--lora",
        metavar="FILE[:SCALE]",
        action="append",
        default=[],
        type=text("the LoRA adapter"),
        help="lay a LoRA adapter (GGUF) over the weights; repeatable",
    )
    group.add_argument(
        "--control-vector",
        metavar="FILE[:SCALE]",
        action="append",
        default=[],
        type=text("the control vector"),
        help="steer with a control vector (GGUF); repeatable",
    )
    group.add_argument(
        "--fit",
        choices=("auto", "off"),
        help="off: load without looking whether it fits into memory (`edgellm plan`)",
    )


def add_chatting(parser: argparse.ArgumentParser) -> None:
    """How the model is talked to, and with which tools."""
    group = parser.add_argument_group("answering")
    group.add_argument("--system", metavar="TEXT", type=utf8, help="the system turn")
    group.add_argument(
        "--sampler", metavar="CHAIN", help='such as "top_k(40) | temperature(0.7)"; see `edgellm samplers`'
    )
    group.add_argument(
        "--seed", metavar="N", type=whole_number(0, 2**64 - 1), help="the same seed, the same text"
    )
    group.add_argument("--max-tokens", metavar="N", type=whole_number(1), help="most tokens of one answer")
    group.add_argument(
        "--logprobs",
        metavar="N",
        type=whole_number(1, 100),
        default=0,
        help="show N alternatives of each token",
    )
    group.add_argument(
        "--template", metavar="NAME|FILE", type=text("the template"), help="chatml, or a Jinja file"
    )
    group.add_argument("--format", metavar="NAME", type=text("the format"), help="how tool calls are written")
    group.add_argument(
        "--when-full",
        metavar="POLICY",
        type=text("the policy"),
        help="what gives way when the context fills: stop (default), evict, summarize, drop-results, or a plugin's",
    )
    group.add_argument(
        "--speculate",
        metavar="MODE",
        choices=SPECULATE,
        help="guess what follows and compute it along: auto (while it pays; default with a draft model), ngram, "
        "draft or off (default)",
    )
    group.add_argument(
        "--speculate-from",
        metavar="FILE",
        action="append",
        default=[],
        type=text("the file"),
        help="a text that is likely to be quoted, to guess from; repeatable; turns --speculate auto on",
    )
    tools = parser.add_argument_group("tools (default: calculator and clock)")
    tools.add_argument(
        "--tool",
        metavar="NAME",
        action="append",
        default=[],
        help="offer this tool, or a plugin's tools; repeatable",
    )
    tools.add_argument(
        "--tools",
        metavar="PATH",
        action="append",
        default=[],
        help="a .py file or folder with tools; repeatable",
    )
    tools.add_argument("--no-tools", action="store_true", help="offer none")
    tools.add_argument(
        "--tool-choice",
        metavar="CHOICE",
        default="auto",
        type=text("the choice"),
        help="auto, none, required or a tool",
    )
    tools.add_argument(
        "--allow",
        metavar="TOOL",
        action="append",
        default=[],
        help="let this tool run without asking; repeatable",
    )
    tools.add_argument(
        "--set",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        dest="settings",
        help="a setting of a tool, such as files.root=./notes; repeatable",
    )
