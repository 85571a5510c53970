"""Conversations longer than their context: what goes, that it is said, and that the tape stays sound."""

from __future__ import annotations

import asyncio
import random
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tiny_models import Shape

import edgellm
from edgellm.scripted import Scripted
from edgellm.upkeep import SUMMARY_QUESTION

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

N_CTX = 512


@pytest.fixture(scope="module")
def runtime(tiny_model: Callable[..., Path]) -> Iterator[edgellm.Runtime]:
    with edgellm.load(tiny_model("llama"), n_ctx=N_CTX, n_seq_max=4, threads=1) as runtime:
        yield runtime


@pytest.fixture(scope="module")
def roomy(tiny_model: Callable[..., Path]) -> Iterator[edgellm.Runtime]:
    with edgellm.load(tiny_model("llama"), n_ctx=4 * N_CTX, n_seq_max=4, threads=1) as runtime:
        yield runtime


@edgellm.sampler(name="endless")
class Endless:
    """Never ends an answer."""

    def __init__(self, end: int) -> None:
        self._end = end

    def apply(self, candidates: Any) -> None:
        candidates.logits[candidates.ids <= self._end] = -1e9


@edgellm.tool(permission="auto")
def look_up(word: str) -> str:
    """Looks a word up.

    Args:
        word: Which.
    """
    return f"{word}: " + "a plant " * 20


def scripted(runtime: edgellm.Runtime, answers: list[str], **options: Any) -> edgellm.Chat:
    end = runtime.vocabulary.special_tokens["<|im_end|>"]
    return runtime.chat(sampler=[Scripted(answers, end)], **options)


def summed_up(runtime: edgellm.Runtime) -> edgellm.Chat:
    """A chat of twenty answers, whose old turns are summed up in the words "They counted."."""
    chat = scripted(
        runtime, [f"Answer {turn}. " + "so " * 15 for turn in range(20)], context_policy="summarize"
    )
    end = runtime.vocabulary.special_tokens["<|im_end|>"]

    def chain(_spec: str) -> Any:
        return runtime.make_chain([Scripted(["They counted."], end)])

    chat._agent.upkeep.make_chain = chain  # pyright: ignore[reportPrivateUsage]
    return chat


def assert_sound(chat: edgellm.Chat) -> None:
    """The memory mirrors the tape, and every message begins where the tape says."""
    conversation = chat.conversation
    session = conversation.session
    # Not while another chat is decoded: it may just be taking this one's place.
    assert chat.runtime.in_turn(session.check_memory)
    assert session.kv_length <= len(session.tape) <= chat.runtime.n_ctx
    assert len(conversation.starts) == len(conversation.messages)
    assert conversation.starts == sorted(conversation.starts)
    text_of = chat.runtime.vocabulary.text_of
    for index, (message, start) in enumerate(zip(conversation.messages, conversation.starts, strict=True)):
        later = [at for at in conversation.starts[index + 1 :] if at > start]
        stretch = text_of(session.tape.tokens[start : later[0] if later else None]).decode("utf-8", "replace")
        if conversation.is_begun:
            assert message.content.strip() in stretch, (index, message, stretch)


def assert_as_rendered(chat: edgellm.Chat) -> None:
    """The tape is, token by token, what the template gives for the messages that are left."""
    rendered = [token for token, _ in chat.conversation.first_prompt(chat.messages)]
    text_of = chat.runtime.vocabulary.text_of
    assert text_of(chat.tape) == text_of(rendered[: len(chat.tape)])
    assert list(chat.tape) == rendered[: len(chat.tape)]


def evictions(events: list[Any]) -> list[edgellm.ContextEvicted]:
    return [event for event in events if isinstance(event, edgellm.ContextEvicted)]


def test_stop_ends_with_context_full_and_a_message_that_does_not_fit_is_an_error(
    runtime: edgellm.Runtime,
) -> None:
    chat = runtime.chat(sampler="temperature(1) | dist", seed=1)
    reasons: list[str] = []
    with pytest.raises(edgellm.ContextFull, match="context_policy"):
        for turn in range(20):
            for event in chat.send(f"Question {turn}? " + "why " * 10, max_tokens=100):
                assert not isinstance(event, edgellm.ContextEvicted)
                if isinstance(event, edgellm.TurnFinished):
                    reasons.append(event.finish_reason)
    assert "context_full" in reasons or len(chat.tape) > N_CTX - 100
    assert_sound(chat)
    chat.close()


def test_a_chat_that_is_full_goes_on_under_another_policy(runtime: edgellm.Runtime) -> None:
    chat = scripted(runtime, [f"Answer {turn}. " + "so " * 15 for turn in range(30)])
    turn = 0
    with pytest.raises(edgellm.ContextFull):
        while True:
            chat.ask(f"Question {turn}?")
            turn += 1
    count = len(chat.messages)
    with pytest.raises(edgellm.ConfigError, match="Did you mean 'evict'"):
        chat.set_context_policy("evits")
    assert chat.context_policy == "stop" and len(chat.messages) == count
    chat.set_context_policy("evict")
    events = list(chat.send("And now?"))
    assert evictions(events) and isinstance(events[-1], edgellm.TurnFinished)
    assert chat.context_policy == "evict" == chat.options.context_policy
    assert_sound(chat)
    fork = chat.fork()
    assert fork.context_policy == "evict" and fork.outlook().policy == "evict"
    chat.set_context_policy(lambda crowding: [edgellm.Drop(0)])
    assert chat.context_policy == "<lambda>" and fork.context_policy == "evict"
    turns = chat.send("And?")
    next(turns)
    with pytest.raises(edgellm.ConfigError, match="open"):
        chat.set_context_policy("stop")
    turns.close()
    fork.close()
    chat.close()


def test_the_oldest_turns_go_and_the_tape_is_what_a_render_of_the_rest_gives(
    runtime: edgellm.Runtime,
) -> None:
    chat = scripted(
        runtime,
        [f"Answer {turn}. " + "so " * 15 for turn in range(30)],
        system="Be brief.",
        context_policy="evict",
    )
    gone: list[str] = []
    for turn in range(30):
        events = list(chat.send(f"Question {turn}?"))
        for event in evictions(events):
            assert event.policy == "evict" and event.is_approximate and event.recomputed_tokens == 0
            assert event.removed_tokens > 0
            gone += [message.content for message in event.messages if message.role == "user"]
        finished = events[-1]
        assert isinstance(finished, edgellm.TurnFinished) and finished.text.startswith(f"Answer {turn}.")
        assert_sound(chat)
        assert_as_rendered(chat)
    # In order, none twice, none unsaid: what is gone and what is left make the whole.
    left = [message.content for message in chat.messages if message.role == "user"]
    assert gone + left == [f"Question {turn}?" for turn in range(30)]
    assert len(gone) > 20
    assert "Be brief." in runtime.vocabulary.text_of(chat.tape).decode()
    assert sum(leg.removed_tokens for leg in chat.usage.legs) > N_CTX
    chat.close()


@pytest.mark.parametrize("head_dim", [32, 64])
def test_quantized_keys_that_llama_cpp_cannot_shift_are_computed_again(
    tiny_model: Callable[..., Path], head_dim: int
) -> None:
    model = tiny_model("llama", shape=Shape(n_head=2, n_head_kv=1, head_dim=head_dim))
    with edgellm.load(
        model, n_ctx=N_CTX, threads=1, kv_type_k="q8_0", kv_type_v="q8_0", flash_attention="on"
    ) as runtime:
        chat = scripted(
            runtime, [f"Answer {turn}. " + "so " * 15 for turn in range(9)], context_policy="evict"
        )
        happened = [event for turn in range(9) for event in evictions(list(chat.send(f"Question {turn}?")))]
        assert happened
        for event in happened:
            # Only keys whose head size is a multiple of 64 can be moved.
            assert event.is_approximate is (head_dim == 64) is not (event.recomputed_tokens > 0)
        assert_sound(chat)
        chat.close()


def test_an_answer_that_runs_into_the_end_goes_on(runtime: edgellm.Runtime) -> None:
    endless = [Endless(2), "dist"]
    chat = runtime.chat(sampler=endless, seed=3, context_policy="evict")
    list(chat.send("One?", max_tokens=150))
    list(chat.send("Two?", max_tokens=150))
    events = list(chat.send("Three?", max_tokens=320))
    places = [index for index, event in enumerate(events) if isinstance(event, edgellm.ContextEvicted)]
    texts = [index for index, event in enumerate(events) if isinstance(event, edgellm.TextDelta)]
    assert any(texts[0] < place < texts[-1] for place in places), "nothing went in the middle of the answer"
    finished = events[-1]
    assert isinstance(finished, edgellm.TurnFinished)
    assert finished.finish_reason == "length"
    assert finished.text == "".join(event.text for event in events if isinstance(event, edgellm.TextDelta))
    assert chat.messages[-1].content == finished.text
    assert finished.usage.legs[0].removed_tokens == sum(event.removed_tokens for event in evictions(events))
    assert_sound(chat)
    # Where nothing old is left, the answer ends there, and says so.
    alone = runtime.chat(sampler=[Endless(2), "dist"], seed=3, context_policy="evict")
    *_, last = alone.send("One?", max_tokens=1000)
    assert isinstance(last, edgellm.TurnFinished) and last.finish_reason == "context_full"
    alone.close()
    chat.close()


def test_pinned_turns_stay(runtime: edgellm.Runtime) -> None:
    answers = [f"Answer {turn}. " + "so " * 15 for turn in range(24)]
    chat = scripted(runtime, answers, context_policy="evict")
    for turn in range(24):
        list(chat.send(f"Question {turn}?"))
        if turn == 2:
            chat.pin(4)
            chat.pin(3)
            chat.unpin(3)
        assert_sound(chat)
        if turn >= 2:
            (pinned,) = chat.pinned
            assert chat.messages[pinned].content == "Question 2?"
            assert "Answer 2." in runtime.vocabulary.text_of(chat.tape).decode()
    assert_as_rendered(chat)
    assert chat.messages[0].content == "Question 2?" and len(chat.messages) < 24
    with pytest.raises(edgellm.ConfigError, match="no message 99"):
        chat.pin(99)
    chat.close()


def call(word: str) -> str:
    return f'<tool_call>\n{{"name": "look_up", "arguments": {{"word": "{word}"}}}}\n</tool_call>'


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["evict", "drop-results"])
def test_calls_and_results_go_together(tiny_model: Callable[..., Path], policy: str) -> None:
    with edgellm.load(tiny_model("llama"), n_ctx=2 * N_CTX, n_seq_max=2, threads=1) as runtime:
        check_calls_and_results_go_together(runtime, policy)


def check_calls_and_results_go_together(runtime: edgellm.Runtime, policy: str) -> None:
    answers = [answer for turn in range(12) for answer in (call(f"w{turn}"), f"Answer {turn}.")]
    chat = scripted(runtime, answers, tools=[look_up], context_policy=policy, constraint="off")
    happened: list[edgellm.ContextEvicted] = []
    notices = 0
    for turn in range(12):
        events = list(chat.send(f"What is w{turn}?"))
        happened += evictions(events)
        finished = events[-1]
        assert isinstance(finished, edgellm.TurnFinished) and finished.text == f"Answer {turn}."
        assert_sound(chat)
        calls = [one.id for message in chat.messages for one in message.tool_calls]
        assert calls == [message.tool_call_id for message in chat.messages if message.role == "tool"]
        assert_as_rendered(chat)
        notices += "[result dropped to make room:" in runtime.vocabulary.text_of(chat.tape).decode()
    assert happened
    if policy == "drop-results":
        assert notices
        assert happened[0].policy == "drop-results" and not happened[0].is_approximate
        assert happened[0].added_tokens > 0 and {m.role for m in happened[0].messages} == {"tool"}
        assert all("a plant" in message.content for message in happened[0].messages)
    chat.close()


def test_the_model_sums_up_what_goes(runtime: edgellm.Runtime) -> None:
    chat = summed_up(runtime)
    happened: list[edgellm.ContextEvicted] = []
    for turn in range(20):
        happened += evictions(list(chat.send(f"Question {turn}?")))
        assert_sound(chat)
    assert happened and all(event.policy == "summarize" for event in happened)
    assert happened[0].summary == "They counted." and happened[0].added_tokens > 0
    assert not happened[0].is_approximate and happened[0].recomputed_tokens > 0
    assert [message.content for message in chat.messages[:2]] == [SUMMARY_QUESTION, "They counted."]
    # The next summary sums up the one before, too.
    assert happened[1].messages[0].content == SUMMARY_QUESTION
    assert_as_rendered(chat)
    assert any(leg.finish_reason == "summary" for leg in chat.usage.legs)
    chat.close()


@pytest.mark.parametrize("asked", [0, 1, 3, 6, 9, 1000])
def test_tidy_ends_when_it_is_not_wanted_any_more_and_tells_what_went_by_then(
    runtime: edgellm.Runtime, asked: int
) -> None:
    chat = summed_up(runtime)
    turn = 0
    while len(chat.tape) <= N_CTX * 5 // 8:
        chat.ask(f"Question {turn}?")
        turn += 1
    before, tape = chat.messages, chat.tape
    left = iter([True] * asked)
    happened = evictions(list(chat.tidy(is_wanted=lambda: next(left, False))))
    if happened:
        assert len(chat.messages) == len(before) - len(happened[0].messages) + 2
    else:
        assert (chat.messages, chat.tape) == (before, tape)
    if asked in (0, 1000):
        assert bool(happened) == bool(asked)
    assert [leg.finish_reason == "summary" for leg in chat.usage.legs].count(True) == len(happened)
    # Nothing of it is left to stop the next turn; a stop that comes behind the end is for nothing.
    chat.stop_tidy()
    list(chat.send("And now?"))
    assert chat.messages[-1].role == "assistant" and chat.messages[-1].content
    assert_sound(chat)
    assert_as_rendered(chat)
    chat.close()


def test_tidy_is_stopped_from_another_thread_and_what_went_is_told(
    runtime: edgellm.Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat = scripted(runtime, [f"Answer {turn}. " + "so " * 15 for turn in range(20)], context_policy="evict")
    turn = 0
    while len(chat.tape) <= N_CTX * 5 // 8:
        chat.ask(f"Question {turn}?")
        turn += 1
    count = len(chat.messages)
    upkeep = chat._agent.upkeep  # pyright: ignore[reportPrivateUsage]
    compute = upkeep._compute  # pyright: ignore[reportPrivateUsage]

    def computed() -> Any:
        thread = threading.Thread(target=chat.stop_tidy)
        thread.start()
        thread.join()
        assert chat.conversation.session.is_cancelled
        yield from compute()
        raise edgellm.Cancelled("decoding was cancelled.")

    monkeypatch.setattr(upkeep, "_compute", computed)
    happened = evictions(list(chat.tidy()))
    assert happened and len(chat.messages) == count - len(happened[0].messages)
    assert not chat.conversation.session.is_cancelled
    assert chat.ask("And now?")
    assert_sound(chat)
    chat.close()


@pytest.mark.parametrize(
    ("pinned", "gone", "order"),
    [
        ((0,), (1, 2), "0s3"),
        ((0,), (1, 2, 3), "0s"),
        ((0, 2), (1, 3), "02s"),
        ((1,), (0, 2), "1s3"),
        ((1,), (0,), "s123"),
        ((3,), (0, 1, 2), "s3"),
        ((), (0, 1, 2, 3), "s"),
    ],
)
@pytest.mark.parametrize("is_cut", [False, True])
def test_a_summary_stands_where_the_newest_of_its_turns_stood(
    roomy: edgellm.Runtime, pinned: tuple[int, ...], gone: tuple[int, ...], order: str, is_cut: bool
) -> None:
    chat = scripted(roomy, [f"Answer {turn}. " + "so " * 3 for turn in range(5)], system="Be brief.")
    end = roomy.vocabulary.special_tokens["<|im_end|>"]
    for turn in range(4):
        # An answer that was cut is ended by the template, with what follows it.
        most = 5 if is_cut and turn < 3 else None
        list(chat.send(f"Question {turn}?" + " why" * 40, max_tokens=most))
    chat.set_context_policy(always([edgellm.Summarize(gone)]))

    def chain(_spec: str) -> Any:
        return roomy.make_chain([Scripted(["They counted."], end)])

    upkeep = chat._agent.upkeep  # pyright: ignore[reportPrivateUsage]
    upkeep.make_chain = chain
    for turn in pinned:
        chat.pin(2 * turn)
    assert [event.policy for event in evictions(list(upkeep.make_room(1, 8)))] == ["summarize"]
    names = {SUMMARY_QUESTION: "s", **{f"Question {turn}?" + " why" * 40: str(turn) for turn in range(4)}}
    assert "".join(names[message.content] for message in chat.messages if message.role == "user") == order
    assert [names[chat.messages[index].content] for index in chat.pinned] == [str(turn) for turn in pinned]
    assert_sound(chat)
    if not is_cut:
        assert_as_rendered(chat)
    chat.set_context_policy("stop")
    list(chat.send("And now?"))
    assert_sound(chat)
    if not is_cut:
        assert_as_rendered(chat)
    place = 2 * order.index("s")
    chat.rewind(place + 2)
    assert chat.messages[place].content == SUMMARY_QUESTION
    list(chat.send("Again?"))
    assert_sound(chat)
    chat.close()


@pytest.mark.parametrize("policy", ["evict", "summarize"])
def test_tidy_makes_room_ahead_of_time(runtime: edgellm.Runtime, policy: str) -> None:
    chat = scripted(runtime, [f"Answer {turn}. " + "so " * 15 for turn in range(9)], context_policy=policy)
    assert chat.tidy() == ()
    while len(chat.tape) <= N_CTX * 3 // 4:
        events = list(chat.send("And then?"))
        assert not evictions(events)
    legs = len(chat.usage.legs)
    happened = evictions(list(chat.tidy()))
    assert len(happened) == 1
    assert len(chat.tape) <= N_CTX * 3 // 4
    assert len(chat.usage.legs) > legs
    assert_sound(chat)
    session = chat.conversation.session
    # What has to be computed again was.
    assert len(session.tape) - session.kv_length <= 1
    assert not evictions(list(chat.send("And then?")))
    chat.close()


def always(answer: Any) -> Any:
    """A policy that gives the same whatever it is asked. Any: also what a policy must not give."""

    def policy(_crowding: edgellm.Crowding) -> Any:
        return answer

    return policy


@pytest.mark.parametrize("policy", ["stop", "evict", "summarize", "drop-results"])
def test_the_outlook_names_what_goes_then(tiny_model: Callable[..., Path], policy: str) -> None:
    with edgellm.load(tiny_model("llama"), n_ctx=1024, n_seq_max=4, threads=1) as runtime:
        looked_up = [call("moss"), "A plant.", call("fern"), "A plant."]
        answers = [*looked_up, *("It is. " + "so " * 30 for _ in range(30))]
        chat = scripted(runtime, answers, context_policy=policy, tools=[look_up], constraint="off")
        before = chat.outlook()
        assert before.policy == policy and before.turns == () and before.removed_tokens == 0
        list(chat.send("What is moss?"))
        happened: list[edgellm.ContextEvicted] = []
        ahead = before
        while not happened:
            ahead, tape = chat.outlook(), chat.tape
            assert chat.tape == tape
            assert sum(turn.tokens for turn in ahead.turns) <= len(tape)
            if policy == "stop":
                break
            happened = evictions(list(chat.send("And then?")))
        if policy == "stop":
            assert (ahead.limit_tokens, ahead.leaving, ahead.removed_tokens) == (1024, (), 0)
        elif policy == "drop-results":
            assert ahead.limit_tokens == 896 and ahead.shortened == (2, 6) and not ahead.leaving
            assert ahead.removed_tokens > 0 < ahead.behind_tokens and not ahead.is_moved
            assert [message.role for message in happened[0].messages][:2] == ["tool", "tool"]
        else:
            gone = [message for place in ahead.leaving for message in ahead.turns[place].messages]
            assert gone and list(happened[0].messages)[: len(gone)] == gone
            assert ahead.is_moved == (policy == "evict") and ahead.is_summarized == (policy == "summarize")
            assert ahead.removed_tokens > 0
        chat.close()


def test_a_policy_of_ones_own(runtime: edgellm.Runtime) -> None:
    asked: list[edgellm.Crowding] = []

    def youngest(crowding: edgellm.Crowding) -> list[Any]:
        asked.append(crowding)
        return [edgellm.Drop(max(i for i, turn in enumerate(crowding.turns) if not turn.is_fixed))]

    chat = scripted(runtime, [f"Answer {turn}. " + "so " * 15 for turn in range(12)], context_policy=youngest)
    for turn in range(12):
        list(chat.send(f"Question {turn}?"))
        assert_sound(chat)
    assert asked and asked[0].n_ctx == N_CTX and asked[0].wanted_tokens > 0
    assert sum(turn.tokens for turn in asked[0].turns) == pytest.approx(asked[0].used_tokens, abs=20)
    assert chat.messages[0].content == "Question 0?"
    assert_as_rendered(chat)
    chat.close()

    for answer, error in (
        ([edgellm.Drop(77)], edgellm.ConfigError),
        ([edgellm.Drop(0), edgellm.Drop(0)], edgellm.ConfigError),
        (None, edgellm.PluginError),
        (["x"], edgellm.PluginError),
        ([edgellm.Summarize(())], edgellm.PluginError),
        ([edgellm.Drop(0.0)], edgellm.PluginError),  # pyright: ignore[reportArgumentType]
        ([edgellm.Summarize(0)], edgellm.PluginError),  # pyright: ignore[reportArgumentType]
        ([edgellm.Shorten(1, None)], edgellm.PluginError),  # pyright: ignore[reportArgumentType]
        (edgellm.Drop(0), edgellm.PluginError),
    ):
        chat = scripted(runtime, ["so " * 100] * 3, context_policy=always(answer))
        list(chat.send("One?"))
        with pytest.raises(error, match="context policy") as caught:
            list(chat.send("Two? " + "why " * 40))
        assert "\n" not in str(caught.value) and len(chat.messages) == 2
        assert_sound(chat)
        chat.close()
    with pytest.raises(edgellm.ConfigError, match="Did you mean 'evict'"):
        runtime.chat(context_policy="evikt")


def test_rewind_fork_save_and_open_work_behind_an_eviction(runtime: edgellm.Runtime, tmp_path: Path) -> None:
    chat = scripted(runtime, [f"Answer {turn}. " + "so " * 15 for turn in range(40)], context_policy="evict")
    while not any(evictions(list(chat.send("And then?")))):
        pass
    chat.pin(0)
    file = tmp_path / "long.chat"
    chat.save(file)
    fork = chat.fork()
    before = chat.tape
    list(fork.send("Aside?"))
    assert_sound(fork)
    assert chat.tape == before
    fork.rewind(2)
    list(fork.send("Again?"))
    assert_sound(fork)
    assert_as_rendered(fork)
    fork.close()
    chat.close()
    opened = runtime.open_chat(file, sampler="greedy", context_policy="evict")
    assert opened.tape == before and opened.pinned == (0,)
    for _ in range(12):
        list(opened.send("More?", max_tokens=40))
        assert_sound(opened)
    assert opened.messages[0].content == "And then?"
    opened.close()


def test_draws_are_not_repeated_where_positions_come_again(runtime: edgellm.Runtime) -> None:
    chat = runtime.chat(sampler="temperature(1) | dist", seed=5, context_policy="evict", trace=1)
    numbers: list[float] = []
    for _ in range(12):
        for event in chat.send("More?", max_tokens=60):
            if isinstance(event, edgellm.TokenDrawn) and event.step.distribution is not None:
                numbers.append(event.step.distribution.u)
    assert len(set(numbers)) == len(numbers)
    chat.close()


def test_history_that_is_longer_than_the_context_is_shortened_before_it_is_read(
    runtime: edgellm.Runtime,
) -> None:
    history = [
        message
        for turn in range(40)
        for message in (
            edgellm.Message("user", f"Question {turn}?"),
            edgellm.Message("assistant", "Because. " * 3),
        )
    ]
    chat = scripted(runtime, ["Yes."], context_policy="evict", history=history)
    event, *_ = evictions(list(chat.send("Really?")))
    assert event.messages[0].content == "Question 0?" and event.removed_tokens == 0
    assert_sound(chat)
    assert_as_rendered(chat)
    # What the first prompt holds can go later, too: it is rendered again without it.
    for _ in range(8):
        list(chat.send("Really? " + "why " * 20))
        assert_sound(chat)
    chat.close()


def test_chats_side_by_side(tiny_model: Callable[..., Path]) -> None:
    async def talk(runtime: edgellm.Runtime, seed: int) -> list[Any]:
        chat = runtime.chat(sampler="temperature(1) | dist", seed=seed, context_policy="evict")
        seen: list[Any] = []
        for _ in range(6):
            async for event in chat.asend("More? " + "why " * 10, max_tokens=40):
                seen.append(event)
            assert_sound(chat)
        chat.close()
        return seen

    async def both(runtime: edgellm.Runtime) -> list[list[Any]]:
        return list(await asyncio.gather(talk(runtime, 1), talk(runtime, 2)))

    with edgellm.load(tiny_model("llama"), n_ctx=256, n_seq_max=4, threads=1) as runtime:
        first, second = asyncio.run(both(runtime))
    assert evictions(first) and evictions(second)


# Dense, mixture of experts, sliding window, recurrent, hybrid.
ARCHS = ("llama", "moe", "gemma3", "mamba", "jamba")
RECURRENT = ("mamba", "jamba")


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["evict", "summarize", "drop-results"])
@pytest.mark.parametrize("arch", ARCHS)
def test_four_times_the_context(tiny_model: Callable[..., Path], arch: str, policy: str) -> None:
    n_ctx, said = 256, 0
    with edgellm.load(tiny_model(arch), n_ctx=n_ctx, n_seq_max=3, threads=1) as runtime:
        chat = runtime.chat(sampler="temperature(1) | dist", seed=7, system="Hi.", context_policy=policy)
        asked: list[str] = []
        gone: list[str] = []
        turn = 0
        while said < 4 * n_ctx:
            asked.append(f"Question {turn}?")
            events = list(chat.send(asked[-1], max_tokens=30))
            for event in evictions(events):
                gone += [m.content for m in event.messages if m.role == "user" and m.content in asked]
                # A state has no positions that could be moved.
                assert event.is_approximate is (event.policy == "evict" and arch not in RECURRENT)
            finished = events[-1]
            assert isinstance(finished, edgellm.TurnFinished)
            assert finished.finish_reason in ("length", "eog")
            said += finished.usage.decode_tokens + len(runtime.tokenize(asked[-1]))
            turn += 1
            assert_sound(chat)
        left = [m.content for m in chat.messages if m.role == "user" and m.content in asked]
        assert gone + left == asked
        assert len(gone) > len(left)
        if arch in RECURRENT:
            # Computed anew, and so equal to the same tape on a memory that never held anything else.
            session = chat.conversation.session
            fresh = runtime.engine.session(runtime.make_chain("greedy"))
            fresh.extend(list(zip(chat.tape, session.tape.kinds, strict=True)))
            np.testing.assert_allclose(session.logits(), fresh.logits(), atol=0.05)
            fresh.close()
        chat.close()


# The system text goes into the first message of the user, and nothing ends an answer but the end token.
JOINED = (
    "{%- set ns = namespace(system='') -%}{%- for m in messages -%}"
    "{%- if m.role == 'system' -%}{%- set ns.system = m.content + '\\n\\n' -%}"
    "{%- elif m.role == 'user' -%}{{ '[INST] ' + ns.system + m.content + ' [/INST]' }}{%- set ns.system = '' -%}"
    "{%- else -%}{{ ' ' + m.content + eos_token }}{%- endif -%}{%- endfor -%}"
)


@pytest.mark.parametrize("seed", range(8))
def test_whatever_is_done_tape_memory_and_messages_agree(
    tiny_model: Callable[..., Path], tmp_path: Path, seed: int
) -> None:
    """Turns, some of them left early, rewinds, pins, forks, saves and tidying, in an order drawn by the seed, with
    drafts before them, of what is said next or of something else."""
    draw, typed = random.Random(seed), random.Random(seed)
    policy = ("evict", "summarize", "drop-results")[seed % 3]
    options: dict[str, Any] = {
        "context_policy": policy,
        "sampler": "temperature(1) | dist",
        "seed": seed,
        "template": JOINED if seed % 2 else None,
    }
    with edgellm.load(tiny_model(ARCHS[seed % len(ARCHS)]), n_ctx=256, n_seq_max=3, threads=1) as runtime:
        chat = runtime.chat(system="Be brief.", **options)
        happened = 0
        for step in range(30):
            act = draw.choice(
                ("send", "send", "send", "send", "leave", "rewind", "pin", "tidy", "save", "fork")
            )
            for _ in range(typed.choice((0, 1, 1, 2))):
                tape = chat.tape
                ahead = chat.prefill_draft(f"Q{step + typed.randint(0, 1)}? " + "why " * typed.randint(0, 20))
                assert ahead == chat.conversation.session.memory.ahead
                assert chat.tape == tape
                assert_sound(chat)
            if act in ("send", "leave"):
                turn = chat.send(
                    f"Q{step}? " + "why " * draw.randint(0, 12), max_tokens=draw.choice((5, 40, 90))
                )
                for count, event in enumerate(turn):
                    happened += isinstance(event, edgellm.ContextEvicted)
                    if act == "leave" and count > draw.randint(2, 20):
                        turn.close()
                        break
            elif act == "rewind":
                chat.rewind(draw.randint(len(chat.messages) // 2, len(chat.messages)))
            elif act == "pin" and chat.messages:
                place = draw.randrange(len(chat.messages))
                # One pinned turn at most: pins may fill a context, and then nothing helps.
                for pinned in chat.pinned:
                    chat.unpin(pinned)
                chat.pin(place)
            elif act == "tidy":
                happened += len(evictions(list(chat.tidy())))
            elif act == "save":
                chat.save(tmp_path / "a.chat")
                chat.close()
                chat = runtime.open_chat(tmp_path / "a.chat", **options)
            elif act == "fork":
                fork = chat.fork()
                chat.close()
                chat = fork
            assert_sound(chat)
        assert happened
        chat.close()


@pytest.mark.model
@pytest.mark.slow
def test_four_times_the_context_with_the_default_model(smollm2_path: Path) -> None:
    with edgellm.load(smollm2_path, n_ctx=384, n_seq_max=2) as runtime:
        chat = runtime.chat(
            tools=[look_up],
            strategy="free",
            constraint="force",
            seed=1,
            context_policy="drop-results",
        )
        said, turn, happened = 0, 0, 0
        asked: list[str] = []
        gone: list[str] = []
        while said < 4 * runtime.n_ctx:
            asked.append(f"Question {turn}: what is a bridge?")
            choice = "required" if turn % 3 == 2 else "none"
            for event in chat.send(asked[-1], max_tokens=100, tool_choice=choice):
                if isinstance(event, edgellm.ContextEvicted):
                    happened += 1
                    gone += [m.content for m in event.messages if m.content in asked]
                if isinstance(event, edgellm.TurnFinished):
                    assert event.finish_reason in ("length", "eog"), event.finish_reason
                    said += event.usage.decode_tokens
                    said += sum(
                        len(runtime.tokenize(m.content)) for m in event.messages if m.role != "assistant"
                    )
            turn += 1
            assert_sound(chat)
        left = [message.content for message in chat.messages if message.content in asked]
        assert gone + left == asked
        assert happened > 3
        chat.close()
