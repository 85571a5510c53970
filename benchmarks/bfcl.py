"""BFCL simple_python and multiple: how often a model makes the right call when there is always one to make.

The data is not ours and stays outside the repository. Get it once:

    pip download bfcl-eval --no-deps --dest bfcl && unzip -q bfcl/bfcl_eval-*.whl -d bfcl
    python benchmarks/bfcl.py --data bfcl/bfcl_eval/data --limit 100

`--data DIR` is the folder with BFCL_v4_simple_python.json, BFCL_v4_multiple.json and possible_answer/.
BFCL is for measuring, not for tuning: the cases to tune on are in guided_cases.jsonl.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import Any, get_args

from bfcl_check import BfclCase, Category, check, load_bfcl, tool_of

Call = dict[str, Any]
Caller = Callable[[Sequence[dict[str, str]], Sequence[dict[str, Any]]], Call | None]


def run(
    cases: Sequence[BfclCase], call: Caller, *, say: Callable[[str], None] | None = None
) -> dict[str, Any]:
    """Shares of the verdicts over `cases`, and seconds per case.

    `call(messages, tools)` gets OpenAI-style messages and tools and gives {"name", "arguments"}, or None where the
    model made no call.
    """
    counts: Counter[str] = Counter()
    started = time.perf_counter()
    for case in cases:
        made = call(case.messages, [tool_of(function) for function in case.functions])
        verdict = check(case, made)
        counts[verdict] += 1
        if say is not None and verdict != "right":
            say(f"{case.id}: {verdict}: {json.dumps(made, ensure_ascii=False)}")
    total = max(1, len(cases))
    names = ("right", "wrong_tool", "wrong_arguments", "missed_call")
    shares = {name: round(counts[name] / total, 4) for name in names}
    return {"cases": len(cases), **shares, "s_per_case": round((time.perf_counter() - started) / total, 3)}


@contextmanager
def edgellm_caller(model: str, *, tool_choice: str = "required") -> Iterator[Caller]:
    """A caller that asks edgellm, a new chat for each case; the tool is never run.

    A tool may have `examples` beside its `function`: [{"request", "arguments"}].
    """
    import edgellm
    from edgellm.toolbox.tool import ToolOptions, raw_tool

    def offer(tool: dict[str, Any]) -> Any:
        examples = tuple(edgellm.ToolExample(**example) for example in tool.get("examples", ()))
        return raw_tool(tool, lambda **_: None, ToolOptions(examples=examples))

    with edgellm.load(model) as runtime:

        def call(messages: Sequence[dict[str, str]], tools: Sequence[dict[str, Any]]) -> Call | None:
            chat = runtime.chat(tools=[offer(tool) for tool in tools])
            with closing(chat.send(messages[-1]["content"], tool_choice=tool_choice)) as events:
                for event in events:
                    if isinstance(event, edgellm.ToolCallReady):
                        return {"name": event.call.name, "arguments": event.call.arguments}
            return None

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
    parser.add_argument("--tool-choice", default="required", choices=("auto", "required"))
    parser.add_argument("--errors", action="store_true", help="print each wrong case on stderr")
    options = parser.parse_args(arguments)
    say = (lambda line: print(line, file=sys.stderr)) if options.errors else None
    caller: AbstractContextManager[Caller] = edgellm_caller(options.model, tool_choice=options.tool_choice)
    results: dict[str, dict[str, Any]] = {}
    with caller as call:
        for category in options.category or get_args(Category):
            results[category] = run(load_bfcl(options.data, category, options.limit), call, say=say)
    columns = ("cases", "right", "wrong_tool", "wrong_arguments", "missed_call", "s_per_case")
    print(f"{'category':<16}" + "".join(f"{name:>17}" for name in columns))
    for category, figures in results.items():
        print(f"{category:<16}" + "".join(f"{figures[name]:>17}" for name in columns))
    print(
        json.dumps(
            {"benchmark": "bfcl", "model": options.model, "tool_choice": options.tool_choice, **results}
        )
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
