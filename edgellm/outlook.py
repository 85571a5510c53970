"""What gives way next in a chat as it stands, and what that would cost: told ahead of time, nothing is done."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgellm.context_policy import Crowding, Drop, Shorten

if TYPE_CHECKING:
    from edgellm.context_policy import ContextTurn
    from edgellm.ledger import Pace
    from edgellm.upkeep import Upkeep


@dataclass(frozen=True, slots=True)
class ContextOutlook:
    """What a chat's context policy would let go first, if nothing but the length of the tape changed.

    It is asked when the tape has `limit_tokens` tokens. Of `turns`, those at the places `leaving` go; `is_summarized`:
    once the model has summed them up. Of the tool results in `shortened` (indices into `Chat.messages`) a notice
    stays. `removed_tokens` become free, summaries and notices not counted. `behind_tokens` stand behind the first
    change: computed again in about `price_s` seconds (None: nothing has been measured yet), unless `is_moved`: then
    their memory is moved up, and they cost nothing.
    """

    policy: str
    limit_tokens: int
    turns: tuple[ContextTurn, ...] = ()
    leaving: tuple[int, ...] = ()
    shortened: tuple[int, ...] = ()
    is_summarized: bool = False
    removed_tokens: int = 0
    behind_tokens: int = 0
    is_moved: bool = False
    price_s: float | None = None


def outlook(upkeep: Upkeep, pace: Pace) -> ContextOutlook:
    """The outlook of the conversation that `upkeep` keeps. Raises PluginError where a policy of the user's fails."""
    turns = upkeep.turns()
    limit, wanted = upkeep.limit_tokens, upkeep.wanted_tokens
    n_ctx = upkeep.n_ctx
    remedies = upkeep.asked(Crowding(turns, n_ctx, limit, wanted))
    results = {message: tokens for turn in turns for message, tokens in turn.results}
    leaving: set[int] = set()
    shortened: list[int] = []
    is_summarized = False
    for remedy in remedies:
        if isinstance(remedy, Drop):
            leaving.add(remedy.turn)
        elif isinstance(remedy, Shorten):
            shortened.append(remedy.message)
        else:
            leaving.update(remedy.turns)
            is_summarized = True
    removed = sum(turns[place].tokens for place in leaving) + sum(results[message] for message in shortened)
    changed = [place for place, turn in enumerate(turns) if {m for m, _ in turn.results} & set(shortened)]
    first = min([*leaving, *changed], default=len(turns))
    behind = sum(turn.tokens for place, turn in enumerate(turns) if place > first and place not in leaving)
    is_moved = bool(leaving) and not (shortened or is_summarized) and upkeep.is_movable
    rate = pace.prefill_tok_s
    return ContextOutlook(
        policy=upkeep.name,
        limit_tokens=limit,
        turns=turns,
        leaving=tuple(sorted(leaving)),
        shortened=tuple(shortened),
        is_summarized=is_summarized,
        removed_tokens=removed,
        behind_tokens=behind,
        is_moved=is_moved,
        price_s=0.0 if is_moved else behind / rate if rate else None,
    )
