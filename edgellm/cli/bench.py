"""`edgellm bench`: how fast this machine runs a model, beside an earlier run and beside llama-bench."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgellm.cli.arguments import UsageError, add_loading, text, whole_number
from edgellm.cli.opening import open_runtime, read_json
from edgellm.cli.render import one_line, say, styled, table, warn
from edgellm.errors import ConfigError

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from edgellm.benching.bench import Bench

_CTX = 2048
# A ratio of two programs needs more rounds than a speed: each of its halves has noise of its own.
_ROUNDS, _PAIRS = 8, 16
# What must be the same for two runs to be about the same: key in the JSON, and words.
_SETTING = {
    "model": "model",
    "model_bytes": "bytes of weights",
    "threads": "threads",
    "prefill_tokens": "tokens of prefill",
    "decode_tokens": "tokens of decode",
    "n_ctx": "context",
    "kv_type": "KV type",
}
_EXAMPLES = """\
examples:
  edgellm bench                                    the default model, part by part
  edgellm bench -m ./model.gguf --json > before.json
  edgellm bench -m ./model.gguf --compare before.json
  edgellm bench --against llama-bench --json       beside llama.cpp's own (make llama-bench), in the same run

Nothing else should run meanwhile. Threads stay as they are at the start.
"""


def configure(parser: ArgumentParser) -> None:
    """Options of `edgellm bench`."""
    parser.epilog = _EXAMPLES
    add_loading(parser)
    group = parser.add_argument_group("measuring")
    group.add_argument(
        "--rounds",
        metavar="N",
        type=whole_number(1, 1000),
        help=f"default: {_ROUNDS}, and {_PAIRS} with --against",
    )
    group.add_argument(
        "--prefill", metavar="N", type=whole_number(1), default=512, help="tokens of prefill, default: 512"
    )
    group.add_argument(
        "--decode", metavar="N", type=whole_number(1), default=128, help="tokens of decode, default: 128"
    )
    group.add_argument(
        "--against", metavar="PROGRAM", type=text("the program"), help="llama-bench, or its file"
    )
    group.add_argument(
        "--compare", metavar="FILE", type=Path, help="what an earlier `edgellm bench --json` printed"
    )
    group.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(handler=run)


@dataclass(frozen=True, slots=True)
class _Earlier:
    """An earlier run: its figures by name, and what it was a run of, as far as its file says."""

    file: Path
    figures: dict[str, float]
    setting: dict[str, Any]  # Any: JSON

    def changes(self, bench: Bench) -> dict[str, float]:
        """By how much each figure is better than before: 1.1 is a tenth better, whichever direction is."""
        found: dict[str, float] = {}
        for figure in bench.figures:
            before = self.figures.get(figure.name, 0.0)
            if before and figure.value:
                better = figure.value / before if figure.is_higher_better else before / figure.value
                found[figure.name] = round(better, 4)
        return found

    def differences(self, bench: Bench) -> dict[str, tuple[Any, Any]]:
        """What is not the same in both runs: before (None where its file does not say) and now."""
        return {
            key: (before, now)
            for key in _SETTING
            if (before := self.setting.get(key)) != (now := getattr(bench, key))
        }


def run(args: Namespace) -> int:
    """Measures and prints."""
    from edgellm.benching.bench import BenchSize, run_bench
    from edgellm.benching.peer import find_peer

    if args.against is not None and (args.lora or args.control_vector):
        raise UsageError("--against measures llama-bench, which has no adapters here. Leave one of them out.")
    rounds = args.rounds or (_PAIRS if args.against else _ROUNDS)
    size = BenchSize(prefill=args.prefill, decode=args.decode, rounds=rounds)
    if args.ctx and args.ctx < size.n_ctx:
        raise UsageError(
            f"--ctx {args.ctx} holds no round of --prefill {size.prefill} and --decode {size.decode}:"
            f" give --ctx {size.n_ctx} or more, or measure fewer tokens."
        )
    earlier = _read(args.compare) if args.compare is not None else None
    peer = find_peer(args.against) if args.against is not None else None
    args.ctx = args.ctx or max(_CTX, args.prefill + 256, args.decode + 256)
    bench = run_bench(partial(open_runtime, args), size, peer=peer, say=say)
    if earlier is not None:
        _tell_differences(earlier.file, earlier.differences(bench))
    if args.json:
        compared: dict[str, Any] = {}
        if earlier is not None:
            compared = {"compared": earlier.changes(bench), "differs": earlier.differences(bench)}
        print(json.dumps(asdict(bench) | compared, indent=1))
    else:
        _print(bench, earlier)
    return 0


def _read(file: Path) -> _Earlier:
    """An earlier run. Raises ConfigError."""
    found: Any = read_json(file, "an earlier run")
    try:
        figures = {str(figure["name"]): float(figure["value"]) for figure in found["figures"]}
        return _Earlier(file, figures, {key: found[key] for key in _SETTING if key in found})
    except (KeyError, TypeError, ValueError):
        raise ConfigError(
            f"{file} is not what `edgellm bench --json` prints.", hint="Name such a file."
        ) from None


def _tell_differences(file: Path, differences: dict[str, tuple[Any, Any]]) -> None:
    known = [
        f"{_SETTING[key]} {_told(before)} before, {_told(now)} now"
        for key, (before, now) in differences.items()
        if before is not None
    ]
    if known:
        warn(f"warning: the runs are not of the same: {'; '.join(known)}.")
    unknown = [_SETTING[key] for key, (before, _) in differences.items() if before is None]
    if unknown:
        warn(
            f"warning: {file} does not say its {', '.join(unknown)}: whether they are the same is not known."
        )


def _told(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else one_line(str(value), 80)


def _print(bench: Bench, earlier: _Earlier | None) -> None:
    changes = earlier.changes(bench) if earlier is not None else {}
    title = f"{one_line(bench.model)}, {bench.threads} threads, {bench.rounds} rounds"
    print(styled(title, "bold", sys.stdout))
    rows: list[list[str]] = []
    for figure in bench.figures:
        row = [figure.name, _number(figure.value), figure.unit]
        if earlier is not None:
            before = earlier.figures.get(figure.name)
            row += [
                _number(before) if before is not None else "",
                f"{changes[figure.name]:.2f}x" if figure.name in changes else "",
            ]
        rows.append(row)
    print(table(rows, ("what", "value", "unit", *(("before", "better") if earlier is not None else ()))))
    if bench.against:
        peer = bench.against
        prefill = f"prefill {peer['prefill_ratio']:.3f} of its {peer['prefill_tok_s']:.1f} tokens/s"
        decode = f"decode {peer['decode_ratio']:.3f} of its {peer['decode_tok_s']:.1f}"
        print(f"against llama-bench ({peer['build']}): {prefill}, {decode}")


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:,.1f}" if value >= 10 else f"{value:.3g}"
