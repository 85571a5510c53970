"""What a turn has cost: tokens and seconds of each uninterrupted decode, and their sums."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True, slots=True)
class Leg:
    """One uninterrupted decode: from a prefill to the token that ended it.

    `reused_tokens` were in the KV cache already, or taken from disk; `rebuilt_tokens` had to be prefilled again
    because the memory could not be cut; `forced_tokens` are decode_tokens that nobody drew: the grammar left no
    choice, or a repair wrote them. `repaired_calls` were broken and written again; `removed_tokens` of earlier
    turns were taken off the tape. `free_tokens` are decode_tokens that had been guessed and computed along with
    another one. `ahead_tokens` of the prompt had been computed before it was there: while the user typed, or a tool
    ran; they are in none of the other numbers.
    """

    prefill_tokens: int
    reused_tokens: int
    decode_tokens: int
    forced_tokens: int = 0
    rebuilt_tokens: int = 0
    guided_tokens: int = 0
    repaired_calls: int = 0
    removed_tokens: int = 0
    free_tokens: int = 0
    ahead_tokens: int = 0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    finish_reason: str = ""


@dataclass(frozen=True, slots=True)
class Usage:
    """Sums over the legs of a turn (or of a chat).

    A chat lists its first leg and its newest ones; `earlier` is the sum of the `earlier_legs` between them.
    """

    legs: tuple[Leg, ...] = ()
    earlier: Leg | None = None
    earlier_legs: int = 0

    @property
    def prefill_tokens(self) -> int:
        """Tokens computed in prefill."""
        return sum(leg.prefill_tokens for leg in self._all)

    @property
    def reused_tokens(self) -> int:
        """Tokens of the first leg that were in the KV cache already, or taken from disk."""
        return self.legs[0].reused_tokens if self.legs else 0

    @property
    def decode_tokens(self) -> int:
        """Tokens drawn or forced."""
        return sum(leg.decode_tokens for leg in self._all)

    @property
    def rebuilt_tokens(self) -> int:
        """Tokens prefilled again because the memory could not be cut."""
        return sum(leg.rebuilt_tokens for leg in self._all)

    @property
    def forced_tokens(self) -> int:
        """Decoded tokens that were not drawn."""
        return sum(leg.forced_tokens for leg in self._all)

    @property
    def free_tokens(self) -> int:
        """Decoded tokens that needed no decode of their own: they had been guessed."""
        return sum(leg.free_tokens for leg in self._all)

    @property
    def ahead_tokens(self) -> int:
        """Tokens of prompts that had been computed before the prompts were there."""
        return sum(leg.ahead_tokens for leg in self._all)

    @property
    def repaired_calls(self) -> int:
        """Calls that were broken and written again."""
        return sum(leg.repaired_calls for leg in self._all)

    @property
    def prefill_s(self) -> float:
        """Seconds spent in prefill."""
        return sum(leg.prefill_s for leg in self._all)

    @property
    def decode_s(self) -> float:
        """Seconds spent decoding and sampling."""
        return sum(leg.decode_s for leg in self._all)

    @property
    def decode_tok_s(self) -> float:
        """Tokens decoded per second; 0 where nothing was decoded."""
        return self.decode_tokens / self.decode_s if self.decode_s > 0 else 0.0

    @property
    def leg_count(self) -> int:
        """How many legs there were, those that are not listed included."""
        return len(self.legs) + self.earlier_legs

    @property
    def all_reused_tokens(self) -> int:
        """Tokens that were in the KV cache already, or taken from disk, summed over all legs."""
        return sum(leg.reused_tokens for leg in self._all)

    @property
    def _all(self) -> tuple[Leg, ...]:
        return self.legs if self.earlier is None else (*self.legs, self.earlier)

    def __add__(self, other: Usage) -> Usage:
        folded = [usage.earlier for usage in (self, other) if usage.earlier is not None]
        earlier = _summed(folded) if folded else None
        return Usage(self.legs + other.legs, earlier, self.earlier_legs + other.earlier_legs)

    def bounded(self, count: int) -> Usage:
        """The same sums with at most `count` legs listed (2 or more): the first one, and the newest."""
        if len(self.legs) <= count:
            return self
        first, middle, newest = self.legs[:1], self.legs[1 : 1 - count], self.legs[1 - count :]
        folded = middle if self.earlier is None else (self.earlier, *middle)
        return Usage((*first, *newest), _summed(folded), self.earlier_legs + len(middle))


def _summed(legs: Iterable[Leg]) -> Leg:
    """One leg with the sums of all numbers."""
    legs = list(legs)
    names = [item.name for item in fields(Leg) if item.name != "finish_reason"]
    # Any: some are counts, some seconds.
    sums: dict[str, Any] = {name: sum(getattr(leg, name) for leg in legs) for name in names}
    return Leg(**sums)
