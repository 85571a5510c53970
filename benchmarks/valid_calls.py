"""Random tools and a model at temperature 1.5: is every call that comes out valid against its tool's schema?

    python benchmarks/valid_calls.py --count 1000

Each schema is offered to the model as the only tool, in a chat of its own, with tool_choice "required" and without
guidance: what holds the call together is the grammar alone. A call that a limit cuts off is not emitted. Where
llguidance cannot enforce a keyword, the call may violate that one: then the runtime must refuse it before the tool's
code runs.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jsonschema import Draft202012Validator
from measure import parser, print_result
from random_schemas import random_tool

import edgellm
from edgellm.agent import AgentLimits
from edgellm.sampling.schema_relax import loosen
from edgellm.toolbox.tool import ToolOptions, raw_tool

_EXPONENT = re.compile(r"\d+(?:\.\d+)?[eE]\+?\d+")
SAMPLER = "temperature(1.5) | dist"
REQUEST = "Please use the tool with values of your own."

ROWS = {
    "schemas": "random tools offered",
    "relaxed": "... of them with a keyword that the grammar cannot enforce",
    "emitted": "calls emitted",
    "cut_off": "calls cut off by a limit, not emitted",
    "too_large": "calls with a number beyond a float, which a grammar cannot forbid: not emitted",
    "no_call": "answers that ended without a call",
    "invalid": "emitted calls that do not parse or violate an enforced keyword",
    "only_relaxed": "emitted calls that violate only a keyword that is not enforced",
    "caught": "... of them refused, or mended, before the tool ran",
    "refused_though_valid": "valid calls that did not reach their tool",
    "invalid_at_tool": "invalid arguments that reached a tool",
    "tokens": "tokens decoded",
    "seconds": "seconds",
}
MUST_BE_ZERO = ("no_call", "invalid", "refused_though_valid", "invalid_at_tool")


@dataclass(slots=True)
class Offer:
    """One tool as the model gets it, and the arguments that have reached its code."""

    description: Mapping[str, Any]
    received: list[dict[str, Any]] = field(default_factory=list)

    def tool(self) -> Any:
        def take(**arguments: Any) -> str:
            self.received.append(arguments)
            return "done"

        return raw_tool(self.description, take, ToolOptions(permission="auto"))


def run(
    runtime: edgellm.Runtime,
    tools: Iterable[Mapping[str, Any]],
    *,
    seed: int,
    max_tokens: int,
    strategy: str = "free",
    template: str | None = None,
    say: Callable[[str], None] = lambda line: None,
    at_once: int = 1,
) -> dict[str, Any]:
    """Offers each tool once; figures by the names of ROWS. `say` gets a line for each thing that must not be.

    `at_once` chats are answered side by side, their tokens in shared batches.
    """
    counts: Counter[str] = Counter(dict.fromkeys(ROWS, 0))
    started = time.perf_counter()
    places = asyncio.Semaphore(at_once)

    async def offered(number: int, description: Mapping[str, Any]) -> None:
        offer = Offer(description)
        async with places:
            chat = runtime.chat(
                tools=[offer.tool()],
                sampler=SAMPLER,
                seed=seed * 1_000_003 + number,
                strategy=strategy,
                template=template,
                limits=AgentLimits(max_steps=1),
            )
            turn = chat.asend(REQUEST, tool_choice="required", max_tokens=max_tokens)
            events = [event async for event in turn]
            counts["tokens"] += chat.usage.decode_tokens
            chat.close()
        for verdict in judge(offer, events):
            counts[verdict] += 1
            if verdict in MUST_BE_ZERO:
                calls = [event.call.raw for event in events if isinstance(event, edgellm.ToolCallReady)]
                say(f"{verdict}: {json.dumps(description)}: {calls}")
        counts["schemas"] += 1
        if counts["schemas"] % 50 == 0:
            say(
                f"{counts['schemas']} schemas, {counts['emitted']} calls, {time.perf_counter() - started:.0f} s"
            )

    async def offer_all() -> None:
        await asyncio.gather(*(offered(number, description) for number, description in enumerate(tools)))

    asyncio.run(offer_all())
    return {**counts, "seconds": round(time.perf_counter() - started, 1)}


def judge(offer: Offer, events: Sequence[edgellm.Event]) -> list[str]:
    """What became of one offer, as names of ROWS."""
    schema = offer.description["function"]["parameters"]
    loosened, notes = loosen(schema)
    own = Draft202012Validator(schema)
    verdicts = ["relaxed"] if notes else []
    verdicts += ["invalid_at_tool" for arguments in offer.received if not own.is_valid(arguments)]
    calls = [event.call for event in events if isinstance(event, edgellm.ToolCallReady)]
    if not calls:
        finished = events[-1]
        assert isinstance(finished, edgellm.TurnFinished)
        if finished.finish_reason == "length":
            return [*verdicts, "cut_off"]
        is_too_large = any(math.isinf(float(number)) for number in _EXPONENT.findall(finished.text))
        return [*verdicts, "too_large" if is_too_large else "no_call"]
    for call in calls:
        verdicts.append("emitted")
        if not _is_parsed(call, offer.description["function"]["name"]):
            verdicts.append("invalid")
        elif own.is_valid(call.arguments):
            verdicts += [] if call.arguments in offer.received else ["refused_though_valid"]
        elif notes and Draft202012Validator(loosened).is_valid(call.arguments):
            verdicts += ["only_relaxed"] + ([] if call.arguments in offer.received else ["caught"])
        else:
            verdicts.append("invalid")
    return verdicts


def _is_parsed(call: edgellm.ToolCall, name: str) -> bool:
    """Is what the model wrote a JSON object that says what the call says?"""
    text = call.raw.removeprefix("<tool_call>").removesuffix("</tool_call>")
    try:
        return bool(json.loads(text) == {"name": name, "arguments": call.arguments} and call.name == name)
    except ValueError:
        return False


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark from a command line; 1 where a call was not as it must be."""
    options = parser((__doc__ or "").splitlines()[0])
    options.add_argument("--count", type=int, default=1000, help="how many random tools")
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--max-tokens", type=int, default=160, help="where a call is cut off")
    options.add_argument("--at-once", type=int, default=12, help="how many chats share a batch")
    options.add_argument("--strategy", default="free", choices=("free", "guided"), help=argparse.SUPPRESS)
    given = options.parse_args(arguments)
    load = edgellm.LoadOptions(n_ctx=8192, n_seq_max=given.at_once + 1, threads=given.threads)
    with edgellm.load(given.model, options=load) as runtime:
        figures = run(
            runtime,
            (random_tool(given.seed, index) for index in range(given.count)),
            seed=given.seed,
            max_tokens=given.max_tokens,
            strategy=given.strategy,
            at_once=given.at_once,
            say=lambda line: print(line, file=sys.stderr, flush=True),
        )
    print_result([[ROWS[name], str(figures[name])] for name in ROWS], {"model": given.model, **figures})
    is_good = not any(figures[name] for name in MUST_BE_ZERO) and figures["caught"] == figures["only_relaxed"]
    return 0 if is_good else 1


if __name__ == "__main__":
    raise SystemExit(main())
