"""What gives way when the context fills: the policies, and what one of your own is asked and may answer."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar, overload

from edgellm.errors import ConfigError

if TYPE_CHECKING:
    from edgellm.types import Message

NOTICE = "[result dropped to make room: {tokens} tokens]"
_NOTICE_TOKENS = 24
# What discovery looks for (edgellm.plugins), which knows nothing of policies.
_MARK, _NAME = "__edgellm_plugin__", "__edgellm_name__"


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

    turns: tuple[int, ...]


Remedy = Drop | Shorten | Summarize
ContextPolicy = Callable[[Crowding], Sequence[Remedy]]
"""Called when the context fills. What it gives is done and told in a ContextEvicted event; nothing: the turn stops."""

PolicyT = TypeVar("PolicyT", bound=ContextPolicy)


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


class PolicyRegistry:
    """Policies by name. `finder`, if set, is called once, at the first name nobody has registered."""

    def __init__(self, built_in: dict[str, ContextPolicy]) -> None:
        self._built_in = built_in
        self._others: dict[str, ContextPolicy] = {}
        self.finder: Callable[[], None] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The built-in policies' names, then those that were registered."""
        return (*self._built_in, *self._others)

    def register(self, policy: ContextPolicy) -> None:
        """Makes a decorated policy known by its name. Raises ConfigError where a built-in one has that name."""
        name = _name_of(policy)
        if name in self._built_in:
            raise ConfigError(
                f"the context policy {name!r} has the name of a built-in one.",
                hint="Give it another name: @edgellm.policy(name=...).",
            )
        self._others[name] = policy

    def get(self, name: str) -> ContextPolicy | None:
        """The policy of that name, or None."""
        found = self._built_in.get(name) or self._others.get(name)
        if found is None and self.finder is not None:
            finder, self.finder = self.finder, None
            finder()
            found = self._others.get(name)
        return found


CONTEXT_POLICIES: tuple[str, ...] = ("stop", "evict", "summarize", "drop-results")
"""The names of the built-in policies."""

POLICIES = PolicyRegistry(
    dict(zip(CONTEXT_POLICIES, (stop, evict, summarize, drop_results), strict=True)),
)


def context_policies() -> tuple[str, ...]:
    """The names of all policies that are known: the built-in ones, and plugins' after `discover_policies`."""
    return POLICIES.names


@overload
def policy(function: PolicyT, /) -> PolicyT: ...
@overload
def policy(*, name: str) -> Callable[[PolicyT], PolicyT]: ...
def policy(function: PolicyT | None = None, /, *, name: str = "") -> PolicyT | Callable[[PolicyT], PolicyT]:
    """Makes a function a context policy that plugins offer: it takes a Crowding and gives a list of Drop, Shorten and
    Summarize.

    It goes by `name`, else by its own name. Raises ConfigError for what takes no Crowding.
    """

    def decorate(decorated: PolicyT) -> PolicyT:
        own = str(name or getattr(decorated, "__name__", "")) or type(decorated).__name__
        if isinstance(decorated, type) or not callable(decorated) or not _takes_one(decorated):
            raise ConfigError(
                f"the context policy {own!r} is no function of one argument, the Crowding.",
                hint="docs/writing-a-policy.md shows a complete one.",
            )
        setattr(decorated, _MARK, "policy")
        setattr(decorated, _NAME, own)
        return decorated

    return decorate if function is None else decorate(function)


def find_policy(given: str | ContextPolicy) -> tuple[str, ContextPolicy]:
    """(name, policy) of a policy's name, or of a function. Raises ConfigError."""
    if callable(given):
        return _name_of(given), given
    found = POLICIES.get(given)
    if found is None:
        near = difflib.get_close_matches(str(given), POLICIES.names, n=1)
        raise ConfigError(
            f"context policy {given!r} is unknown.",
            hint=f"Did you mean {near[0]!r}?"
            if near
            else f"There are: {', '.join(POLICIES.names)}; or a function.",
        )
    return given, found


def _name_of(policy: ContextPolicy) -> str:
    return getattr(policy, _NAME, "") or getattr(policy, "__name__", type(policy).__name__)


def _takes_one(function: Callable[..., object]) -> bool:
    try:
        inspect.signature(function).bind(None)
    except (TypeError, ValueError):
        return False
    return True


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
