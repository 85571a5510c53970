"""Whether to guess ahead: tokens that may follow are computed along with the next one, while that is worth it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Literal, Protocol

from edgellm.engine.ngram import NgramIndex

if TYPE_CHECKING:
    from collections.abc import Sequence

SpeculateMode = Literal["off", "auto", "ngram", "draft"]

FIXED_GUESSES = 4
"""Tokens guessed at a time in modes "ngram" and "draft": nothing is measured, the same seed gives the same batches."""

READ_TOKENS = 32_768
"""So much of cut results is kept to guess from: about 25 MB."""

_SIZES = (2, 4, 8)
_WORTH = 1.03
_MOST_LOSS = 0.015  # of the decode time, so that with what cannot be measured it stays under 2 %
# Tokens whose decode time counts for it: what one text has gained, the next one may not lose.
_WINDOW = 800
_AVERAGE = 0.2
_DOUBTS = 0.5  # of a guess about which nothing is known yet


class Drafter(Protocol):
    """Guesses what follows a tape."""

    def guess(self, tape: Sequence[int], count: int) -> tuple[list[int], int]:
        """At most `count` tokens, and how sure they are (a small whole number; 0 for no guess)."""
        ...


class Speculation:
    """The guesses of one session, and the account of what they cost and bring.

    In mode "auto" a guess is made only while (1 + tokens expected to hold) ÷ cost of that batch beats a token at a
    time, by this session's own measurements; all guesses together may cost 1.5 % of the decode time (of 800 tokens at
    most: what was gained before does not pay for more).
    Guessed tokens are never on the tape: they only let the memory, and logits, be there when the chain draws them.
    """

    def __init__(self, mode: SpeculateMode, drafter: Drafter | None = None) -> None:
        self.mode: SpeculateMode = mode
        self.index = NgramIndex()
        self._drafter: Drafter = drafter or self.index
        self.guessed_tokens = 0
        self.free_tokens = 0
        self._single_s = 0.0
        self._batch_s: dict[int, float] = {}
        self._holds: dict[int, float] = {}
        self._sureness = 0
        self._count = 0
        self._started = 0.0
        self._guess_s = 0.0
        self._total_s = 0.0
        self._balance_s = 0.0
        self._cost_s = 0.0
        self._held = 0
        self._read_tokens = 0

    def fork(self) -> Speculation:
        """The same for a session that goes its own way; what was measured is taken along."""
        shared = None if self._drafter is self.index else self._drafter
        other = Speculation(self.mode, shared)
        other.index = self.index.fork()
        other._drafter = shared or other.index
        other._single_s, other._batch_s = self._single_s, dict(self._batch_s)
        other._read_tokens = self._read_tokens
        other._holds = dict(self._holds)
        other._total_s, other._balance_s = self._total_s, self._balance_s
        return other

    def read(self, tokens: Sequence[int]) -> None:
        """Guesses may come from this text as well, which the reader of the tape has seen only in part. Where another
        model guesses, or READ_TOKENS of such texts are known, it is left out."""
        room = READ_TOKENS - self._read_tokens
        if self._drafter is self.index and room > 0:
            self.index.add_text(tokens[:room])
            self._read_tokens += min(room, len(tokens))

    def changed(self, start: int) -> None:
        """The tape is not what it was from `start` on: it was cut there, or some was taken out of it."""
        self.index.changed(start)

    # -- what to guess ---------------------------------------------------------------------------------

    def guess(self, tape: Sequence[int], room: int) -> list[int]:
        """Tokens to compute along with the next one; empty where that is not worth it. `room`: at most so many."""
        self._close_guess()
        if self.mode == "off" or room < 1:
            return []
        if self.mode != "auto":
            found, self._sureness = self._drafter.guess(tape, min(FIXED_GUESSES, room))
            return found
        if not self._single_s:
            return []  # first what a token costs by itself
        started = time.perf_counter()
        found, self._sureness = self._drafter.guess(tape, min(_SIZES[-1], room))
        self._guess_s = time.perf_counter() - started
        return found[: self._worth(len(found))] if found else []

    def _worth(self, most: int) -> int:
        """How many guesses pay best, at most `most`; 0 where none do."""
        hold = self._holds.get(self._sureness, _DOUBTS)
        best, best_gain = 0, _WORTH
        for size in _SIZES:
            size = min(size, most)
            # Of a run of guesses each holds only where those before it did.
            expected = sum(hold**place for place in range(1, size + 1))
            gain = (1 + expected) * self._single_s / self._batch_cost(size)
            if gain > best_gain and self._may_lose(self._batch_cost(size) - self._single_s):
                best, best_gain = size, gain
        if best:
            return best
        # Nothing promises to pay. Now and then a short guess is made all the same: a text may begin to repeat itself.
        probe = min(_SIZES[0], most)
        return probe if self._may_lose(2 * (self._batch_cost(probe) - self._single_s)) else 0

    def _batch_cost(self, guesses: int) -> float:
        """Seconds of a batch of one token and so many guesses: measured, else as for the nearest size known."""
        known = self._batch_s.get(guesses)
        if known is not None:
            return known
        nearest = min(self._batch_s, key=lambda size: abs(size - guesses), default=None)
        if nearest is None:
            return self._single_s * (1 + 0.5 * guesses)
        per_guess = max(0.0, (self._batch_s[nearest] - self._single_s) / nearest)
        return self._single_s + per_guess * guesses

    def _may_lose(self, seconds: float) -> bool:
        return min(self._balance_s, 0.0) - max(0.0, seconds) >= -_MOST_LOSS * self._total_s

    # -- what came of it -------------------------------------------------------------------------------

    def begin(self, guesses: int) -> None:
        """A batch of the next token and so many guesses is about to be computed."""
        self._count = guesses
        self._started = time.perf_counter()

    def end(self) -> None:
        """It is computed."""
        # Guessing costs as well: with a draft model it is most of it.
        seconds = time.perf_counter() - self._started + (self._guess_s if self._count else 0.0)
        self._total_s += seconds
        if self._single_s:
            self._total_s = min(self._total_s, _WINDOW * self._single_s)
        if not self._count:
            # A neighbour on the machine makes some tokens slow: those count less.
            usual = self._single_s or seconds
            self._single_s += _AVERAGE * (min(seconds, 2 * usual) - usual) if self._single_s else seconds
            return
        usual = self._batch_s.get(self._count, seconds)
        self._batch_s[self._count] = usual + _AVERAGE * (seconds - usual)
        self.guessed_tokens += self._count
        self._cost_s, self._held = seconds, 0

    def held(self) -> None:
        """A guess was what the chain drew: its decode is spared."""
        self._held += 1
        self.free_tokens += 1

    def _close_guess(self) -> None:
        """Books the last guess: nothing of it is left."""
        if not self._count:
            return
        self._balance_s += (1 + self._held) * self._single_s - self._cost_s
        # Old gains do not pay for new losses: the bound is kept wherever one looks.
        self._balance_s = min(self._balance_s, 0.0)
        tried = min(self._count, self._held + 1)
        for place in range(tried):
            hold = self._holds.get(self._sureness, _DOUBTS)
            self._holds[self._sureness] = hold + _AVERAGE * ((place < self._held) - hold)
        self._count = 0
