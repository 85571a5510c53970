"""What gives way when the context fills: the policies, and what one of your own is asked and may answer."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from edgellm.errors import ConfigError

if TYPE_CHECKING:
    from edgellm.types import Message

NOTICE = "[result dropped to make room: {tokens} tokens]"
_NOTICE_TOKENS = 24


@dataclass(frozen=True, slots=True)
class ContextTurn:
    """One turn of the conversation: a message of the user, and all that came of it.

    `first` is the index of its first message in `Chat.messages`; `tokens` what it takes. `is_fixed`: it cannot be
    dropped, being pinned or still open. `results` are its tool results that may be shortened: (index into
    `Chat.messages`, tokens).
    """

    first: int
    messages: tuple[Message, ...]
    tokens: int
    is_fixed: bool = False
    results: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Crowding:
    """What a policy is asked: which of `turns`, oldest first, give way, so that `wanted_tokens` become free.

    `used_tokens` of `n_ctx` are taken. What is freed beyond the wish is room for later turns.
    """

    turns: tuple[ContextTurn, ...]
    n_ctx: int
    used_tokens: int
    wanted_tokens: int


@dataclass(frozen=True, slots=True)
class Drop:
    """Take a turn (its place in `Crowding.turns`) off the tape, with its calls and results."""

    turn: int


@dataclass(frozen=True, slots=True)
class Shorten:
    """Put `text` in the place of the tool result that is message `message`."""

    message: int
    text: str


@dataclass(frozen=True, slots=True)
class Summarize:
    """Take these turns off the tape; the model says first what was in them, and that stays in their place."""

    turns: tuple[int, ...] = field(default=())


Remedy = Drop | Shorten | Summarize
ContextPolicy = Callable[[Crowding], Sequence[Remedy]]
"""Called when the context fills. What it gives is done and told in a ContextEvicted event; nothing: the turn stops."""


def stop(crowding: Crowding) -> list[Remedy]:
    """Nothing gives way: the answer ends with `context_full`, and a message that does not fit is an error."""
    del crowding
    return []


def evict(crowding: Crowding) -> list[Remedy]:
    """The oldest turns go, as many as it takes."""
    return [Drop(turn) for turn in _oldest(crowding, crowding.wanted_tokens)]


def drop_results(crowding: Crowding) -> list[Remedy]:
    """Old tool results are replaced by a notice, oldest first; where that is not enough, the oldest turns go too."""
    remedies: list[Remedy] = []
    freed = 0
    shortened: dict[int, int] = {}
    for place, turn in enumerate(crowding.turns):
        for message, tokens in turn.results:
            if freed < crowding.wanted_tokens and tokens > 2 * _NOTICE_TOKENS:
                remedies.append(Shorten(message, NOTICE.format(tokens=tokens)))
                freed += tokens - _NOTICE_TOKENS
                shortened[place] = shortened.get(place, 0) + tokens - _NOTICE_TOKENS
    dropped: list[int] = []
    for place, turn in enumerate(crowding.turns):
        if freed >= crowding.wanted_tokens:
            break
        if not turn.is_fixed:
            dropped.append(place)
            freed += turn.tokens - shortened.get(place, 0)
    gone = {message for place in dropped for message, _ in crowding.turns[place].results}
    kept = [one for one in remedies if not (isinstance(one, Shorten) and one.message in gone)]
    return [*kept, *(Drop(place) for place in dropped)]


def summarize(crowding: Crowding) -> list[Remedy]:
    """The oldest turns are summarized by the model, and the summary stays in their place."""
    # The summary takes room itself.
    turns = _oldest(crowding, crowding.wanted_tokens + crowding.n_ctx // 6)
    return [Summarize(tuple(turns))] if turns else []


POLICIES: dict[str, ContextPolicy] = {
    "stop": stop,
    "evict": evict,
    "summarize": summarize,
    "drop-results": drop_results,
}


CONTEXT_POLICIES = tuple(POLICIES)
"""The names of the built-in policies."""


def find_policy(given: str | ContextPolicy) -> tuple[str, ContextPolicy]:
    """(name, policy) of a built-in policy's name, or of a function. Raises ConfigError."""
    if callable(given):
        return getattr(given, "__name__", type(given).__name__), given
    found = POLICIES.get(given)
    if found is None:
        near = difflib.get_close_matches(str(given), POLICIES, n=1)
        raise ConfigError(
            f"context policy {given!r} is unknown.",
            hint=f"Did you mean {near[0]!r}?"
            if near
            else f"There are: {', '.join(POLICIES)}; or a function.",
        )
    return given, found


def _oldest(crowding: Crowding, wanted: int) -> list[int]:
    """Places of the oldest turns that may go, until `wanted` tokens are free."""
    places: list[int] = []
    freed = 0
    for place, turn in enumerate(crowding.turns):
        if freed >= wanted:
            break
        if not turn.is_fixed:
            places.append(place)
            freed += turn.tokens
    return places
