"""Saved chats opened with other tools: what the model was told stands on the tape and stays, and it is said."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from cli_harness import cli
from scripted_chats import script

import edgellm

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture(scope="module")
def runtime(tiny_model: Callable[..., Path]) -> Iterator[edgellm.Runtime]:
    with edgellm.load(tiny_model("llama"), n_ctx=2048, n_seq_max=4, threads=1) as runtime:
        yield runtime


@edgellm.tool(permission="auto")
def alpha(word: str = "x") -> str:
    """The first.

    Args:
        word: Which.
    """
    return f"alpha {word}"


@edgellm.tool(permission="auto")
def beta(n: int) -> str:
    """The second."""
    return f"beta {n}"


@pytest.fixture
def saved(runtime: edgellm.Runtime, tmp_path: Path) -> Path:
    """A chat with the tool alpha."""
    path = tmp_path / "a.chat"
    with runtime.chat(system="Be brief.", tools=[alpha], sampler=script(runtime, "Hi.")) as chat:
        chat.ask("Hello.")
        chat.save(path)
    return path


def opened(runtime: edgellm.Runtime, path: Path, **options: Any) -> tuple[edgellm.Chat, list[str]]:
    """The chat, and the notices of its next turn."""
    chat = runtime.open_chat(path, sampler=script(runtime, "Bye.", "Bye."), **options)
    told = [event.message for event in chat.send("Thanks.") if isinstance(event, edgellm.Notice)]
    assert not any(isinstance(event, edgellm.Notice) for event in chat.send("And?"))
    return chat, told


def owners(chat: edgellm.Chat) -> dict[str, int]:
    return {entry.name: entry.tokens for entry in chat.ledger().entries if entry.owner == "tool"}


def test_the_same_goes_on_silently(runtime: edgellm.Runtime, saved: Path, tmp_path: Path) -> None:
    for options in ({"tools": [alpha]}, {"tools": [alpha], "system": "Be brief."}):
        chat, told = opened(runtime, saved, **options)
        assert told == [] and chat.system == "Be brief." and chat.usage.rebuilt_tokens == 0
        assert owners(chat)["alpha"] > 0
        chat.save(tmp_path / "b.chat")
        chat.close()
    other, _ = opened(runtime, tmp_path / "b.chat", tools=[beta])
    other.save(tmp_path / "c.chat")
    other.close()
    # What was told is saved again, not what was offered meanwhile.
    again, told = opened(runtime, tmp_path / "c.chat", tools=[alpha])
    assert told == []
    again.close()


def test_other_tools_are_named_and_the_ledger_charges_those_on_the_tape(
    runtime: edgellm.Runtime, saved: Path
) -> None:
    with runtime.open_chat(saved, tools=[alpha], sampler="greedy") as same:
        before = owners(same)
    chat, told = opened(runtime, saved, tools=[beta])
    assert chat.tools == ("beta",)
    assert len(told) == 2 and "does not know of beta:" in told[0] and "was told of alpha when" in told[1]
    assert owners(chat) == before and set(before) <= {"alpha", ""}
    chat.close()
    both, told = opened(runtime, saved, tools=[alpha, beta])
    assert [note.partition(":")[0] for note in told] == ["The model does not know of beta"]
    # What is rendered again, because older turns go, has the tools that were told as well.
    both.set_context_policy(lambda crowding: [edgellm.Drop(0)])
    upkeep = both._agent.upkeep  # pyright: ignore[reportPrivateUsage]
    list(upkeep.make_room(1, len(both.messages)))
    text = runtime.vocabulary.text_of(both.tape).decode()
    assert "alpha" in text and "beta" not in text and both.conversation.session.check_memory()
    both.close()
    none, told = opened(runtime, saved)
    assert len(told) == 1 and "not offered now" in told[0]
    none.close()


def test_a_tool_that_has_changed_is_named(runtime: edgellm.Runtime, saved: Path) -> None:
    @edgellm.tool(name="alpha", permission="auto")
    def other(word: str) -> str:
        """Another one."""
        return word

    chat, told = opened(runtime, saved, tools=[other])
    assert len(told) == 1 and "alpha as it was when this chat began" in told[0]
    chat.close()


def test_where_nothing_is_on_the_tape_yet_the_options_count(runtime: edgellm.Runtime, tmp_path: Path) -> None:
    path = tmp_path / "new.chat"
    with runtime.chat(system="Be brief.", tools=[alpha]) as chat:
        chat.save(path)
    chat, told = opened(runtime, path, tools=[beta])
    text = runtime.vocabulary.text_of(chat.tape).decode()
    assert told == [] and "beta" in text and "alpha" not in text
    chat.close()


def test_where_the_runtime_chooses_tools_the_model_need_not_know_of_them(
    runtime: edgellm.Runtime, tmp_path: Path
) -> None:
    path = tmp_path / "guided.chat"
    options: dict[str, Any] = {"strategy": "guided", "sampler": script(runtime, "Hi.")}
    with runtime.chat(tools=[alpha], **options) as chat:
        list(chat.send("Hello.", tool_choice="none"))
        chat.save(path)
        tape = chat.tape
    with runtime.open_chat(path, tools=[beta], **options) as again:
        events = list(again.send("And?", tool_choice="none"))
        assert not any(isinstance(event, edgellm.Notice) for event in events)
    # Opened without tools, the worked turns on the tape are still charged as such.
    with runtime.open_chat(path, sampler="greedy") as bare:
        assert bare.tape == tape
        assert any(entry.owner == "examples" for entry in bare.ledger().entries)


def test_in_the_line_chat_it_is_a_status_line(saved: Path, runtime: edgellm.Runtime) -> None:
    words = (
        "chat",
        "-m",
        runtime.model.path,
        "--no-tools",
        "--load",
        saved,
        "--max-tokens",
        4,
        "--sampler",
        "greedy",
    )
    outcome = cli(*words, stdin="/system\nHello\n")
    assert outcome.code == 0 and outcome.out.startswith("Be brief.\n")
    assert "was told of alpha" in outcome.err
