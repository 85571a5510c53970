"""Whether to guess ahead: tokens that may follow are computed along with the next one, while that is worth it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Literal

from edgellm.engine.draft_account import DraftAccount
from edgellm.engine.ngram import NgramIndex

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgellm.engine.drafter import Drafter

SpeculateMode = Literal["off", "auto", "ngram", "draft"]

FIXED_GUESSES = 4
"""Tokens guessed at a time in modes "ngram" and "draft": nothing is measured, the same seed gives the same batches."""

READ_TOKENS = 32_768
"""So much of cut results is kept to guess from: about 25 MB."""

READ_AT_ONCE = 128
"""Tokens of the tape that a draft model reads in mode "draft" before one token of ours is computed."""

_SIZES = (2, 4, 8)
_WORTH = 1.03
_MOST_LOSS = 0.015  # of the decode time, so that with what cannot be measured it stays under 2 %
# Tokens whose share of that is kept where it was not lost: what one text has spared, the next one may not lose.
_WINDOW = 300
_AVERAGE = 0.2
_DOUBTS = 0.5  # of a guess about which nothing is known yet
# So many tokens of the tape found again are likelier to go on as they did than as a draft model says.
_LONG_RUN = 4
_DRAFTED = -1  # how sure a draft model is: it does not say


class Speculation:
    """The guesses of one session, and the account of what they cost and bring.

    In mode "auto" a guess is made only while (1 + tokens expected to hold) ÷ cost of that batch, with what a draft
    model takes for it, beats a token at a time, by this session's own measurements; all guesses together may cost
    1.5 % of the decode time (what was not lost of 300 tokens' time is kept; what was gained does not pay for more).
    Guessed tokens are never on the tape: they only let the memory, and logits, be there when the chain draws them.

    A `drafter` that costs something is asked where the tape, and the texts that were read, have no long run to go
    by; one that costs nothing, in their place.
    """

    def __init__(
        self, mode: SpeculateMode, drafter: Drafter | None = None, index: NgramIndex | None = None
    ) -> None:
        self.mode: SpeculateMode = mode
        self.index = index or NgramIndex()
        self._drafter = drafter
        is_costly = drafter is not None and drafter.cost > 0
        self._free: Drafter = self.index if drafter is None or is_costly else drafter
        self._draft = DraftAccount(drafter) if drafter is not None and is_costly else None
        self.guessed_tokens = 0
        self.free_tokens = 0
        self._single_s = 0.0
        self._batch_s: dict[int, float] = {}
        self._holds: dict[int, float] = {}
        self._sureness = 0
        self._count = 0
        self._started = 0.0
        # What may be lost now; below 0, so much was lost that was not there to lose.
        self._credit_s = 0.0
        self._cost_s = 0.0
        self._held = 0
        self._read_tokens = 0
        self._is_drafts_turn = False

    def fork(self) -> Speculation:
        """The same for a session that goes its own way; what was measured is taken along."""
        other = self.renewed(self.mode, self._drafter)
        other._single_s, other._batch_s = self._single_s, dict(self._batch_s)
        other._holds = dict(self._holds)
        other._credit_s = self._credit_s
        if self._draft is not None and other._draft is not None:
            other._draft.take(self._draft)
        return other

    def renewed(self, mode: SpeculateMode, drafter: Drafter | None = None) -> Speculation:
        """Another way of guessing, which knows the texts that this one was given."""
        other = Speculation(mode, drafter, self.index.fork())
        other._read_tokens = self._read_tokens
        return other

    def read(self, tokens: Sequence[int]) -> None:
        """Guesses may come from this text as well, which the reader of the tape has seen only in part. Where
        READ_TOKENS of such texts are known, it is left out."""
        room = READ_TOKENS - self._read_tokens
        if room > 0:
            self.index.add_text(tokens[:room])
            self._read_tokens += min(room, len(tokens))

    def changed(self, start: int) -> None:
        """The tape is not what it was from `start` on: it was cut there, or some was taken out of it."""
        self.index.changed(start)

    def abort(self) -> None:
        """Makes a guess that is under way end soon, with nothing found. Safe from any thread."""
        if self._drafter is not None:
            self._drafter.abort()

    def listen(self) -> None:
        """Guesses again: an `abort` before this one is over."""
        if self._drafter is not None:
            self._drafter.listen()

    # -- what to guess ---------------------------------------------------------------------------------

    def guess(self, tape: Sequence[int], room: int) -> list[int]:
        """Tokens to compute along with the next one; empty where that is not worth it. `room`: at most so many."""
        self._close_guess()
        if self.mode == "off" or room < 1:
            return []
        if self.mode != "auto":
            return self._guess_always(tape, min(FIXED_GUESSES, room))
        if not self._single_s:
            return []  # first what a token costs by itself
        found, self._sureness = self._free.guess(tape, min(_SIZES[-1], room))
        if found:
            found = found[: self._worth(len(found))]
        return found or self._guess_drafted(tape, min(_SIZES[-1], room))

    def _guess_always(self, tape: Sequence[int], count: int) -> list[int]:
        found, sureness = self._free.guess(tape, count)
        if self._draft is None or sureness >= _LONG_RUN:
            return found
        drafter = self._draft.drafter
        return drafter.guess(tape, count)[0] if drafter.read(tape, READ_AT_ONCE) else []

    def _worth(self, most: int) -> int:
        """How many guesses that cost nothing pay best, at most `most`; 0 where none do."""
        best = self._best(most)
        if best:
            return best
        if self._draft is not None:
            if self._sureness < _LONG_RUN or self._is_drafts_turn:
                return 0
            self._is_drafts_turn = True
        # Nothing promises to pay. Now and then a short guess is made all the same: a text may begin to repeat itself.
        probe = min(_SIZES[0], most)
        return probe if self._may_lose(2 * self._loss(probe)) else 0

    def _best(self, most: int, draft: DraftAccount | None = None, unread: int = 0) -> int:
        """How many guesses pay best, with what a draft model takes for them; 0 where none promise to pay."""
        hold = self._holds.get(self._sureness, _DOUBTS)
        best, best_gain = 0, _WORTH
        for size in _SIZES:
            size = min(size, most)
            drafting_s = draft.seconds(unread, size, self._single_s) if draft is not None else 0.0
            # Of a run of guesses each holds only where those before it did.
            expected = sum(hold**place for place in range(1, size + 1))
            gain = (1 + expected) * self._single_s / (self._batch_cost(size) + drafting_s)
            if gain > best_gain and self._may_lose(self._loss(size) + drafting_s):
                best, best_gain = size, gain
        return best

    def _guess_drafted(self, tape: Sequence[int], most: int) -> list[int]:
        """What the draft model says, where it is worth asking; it is asked only then, for what it takes is spent."""
        draft = self._draft
        if draft is None or not self._can_pay(draft):
            return []
        self._sureness = _DRAFTED
        window = draft.window(self._kept_s / 2, self._single_s)
        unread = min(draft.drafter.unread(tape), window)
        portion = draft.measurable(unread)
        if portion < unread:
            # What reading so much costs is not known: first a part that can be afforded whatever it costs.
            if self._can_draft(draft.reading_s(portion, self._single_s)):
                self._credit_s -= draft.read(tape, portion, window)
            return []
        count = self._best(most, draft, unread)
        if not count:
            count = min(_SIZES[0], most)
            drafting_s = draft.seconds(unread, count, self._single_s)
            if not self._can_draft(drafting_s + 2 * self._loss(count)):
                return []
        found, seconds = draft.guess(tape, count, window)
        self._credit_s -= seconds
        self._is_drafts_turn = False
        return found

    def _can_pay(self, draft: DraftAccount) -> bool:
        """Would guesses of the draft model pay if all of them held, and their rows in the batch cost nothing?"""
        most_s = self._single_s + draft.seconds(1, _SIZES[-1], self._single_s)
        return (1 + _SIZES[-1]) * self._single_s > _WORTH * most_s

    def _can_draft(self, seconds: float) -> bool:
        if seconds > self._kept_s:
            self._is_drafts_turn = False  # never: others need not wait for it
        return self._may_lose(seconds)

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

    def _loss(self, guesses: int) -> float:
        """What a batch with so many guesses costs for nothing, where none of them holds."""
        return max(0.0, self._batch_cost(guesses) - self._single_s)

    def _may_lose(self, seconds: float) -> bool:
        return self._credit_s >= seconds

    @property
    def _kept_s(self) -> float:
        return _MOST_LOSS * _WINDOW * self._single_s

    def _earn(self, tokens: int) -> None:
        """So many tokens were drawn: some of what they take by themselves may be lost."""
        self._credit_s = min(self._kept_s, self._credit_s + _MOST_LOSS * tokens * self._single_s)

    # -- what came of it -------------------------------------------------------------------------------

    def begin(self, guesses: int) -> None:
        """A batch of the next token and so many guesses is about to be computed."""
        self._close_guess()
        self._count = guesses
        self._started = time.perf_counter()

    def end(self) -> None:
        """It is computed."""
        seconds = time.perf_counter() - self._started
        if not self._count:
            # A neighbour on the machine makes some tokens slow: those count less.
            usual = self._single_s or seconds
            self._single_s += _AVERAGE * (min(seconds, 2 * usual) - usual) if self._single_s else seconds
            self._earn(1)
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
        self._credit_s += (1 + self._held) * self._single_s - self._cost_s
        # Old gains do not pay for new losses: the bound is kept wherever one looks.
        self._earn(1 + self._held)
        tried = min(self._count, self._held + 1)
        for place in range(tried):
            hold = self._holds.get(self._sureness, _DOUBTS)
            self._holds[self._sureness] = hold + _AVERAGE * ((place < self._held) - hold)
        self._count = 0
