"""Our own cases for tool choice: does the model call the right tool, with the right arguments, and only when needed.

    python benchmarks/guided.py --split held

`tune` is for choosing thresholds and prompts, `held` for reporting. A model without the `guided` strategy can be
measured too; tool choice is left to it (auto).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence

from guided_score import Verdict, load_cases, rates, score
from toolcalls import edgellm_caller


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark from a command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m", help="catalogue name or a path to a .gguf")
    parser.add_argument("--split", default="held", choices=("tune", "held"))
    parser.add_argument("--limit", type=int, help="only the first N cases")
    parser.add_argument("--errors", action="store_true", help="print each wrong case on stderr")
    options = parser.parse_args(arguments)
    cases = load_cases(options.split)[: options.limit]
    verdicts: list[Verdict] = []
    started = time.perf_counter()
    with edgellm_caller(options.model, tool_choice="auto") as call:
        for case in cases:
            reply = call([{"role": "user", "content": case.question}], case.tools)
            made = reply.calls[0] if reply.calls else None
            verdicts.append(score(case.expect, made))
            if options.errors and not verdicts[-1].startswith("right"):
                said = json.dumps(made, ensure_ascii=False)
                print(f"{case.id}: {verdicts[-1]}: {case.question!r}: {said}", file=sys.stderr)
    figures = {name: round(share, 4) for name, share in rates(verdicts).items()}
    figures["s_per_case"] = round((time.perf_counter() - started) / max(1, len(cases)), 3)
    for name, value in figures.items():
        print(f"{name:<16}{value:>10}")
    summary = {"benchmark": "guided", "model": options.model, "split": options.split, "cases": len(cases)}
    print(json.dumps({**summary, **figures}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
