"""What is computed ahead, while the user types or a tool runs, changes when tokens are computed, and nothing else."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import edgellm
from edgellm.engine.prefill import SMALL_MODEL_CHUNK
from edgellm.errors import DecodeError
from edgellm.scripted import Scripted

MESSAGE = "What do you know of the weather in the north of the country, and of the sea?"
SYSTEM = "Be brief, and name the source of what you say. " * 8


@pytest.fixture
def with_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EDGELLM_PREFIX_CACHE")


@pytest.fixture
def runtime(request: pytest.FixtureRequest, tiny_model: Callable[..., Path]) -> Iterator[edgellm.Runtime]:
    if "with_cache" in request.fixturenames:
        request.getfixturevalue("with_cache")  # before the engine is made
    with edgellm.load(tiny_model("llama", n_ctx=2048), n_ctx=2048, n_seq_max=3, threads=1) as opened:
        yield opened


def make_chat(runtime: edgellm.Runtime, **options: Any) -> edgellm.Chat:
    return runtime.chat(**{"template": "chatml", "sampler": "greedy", **options})


@pytest.fixture
def rows(runtime: edgellm.Runtime, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens each decode of the engine has computed."""
    counted: list[int] = []
    decode = runtime.engine.decode

    def counting(rows: Sequence[Any], sessions: Sequence[Any]) -> None:
        counted.append(len(rows))
        decode(rows, sessions)

    monkeypatch.setattr(runtime.engine, "decode", counting)
    return counted


def turn(chat: edgellm.Chat, text: str | None) -> edgellm.Usage:
    (end,) = [e for e in chat.send(text, max_tokens=6) if isinstance(e, edgellm.TurnFinished)]
    assert chat.conversation.session.check_memory()
    return end.usage


def test_draft_is_on_no_tape_and_is_not_computed_again(runtime: edgellm.Runtime, rows: list[int]) -> None:
    plain, drafted = make_chat(runtime), make_chat(runtime)
    for chat in (plain, drafted):
        turn(chat, "Hello.")
    tape, messages = drafted.tape, drafted.messages
    ahead = drafted.prefill_draft(MESSAGE)
    assert ahead > 20
    assert (drafted.tape, drafted.messages) == (tape, messages)
    rows.clear()
    usage = turn(drafted, MESSAGE)
    first = rows[0]
    whole = turn(plain, MESSAGE)
    assert usage.ahead_tokens == ahead
    assert first == usage.prefill_tokens == whole.prefill_tokens - ahead
    assert whole.ahead_tokens == 0
    assert usage.reused_tokens == whole.reused_tokens
    assert drafted.tape == plain.tape


def test_growing_draft_computes_what_is_new(runtime: edgellm.Runtime, rows: list[int]) -> None:
    chat = make_chat(runtime)
    turn(chat, "Hello.")
    rows.clear()
    words = MESSAGE.split()
    counts = [chat.prefill_draft(" ".join(words[:count])) for count in range(1, len(words) + 1)]
    assert counts == sorted(counts) and counts[-1] > counts[0] > 0
    assert sum(rows) == counts[-1]
    assert turn(chat, MESSAGE).ahead_tokens == counts[-1]


@pytest.mark.parametrize("sent", ["What do you want?", "No.", "What do you know of the weather"])
def test_other_text_than_the_draft_is_answered_as_if_there_had_been_none(
    runtime: edgellm.Runtime, sent: str
) -> None:
    plain, drafted = make_chat(runtime), make_chat(runtime)
    for chat in (plain, drafted):
        turn(chat, "Hello.")
    drafted.prefill_draft(MESSAGE)
    usage, whole = turn(drafted, sent), turn(plain, sent)
    assert usage.prefill_tokens + usage.ahead_tokens == whole.prefill_tokens
    assert usage.ahead_tokens > 0  # the template's text in front is the same
    assert drafted.tape == plain.tape


def test_last_word_is_not_settled_before_it_is_whole(runtime: edgellm.Runtime) -> None:
    chat = make_chat(runtime)
    turn(chat, "Hello.")
    whole = chat.prefill_draft("one two ")
    assert chat.prefill_draft("one two thr") == chat.prefill_draft("one two three") == whole
    assert chat.prefill_draft("one two three ") > whole


@pytest.mark.usefixtures("with_cache")
def test_first_message_has_the_system_turn_computed_and_kept(
    runtime: edgellm.Runtime, rows: list[int]
) -> None:
    chat = make_chat(runtime, system=SYSTEM)
    ahead = chat.prefill_draft("")
    assert ahead == sum(rows) > 64
    assert chat.tape == ()
    assert turn(chat, MESSAGE).ahead_tokens == ahead
    rows.clear()
    # From disk, as a turn without a draft has it.
    other = make_chat(runtime, system=SYSTEM)
    assert other.prefill_draft("") == ahead
    assert sum(rows) < 10
    assert turn(other, MESSAGE).ahead_tokens == ahead
    third = make_chat(runtime, system=SYSTEM)
    assert turn(third, MESSAGE).reused_tokens > 64
    assert chat.tape == other.tape == third.tape


@pytest.mark.usefixtures("with_cache")
def test_first_draft_that_was_wrong_leaves_the_snapshot_usable(runtime: edgellm.Runtime) -> None:
    turn(make_chat(runtime, system=SYSTEM), MESSAGE)
    chat = make_chat(runtime, system=SYSTEM)
    assert chat.prefill_draft(MESSAGE) > 64
    fork = chat.fork()
    while chat.runtime.engine.make_room():
        pass
    usage = turn(chat, MESSAGE)
    assert usage.reused_tokens > 64 and usage.ahead_tokens == 0
    # Memory that was taken for a draft and given up is taken from disk as well.
    assert fork.prefill_draft(MESSAGE) > 64
    fork.conversation.session.memory.drop_ahead()
    assert turn(fork, MESSAGE).reused_tokens > 64
    assert fork.tape == chat.tape


@pytest.mark.parametrize(
    "disturb",
    [
        lambda chat, path: chat.fork().close(),
        lambda chat, path: chat.save(path),
        lambda chat, path: chat.rewind(len(chat.messages) - 2),
        lambda chat, path: chat.explain(len(chat.tape)),
        lambda chat, path: turn(chat, None),
        lambda chat, path: chat.prefill_draft("No, something else entirely "),
        lambda chat, path: chat.runtime.engine.make_room(),
        lambda chat, path: chat.conversation.session.peek(5),
        lambda chat, path: chat.conversation.session.logits(),
        lambda chat, path: chat.set_sampler("greedy"),
        lambda chat, path: [turn(make_chat(chat.runtime), "Me, too.") for _ in range(4)],
    ],
)
def test_whatever_is_done_behind_a_draft_is_as_without_one(
    runtime: edgellm.Runtime, tmp_path: Path, disturb: Callable[[edgellm.Chat, Path], object]
) -> None:
    tapes: list[tuple[int, ...]] = []
    for is_drafted in (False, True):
        chat = make_chat(runtime)
        for text in ("Hello.", "Well."):
            turn(chat, text)
        if is_drafted:
            chat.prefill_draft(MESSAGE)
        disturb(chat, tmp_path / "a.chat")
        assert chat.conversation.session.check_memory()
        turn(chat, MESSAGE)
        tapes.append(chat.tape)
        chat.close()
    assert tapes[0] == tapes[1]


def test_guesses_and_drafts_do_not_meet(runtime: edgellm.Runtime) -> None:
    tapes: list[tuple[int, ...]] = []
    for is_drafted in (False, True):
        chat = make_chat(runtime, speculate="ngram")
        for text in ("again and again and again", MESSAGE, MESSAGE):
            if is_drafted:
                assert chat.prefill_draft(text) > 0
            (end,) = [e for e in chat.send(text, max_tokens=30) if isinstance(e, edgellm.TurnFinished)]
            assert (end.usage.ahead_tokens > 0) is is_drafted
        tapes.append(chat.tape)
    assert tapes[0] == tapes[1]


@pytest.mark.parametrize("arch", ["mamba", "jamba", "gemma3"])
def test_memory_that_cannot_be_cut_is_left_alone(tiny_model: Callable[..., Path], arch: str) -> None:
    with edgellm.load(tiny_model(arch), n_ctx=512, threads=1) as runtime:
        chat = make_chat(runtime)
        turn(chat, "Hello.")
        assert chat.prefill_draft(MESSAGE) == 0
        assert turn(chat, MESSAGE).rebuilt_tokens == 0


def test_send_ends_a_draft_and_has_the_chunks_that_are_done(
    runtime: edgellm.Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat = make_chat(runtime)
    turn(chat, "Hello.")
    session, decode = chat.conversation.session, runtime.engine.decode
    chunks, is_second = 0, threading.Event()

    def slow(rows: Sequence[Any], sessions: Sequence[Any]) -> None:
        nonlocal chunks
        chunks += 1
        if chunks == 2:
            is_second.set()
            while not session.is_cancelled:
                pass
        decode(rows, sessions)

    monkeypatch.setattr(runtime.engine, "decode", slow)
    text = MESSAGE * 6
    ahead: list[int] = []
    typing = threading.Thread(target=lambda: ahead.append(chat.prefill_draft(text)))
    typing.start()
    assert is_second.wait(20)
    usage = turn(chat, text)
    typing.join(20)
    assert ahead == [SMALL_MODEL_CHUNK] == [usage.ahead_tokens]
    assert not session.is_cancelled


def test_nothing_is_done_in_an_open_turn(runtime: edgellm.Runtime) -> None:
    chat = make_chat(runtime)
    events = chat.send("Hello.", max_tokens=6)
    next(events)
    assert chat.prefill_draft(MESSAGE) == 0
    events.close()


def test_failure_leaves_what_is_done(runtime: edgellm.Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    chat = make_chat(runtime)
    turn(chat, "Hello.")
    context, calls = runtime.engine.context, 0
    decode = context.decode

    def failing(rows: Sequence[Any]) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise DecodeError("no more.", hint="Try again.")
        return decode(rows)

    monkeypatch.setattr(context, "decode", failing)
    with pytest.raises(DecodeError):
        chat.prefill_draft(MESSAGE * 6)
    assert chat.conversation.session.check_memory()
    assert turn(chat, MESSAGE * 6).ahead_tokens == SMALL_MODEL_CHUNK


def test_older_turns_that_would_give_way_are_not_built_upon(tiny_model: Callable[..., Path]) -> None:
    with edgellm.load(tiny_model("llama"), n_ctx=256, threads=1) as runtime:
        chat = make_chat(runtime, context_policy="evict")
        turn(chat, "Hello. " * 20)
        assert chat.prefill_draft(MESSAGE * 3) == 0
        assert chat.prefill_draft(MESSAGE * 30) == 0
        assert turn(chat, MESSAGE * 2).ahead_tokens == 0


def test_drafts_and_turns_share_the_engines_thread(runtime: edgellm.Runtime) -> None:
    async def play() -> tuple[int, int, int]:
        chat, other = make_chat(runtime), make_chat(runtime)

        async def say(chat: edgellm.Chat, text: str) -> edgellm.Usage:
            found = [e async for e in chat.asend(text, max_tokens=6)]
            return found[-1].usage

        await say(chat, "Hello.")
        ahead, _ = await asyncio.gather(chat.aprefill_draft(MESSAGE), say(other, "Hello."))
        usage = await say(chat, MESSAGE)
        # From this thread as well, while there is one for the engine; and a turn that comes while it is computed.
        assert await asyncio.to_thread(other.prefill_draft, MESSAGE) > 0
        drafting = asyncio.create_task(chat.aprefill_draft(MESSAGE * 10))
        await asyncio.sleep(0)
        late = await say(chat, MESSAGE * 10)
        assert await drafting in (late.ahead_tokens, 0)
        cancelled = asyncio.create_task(chat.aprefill_draft(MESSAGE * 20))
        await asyncio.sleep(0)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        await say(chat, "So.")
        return ahead, usage.ahead_tokens, late.prefill_tokens

    ahead, taken, _ = asyncio.run(play())
    assert ahead == taken > 20


# -- while a tool runs -----------------------------------------------------------------------------------------


def scripted(runtime: edgellm.Runtime, answers: list[str], **options: Any) -> edgellm.Chat:
    end = runtime.vocabulary.special_tokens["<|im_end|>"]
    return runtime.chat(template="chatml", strategy="free", sampler=[Scripted(answers, end)], **options)


def call(*names: str) -> str:
    return "".join(f'<tool_call>\n{{"name": "{name}", "arguments": {{}}}}\n</tool_call>' for name in names)


def test_results_glue_is_computed_while_the_tool_runs(runtime: edgellm.Runtime) -> None:
    held: list[int] = []
    is_done = threading.Event()

    @edgellm.tool(permission="auto")
    def look() -> str:
        """Looks."""
        assert is_done.wait(20)
        return "nothing"

    chat = scripted(runtime, [call("look"), "So."], tools=[look])
    prefill_ahead = chat.conversation.session.prefill_ahead

    def watched(tokens: Sequence[int]) -> Iterator[int]:
        for ahead in prefill_ahead(tokens):
            held.append(ahead)
            yield ahead
        is_done.set()

    chat.conversation.session.prefill_ahead = watched  # type: ignore[method-assign]
    (end,) = [e for e in chat.send("Look.") if isinstance(e, edgellm.TurnFinished)]
    first, second = end.usage.legs
    assert first.ahead_tokens == 0 and second.ahead_tokens == held[-1] > 5
    total = sum(leg.prefill_tokens + leg.ahead_tokens + leg.decode_tokens for leg in end.usage.legs)
    assert total - 1 == len(chat.tape)
    assert chat.messages[2].content == "nothing"


def test_refused_call_beside_one_that_runs_is_computed_with_its_text(runtime: edgellm.Runtime) -> None:
    @edgellm.tool(permission="auto")
    def look() -> str:
        """Looks."""
        return "nothing"

    @edgellm.tool(permission="deny")
    def touch() -> str:
        """Touches."""
        return "warm"

    tapes: list[tuple[int, ...]] = []
    for is_ahead in (True, False):
        chat = scripted(runtime, [call("touch", "look"), "So."], tools=[look, touch])
        if not is_ahead:
            chat.conversation.session.prefill_ahead = lambda tokens: iter(())  # type: ignore[method-assign]
        (end,) = [e for e in chat.send("Do.") if isinstance(e, edgellm.TurnFinished)]
        refusal = next(m.content for m in chat.messages if m.role == "tool")
        size = len(runtime.tokenize(refusal))
        assert (end.usage.legs[1].ahead_tokens > size) is is_ahead
        tapes.append(chat.tape)
    assert tapes[0] == tapes[1]


def test_cancel_while_glue_is_computed_is_heard(runtime: edgellm.Runtime) -> None:
    @edgellm.tool(permission="auto")
    def look(call: edgellm.ToolContext) -> str:
        """Looks."""
        call.cancel_event.wait(20)
        return "nothing"

    chat = scripted(runtime, [call("look"), "So."], tools=[look])
    for event in chat.send("Look."):
        if isinstance(event, edgellm.ToolRunning):
            chat.cancel()
        if isinstance(event, edgellm.TurnFinished):
            assert event.finish_reason == "cancelled"
    turn_usage = chat.usage
    assert turn_usage.rebuilt_tokens == 0
    assert chat.conversation.session.check_memory()
    assert chat.ask("Well?") == "So."
