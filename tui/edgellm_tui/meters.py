"""Figures of the current chat: whose the context is, speed, memory, and what should worry one. No widgets here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgellm_tui.plain import one_line

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from edgellm import ContextOutlook, Ledger, LedgerEntry, Usage
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


def ledger_lines(ledger: Ledger) -> list[str]:
    """Every entry of the context's ledger with its tokens and its price, each tool's schema by itself; then the sum."""
    rows = [("owner", "tokens", "price")]
    rows += [
        (_owner(entry), f"{entry.tokens:,}", "" if entry.price_s is None else f"{entry.price_s:.1f} s")
        for entry in ledger.entries
    ]
    rows.append((". free", f"{ledger.free_tokens:,}", ""))
    owners, tokens, prices = (max(map(len, column)) for column in zip(*rows, strict=True))
    lines = [
        f"{owner:<{owners}}  {count:>{tokens}}  {price:>{prices}}".rstrip() for owner, count, price in rows
    ]
    total = f"{ledger.used_tokens:,} of {ledger.n_ctx:,} tokens"
    if ledger.price_s is not None:
        total += f"; computing them again takes {ledger.price_s:.1f} s at {ledger.prefill_tok_s:.0f} tokens/s"
    return [*lines, total]


def _owner(entry: LedgerEntry) -> str:
    letter, word = OWNERS[entry.owner]
    if entry.owner == "tool":
        return f"{letter} schema of {one_line(entry.name, 40)}" if entry.name else f"{letter} about the tools"
    return f"{letter} {word}"


def guesses_words(mode: str, usage: Usage) -> str:
    """How the chat guesses ahead, and what came of it; "" where it never did."""
    free = usage.free_tokens
    if not free:
        return f"guesses ahead: {mode}, no token came free yet" if mode != "off" else ""
    share = 100 * free // max(1, usage.decode_tokens)
    return f"guesses ahead: {mode}, {free} of {usage.decode_tokens} tokens came free ({share} %)"


def prefill_rate(usage: Usage, ledger: Ledger) -> float | None:
    """Tokens a second that prompts are computed with, as measured so far; None before that."""
    if ledger.prefill_tok_s:
        return ledger.prefill_tok_s
    return usage.prefill_tokens / usage.prefill_s if usage.prefill_s > 0 else None


def cost_words(tokens: int, rate: float | None) -> str:
    """What computing so many tokens again costs."""
    return f"{tokens / rate:.1f} s" if rate else "not measured yet"


def outlook_lines(outlook: ContextOutlook, rate: float | None) -> list[str]:
    """What gives way when the context fills, and what it costs; what an edit of the oldest turn costs."""
    if outlook.policy == "stop":
        lines = [
            f"nothing gives way: at {outlook.limit_tokens} tokens the answer ends (context_policy, F9)",
        ]
    elif not outlook.leaving and not outlook.shortened:
        lines = [
            f"at {outlook.limit_tokens} tokens {outlook.policy} makes room; nothing of this could go yet"
        ]
    else:
        lines = [f"next to go, at {outlook.limit_tokens} tokens ({outlook.policy}): {_leaving(outlook)}"]
        if outlook.is_moved:
            lines.append("the memory behind them is moved up: nothing is computed again")
        else:
            cost = cost_words(outlook.behind_tokens, rate)
            lines.append(f"the {outlook.behind_tokens} tokens behind that are computed again: {cost}")
    if len(outlook.turns) > 1:
        behind = sum(turn.tokens for turn in outlook.turns[1:])
        cost = cost_words(behind, rate)
        lines.append(f"an edit of the oldest turn computes the {behind} tokens behind it again: {cost}")
    return lines


def _leaving(outlook: ContextOutlook) -> str:
    parts: list[str] = []
    if outlook.shortened:
        count = len(outlook.shortened)
        parts.append(f"{count} old result{'s' * (count > 1)}")
    if outlook.leaving:
        count = len(outlook.leaving)
        parts.append(f"the oldest {f'{count} turns' if count > 1 else 'turn'}")
    summed = ", summed up first" if outlook.is_summarized else ""
    return f"{' and '.join(parts)}, {outlook.removed_tokens} tokens{summed}"


@dataclass(frozen=True, slots=True)
class Worry:
    """Something that may go wrong: in a word for the status line, and in a sentence."""

    word: str
    text: str


def warnings_of(
    machine: Machine, *, kv_types: Iterable[str], tools: Sequence[str], threads: int, used: int, n_ctx: int
) -> list[Worry]:
    """What may make answers slow or calls wrong, the worst first."""
    found: list[Worry] = []

    def worry(word: str, text: str) -> None:
        found.append(Worry(word, text))

    if machine.throttled:
        worry("throttled", f"the board holds back: {', '.join(machine.throttled)}")
    if n_ctx and used > 0.9 * n_ctx:
        worry("full", f"the context is {100 * used // n_ctx} % full")
    if machine.swap_used_bytes and machine.available_bytes and machine.available_bytes < 200 * _MIB:
        worry("swaps", "memory is short and the system swaps")
    quantized = [kind for kind in kv_types if kind.startswith(("q", "iq"))]
    if quantized and tools:
        kinds = "/".join(dict.fromkeys(quantized))
        text = f"the KV cache is {kinds} and tools are offered: small models write worse calls with it"
        worry("KV quantized", text)
    if machine.load is not None and machine.load > machine.cores + 0.5:
        text = (
            f"contention: load {machine.load:.1f} on {machine.cores} cores; other programs take turns with it"
        )
        worry("contention", text)
    if threads > machine.cores:
        worry("threads", f"{threads} threads on {machine.cores} cores wait for each other")
    if machine.clock_hz and machine.clock_most_hz and machine.clock_hz < 0.8 * machine.clock_most_hz:
        worry("clock", f"the clock is at {100 * machine.clock_hz // machine.clock_most_hz} % of its most")
    return found


def size_words(size: int | None) -> str:
    """Bytes as people read them."""
    if size is None:
        return "?"
    return f"{size / (1 << 30):.2f} GiB" if size >= 1 << 30 else f"{size / _MIB:.0f} MiB"
