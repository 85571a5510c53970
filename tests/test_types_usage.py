"""What a chat has cost: sums that stay true while old legs are no longer listed."""

from __future__ import annotations

import random
from dataclasses import fields

from edgellm.usage import Leg, Usage

NUMBERS = [item.name for item in fields(Leg) if item.name != "finish_reason"]
SUMS = [name for name in NUMBERS if isinstance(getattr(Usage, name, None), property)]


def _turns(count: int) -> list[Usage]:
    numbers = random.Random(4)
    return [
        Usage(tuple(Leg(**{name: numbers.randint(0, 9) for name in NUMBERS}) for _ in range(1 + turn % 3)))
        for turn in range(count)
    ]


def test_bounded_usage_says_what_the_whole_one_says() -> None:
    assert len(SUMS) >= 9
    whole = bounded = Usage()
    for usage in _turns(40):
        whole += usage
        bounded = (bounded + usage).bounded(8)
        assert [getattr(bounded, name) for name in SUMS] == [getattr(whole, name) for name in SUMS]
        assert bounded.leg_count == whole.leg_count == len(whole.legs)
        assert bounded.all_reused_tokens == whole.all_reused_tokens
        assert bounded.decode_tok_s == whole.decode_tok_s
        assert len(bounded.legs) <= 8
        assert bounded.legs[0] == whole.legs[0]
    assert bounded.legs[1:] == whole.legs[-7:]
    # What no property sums is in the leg of the others too.
    assert bounded.earlier is not None
    assert bounded.earlier.guided_tokens == sum(leg.guided_tokens for leg in whole.legs[1:-7])


def test_two_bounded_usages_add_up() -> None:
    turns = _turns(30)
    first, second = Usage(), Usage()
    for usage in turns[:15]:
        first = (first + usage).bounded(4)
    for usage in turns[15:]:
        second = (second + usage).bounded(4)
    whole = sum(turns, Usage())
    assert (first + second).bounded(4).prefill_tokens == whole.prefill_tokens
    assert (first + second).leg_count == whole.leg_count
    assert (first + second).reused_tokens == whole.reused_tokens


def test_short_usage_is_left_as_it_is() -> None:
    usage = sum(_turns(3), Usage())
    assert usage.bounded(256) is usage
    assert usage.earlier is None
