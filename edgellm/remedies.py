"""What a context policy answered, looked at before anything is done of it."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import TYPE_CHECKING, cast

from edgellm.context_policy import Drop, Shorten, Summarize
from edgellm.errors import ConfigError, EdgeError, PluginError

if TYPE_CHECKING:
    from edgellm.context_policy import ContextPolicy, Crowding, Remedy

_PAGE = "docs/writing-a-policy.md says what it may give."
_SHOWN = 80


def answer_of(name: str, policy: ContextPolicy, crowding: Crowding) -> list[Remedy]:
    """What the policy answers. Raises PluginError where it fails or gives something else than remedies, ConfigError
    for what cannot be done."""
    try:
        # A policy is anybody's function: its type is what it says, not what it does.
        given = cast("object", policy(crowding))
        if not isinstance(given, Iterable):
            raise PluginError(
                f"context policy {name!r} gave {_words(given)}, which is no list.", hint=f"Give []; {_PAGE}"
            )
        answers = list(cast("Iterable[object]", given))
    except EdgeError:
        raise
    except Exception as error:
        raise PluginError(
            f"context policy {name!r} failed: {type(error).__name__}: {error}.",
            hint="Correct it, or take a built-in one.",
        ) from error
    remedies = [_remedy(name, answer) for answer in answers]
    _check(name, remedies, crowding)
    return remedies


def _remedy(name: str, answer: object) -> Remedy:
    """The answer with plain numbers and texts in it. Raises PluginError."""
    try:
        if isinstance(answer, Drop):
            return Drop(operator.index(answer.turn))
        if isinstance(answer, Shorten):
            return Shorten(operator.index(answer.message), "".join((answer.text,)))
        if isinstance(answer, Summarize) and (turns := tuple(map(operator.index, answer.turns))):
            return Summarize(turns)
    except TypeError:
        pass
    raise PluginError(
        f"context policy {name!r} gave {_words(answer)}, which says nothing that could be done.",
        hint=f"Give Drop(place), Shorten(message, text) or Summarize((place, ...)); {_PAGE}",
    )


def _check(name: str, remedies: list[Remedy], crowding: Crowding) -> None:
    results = {message for turn in crowding.turns for message, _ in turn.results}
    places: list[int] = []
    for remedy in remedies:
        if isinstance(remedy, Shorten):
            is_known = remedy.message in results
        else:
            own = [remedy.turn] if isinstance(remedy, Drop) else list(remedy.turns)
            is_known = all(
                0 <= place < len(crowding.turns) and not crowding.turns[place].is_fixed for place in own
            )
            places += own
        if not is_known:
            raise ConfigError(
                f"context policy {name!r} asks for {remedy}, which cannot be done.",
                hint="Turns that are fixed stay, and only the results that a turn lists can be shortened.",
            )
    if len(set(places)) != len(places):
        raise ConfigError(f"context policy {name!r} names a turn twice.", hint="Name each turn once.")


def _words(answer: object) -> str:
    """The answer in one short line."""
    try:
        words = " ".join(repr(answer).split())
    except Exception:  # an answer whose own __repr__ raises
        words = ""
    if not words:
        return f"a {type(answer).__name__}"
    return words if len(words) <= _SHOWN else f"{words[:_SHOWN]}..."
