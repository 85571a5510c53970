"""The ledger of a context: whose its tokens are, and what it would cost to compute them again."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from edgellm.errors import TemplateError
from edgellm.types import Message, SpanKind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgellm.conversation import Conversation
    from edgellm.types import ToolSpec
    from edgellm.usage import Usage

Owner = Literal[
    "system", "tool", "examples", "user", "text", "reasoning", "tool_call", "tool_result", "glue", "prompt"
]

_LEAST_MEASURED = 16
_MEMORY_TOKENS = 4096


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """What one owner takes of the context.

    `owner` "tool" is a tool's schema, and `name` that tool's ("" is what introduces them all); "examples" are worked
    turns that the runtime put in front; "glue" is the template's own text. `price_s` are the seconds in which this
    runtime computes so many tokens: None before it has computed any.
    """

    owner: Owner
    tokens: int
    name: str = ""
    price_s: float | None = None


@dataclass(frozen=True, slots=True)
class Ledger:
    """Who owns the context: the entries sum to the tokens on the tape. `prefill_tok_s` is measured, or None."""

    n_ctx: int
    entries: tuple[LedgerEntry, ...]
    prefill_tok_s: float | None = None

    @property
    def used_tokens(self) -> int:
        """Tokens on the tape."""
        return sum(entry.tokens for entry in self.entries)

    @property
    def free_tokens(self) -> int:
        """Tokens that the context has room for."""
        return self.n_ctx - self.used_tokens

    @property
    def price_s(self) -> float | None:
        """Seconds to compute all of it again."""
        return self.used_tokens / self.prefill_tok_s if self.prefill_tok_s else None


class Pace:
    """How fast this runtime computes prompts: tokens a second over the newest few thousand."""

    def __init__(self) -> None:
        self._tokens = 0.0
        self._seconds = 0.0

    @property
    def prefill_tok_s(self) -> float | None:
        """None before anything of some length was computed."""
        return self._tokens / self._seconds if self._seconds else None

    def note(self, usage: Usage) -> None:
        """Takes the prefills of a turn into account; very short ones say little and are left out."""
        for leg in usage.legs:
            computed = leg.prefill_tokens + leg.rebuilt_tokens
            if computed < _LEAST_MEASURED or leg.prefill_s <= 0:
                continue
            self._tokens += computed
            self._seconds += leg.prefill_s
            while self._tokens > _MEMORY_TOKENS:
                self._tokens /= 2
                self._seconds /= 2


@dataclass(frozen=True, slots=True)
class HeadCost:
    """Tokens in front of a conversation: of each tool's schema by name, of worked turns by the owner they look like."""

    tools: tuple[tuple[str, int], ...] = ()
    examples: tuple[tuple[SpanKind, int], ...] = ()


def head_cost(conversation: Conversation) -> HeadCost:
    """What tools and worked turns take of a first prompt, by rendering it without each of them."""
    specs = conversation.specs
    examples: Counter[SpanKind] = Counter()
    try:
        if conversation.preamble:
            examples = _kinds(conversation, specs, has_preamble=True)
            examples.subtract(_kinds(conversation, specs, has_preamble=False))
        tools: list[tuple[str, int]] = []
        if specs:
            full = _length(conversation, specs)
            for index, spec in enumerate(specs):
                without = (*specs[:index], *specs[index + 1 :])
                tools.append((spec.name, max(0, full - _length(conversation, without))))
            rest = full - _length(conversation, ()) - sum(count for _, count in tools)
            tools.append(("", max(0, rest)))
    except TemplateError:
        # A template that refuses such a conversation: all of it counts as the system's.
        return HeadCost()
    return HeadCost(tuple(tools), tuple((kind, max(0, count)) for kind, count in examples.items()))


def make_ledger(conversation: Conversation, head: HeadCost, pace: Pace) -> Ledger:
    """The ledger of a conversation as it stands."""
    tape = conversation.session.tape
    left: Counter[SpanKind] = Counter(tape.kinds)
    rate = pace.prefill_tok_s

    def entry(owner: Owner, tokens: int, name: str = "") -> LedgerEntry:
        return LedgerEntry(owner, tokens, name, tokens / rate if rate else None)

    found: list[LedgerEntry] = []
    tools = [(name, _taken(left, count, (SpanKind.SYSTEM, SpanKind.GLUE))) for name, count in head.tools]
    examples = sum(_taken(left, count, (kind,)) for kind, count in head.examples)
    found.append(entry("system", left.pop(SpanKind.SYSTEM, 0)))
    found += [entry("tool", tokens, name) for name, tokens in tools]
    found.append(entry("examples", examples))
    for kind in SpanKind:
        if kind is not SpanKind.SYSTEM:
            found.append(entry(kind.value, left.pop(kind, 0)))  # pyright: ignore[reportArgumentType]  (SpanKind's values are owners)
    return Ledger(conversation.session.engine.context.n_ctx, tuple(one for one in found if one.tokens), rate)


def _taken(left: Counter[SpanKind], count: int, kinds: Sequence[SpanKind]) -> int:
    """Takes up to `count` tokens off what is left of these kinds; gives how many there were."""
    taken = 0
    for kind in kinds:
        part = min(left[kind], count - taken)
        left[kind] -= part
        taken += part
    return taken


def _kinds(conversation: Conversation, specs: Sequence[ToolSpec], *, has_preamble: bool) -> Counter[SpanKind]:
    entries = conversation.first_prompt([Message("user", "?")], specs=specs, has_preamble=has_preamble)
    return Counter(kind for _, kind in entries)


def _length(conversation: Conversation, specs: Sequence[ToolSpec]) -> int:
    return len(conversation.first_prompt([Message("user", "?")], specs=specs, has_preamble=False))
