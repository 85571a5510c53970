"""A soft prior on argument values: they are copied from the request, and numbers and examples are not made up."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from edgellm.native.vocabulary import Vocabulary

BEGIN, GO_ON, CLOSE = 2.0, 4.0, 4.0
"""Nats for a token that begins a word of the request, that goes on copying it, and that closes a whole span."""

INVENTED, REPEATED = -6.0, -8.0
"""Nats for a number or an example's value that the request does not hold, and for an item that is in the list."""

_LONGEST_PIECE = 18
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_WORD_START = re.compile(r"(?<![A-Za-z0-9])[A-Za-z0-9(À-ɏ]")
_NUMBER_START = re.compile(r"(?<![0-9.])[0-9]")
_LIST_GOES_ON = re.compile(r"\s*(,|and\b|&|or\b|\+)")
_NUMBER_IN_JSON = re.compile(r"(?:^|\[|, )(-?[0-9.]*)$")


@dataclass(frozen=True, slots=True)
class _Place:
    """Where in a JSON value the next token goes: in a string or a number, of which `written` is there already."""

    is_string: bool
    written: str
    items: tuple[str, ...]
    in_list: bool


def _place(text: str) -> _Place | None:
    """The place at the end of an unfinished JSON value; None where nothing is to be copied there."""
    in_string, is_escaped, start, depth = False, False, 0, 0
    items: list[str] = []
    for index, character in enumerate(text):
        if in_string:
            if is_escaped:
                is_escaped = False
            elif character == "\\":
                is_escaped = True
            elif character == '"':
                in_string = False
                if depth:
                    items.append(text[start:index])
        elif character == '"':
            in_string, start = True, index + 1
        elif character == "[":
            depth += 1
            items.clear()
        elif character == "]":
            depth -= 1
    if in_string:
        before = text[: start - 1].rstrip()
        if not before or before.endswith((":", "[")) or (depth and before.endswith(",")):
            return _Place(True, text[start:], tuple(items), depth > 0)
        return None
    number = _NUMBER_IN_JSON.search(text)
    return _Place(False, number.group(1), tuple(items), depth > 0) if number else None


class CopyBias:
    """The prior for one vocabulary. Making it reads every token once (0.1 s for 49k tokens)."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._token_of: dict[str, int] = {}
        self._with_digits: list[tuple[int, str]] = []
        for token in range(vocabulary.size):
            try:
                text = vocabulary.piece(token).decode()
            except UnicodeDecodeError:
                continue
            self._token_of.setdefault(text, token)
            if any("0" <= character <= "9" for character in text):
                self._with_digits.append((token, text))
        starting = self._starting_with
        self._close_string = starting('"')
        self._next_item = starting('",')
        self._close_list = starting('"]')
        self._close_number = [
            self._token_of[text] for text in (",", "}", "]", "]}") if text in self._token_of
        ]

    def _starting_with(self, start: str) -> list[int]:
        return [token for text, token in self._token_of.items() if text.startswith(start)]

    def apply(self, logits: NDArray[np.float32], value: str, request: str, examples: Sequence[str]) -> None:
        """Adds the prior to logits (n_vocab,), for the token that continues the JSON text `value`.

        `examples` are string values of worked examples, which must not leak into the answer.
        """
        place = _place(value)
        if place is None:
            return
        bias = dict(self._copying(place, request))
        if not place.written:
            bias.update((token, REPEATED) for item in place.items for token in self._beginnings(item))
            if place.is_string:
                for example in examples:
                    if example.lower() not in request.lower():
                        for token in (*self._beginnings(example), *self._beginnings(example.capitalize())):
                            if bias.get(token, 0.0) <= 0.0:
                                bias[token] = INVENTED
        self._numbers(place, request, bias)
        for token, amount in bias.items():
            logits[token] += amount

    def _beginnings(self, text: str) -> Iterator[int]:
        for length in range(1, min(len(text), _LONGEST_PIECE) + 1):
            token = self._token_of.get(text[:length])
            if token is not None:
                yield token

    def _copying(self, place: _Place, request: str) -> Iterator[tuple[int, float]]:
        """Tokens that begin, continue or close a span of the request."""
        written = place.written
        pattern = _WORD_START if place.is_string else _NUMBER_START
        amount = GO_ON if written else BEGIN
        for match in pattern.finditer(request):
            at = match.start()
            if request[at : at + len(written)].lower() != written.lower():
                continue
            rest = request[at + len(written) :]
            if not written and any(rest.lower().startswith(item.lower()) for item in place.items if item):
                continue
            for text in (rest,) if written else (rest, rest.lower()):
                for length in range(1, min(len(text), _LONGEST_PIECE) + 1):
                    piece = text[:length]
                    token = self._token_of.get(piece)
                    if (
                        token is not None
                        and '"' not in piece
                        and (place.is_string or re.fullmatch(r"[0-9.]+", piece))
                    ):
                        yield token, amount
            if written and (not rest or not rest[0].isalnum()) and not _is_one_number_of_many(place, request):
                for token in self._closers(place, rest):
                    yield token, CLOSE

    def _closers(self, place: _Place, rest: str) -> list[int]:
        if not place.is_string:
            return self._close_number
        if place.in_list:
            return self._next_item if _LIST_GOES_ON.match(rest) else self._close_list
        return self._close_string

    def _numbers(self, place: _Place, request: str, bias: dict[int, float]) -> None:
        """Digits come from numbers of the request that are not used up; an expression of all of them is whole."""
        numbers = _NUMBER.findall(request)
        if not numbers:
            return
        found = re.search(r"[0-9][0-9.]*$|$", place.written)
        run = found.group(0) if found else ""
        left = list(numbers)
        for used in re.findall(r"\d+(?:\.\d+)?", place.written[: len(place.written) - len(run)]):
            if used in left:
                left.remove(used)
        for token, text in self._with_digits:
            leading = re.match(r"[0-9]*", text)
            digits = leading.group(0) if leading else ""
            inner = re.search(r"[0-9]+", text)
            grown = run + digits if digits else inner.group(0) if inner else ""
            if not any(number.startswith(grown) for number in left):
                bias[token] = INVENTED
        is_expression = re.search(r"[-+*/]", place.written) and not re.search(r"[A-Za-z]", place.written)
        if place.is_string and left == [run] and is_expression:
            for token in self._close_string:
                bias[token] = bias.get(token, 0.0) + CLOSE


def _is_one_number_of_many(place: _Place, request: str) -> bool:
    """A number alone is hardly the whole value where the request holds several: an expression, perhaps."""
    return (
        place.is_string
        and len(_NUMBER.findall(request)) > 1
        and re.fullmatch(r"[0-9.]+", place.written) is not None
    )
