"""BFCL through the public API: how often a model makes the right calls, or rightly none, and what that costs.

The data is not ours and stays outside the repository. Get it once:

    pip download bfcl-eval --no-deps --dest bfcl && unzip -q bfcl/bfcl_eval-*.whl -d bfcl
    python benchmarks/toolcalls.py --data bfcl/bfcl_eval/data --limit 100 --strategy guided --strategy free

`--data DIR` is the folder with BFCL_v4_simple_python.json, BFCL_v4_multiple.json, BFCL_v4_parallel.json,
BFCL_v4_irrelevance.json and possible_answer/. Calls are checked by the rules of BFCL's own AST checker (see
bfcl_check.py). `forced` are tokens that nobody had to draw. In irrelevance no tool helps: right is to call none.
BFCL is for measuring, not for tuning: the cases to tune on are in guided_cases.jsonl.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from bfcl_check import BfclCase, Category, check_calls, load_bfcl, tool_of

Call = dict[str, Any]

VERDICTS = ("right", "wrong_tool", "wrong_arguments", "missed_call", "false_call")


@dataclass(frozen=True, slots=True)
class Reply:
    """What a model did: its calls, and the tokens they cost."""

    calls: tuple[Call, ...] = ()
    tokens: int = 0
    forced: int = 0


Caller = Callable[[Sequence[dict[str, str]], Sequence[dict[str, Any]]], Reply]


def run(
    cases: Sequence[BfclCase], call: Caller, *, say: Callable[[str], None] | None = None
) -> dict[str, Any]:
    """Shares of the verdicts over `cases`, and tokens and seconds per case.

    `call(messages, tools)` gets OpenAI-style messages and tools.
    """
    counts: Counter[str] = Counter()
    tokens = forced = 0
    started = time.perf_counter()
    for case in cases:
        reply = call(case.messages, [tool_of(function) for function in case.functions])
        tokens += reply.tokens
        forced += reply.forced
        verdict = check_calls(case, reply.calls)
        counts[verdict] += 1
        if say is not None and verdict != "right":
            say(f"{case.id}: {verdict}: {json.dumps(reply.calls, ensure_ascii=False)}")
    total = max(1, len(cases))
    return {
        "cases": len(cases),
        **{name: round(counts[name] / total, 4) for name in VERDICTS},
        "tokens": round(tokens / total, 1),
        "forced": round(forced / total, 1),
        "s_per_case": round((time.perf_counter() - started) / total, 3),
    }


@contextmanager
def edgellm_caller(
    model: str, *, tool_choice: str = "required", strategy: str = "auto", max_tokens: int | None = None
) -> Iterator[Caller]:
    """A caller that asks edgellm, a new chat for each case; the tools are never run.

    A tool may have `examples` beside its `function`: [{"request", "arguments"}].
    """
    import edgellm
    from edgellm.toolbox.tool import ToolOptions, raw_tool

    def offer(tool: dict[str, Any]) -> Any:
        examples = tuple(edgellm.ToolExample(**example) for example in tool.get("examples", ()))
        return raw_tool(tool, lambda **_: None, ToolOptions(examples=examples))

    ends = (edgellm.ApprovalRequested, edgellm.ToolApproved, edgellm.ToolDenied, edgellm.ToolFinished)
    with edgellm.load(model) as runtime:

        def call(messages: Sequence[dict[str, str]], tools: Sequence[dict[str, Any]]) -> Reply:
            made: list[Call] = []
            with runtime.chat(tools=[offer(tool) for tool in tools], strategy=strategy) as chat:
                turn = chat.send(messages[-1]["content"], tool_choice=tool_choice, max_tokens=max_tokens)
                with closing(turn) as events:
                    for event in events:
                        if isinstance(event, edgellm.ToolCallReady):
                            made.append({"name": event.call.name, "arguments": event.call.arguments})
                        elif isinstance(event, ends):
                            break
                usage = chat.usage
            return Reply(tuple(made), usage.decode_tokens, usage.forced_tokens)

        yield call


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark from a command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m", help="catalogue name or a path to a .gguf")
    parser.add_argument("--data", type=Path, required=True, help="folder with BFCL's own files")
    parser.add_argument("--limit", type=int, help="only the first N cases of each category")
    parser.add_argument(
        "--category", choices=get_args(Category), action="append", help="repeatable; default: all"
    )
    parser.add_argument(
        "--tool-choice",
        default="required",
        choices=("auto", "required"),
        help="for the categories in which a call is right; irrelevance is always auto",
    )
    parser.add_argument(
        "--strategy", choices=("auto", "guided", "free"), action="append", help="repeatable; default: auto"
    )
    parser.add_argument("--max-tokens", type=int, default=256, help="for one answer")
    parser.add_argument("--errors", action="store_true", help="print each wrong case on stderr")
    options = parser.parse_args(arguments)
    say = (lambda line: print(line, file=sys.stderr)) if options.errors else None
    results: dict[str, dict[str, dict[str, Any]]] = {}
    for strategy in options.strategy or ["auto"]:
        results[strategy] = {}
        for choice in ("auto", "required"):
            wanted = [
                category
                for category in options.category or get_args(Category)
                if choice == ("auto" if category == "irrelevance" else options.tool_choice)
            ]
            if not wanted:
                continue
            with edgellm_caller(
                options.model, tool_choice=choice, strategy=strategy, max_tokens=options.max_tokens
            ) as call:
                for category in wanted:
                    cases = load_bfcl(options.data, category, options.limit)
                    results[strategy][category] = run(cases, call, say=say)
    columns = ("cases", *VERDICTS, "tokens", "forced", "s_per_case")
    print(f"{'strategy':<9}{'category':<15}" + "".join(f"{name:>16}" for name in columns))
    for strategy, rows in results.items():
        for category, figures in rows.items():
            print(f"{strategy:<9}{category:<15}" + "".join(f"{figures[name]:>16}" for name in columns))
    summary = {
        "benchmark": "toolcalls",
        "model": options.model,
        "tool_choice": options.tool_choice,
        **results,
    }
    print(json.dumps(summary))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
