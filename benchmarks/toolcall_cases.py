"""Recorded model outputs against `edgellm.parse`: how many are read as expected, format by format.

`--cases` is a JSON Lines file: each line has `format`, `output`, `tools` (OpenAI objects, or null), `expect`
(`content`, `reasoning`, `calls`; null where nothing is asserted), `partial`, and perhaps `flags` and `chunks`.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import edgellm

_MARK = re.compile(
    r"think(:\w+)?>|\[THINK|THINKING\||channel|to=self|inner_|reasoning steps|content_thinking|>think<"
)
_THINKS = ("hasThinking", "thinkValue", "think", "thinkingEnabled", "hasThinkingSupport")


def main() -> None:
    """Reads the arguments, prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=Path, required=True)
    parser.add_argument("--format", help="only this format")
    parser.add_argument("--show", type=int, default=0, metavar="N", help="print up to N disagreements")
    parser.add_argument("--partial", action="store_true", help="also the cases that stop in the middle")
    args = parser.parse_args()
    good: Counter[str] = Counter()
    total: Counter[str] = Counter()
    shown = 0
    for line in args.cases.read_text("utf-8").splitlines():
        case: dict[str, Any] = json.loads(line)
        name = case["format"]
        if (args.format and name != args.format) or (case.get("partial") and not args.partial):
            continue
        total[name] += 1
        got = read(case)
        complaint = compare(case["expect"], got)
        good[name] += not complaint
        if complaint and shown < args.show:
            shown += 1
            print(f"{case['id']}: {complaint}\n  note   {case.get('note')}\n  flags  {case.get('flags')}")
            print(f"  output {case['output']!r}\n  expect {case['expect']}\n  got    {got}\n")
    for name in sorted(total):
        print(f"{name:20} {good[name]:4} of {total[name]:4}")
    share = sum(good.values()) / max(1, sum(total.values()))
    print(f"{'all':20} {sum(good.values()):4} of {sum(total.values()):4}  {share:.1%}")
    print(json.dumps({"cases": sum(total.values()), "agree": sum(good.values()), "share": round(share, 4)}))


def read(case: dict[str, Any]) -> dict[str, Any]:
    """The case's output as edgellm reads it; what goes wrong is under "error"."""
    try:
        parsed = edgellm.parse(
            case["output"], format=case["format"], tools=case["tools"], prefix=prompt_of(case)
        )
    except edgellm.EdgeError as error:
        return {"error": str(error)}
    calls = [{"name": call.name, "arguments": call.arguments} for call in parsed.calls]
    return {"content": parsed.content, "reasoning": parsed.reasoning, "calls": calls}


def prompt_of(case: dict[str, Any]) -> str:
    """The generation prompt that the output continues, as far as it matters: has it opened reasoning, or closed it?

    Records without it say so by a flag, or by what they expect: reasoning that no mark in the output opens was
    opened by the prompt, and marks of reasoning that are to be content stand behind a prompt that wants none.
    """
    if case.get("prefill"):
        return case["prefill"]
    flags: dict[str, Any] = case.get("flags") or {}
    expect, output = case["expect"], case["output"]
    if expect["reasoning"]:
        return "" if _MARK.search(output) else "<think>"
    is_off = any(flags.get(name) is False for name in _THINKS)
    return "</think>" if is_off or (expect["content"] or "").lstrip().startswith("</think>") else ""


def compare(expect: dict[str, Any], got: dict[str, Any]) -> str:
    """What differs: content and reasoning with white space folded, calls as JSON values; "" where nothing does."""
    if "error" in got:
        return "error"
    differ = [
        field
        for field in ("content", "reasoning")
        if expect.get(field) is not None and fold(expect[field]) != fold(got[field])
    ]
    # A reader that does not separate reasoning at all has it in its content.
    if differ == ["content"] and expect.get("reasoning") is None and got["reasoning"]:
        together = "".join((got["reasoning"] + got["content"]).split())
        wanted = "".join(re.sub("</?think>", "", expect["content"]).split())
        differ = [] if together == wanted else differ
    if expect.get("calls") is not None and not same_calls(expect["calls"], got["calls"]):
        differ.append("calls")
    return ", ".join(differ)


def same_calls(expect: list[dict[str, Any]], got: list[dict[str, Any]]) -> bool:
    """The same names, and the same arguments where they are asserted."""
    return len(expect) == len(got) and all(
        wanted["name"] == found["name"] and wanted["arguments"] in (None, found["arguments"])
        for wanted, found in zip(expect, got, strict=True)
    )


def fold(text: str) -> str:
    """White space does not count."""
    return " ".join(text.split())


if __name__ == "__main__":
    main()
