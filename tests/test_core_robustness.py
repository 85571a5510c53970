"""What went wrong once: readers that leave, cancels and Ctrl-C at bad moments, chats and runtimes used after close."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from scripted_chats import CALL, add, script, scripted_chat

import edgellm
from edgellm.engine.engine import Engine
from edgellm.engine.saving import restore_session, save_sessions
from edgellm.engine.scoring import score_after_each, score_continuations
from edgellm.engine.session import Session
from edgellm.engine.session_file import read_sessions
from edgellm.engine_thread import EngineThread
from edgellm.native.context import DecodeStatus
from edgellm.native.library import log_text
from edgellm.native.model import Model
from edgellm.sampling.chain import Chain
from edgellm.sampling.stage import Rewind
from edgellm.scripted import Scripted
from edgellm.types import LoadOptions, SpanKind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

OPTIONS = LoadOptions(n_ctx=256, n_seq_max=3, n_batch=64, threads=1)


def make_chat(runtime: edgellm.Runtime, *answers: str, **options: Any) -> edgellm.Chat:
    options.setdefault("tools", [add])
    options.setdefault("strategy", "free")
    return scripted_chat(runtime, *answers, template="chatml", **options)


def tape_text(chat: edgellm.Chat) -> str:
    return chat.runtime.vocabulary.text_of(chat.tape).decode("utf-8", "replace")


def assert_sound(chat: edgellm.Chat) -> None:
    """Tape, memory, messages and flags of a chat between two turns agree."""
    session = chat.conversation.session
    assert session.check_memory()
    assert session.kv_length <= len(session.tape)
    assert session.constraint is None
    assert not session.is_waiting
    assert not session.is_cancelled
    assert not chat._open.locked()  # pyright: ignore[reportPrivateUsage]
    text = tape_text(chat)
    for message in chat.messages:
        assert message.content in text
    for message, start in zip(chat.messages, chat.conversation.starts, strict=True):
        assert message.content in chat.runtime.vocabulary.text_of(chat.tape[start:]).decode(
            "utf-8", "replace"
        )
        following = next((at for at in chat.conversation.starts if at > start), len(chat.tape))
        if message.role == "assistant":
            written = chat.runtime.vocabulary.text_of(chat.tape[start:following]).decode("utf-8", "replace")
            assert written.startswith(message.content)


def assert_same_distribution(session: Session, *, atol: float = 0.05) -> None:
    """The memory of a session is that of its tape computed from nothing."""
    engine = session.engine
    fresh = engine.session(Chain("greedy", n_vocab=engine.vocabulary.size))
    fresh.extend([(token, SpanKind.USER) for token in session.tape.tokens])
    expected = fresh.logits().copy()
    fresh.close()
    np.testing.assert_allclose(session.logits(), expected, atol=atol, rtol=0.02)


def entries(tokens: list[int]) -> list[tuple[int, SpanKind]]:
    return [(token, SpanKind.USER) for token in tokens]


def new_session(engine: Engine, text: Any = "temperature(1.2) | dist(seed=1)") -> Session:
    return engine.session(Chain(text, n_vocab=engine.vocabulary.size, vocabulary=engine.vocabulary))


# -- readers that leave -----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["llama", "gemma3", "mamba"])
@pytest.mark.parametrize("is_async", [False, True])
def test_reader_who_leaves_after_any_event_leaves_a_sound_chat(
    tiny_model: Callable[..., Path], arch: str, is_async: bool
) -> None:
    """At the last event of a prefill the message was on the tape and not among the messages."""
    with edgellm.load(tiny_model(arch, n_ctx=2048), n_ctx=2048, n_seq_max=2, threads=1) as runtime:
        answer = "Hm.\n\n" + CALL % ("add", '{"a": 2, "b": 3}')
        whole = len(list(make_chat(runtime, "Hi.", answer, "It is 5.").send("x" * 150)))
        chat = make_chat(runtime, "Hi.", answer, "It is 5.")
        chat.ask("Hello.")
        whole = len(list(chat.send("How much?" + "x" * 150)))
        chat.close()
        for k in range(1, whole):
            chat = make_chat(runtime, "Hi.", answer, "It is 5.", trace=1 if k % 2 else 0)
            chat.ask("Hello.")
            _leave(chat, "How much?" + "x" * 150, k, is_async)
            assert_sound(chat)
            chat.set_sampler(script(runtime, "Bye."))
            said = chat.ask("Thanks.")
            assert said == "Bye."
            assert_sound(chat)
            text = tape_text(chat)
            assert text.count("How much?") <= 1
            # One is the example in the system turn.
            assert text.count("<tool_response>") == text.count("</tool_call>") - 1
            if k % 7 == 0:
                assert_same_distribution(chat.conversation.session)
            chat.close()


def _leave(chat: edgellm.Chat, text: str, k: int, is_async: bool) -> None:
    if not is_async:
        turn = chat.send(text)
        for _ in range(k):
            next(turn, None)
        turn.close()
        return

    async def leave() -> None:
        turn = chat.asend(text)
        for _ in range(k):
            await anext(turn, None)
        await turn.aclose()

    asyncio.run(leave())


def test_results_of_tools_that_ran_reach_the_model_though_the_reader_left(runtime: edgellm.Runtime) -> None:
    chat = make_chat(runtime, CALL % ("add", '{"a": 2, "b": 3}'), "Never read.")
    turn = chat.send("How much?")
    for event in turn:
        if isinstance(event, edgellm.ToolFinished):
            break
    turn.close()
    chat.set_sampler(script(runtime, "It was 5."))
    assert chat.ask("Well?") == "It was 5."
    assert "<tool_response>\n5\n</tool_response>" in tape_text(chat)
    assert [message.role for message in chat.messages] == ["user", "assistant", "tool", "user", "assistant"]
    assert_sound(chat)


def test_usage_counts_turns_whose_reader_left(runtime: edgellm.Runtime) -> None:
    chat = make_chat(runtime, "One two three four.", "Next.")
    turn = chat.send("Count.")
    for event in turn:
        if isinstance(event, edgellm.TextDelta):
            break
    turn.close()
    chat.ask("More.")
    total = sum(leg.prefill_tokens + leg.ahead_tokens + leg.decode_tokens for leg in chat.usage.legs)
    assert total - (len(chat.usage.legs) - 1) == len(chat.tape)


def test_leaving_an_async_stream_has_closed_the_turn_when_it_returns(runtime: edgellm.Runtime) -> None:
    chat = make_chat(runtime, "One two three.", "Next.")

    async def twice() -> str:
        turn = chat.asend("Go.")
        while not isinstance(await anext(turn), edgellm.TextDelta):
            pass
        await turn.aclose()
        events: list[Any] = [event async for event in chat.asend("Again.")]
        return events[-1].text

    assert asyncio.run(twice()) == "Next."


def test_session_whose_reader_left_gets_no_tokens_from_another_ones_step(engine: Engine) -> None:
    left, other = new_session(engine), new_session(engine)
    for session in (left, other):
        session.extend(entries([5, 6, 7]))
    left.request()
    left.settle()
    other.step()
    assert len(left.tape) == 3


def test_failure_nobody_heard_of_does_not_end_the_next_turn(engine: Engine) -> None:
    left, other = new_session(engine), new_session(engine)
    for session in (left, other):
        session.extend(entries([5, 6, 7]))
    left.cancel()
    left.request()
    other.step()
    left.settle()
    left.is_cancelled = False
    assert left.step().position == 3


def test_failure_in_another_sessions_step_is_heard_before_the_next_token_is_drawn(engine: Engine) -> None:
    first, other = new_session(engine), new_session(engine)
    for session in (first, other):
        session.extend(entries([5, 6, 7]))
    first.cancel()
    first.request()
    other.step()
    with pytest.raises(edgellm.Cancelled):
        first.step()
    assert len(first.tape) == 3
    assert first.step().position == 3


# -- cancels ----------------------------------------------------------------------------------------------


def test_cancel_after_the_last_event_does_not_kill_the_next_turn(runtime: edgellm.Runtime) -> None:
    chat = make_chat(runtime, "Hello.", "Again.")
    for event in chat.send("Hi."):
        if isinstance(event, edgellm.TurnFinished):
            chat.cancel()
    assert chat.ask("And?") == "Again."


def test_cancelled_prefill_of_a_session_can_be_repeated(engine: Engine) -> None:
    session = new_session(engine)
    session.cancel()
    with pytest.raises(edgellm.Cancelled):
        session.extend(entries([5, 6]))
    session.extend(entries([5, 6]))


def test_cancel_from_a_signal_handler_does_not_deadlock(engine: Engine) -> None:
    session = new_session(engine)
    session.extend(entries([5, 6, 7]))
    lock = engine._abort_lock  # pyright: ignore[reportPrivateUsage]
    with lock:  # where the handler may interrupt the thread that is about to decode
        done = threading.Event()
        threading.Timer(5, lambda: done.is_set() or lock.release()).start()
        session.cancel()
        done.set()
    with pytest.raises(edgellm.Cancelled):
        session.step()


def test_one_async_chat_that_is_cancelled_or_fails_leaves_the_others_alone(runtime: edgellm.Runtime) -> None:
    chats = [make_chat(runtime, f"Number {i} says quite a lot.", "Again.") for i in range(4)]

    async def one(index: int) -> str:
        text = ""
        async for event in chats[index].asend("Go."):
            if isinstance(event, edgellm.TextDelta):
                text += event.text
                if index == 1:
                    chats[1].cancel()
                elif index == 2:
                    raise ZeroDivisionError
        return text

    async def all_of_them() -> list[Any]:
        return await asyncio.gather(*map(one, range(4)), return_exceptions=True)

    texts = asyncio.run(all_of_them())
    assert (texts[0], texts[3]) == ("Number 0 says quite a lot.", "Number 3 says quite a lot.")
    assert isinstance(texts[2], ZeroDivisionError)
    for chat in chats:
        chat.set_sampler(script(runtime, "Again."))
        assert_sound(chat)
        assert chat.ask("And?") == "Again."
        chat.close()


# -- Ctrl-C -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "place", ["before decode", "after decode", "before sample", "after sample", "accept"]
)
@pytest.mark.parametrize("phase", ["prefill", "decode"])
@pytest.mark.parametrize("arch", ["llama", "mamba"])
def test_interrupt_between_two_calls_leaves_tape_and_memory_equal(
    tiny_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, place: str, phase: str, arch: str
) -> None:
    with edgellm.load(tiny_model(arch, n_ctx=2048), n_ctx=2048, n_seq_max=2, threads=1) as runtime:
        chat = make_chat(runtime, "Hi.", "One two three.")
        chat.ask("Hello.")
        session = chat.conversation.session
        when, _, what = place.partition(" ")
        # A lone answer takes the short way: both count.
        names = ("decode", "decode_one", "decode_and_draw") if what == "decode" else (what or when,)
        target = runtime.engine.context if what == "decode" else session.chain
        calls = 0

        def interrupting(real: Callable[..., Any]) -> Callable[..., Any]:
            def interrupted(*args: Any, **kwargs: Any) -> Any:
                nonlocal calls
                calls += 1
                if calls == (2 if phase == "prefill" else 5):
                    if when == "after":
                        real(*args, **kwargs)
                    raise KeyboardInterrupt
                return real(*args, **kwargs)

            return interrupted

        with monkeypatch.context() as patch:
            for name in names:
                patch.setattr(target, name, interrupting(getattr(target, name)))
            with pytest.raises(KeyboardInterrupt):
                list(chat.send("Go on." + "x" * 200))
        assert_sound(chat)
        assert_same_distribution(session)
        chat.set_sampler(script(runtime, "Bye."))
        assert chat.ask("And?") == "Bye."
        assert_sound(chat)
        assert_same_distribution(session)


def test_logits_survive_an_interrupt_in_another_sessions_draw(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They were a view of llama.cpp's buffer, which the next decode writes over."""
    first, second = new_session(engine), new_session(engine)
    first.extend(entries([5, 6, 7]))
    second.extend(entries([50, 60, 70]))
    first.step()
    second.step()
    expected = second.fork()
    wanted = expected.logits().copy()
    expected.close()

    def interrupt(*_args: Any, **_kwargs: Any) -> Any:
        raise KeyboardInterrupt

    second.request()
    with monkeypatch.context() as patch:
        patch.setattr(first.chain, "sample", interrupt)
        with pytest.raises(KeyboardInterrupt):
            first.step()
    first.extend(entries([9, 9, 9]))
    np.testing.assert_allclose(second.logits(), wanted, atol=0.05)


# -- stages that raise ----------------------------------------------------------------------------------------


@edgellm.sampler
class FailsOnce:
    """Raises in one of its methods, when told to."""

    where = ""
    countdown = 0

    def _pass(self, where: str) -> None:
        if FailsOnce.where == where:
            FailsOnce.countdown -= 1
            if FailsOnce.countdown == 0:
                raise ValueError("not now")

    def apply(self, candidates: edgellm.Candidates) -> None:
        self._pass("apply")
        # Depends on all tokens it was told of.
        self.seen = getattr(self, "seen", 0)
        candidates.logits[:] = candidates.logits * (1 + 0.05 * (self.seen % 7))

    def accept(self, token: int) -> None:
        self._pass("accept")
        self.seen = getattr(self, "seen", 0) * 31 + token

    def reset(self) -> None:
        self.seen = 0

    def pending(self) -> int:
        self._pass("pending")
        return 0


@pytest.mark.parametrize("where", ["apply", "accept", "pending"])
def test_step_that_failed_in_a_plugin_can_be_tried_again_and_gives_the_same(
    engine: Engine, where: str
) -> None:
    FailsOnce.where = ""
    plain = new_session(engine, ["penalties(repeat=1.3)", FailsOnce(), "temperature(1.3)", "dist(seed=4)"])
    plain.extend(entries([5, 6, 7]))
    expected = [plain.step().token for _ in range(12)]
    plain.branch += 1  # the draws depend on the branch
    session = new_session(engine, ["penalties(repeat=1.3)", FailsOnce(), "temperature(1.3)", "dist(seed=4)"])
    session.branch = plain.branch - 1
    session.extend(entries([5, 6, 7]))
    FailsOnce.where, FailsOnce.countdown = where, 6
    tokens: list[int] = []
    failures = 0
    while len(tokens) < 12:
        before = list(session.tape.tokens)
        try:
            tokens.append(session.step().token)
        except edgellm.SamplerError:
            failures += 1
            assert session.tape.tokens == before
            assert session.check_memory()
    FailsOnce.where = ""
    assert failures == 1
    assert tokens == expected


def test_prompt_that_a_plugin_refuses_is_told_from_the_beginning_the_next_time(engine: Engine) -> None:
    session = new_session(engine, [FailsOnce(), "greedy"])
    FailsOnce.where = ""
    session.extend(entries([5, 6, 7]))
    FailsOnce.where, FailsOnce.countdown = "accept", 2
    with pytest.raises(edgellm.SamplerError):
        session.extend(entries([8, 9, 10]))
    FailsOnce.where = ""
    assert session.tape.tokens == [5, 6, 7]
    session.extend(entries([8, 9, 10]))
    session.step()
    seen = 0
    for token in session.tape.tokens:
        seen = seen * 31 + token
    assert session.chain.python_stages[0].seen == seen  # type: ignore[attr-defined]


def test_rewind_does_not_fail_over_a_plugin(engine: Engine) -> None:
    session = new_session(engine, [FailsOnce(), "greedy"])
    FailsOnce.where = ""
    session.extend(entries([5, 6, 7, 8]))
    FailsOnce.where, FailsOnce.countdown = "accept", 2
    session.rewind(3)
    FailsOnce.where = ""
    assert session.tape.tokens == [5, 6, 7]
    session.extend(())
    session.step()


def test_chat_goes_on_after_a_plugin_raised_in_mid_turn(runtime: edgellm.Runtime) -> None:
    FailsOnce.where, FailsOnce.countdown = "", 0
    chat = runtime.chat(sampler=[FailsOnce(), "dist(seed=2)"], template="chatml", tools=[])
    list(chat.send("Hello.", max_tokens=4))
    FailsOnce.where, FailsOnce.countdown = "apply", 4
    with pytest.raises(edgellm.SamplerError, match="not now"):
        list(chat.send("Go.", max_tokens=10))
    assert_sound(chat)
    FailsOnce.where = ""
    list(chat.send(None, max_tokens=4))
    assert_sound(chat)


# -- memory ------------------------------------------------------------------------------------------------------


def test_tokens_after_a_second_rewind_of_recurrent_memory_are_not_counted_as_rebuilt(
    tiny_model: Callable[..., Path],
) -> None:
    model = Model.load(tiny_model("mamba"), OPTIONS)
    engine = Engine(model, OPTIONS)
    session = new_session(engine)
    session.extend(entries(list(range(10, 30))))
    session.rewind(15)
    session.rewind(5)
    before = session.prefilled_tokens
    session.extend(entries(list(range(40, 50))))
    assert session.rebuilt_tokens == 5
    assert session.prefilled_tokens - before == 10
    engine.close()
    model.close()


@pytest.mark.parametrize("arch", ["llama", "gemma3", "mamba"])
def test_scores_after_each_tape_are_right_whatever_the_memory(
    tiny_model: Callable[..., Path], arch: str
) -> None:
    """Recurrent memory, which cannot be cut by a token, was scored as if it were empty."""
    model = Model.load(tiny_model(arch), OPTIONS)
    engine = Engine(model, OPTIONS)
    sessions = []
    for seed in range(4):
        session = new_session(engine)
        session.extend(entries([10 + seed, 20, 30 + seed]))
        sessions.append(session)
    scores = score_after_each(sessions, [40, 41])
    for session, score in zip(sessions, scores, strict=True):
        fresh = new_session(engine)
        fresh.extend(entries(session.tape.tokens))
        for token, found in zip([40, 41], score, strict=True):
            logits = fresh.logits().astype(np.float64)
            expected = logits[token] - logits.max() - np.log(np.exp(logits - logits.max()).sum())
            assert found == pytest.approx(expected, abs=0.02)
            fresh.extend(entries([token]))
        fresh.close()
        assert_same_distribution(session)
    engine.close()
    model.close()


def test_scoring_from_a_parked_session_finds_a_sequence_for_it(engine: Engine) -> None:
    sessions = [new_session(engine) for _ in range(4)]
    for session in sessions:
        session.extend(entries([5, 6, 7]))
    assert sessions[0].seq is None
    assert len(score_continuations(sessions[0], [[10, 11], [12, 13], [14, 15]])) == 3


def test_chats_that_together_exceed_the_context_take_turns(engine: Engine) -> None:
    """Both had been told that the context is full, though each of them fits."""
    sessions = [new_session(engine, "greedy") for _ in range(2)]
    for index, session in enumerate(sessions):
        session.extend(entries([7 + index] * 200))
        session.step()
    for _ in range(3):
        for session in sessions:
            session.request()
        for session in sessions:
            session.step()
    assert [len(session.tape) for session in sessions] == [204, 204]
    assert [session.rebuilt_tokens for session in sessions] == [0, 0]
    for session in sessions:
        assert session.check_memory()
        assert_same_distribution(session)


def test_what_llama_cpp_logged_is_still_there_after_many_tokens(engine: Engine) -> None:
    """Each decode left a mark in the ring of lines, until it held nothing else."""
    before = log_text()
    session = new_session(engine)
    session.extend(entries([5]))
    for _ in range(200):
        session.step()
    for _ in range(3):
        session.rewind(1)
        session.extend(entries([7] * 100))
    assert log_text() == before != ""


@pytest.mark.parametrize("disturbance", ["another chat's tokens", "parking", "save"])
def test_rewind_to_where_the_sliding_window_is_gone_computes_the_tape_again(
    tiny_model: Callable[..., Path], tmp_path: Path, disturbance: str
) -> None:
    """llama.cpp reuses cells behind the window, and leaves them out of saved states; positions still looked right."""
    model = Model.load(tiny_model("gemma3"), OPTIONS)
    engine = Engine(model, OPTIONS)
    first, session = new_session(engine), new_session(engine)
    first.extend(entries([9] * 40))
    session.extend(entries([10 + i % 7 for i in range(60)]))
    if disturbance == "another chat's tokens":
        first.rewind(5)
        other = new_session(engine)
        other.extend(entries([11] * 60))
    elif disturbance == "parking":
        for _ in range(3):
            new_session(engine).extend(entries([12]))
        assert session.seq is None
    else:
        save_sessions(tmp_path / "a", [(session, {})])
        saved = read_sessions(tmp_path / "a")
        session = restore_session(
            engine, Chain("greedy", n_vocab=engine.vocabulary.size), saved.record, saved.main
        )[0]
    if disturbance != "another chat's tokens":
        assert session.own_seq() is not None
        assert session.kv_length == 60
    session.rewind(30)
    assert session.kv_length == 0
    session.extend(entries([13]))
    assert session.rebuilt_tokens == 30
    assert_same_distribution(session)
    engine.close()
    model.close()


@pytest.mark.parametrize("arch", ["llama", "gemma3"])
def test_rewind_of_whole_memory_computes_nothing_again(tiny_model: Callable[..., Path], arch: str) -> None:
    model = Model.load(tiny_model(arch), OPTIONS)
    engine = Engine(model, OPTIONS)
    session = new_session(engine)
    session.extend(entries([10 + i % 7 for i in range(60)]))
    session.rewind(30)
    session.extend(entries([13]))
    assert session.rebuilt_tokens == 0
    assert_same_distribution(session)
    engine.close()
    model.close()


@pytest.mark.parametrize("arch", ["llama", "gemma3", "mamba"])
@pytest.mark.parametrize("n_seq_max", [1, 2])
def test_many_chats_on_few_sequences(tiny_model: Callable[..., Path], arch: str, n_seq_max: int) -> None:
    with edgellm.load(tiny_model(arch, n_ctx=2048), n_ctx=1024, n_seq_max=n_seq_max, threads=1) as runtime:
        chats = [
            make_chat(runtime, CALL % ("add", f'{{"a": {i}, "b": 1}}'), f"It is {i + 1}.") for i in range(4)
        ]

        async def one(chat: edgellm.Chat) -> str:
            events: list[Any] = [event async for event in chat.asend("Add.")]
            return events[-1].text

        async def all_of_them() -> list[str]:
            return list(await asyncio.gather(*map(one, chats)))

        texts = asyncio.run(all_of_them())
        assert [text[-len("It is 1.") :] for text in texts] == [f"It is {i + 1}." for i in range(4)]
        forks = [chat.fork() for chat in chats]
        for chat in (*chats, *forks):
            chat.rewind(2)
            chat.set_sampler(script(runtime, "Again."))
            assert chat.ask("And?") == "Again."
            assert_sound(chat)
        for chat in (*chats, *forks):
            assert_same_distribution(chat.conversation.session)


@pytest.mark.parametrize("arch", ["llama", "gemma3", "mamba"])
def test_saved_chat_opens_in_another_context(
    tiny_model: Callable[..., Path], tmp_path: Path, arch: str
) -> None:
    path, file = tmp_path / "a.chat", tiny_model(arch, n_ctx=2048)
    with edgellm.load(file, n_ctx=2048, threads=1) as runtime:
        chat = make_chat(runtime, CALL % ("add", '{"a": 2, "b": 3}'), "It is 5.", system="Be nice.")
        list(chat.send("Add."))
        chat.save(path)
        messages, tape = chat.messages, chat.tape
    choices: list[dict[str, Any]] = [
        {"n_ctx": 1024},
        {"n_ctx": 4096, "kv_type_k": "q8_0"},
        {"kv_type_k": "f32", "kv_type_v": "f32"},
    ]
    for options in choices:
        if arch != "mamba" and options.get("kv_type_k") == "q8_0":
            options["kv_type_k"] = "f32"  # rows of 16 do not fit q8_0
        with edgellm.load(file, threads=1, **options) as runtime:
            opened = runtime.open_chat(path, tools=[add], template="chatml", sampler="greedy")
            assert (opened.messages, opened.tape) == (messages, tape)
            opened.set_sampler(script(runtime, "Bye."))
            assert opened.ask("Thanks.") == "Bye."
            assert_sound(opened)
            assert_same_distribution(opened.conversation.session)
    with (
        edgellm.load(file, n_ctx=128, threads=1) as runtime,
        pytest.raises(edgellm.ContextFull, match="context of 256"),  # llama.cpp rounds up
    ):
        runtime.open_chat(path, tools=[add], template="chatml", sampler="greedy")


def test_memory_computed_with_other_rope_settings_is_not_taken_for_ours(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    path = tmp_path / "a.chat"
    with edgellm.load(tiny_model("llama"), threads=1) as runtime:
        chat = make_chat(runtime, "Hi.")
        chat.ask("Hello.")
        chat.save(path)
    with edgellm.load(tiny_model("llama"), threads=1, rope_freq_base=500000.0) as runtime:
        opened = runtime.open_chat(path, tools=[add], template="chatml", sampler="greedy")
        assert_same_distribution(opened.conversation.session)


def test_fork_of_a_session_with_held_back_tokens_has_none_of_them(engine: Engine) -> None:
    @edgellm.sampler
    class HoldsBack:
        """Holds three tokens back."""

        def apply(self, candidates: edgellm.Candidates) -> None:
            """Nothing."""

        def accept(self, token: int) -> Rewind | None:
            return None

        def pending(self) -> int:
            return 3

    session = new_session(engine, [HoldsBack(), "greedy"])
    session.extend(entries([5, 6, 7]))
    first = session.step()
    assert len(session.tape) == 7
    fork = session.fork()
    assert fork.tape.tokens == [5, 6, 7, first.token]
    assert fork.check_memory()
    assert [session.step().token for _ in range(4)] == [fork.step().token for _ in range(4)]
    fork.settle()
    session.settle()
    assert fork.tape.tokens == session.tape.tokens
    assert_same_distribution(fork)


# -- messages --------------------------------------------------------------------------------------------------


def test_message_that_is_too_long_does_not_open_the_answer_before_it(runtime: edgellm.Runtime) -> None:
    """The model had ended it by another token than the template does, which was taken off for the message."""
    end = runtime.vocabulary.special_tokens["<|endoftext|>"]
    chat = runtime.chat(sampler=[Scripted(["Hi."], end)], template="chatml")
    chat.ask("Hello.")
    tape = chat.tape
    with pytest.raises(edgellm.ContextFull):
        chat.ask("x" * 20 * runtime.n_ctx)
    assert chat.tape == tape
    assert not chat.is_answer_open
    chat.close()


def test_rewind_between_the_results_of_parallel_calls_keeps_the_one_that_stays(
    runtime: edgellm.Runtime,
) -> None:
    calls = "\n".join(CALL % ("add", f'{{"a": {n}, "b": 1}}') for n in (10, 20))
    chat = make_chat(runtime, calls, "Done.")
    list(chat.send("Add."))
    assert [message.role for message in chat.messages] == ["user", "assistant", "tool", "tool", "assistant"]
    chat.rewind(3)
    chat.set_sampler(script(runtime, "Again."))
    chat.ask("Go on.")
    assert [message.content for message in chat.messages[2:]] == ["11", "Go on.", "Again."]
    assert tape_text(chat).count("<tool_response>") == 1
    assert_sound(chat)


def test_history_comes_before_the_first_message_also_after_a_rewind(runtime: edgellm.Runtime) -> None:
    history = [edgellm.Message("user", "Who are you?"), edgellm.Message("assistant", "A test.")]
    chat = make_chat(runtime, "Hi.", history=history, system="Be nice.")
    chat.ask("Hello.")
    assert "A test." in tape_text(chat)
    chat.rewind(2)
    chat.set_sampler(script(runtime, "Again."))
    chat.ask("Hello again.")
    assert tape_text(chat).count("A test.") == 1
    assert "Hello.<" not in tape_text(chat)
    chat.rewind(0)
    chat.set_sampler(script(runtime, "Anew."))
    chat.ask("From here.")
    assert "A test." not in tape_text(chat)
    assert_sound(chat)


def test_send_none_behind_an_answer_that_is_rendered_anew_leaves_it(runtime: edgellm.Runtime) -> None:
    """The new answer took its place among the messages, though both stood on the tape."""
    history = [edgellm.Message("user", "Who are you?"), edgellm.Message("assistant", "A test.")]
    chat = make_chat(runtime, "More.", "Hi.", "Again.", history=history, reasoning_policy="render")
    list(chat.send(None))
    assert [message.content for message in chat.messages] == ["Who are you?", "A test.", "More."]
    chat.ask("Hello.")
    chat.rewind(3)
    list(chat.send(None))
    assert [message.content for message in chat.messages] == ["Who are you?", "A test.", "More.", "Again."]
    assert all(message.content in tape_text(chat) for message in chat.messages)


def test_room_is_made_in_front_of_a_question_that_a_rewind_left_last(runtime: edgellm.Runtime) -> None:
    """It was taken to end where the last answer had begun, behind the end of the tape: an IndexError each time."""
    tenth = runtime.n_ctx // 10
    chat = make_chat(runtime, "One.", "Two.", "Three.", "Four.", tools=[], context_policy="evict")
    for letter in "abc":
        chat.ask(letter * 2 * tenth)
    chat.rewind(3)
    chat.ask("d" * 5 * tenth)
    assert [message.content[0] for message in chat.messages] == ["b", "d", "F"]
    assert_sound(chat)
    chat.close()


@pytest.mark.parametrize("is_too_long", [True, False], ids=["too long", "reader left"])
def test_finished_answer_is_not_open_where_room_was_made_for_a_turn_that_did_not_begin(
    runtime: edgellm.Runtime, is_too_long: bool
) -> None:
    """The end that the model wrote was cut off for the new turn's, and gone once older turns were taken out."""
    tenth = runtime.n_ctx // 10
    end = runtime.vocabulary.special_tokens["<|endoftext|>"]
    chat = runtime.chat(sampler=[Scripted(["One.", "Two."], end)], template="chatml", context_policy="evict")
    chat.ask("a" * 3 * tenth)
    chat.ask("b" * tenth)
    assert not chat.is_answer_open
    turn = chat.send("c" * (9 if is_too_long else 5) * tenth)
    if is_too_long:
        chat.pin(2)
        with pytest.raises(edgellm.ContextFull):
            list(turn)
    else:
        next(event for event in turn if isinstance(event, edgellm.ContextEvicted))
        turn.close()
    assert [message.content[0] for message in chat.messages] == ["b", "T"]
    assert not chat.is_answer_open
    chat.close()


def test_pins_of_messages_that_a_fork_cut_off_are_none_of_later_ones(runtime: edgellm.Runtime) -> None:
    chat = make_chat(runtime, "One.", "Two.", tools=[])
    chat.ask("Hello.")
    chat.ask("Hello again.")
    chat.pin(0)
    chat.pin(2)
    fork = chat.fork(at=chat.conversation.starts[1] + 1)
    assert (chat.pinned, fork.pinned) == ((0, 2), (0,))
    fork.close()
    chat.close()


# -- closed --------------------------------------------------------------------------------------------------------


def test_closed_chat_says_so(runtime: edgellm.Runtime, tmp_path: Path) -> None:
    """It waited forever for a token that no engine drew for it."""
    chat = make_chat(runtime, "Hi.")
    chat.ask("Hello.")
    chat.close()
    chat.close()
    for action in (
        lambda: chat.ask("Again."),
        chat.fork,
        lambda: chat.rewind(0),
        lambda: chat.save(tmp_path / "x"),
        lambda: chat.set_sampler("greedy"),
        lambda: chat.conversation.session.step(),
        lambda: chat.conversation.session.extend(()),
    ):
        with pytest.raises(edgellm.ConfigError, match="closed"):
            action()
    assert len(chat.messages) == 2


@pytest.mark.parametrize(
    "until", [edgellm.PrefillProgress, edgellm.TextDelta, edgellm.ToolRunning, edgellm.ToolFinished]
)
def test_chat_that_is_closed_in_mid_turn_ends_the_turn(runtime: edgellm.Runtime, until: type) -> None:
    chat = make_chat(runtime, "Hm. " + CALL % ("add", '{"a": 2, "b": 3}'), "5.")
    turn = chat.send("Add.")
    for event in turn:
        if isinstance(event, until):
            break
    chat.close()
    with pytest.raises(edgellm.ConfigError, match="closed"):
        list(turn)
    other = make_chat(runtime, "Fine.")
    assert other.ask("And you?") == "Fine."
    other.close()


def test_completion_that_is_never_started_leaves_nothing_behind(runtime: edgellm.Runtime) -> None:
    before = len(runtime.engine._sessions)  # pyright: ignore[reportPrivateUsage]
    runtime.complete("Once")
    assert len(runtime.engine._sessions) == before  # pyright: ignore[reportPrivateUsage]


AFTER_CLOSE = """
    import gc, sys, asyncio
    import edgellm
    from edgellm.scripted import Scripted

    @edgellm.tool(permission="auto")
    def add(a: int, b: int) -> int:
        '''Adds.

        Args:
            a: One.
            b: Two.
        '''
        return a + b

    runtime = edgellm.load(sys.argv[1], n_ctx=1024, threads=1)
    end = runtime.vocabulary.special_tokens["<|im_end|>"]
    call = '<tool_call>\\n{"name": "add", "arguments": {"a": 1, "b": 2}}\\n</tool_call>'

    def chat():
        return runtime.chat(sampler=[Scripted(["Hm. " + call, "Three."], end)], template="chatml", tools=[add])

    turns, chats = [], []
    for k in (1, 3, 6, 9, 30, 60, 62, 63, 64, 70):
        chats.append(chat())
        turn = chats[-1].send("Add. " + "x" * 200)
        for _ in range(k):
            next(turn, None)
        turns.append(turn)
    completion = runtime.complete("Once upon", max_tokens=50, sampler="top_k(5) | dist")
    for _ in range(4):
        next(completion)
    unstarted = runtime.complete("Once")
    runtime.embed(["a"])
    vocabulary = runtime.vocabulary
    open_chain = runtime.make_chain("infill | dist")
    runtime.close()
    runtime.close()

    def refused(action):
        try:
            action()
        except edgellm.ConfigError as error:
            assert "closed" in str(error), error
        else:
            raise AssertionError(action)

    for turn in turns[::2]:
        try:
            list(turn)
        except edgellm.ConfigError as error:
            assert "closed" in str(error), error
    del turn, turns
    gc.collect()
    refused(lambda: list(completion))
    refused(lambda: list(unstarted))
    for action in (
        lambda: chats[0].ask("x"), lambda: chats[0].fork(), lambda: chats[0].rewind(0),
        lambda: chats[0].save("/tmp/never"), lambda: runtime.chat(), lambda: runtime.complete("x"),
        lambda: runtime.embed(["x"]), lambda: runtime.tokenize("something new"), lambda: vocabulary.is_eog(10**6),
        lambda: runtime.engine.context.logits(0), lambda: runtime.thread,
        lambda: runtime.model.chat_template(),
        lambda: runtime.engine.context.state(0), lambda: runtime.make_chain("dry"),
        lambda: runtime.engine.context.position_range(0), lambda: runtime.model.description,
    ):
        refused(action)
    chats[0].close()
    assert chats[0].messages is not None

    async def stream():
        async for _ in chats[1].asend("x"):
            pass

    refused(lambda: asyncio.run(stream()))
    print("alive")
"""


@pytest.mark.slow
def test_nothing_that_outlives_its_runtime_crashes_the_process(tiny_model: Callable[..., Path]) -> None:
    """Generators resumed or collected after Runtime.close ran into freed memory."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(AFTER_CLOSE), str(tiny_model("llama", n_ctx=1024))],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout.strip()) == (0, "alive"), done.stderr
    assert "ignored" not in done.stderr


def test_runtime_that_is_closed_under_another_threads_turn_ends_that_turn(
    tiny_model: Callable[..., Path],
) -> None:
    runtime = edgellm.load(tiny_model("llama", n_ctx=4096), n_ctx=4096, threads=1)
    chat = make_chat(runtime, "word " * 700, tools=[])
    errors: list[BaseException] = []
    begun = threading.Event()

    def read() -> None:
        try:
            for event in chat.send("Go."):
                if isinstance(event, edgellm.TextDelta):
                    begun.set()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    assert begun.wait(10)
    runtime.close()
    thread.join(10)
    assert not thread.is_alive()
    assert [str(error) for error in errors if "closed" not in str(error)] == []


# -- the engine's thread -----------------------------------------------------------------------------------------


def test_runtime_that_is_closed_under_async_turns_ends_them(tiny_model: Callable[..., Path]) -> None:
    runtime = edgellm.load(tiny_model("llama", n_ctx=4096), n_ctx=4096, threads=1)
    chats = [make_chat(runtime, "word " * 700, tools=[]) for _ in range(3)]

    async def read(chat: edgellm.Chat) -> str:
        async for event in chat.asend("Go."):
            if isinstance(event, edgellm.TurnFinished):
                return event.finish_reason
        return "nothing"

    async def close_them() -> list[Any]:
        tasks = [asyncio.create_task(read(chat)) for chat in chats]
        await asyncio.sleep(0.3)
        runtime.close()
        return await asyncio.gather(*tasks, return_exceptions=True)

    for end in asyncio.run(close_them()):
        assert end == "cancelled" or isinstance(end, (edgellm.Cancelled, edgellm.ConfigError))


def test_chats_may_be_closed_forked_and_saved_beside_async_turns(
    runtime: edgellm.Runtime, tmp_path: Path
) -> None:
    chats = [make_chat(runtime, "word " * 60, tools=[]) for _ in range(2)]
    others = [make_chat(runtime, "Hi.") for _ in range(8)]
    for other in others:
        other.ask("Hello.")

    async def read(chat: edgellm.Chat) -> str:
        events: list[Any] = [event async for event in chat.asend("Go.")]
        return events[-1].text

    async def run() -> list[str]:
        tasks = [asyncio.create_task(read(chat)) for chat in chats]
        for other in others:
            await asyncio.sleep(0.005)
            other.fork().close()
            other.save(tmp_path / "a")
            other.rewind(1)
            other.close()
        return list(await asyncio.gather(*tasks))

    assert asyncio.run(run()) == ["word " * 60] * 2
    for chat in chats:
        assert_sound(chat)
        chat.close()


ASYNC_EXIT = """
    import asyncio, sys
    import edgellm
    from edgellm.scripted import Scripted

    runtime = edgellm.load(sys.argv[1], n_ctx=1024, threads=1)
    end = runtime.vocabulary.special_tokens["<|im_end|>"]
    stream = runtime.chat(sampler=[Scripted(["word " * 50], end)], template="chatml").asend("Hi.")

    async def read_some():
        for _ in range(6):
            await anext(stream)

    if sys.argv[2] == "run":
        asyncio.run(read_some())
    else:
        loop = asyncio.new_event_loop()
        loop.run_until_complete(read_some())
        loop.close()
    print("end")
"""


@pytest.mark.slow
@pytest.mark.parametrize("way", ["run", "loop"])
def test_program_that_ends_in_the_middle_of_an_async_turn_ends_quietly(
    tiny_model: Callable[..., Path], way: str
) -> None:
    """The loop closed reader and turn beside each other, and both complained."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(ASYNC_EXIT), str(tiny_model("llama", n_ctx=1024)), way],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "end\n", "")


class Ending:
    """A turn for the thread: yields, then raises while it is closed."""

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        return 1

    def close(self) -> None:
        raise ValueError("while closing")


def test_turn_that_raises_while_it_is_closed_does_not_end_the_thread() -> None:
    thread = EngineThread()
    ends: list[Any] = []
    arrived = threading.Event()

    def deliver(item: Any) -> None:
        if item == 1:
            task.close()
        else:
            ends.append(item)
            arrived.set()

    task = thread.start_turn(Ending(), deliver)
    assert arrived.wait(5)
    assert isinstance(ends[0].error, ValueError)
    assert thread.call(lambda: 7).result(5) == 7
    thread.close()


def test_reader_whose_loop_is_gone_does_not_end_the_thread() -> None:
    thread = EngineThread()
    closed = threading.Event()

    def turn() -> Iterator[int]:
        try:
            while True:
                yield 1
        finally:
            closed.set()

    def deliver(_item: Any) -> None:
        raise RuntimeError("Event loop is closed")

    thread.start_turn(turn(), deliver)
    assert closed.wait(5)
    assert thread.call(lambda: 7).result(5) == 7
    thread.close()


def test_call_that_the_thread_did_not_come_to_is_cancelled_when_it_closes() -> None:
    thread = EngineThread()
    busy, go = threading.Event(), threading.Event()

    def hold() -> None:
        busy.set()
        go.wait(5)

    thread.call(hold)
    assert busy.wait(5)
    late = thread.call(lambda: 7)
    threading.Timer(0.1, go.set).start()
    thread.close()
    with pytest.raises(BaseException):  # noqa: B017  # CancelledError, or its result where it was in time
        assert late.result(5) != 7
    with pytest.raises(edgellm.ConfigError, match="closed"):
        thread.call(lambda: 7)


def test_thread_that_is_closed_while_its_turns_end_does_not_trip_over_them() -> None:
    for _ in range(30):
        thread = EngineThread()
        ends: list[Any] = []
        for _ in range(5):
            thread.start_turn(iter(range(20)), ends.append)
        thread.close()
        assert sum(not isinstance(end, int) for end in ends) == 5


def test_failed_decode_of_one_batch_is_told_to_each_and_heals(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    sessions = [new_session(engine) for _ in range(3)]
    for session in sessions:
        session.extend(entries([5, 6, 7]))
        session.step()
    for session in sessions:
        session.request()
    real = engine.context.decode

    def failing(rows: Any) -> DecodeStatus:
        real(rows)
        return DecodeStatus.FAILED

    with monkeypatch.context() as patch:
        patch.setattr(engine.context, "decode", failing)
        for session in sessions:
            with pytest.raises(edgellm.DecodeError):
                session.step()
    for session in sessions:
        assert session.check_memory()
        session.step()
        assert_same_distribution(session)
