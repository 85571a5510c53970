"""A conversation driven to four times its context under each policy: what goes, whether it is said, what it costs.

    python benchmarks/long_chat.py --ctx 1024

Each turn is a numbered question, every third one with a forced tool call whose result is long. Whatever leaves the
tape has to be in a ContextEvicted event: at the end each question is either still in the chat or in exactly one
event, and so is each result. Memory is the process's resident set once the context was full for the first time, and
at the end. The last line is JSON.
"""

from __future__ import annotations

import argparse
import os
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from measure import print_result

import edgellm

POLICIES = ("stop", "evict", "summarize", "drop-results")
TOPICS = ("a garden", "the sea", "old maps", "bread", "bridges", "birds", "clocks", "rain")
_MEGABYTE = 1 << 20
_CALL_TOKENS = 100


@edgellm.tool(permission="auto")
def look_up(topic: str) -> str:
    """Looks a topic up in the encyclopedia.

    Args:
        topic: What to look up.
    """
    return (
        f"{topic[:40]} ({time.perf_counter_ns()}): " + "it is described on several pages, with examples. " * 8
    )


@dataclass(slots=True)
class Driven:
    """What one policy came to."""

    turns: int = 0
    tokens: int = 0
    events: int = 0
    gone: int = 0
    removed: int = 0
    recomputed: int = 0
    stops: int = 0
    unsaid: int = 0
    overfull: int = 0
    seconds: float = 0.0
    first_mb: float = 0.0
    last_mb: float = 0.0
    kinds: Counter[str] = field(default_factory=Counter[str])

    @property
    def grown_mb(self) -> float:
        return self.last_mb - self.first_mb


def resident_mb() -> float:
    """Resident memory of this process in MB; 0 where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / _MEGABYTE


class Drive:
    """One conversation under one policy, until `times` its context has gone through it."""

    def __init__(self, runtime: edgellm.Runtime, policy: str, *, times: int, answer: int) -> None:
        self.runtime = runtime
        self.policy = policy
        self.times = times
        self.answer = answer
        self.found = Driven()
        self.left: Counter[str] = Counter()
        self.chat = self._open()

    def _open(self) -> edgellm.Chat:
        return self.runtime.chat(
            system="You are a helpful assistant. Answer briefly.",
            tools=[look_up],
            strategy="free",
            constraint="force",
            seed=1,
            context_policy=self.policy,
            limits=edgellm.AgentLimits(max_steps=2, max_calls_per_step=1),
        )

    def run(self) -> Driven:
        """Turn after turn."""
        found, started = self.found, time.perf_counter()
        while found.tokens < self.times * self.runtime.n_ctx:
            # By then a policy has done all that it does: what it needs for that is there.
            if not found.first_mb and found.tokens > 2 * self.runtime.n_ctx:
                found.first_mb = resident_mb()
            question = f"Question {found.turns}: what do you know of {TOPICS[found.turns % len(TOPICS)]}?"
            choice = "required" if found.turns % 3 == 2 else "none"
            found.turns += 1
            try:
                self._turn(question, choice)
            except edgellm.ContextFull:
                self._stopped()
            if self.policy == "summarize" and found.turns % 4 == 0:
                for event in self.chat.tidy():
                    self._hear(event)
            found.overfull += len(self.chat.tape) > self.runtime.n_ctx
        self._count_left()
        found.seconds = time.perf_counter() - started
        found.last_mb = resident_mb()
        self.chat.close()
        return found

    def _turn(self, question: str, choice: str) -> None:
        # A call that is cut off has no result.
        most = self.answer + (0 if choice == "none" else _CALL_TOKENS)
        for event in self.chat.send(question, tool_choice=choice, max_tokens=most):
            self._hear(event)
            if isinstance(event, edgellm.TurnFinished):
                self.found.tokens += event.usage.decode_tokens
                for message in event.messages:
                    if message.role in ("user", "tool"):
                        self.left[message.content] += 1
                        self.found.tokens += len(self.runtime.tokenize(message.content))
                if event.finish_reason == "context_full":
                    self._stopped()

    def _hear(self, event: Any) -> None:
        if not isinstance(event, edgellm.ContextEvicted):
            return
        found = self.found
        found.events += 1
        found.kinds[event.policy] += 1
        found.removed += event.removed_tokens
        found.recomputed += event.recomputed_tokens
        for message in event.messages:
            found.gone += 1
            self.left[message.content] -= message.role in ("user", "tool")

    def _stopped(self) -> None:
        """Nothing gave way: as the message says, a new chat begins."""
        self.found.stops += 1
        self._count_left()
        self.chat.close()
        self.chat = self._open()

    def _count_left(self) -> None:
        for message in self.chat.messages:
            if message.role in ("user", "tool"):
                self.left[message.content] -= 1
        # What is new in the chat (summaries, notices) was never said; what is missing was said and not told of.
        self.found.unsaid += sum(1 for count in self.left.values() if count > 0)
        self.left.clear()


def main() -> int:
    """Drives all policies and prints the table; 1 where one lost something in silence or grew."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m", help="a catalogue name or a .gguf file")
    parser.add_argument("--ctx", type=int, default=1024, help="length of the context in tokens")
    parser.add_argument("--times", type=int, default=4, help="how often the context is filled")
    parser.add_argument("--answer", type=int, default=60, help="most tokens of an answer")
    parser.add_argument(
        "--growth-mb", type=float, default=16.0, help="growth of memory that still counts as flat"
    )
    given = parser.parse_args()
    n_ctx = given.ctx
    rows = [("policy", "turns", "tokens", "stops", "events", "messages gone", "tokens gone", "computed again",
             "untold", "memory", "time")]  # fmt: skip
    figures: dict[str, Any] = {}
    is_shown = True
    for policy in POLICIES:
        with edgellm.load(given.model, n_ctx=given.ctx, n_seq_max=2) as runtime:
            found = Drive(runtime, policy, times=given.times, answer=given.answer).run()
            n_ctx = runtime.n_ctx
        rows.append((
            policy, f"{found.turns}", f"{found.tokens} ({found.tokens / n_ctx:.1f}x)", f"{found.stops}",
            f"{found.events}", f"{found.gone}", f"{found.removed}", f"{found.recomputed}", f"{found.unsaid}",
            f"{found.first_mb:.0f} -> {found.last_mb:.0f} MB", f"{found.seconds:.0f} s",
        ))  # fmt: skip
        is_flat = found.grown_mb <= given.growth_mb
        gives_way = (found.stops > 0 and not found.events) if policy == "stop" else found.events > 0
        is_sound = is_flat and gives_way and not found.unsaid and not found.overfull
        is_shown = is_shown and is_sound and (policy == "stop" or not found.stops)
        figures[policy] = {
            "turns": found.turns,
            "tokens": found.tokens,
            "times": round(found.tokens / n_ctx, 2),
            "stops": found.stops,
            "events": dict(found.kinds),
            "messages_gone": found.gone,
            "removed_tokens": found.removed,
            "recomputed_tokens": found.recomputed,
            "untold": found.unsaid,
            "overfull": found.overfull,
            "memory_growth_mb": round(found.grown_mb, 1),
            "seconds": round(found.seconds, 1),
        }
    print_result(
        rows,
        {"benchmark": "long_chat", "model": given.model, "n_ctx": n_ctx, "is_shown": is_shown, **figures},
    )
    return 0 if is_shown else 1


if __name__ == "__main__":
    raise SystemExit(main())
