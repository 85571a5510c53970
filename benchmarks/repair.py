"""Damaged tool calls, and how many of them end as a valid call of the same tool.

Valid calls are written as the model's answer, each with one damage (its tag dropped, a trailing comma, single quotes, a
raw newline in a string, cut off, a wrong name, text inside, a bracket missing), constraint off. What the runtime then
does is measured: the call that comes out must name the same tool and be valid against its schema.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

DAMAGES = (
    "no tag",
    "trailing comma",
    "single quotes",
    "raw newline",
    "cut off",
    "wrong name",
    "text inside",
    "bracket missing",
)
_WORDS = ("river", "old town", "blue", "forty two", "Anna's", "north", "tea and milk", "x = 3")


@dataclass(frozen=True, slots=True)
class Damaged:
    """One case: what was damaged and how, and the call as it was meant."""

    kind: str
    text: str
    name: str
    arguments: dict[str, Any]


def damaged_calls(count: int, seed: int = 0) -> list[Damaged]:
    """`count` cases, the damages in turn."""
    chance = random.Random(seed)
    cases: list[Damaged] = []
    for number in range(count):
        name, arguments = chance.choice(
            (
                ("get_weather", {"city": chance.choice(_WORDS), "days": chance.randrange(1, 9)}),
                ("add_note", {"text": chance.choice(_WORDS), "tags": [chance.choice(_WORDS)]}),
                ("set_timer", {"minutes": chance.randrange(1, 90)}),
            )
        )
        kind = DAMAGES[number % len(DAMAGES)]
        cases.append(Damaged(kind, damage(kind, name, arguments, chance), name, arguments))
    return cases


def damage(kind: str, name: str, arguments: dict[str, Any], chance: random.Random) -> str:
    """The call as a hermes-style block, with one thing wrong."""
    body = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)
    if kind == "trailing comma":
        body = body[:-2] + ",}}"
    elif kind == "single quotes":
        body = str({"name": name, "arguments": arguments})
    elif kind == "raw newline":
        body = body.replace('": "', '": "\n', 1) if '": "' in body[10:] else body[:-1] + "\n,}"
    elif kind == "wrong name":
        body = body.replace(
            name, chance.choice((name.replace("_", ""), name.title(), f"functions.{name}", name + "s"))
        )
    elif kind == "text inside":
        body = "Sure, here it is: " + body + " That should do."
    elif kind == "bracket missing":
        body = body[:-1]
    elif kind == "cut off":
        return "<tool_call>\n" + body[: chance.randrange(len(body) // 2, len(body) - 1)]
    return body if kind == "no tag" else f"<tool_call>\n{body}\n</tool_call>"


def measure(model: Any, cases: Sequence[Damaged]) -> dict[str, Any]:
    """Shares of the cases that were recovered, by damage, and seconds each. `model`: what `edgellm.load` takes."""
    import edgellm
    from edgellm.agent import AgentLimits
    from edgellm.scripted import Scripted

    @edgellm.tool(permission="auto")
    def get_weather(city: str, days: int) -> str:
        """Tells the weather of a city for some days."""
        return f"{city}: sunny for {days} days"

    @edgellm.tool(permission="auto")
    def add_note(text: str, tags: list[str]) -> str:
        """Writes a note down."""
        return f"noted: {text}"

    @edgellm.tool(permission="auto")
    def set_timer(minutes: int) -> str:
        """Sets a timer."""
        return f"{minutes} minutes"

    tools = [get_weather, add_note, set_timer]
    recovered: Counter[str] = Counter()
    same: Counter[str] = Counter()
    total: Counter[str] = Counter()
    started = time.perf_counter()
    with edgellm.load(model, n_ctx=2048) as runtime:
        end = runtime.vocabulary.eos or 0
        for case in cases:
            total[case.kind] += 1
            script = Scripted([case.text, "", "Done."], end)
            with runtime.chat(
                sampler=[script],
                tools=tools,
                strategy="free",
                constraint="off",
                limits=AgentLimits(max_steps=2),
            ) as chat:
                for event in chat.send("Please do it.", max_tokens=200):
                    if isinstance(event, edgellm.ToolFinished) and event.result.is_ok:
                        recovered[case.kind] += event.call.name == case.name
                        same[case.kind] += event.call.arguments == case.arguments
    count = max(1, sum(total.values()))
    return {
        "cases": sum(total.values()),
        "recovered": round(sum(recovered.values()) / count, 4),
        "same_arguments": round(sum(same.values()) / count, 4),
        "s_per_case": round((time.perf_counter() - started) / count, 3),
        "by_damage": {kind: [recovered[kind], same[kind], total[kind]] for kind in DAMAGES if total[kind]},
    }


def main() -> None:
    """Reads the arguments, prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--cases", type=int, default=80)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    figures = measure(args.model, damaged_calls(args.cases, args.seed))
    print(f"{'damage':<18}{'cases':>8}{'recovered':>12}{'same arguments':>17}")
    for kind, (good, equal, number) in figures["by_damage"].items():
        print(f"{kind:<18}{number:>8}{good:>12}{equal:>17}")
    print(json.dumps({"benchmark": "repair", "model": args.model, **figures}))


if __name__ == "__main__":
    main()
