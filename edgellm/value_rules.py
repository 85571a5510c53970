"""What the fields of options take, in words and as a question."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING, Any

from edgellm.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

LARGEST = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Rule:
    """What a field takes: in words that follow "is not", and as a question."""

    words: str
    # Any: whatever somebody wrote in a catalogue or gave as an argument.
    accepts: Callable[[Any], bool]

    def or_none(self) -> Rule:
        """The same, or None."""
        return Rule(f"{self.words}, or None", lambda value: value is None or self.accepts(value))


def is_whole(value: Any, low: int, high: int) -> bool:
    """Whether it is a whole number within these bounds, and no bool."""
    return not isinstance(value, bool) and isinstance(value, Integral) and low <= int(value) <= high


def whole(high: int = LARGEST, *, low: int = 0) -> Rule:
    """A whole number within these bounds."""
    return Rule(f"a whole number from {low} to {high:,}", lambda value: is_whole(value, low, high))


def one_of(*choices: str) -> Rule:
    """One of these words."""
    return Rule(f"one of {', '.join(choices)}", lambda value: isinstance(value, str) and value in choices)


def several(what: str, is_one: Callable[[Any], bool]) -> Rule:
    """A tuple or list whose members pass a question."""
    return Rule(
        f"a tuple of {what}",
        lambda value: isinstance(value, tuple | list) and all(map(is_one, value)),  # pyright: ignore[reportUnknownArgumentType]
    )


def instance(words: str, *kinds: type) -> Rule:
    """An object of one of these classes."""
    return Rule(words, lambda value: isinstance(value, kinds))


SWITCH = instance("True or False", bool)
TEXT = instance("a text", str)


def check(rules: Mapping[str, Rule], values: Mapping[str, Any], *, where: str) -> None:
    """Raises ConfigError for the first value that its rule does not accept; `where` begins its message. What has no
    rule is not looked at."""
    for name, value in values.items():
        rule = rules.get(name)
        if rule is not None and not rule.accepts(value):
            raise ConfigError(
                f"{where}{name}={value!r} is not {rule.words}.",
                hint=f"Give one that is, or leave {name} out.",
            )
