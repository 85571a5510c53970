"""`edgellm plan`: what a model takes on this machine, setting by setting, and what loading it would choose."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from edgellm.cli.arguments import UsageError, add_loading
from edgellm.cli.failure import ERROR, in_options
from edgellm.cli.opening import load_options
from edgellm.cli.render import escape, megabytes, one_line, styled, table

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from edgellm.planning.plan import Plan, PlanRow

_EXAMPLES = """\
examples:
  edgellm plan                             the default model on this machine
  edgellm plan ./model.gguf --ctx 16384    what this context would take
  edgellm plan qwen3-4b --draft-model qwen3-0.6b --lora mine.gguf
  edgellm plan qwen3-4b --json | jq .options.n_ctx

The first plan measures this machine for two seconds; later ones remember. It leaves with 0 where something fits,
else with 1.
"""


def configure(parser: ArgumentParser) -> None:
    """Options of `edgellm plan`."""
    parser.epilog = _EXAMPLES
    parser.add_argument("name", metavar="NAME|FILE", nargs="?", help="the model, as with --model")
    add_loading(parser)
    parser.add_argument(
        "--tools", action="store_true", help="the model is to call tools: warn of what spoils that"
    )
    measuring = parser.add_mutually_exclusive_group()
    measuring.add_argument("--no-measure", action="store_true", help="do not measure the machine's speed")
    measuring.add_argument(
        "--measure-again",
        action="store_true",
        help="measure it anew: other programs were busy, or it has changed",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(handler=run)


def run(args: Namespace) -> int:
    """Prints the plan; 1 where nothing fits."""
    from edgellm.offline import plan

    if args.name is not None and args.model is not None:
        raise UsageError("Two models are named. Leave NAME or --model out.")
    if args.name == "":
        raise UsageError("The model is empty. Write edgellm plan NAME.")
    found = plan(
        args.name or args.model or "",
        is_measured=not args.no_measure,
        is_measured_again=args.measure_again,
        has_tools=args.tools,
        **load_options(args),
    )
    if args.json:
        print(json.dumps(found.to_dict(), indent=1, default=str))
    else:
        _print(found)
    return 0 if found.fits else ERROR


def _print(found: Plan) -> None:
    demand, options, machine = found.demand, found.options, found.machine
    parts = [
        ("weights", demand.weights_bytes),
        (f"KV cache ({options.n_ctx:,} tokens, {found.kv_type})", demand.kv_bytes),
        ("recurrent state", demand.state_bytes),
        ("compute buffers", demand.compute_bytes),
        ("vocabulary and cells", demand.other_bytes),
        (f"draft model ({one_line(Path(options.draft_model).name)})", demand.draft_bytes),
        ("adapters", demand.adapter_bytes),
        ("on the GPU", demand.gpu_bytes),
    ]
    print(styled(f"{one_line(found.model)} ({found.architecture})", "bold", sys.stdout))
    for name, size in parts:
        if size:
            print(f"  {megabytes(size):>9}  {name}")
    free = "free memory is not known"
    if machine.room_bytes is not None:
        free = f"{megabytes(machine.usable_bytes)} usable of {megabytes(machine.room_bytes)} available"
    free += f", {megabytes(machine.gpu_usable_bytes)} on the GPU" if machine.gpus else ""
    print(f"  {megabytes(demand.all_bytes):>9}  in all; {free}")
    if found.rows:
        print()
        print(_rows(found))
        for gap in found.gaps:
            print(escape(f"?: {gap}"))
        print()
    if found.refusal:
        print(styled(escape(in_options(found.refusal)), "red", sys.stdout))
        return
    layers = f", layers on the GPU: {options.n_gpu_layers}" if machine.gpus else ""
    experts = f", experts in main memory: {options.cpu_moe}" if options.cpu_moe else ""
    threads = options.threads or machine.cores
    print(
        f"chosen: context {options.n_ctx:,}, KV {found.kv_type}, batches of {options.n_ubatch},"
        f" {threads} thread{'' if threads == 1 else 's'}{layers}{experts}"
    )
    for note in found.notes:
        print(styled(escape(note), "yellow", sys.stdout))


def _rows(found: Plan) -> str:
    has_gpu = bool(found.machine.gpus)
    if has_gpu:  # on 80 columns the speeds are worth more than the buffers, which are in the sum
        heads = ["context", "KV", "GPU", "cache", "in all", "fits", "prefill", "tokens/s", "full"]
    else:
        heads = [
            "context",
            "KV",
            "KV cache",
            "compute",
            "in all",
            "fits",
            "prefill/s",
            "tokens/s",
            "when full",
        ]
    return table([_cells(row, found, has_gpu=has_gpu) for row in found.rows], heads)


def _cells(row: PlanRow, found: Plan, *, has_gpu: bool) -> list[str]:
    speed = row.speed
    speeds = (
        ["?", "?", "?"]
        if speed is None
        else [f"{speed.prefill_tok_s:,.0f}", f"{speed.decode_tok_s:,.1f}", f"{speed.decode_full_tok_s:,.1f}"]
    )
    total = megabytes(row.host_bytes) + (f" + {megabytes(row.gpu_bytes)}" if row.gpu_bytes else "")
    options = found.options
    is_chosen = found.fits and (row.n_ctx, row.kv_type) == (options.n_ctx, found.kv_type)
    fits = ("yes ←" if is_chosen and not has_gpu else "yes") if row.fits else "no"
    return [
        f"{row.n_ctx:,}",
        row.kv_type,
        *([str(row.gpu_layers)] if has_gpu else []),
        megabytes(row.kv_bytes),
        *([] if has_gpu else [megabytes(row.compute_bytes)]),
        total,
        fits,
        *speeds,
    ]
