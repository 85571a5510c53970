"""Answers that go round in circles: found, said once, and not seen where there are none."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted_chats import events_of, scripted_chat

import edgellm
from edgellm.circling import period


@given(st.lists(st.integers(0, 9), min_size=1, max_size=60), st.integers(0, 50))
def test_what_is_repeated_long_enough_is_found(part: list[int], extra: int) -> None:
    start = [*range(100, 100 + extra)]
    times = max(5, -(-160 // len(part)))
    found = period([*start, *part * times])
    # A part may itself be made of repetitions of a smaller one.
    assert 0 < found <= len(part) and part * 2 == (part[:found] * (2 * len(part)))[: 2 * len(part)]
    assert not period([*start, *part * times, 99])


@given(st.lists(st.integers(0, 3), max_size=150))
def test_a_short_run_is_none(tokens: list[int]) -> None:
    assert period(tokens) == 0
    assert period([7] * 159) == 0 and period([7] * 160) == 1


def test_other_texts_have_none() -> None:
    draw = random.Random(1)
    assert not any(period([draw.randrange(50) for _ in range(600)]) for _ in range(200))
    # A numbered list differs in its numbers.
    assert period([token for number in range(200) for token in (1, 1000 + number, 2, 3)]) == 0


@pytest.mark.parametrize(("answer", "count"), [("go on " * 70, 1), ("".join(map(str, range(100))), 0)])
def test_it_is_said_once_in_a_turn(runtime: edgellm.Runtime, answer: str, count: int) -> None:
    chat = scripted_chat(runtime, answer)
    assert 160 <= len(runtime.tokenize(answer)) <= 450
    notices = events_of(chat.send("Go on."), edgellm.Notice)
    assert len(notices) == count
    assert all("round in circles" in notice.message for notice in notices)
    assert chat.messages[-1].content.strip() == answer.strip()
