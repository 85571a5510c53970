"""Figures of the current chat: whose the context is, speed, memory, and what should worry one. No widgets here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgellm import SpanKind

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from edgellm import Ledger, Span, Usage
    from edgellm_tui.machine import Machine

_MIB = 1 << 20
# Owner as a ledger names it: letter, word.
OWNERS: dict[str, tuple[str, str]] = {
    "system": ("S", "system"),
    "tool": ("T", "tools"),
    "examples": ("E", "examples"),
    "user": ("U", "user"),
    "text": ("A", "answers"),
    "reasoning": ("R", "reasoning"),
    "tool_call": ("C", "calls"),
    "tool_result": ("=", "results"),
    "glue": ("-", "template"),
    "prompt": ("P", "prompt"),
}


@dataclass(frozen=True, slots=True)
class Share:
    """What one owner takes of the context."""

    letter: str
    word: str
    tokens: int


def context_shares(ledger: Ledger) -> list[Share]:
    """The owners of the context in the order of the bar."""
    counts: dict[str, int] = {}
    for entry in ledger.entries:
        counts[entry.owner] = counts.get(entry.owner, 0) + entry.tokens
    return [
        Share(letter, word, counts[owner]) for owner, (letter, word) in OWNERS.items() if counts.get(owner)
    ]


def context_bar(shares: Sequence[Share], n_ctx: int, width: int) -> str:
    """The context as a bar of letters, `.` for what is free; whoever has a token has at least one letter."""
    if n_ctx <= 0 or width <= 0:
        return ""
    bar = ""
    for share in shares:
        bar += share.letter * max(1, round(width * share.tokens / n_ctx))
    return bar[:width].ljust(width, ".")


def shares_text(shares: Sequence[Share], n_ctx: int) -> str:
    """The same in numbers."""
    free = n_ctx - sum(share.tokens for share in shares)
    return "  ".join([*(f"{each.letter} {each.word} {each.tokens}" for each in shares), f". free {free}"])


def prefill_rate(usage: Usage, ledger: Ledger) -> float | None:
    """Tokens a second that prompts are computed with, as measured so far; None before that."""
    if ledger.prefill_tok_s:
        return ledger.prefill_tok_s
    return usage.prefill_tokens / usage.prefill_s if usage.prefill_s > 0 else None


@dataclass(frozen=True, slots=True)
class OldestTurn:
    """The first exchange behind the system's part: tokens `[start, end)`; `behind` tokens stand after it."""

    start: int
    end: int
    behind: int


def oldest_turn(spans: Sequence[Span]) -> OldestTurn | None:
    """What would have to go first to make room: from the first user's text to the second's; None with one turn."""
    starts = [span.start for span in spans if span.kind is SpanKind.USER]
    if len(starts) < 2:
        return None
    return OldestTurn(starts[0], starts[1], spans[-1].end - starts[1])


def cost_words(tokens: int, rate: float | None) -> str:
    """What computing so many tokens again costs."""
    return f"{tokens / rate:.1f} s" if rate else "not measured yet"


def warnings_of(
    machine: Machine, *, kv_types: Iterable[str], tools: Sequence[str], threads: int, used: int, n_ctx: int
) -> list[str]:
    """What may make answers slow or calls wrong, in words."""
    found: list[str] = []
    quantized = [kind for kind in kv_types if kind.startswith(("q", "iq"))]
    if quantized and tools:
        found.append(
            f"the KV cache is {'/'.join(dict.fromkeys(quantized))} and tools are offered: "
            "small models write worse calls with it"
        )
    if machine.throttled:
        found.append(f"the board holds back: {', '.join(machine.throttled)}")
    if machine.clock_hz and machine.clock_most_hz and machine.clock_hz < 0.8 * machine.clock_most_hz:
        found.append(f"the clock is at {100 * machine.clock_hz // machine.clock_most_hz} % of its most")
    if machine.load is not None and machine.load > machine.cores + 0.5:
        found.append(
            f"contention: load {machine.load:.1f} on {machine.cores} cores; other programs take turns with it"
        )
    if threads > machine.cores:
        found.append(f"{threads} threads on {machine.cores} cores wait for each other")
    if machine.swap_used_bytes and machine.available_bytes and machine.available_bytes < 200 * _MIB:
        found.append("memory is short and the system swaps")
    if n_ctx and used > 0.9 * n_ctx:
        found.append(f"the context is {100 * used // n_ctx} % full")
    return found


def size_words(size: int | None) -> str:
    """Bytes as people read them."""
    if size is None:
        return "?"
    return f"{size / (1 << 30):.2f} GiB" if size >= 1 << 30 else f"{size / _MIB:.0f} MiB"
