"""Saved sessions: what a reader finds out about their memory, and what becomes of it."""

from __future__ import annotations

import hashlib
import tracemalloc
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest

import edgellm
from edgellm.engine.engine import Engine
from edgellm.engine.saving import restore_session, save_sessions
from edgellm.engine.session_file import Probe, SavedSessions, read_record, read_sessions
from edgellm.errors import ConfigError, SessionError
from edgellm.native.model import Model
from edgellm.sampling.chain import Chain
from edgellm.types import AdapterSet, LoadOptions, Resumed, SpanKind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from edgellm.engine.session import Session

OPTIONS = LoadOptions(n_ctx=512, n_seq_max=3, n_batch=64, threads=1)


def new_session(engine: Engine, tokens: int = 0) -> Session:
    session = engine.session(Chain("greedy", n_vocab=engine.vocabulary.size))
    if tokens:
        session.extend([(3 + i * 7 % 250, SpanKind.USER) for i in range(tokens)])
    return session


def restore(engine: Engine, saved: SavedSessions) -> tuple[Session, Resumed]:
    return restore_session(engine, Chain("greedy", n_vocab=engine.vocabulary.size), saved.record, saved.main)


@pytest.mark.parametrize("arch", ["llama", "mamba", "jamba", "gemma3"])
@pytest.mark.parametrize("drawn", [0, 5])
@pytest.mark.parametrize("n_seq_max", [1, 3])
def test_saving_and_resuming_leave_the_session_as_it_was(
    tiny_model: Callable[..., Path], tmp_path: Path, arch: str, drawn: int, n_seq_max: int
) -> None:
    """Also where one sequence is all there is, and where memory cannot be cut and no checkpoints are kept."""
    options = replace(OPTIONS, n_seq_max=n_seq_max, checkpoints=0)
    model = Model.load(tiny_model(arch), options)
    engine = Engine(model, options)
    session = new_session(engine, 60)
    for _ in range(drawn):
        session.step()
    before = (list(session.tape.tokens), session.kv_length, session.prefilled_tokens)
    save_sessions(tmp_path / "a", [(session, {})])
    assert (session.tape.tokens, session.kv_length, session.prefilled_tokens) == before
    other, resumed = restore(engine, read_sessions(tmp_path / "a"))
    assert resumed == Resumed("exact")
    assert (other.tape.tokens, other.kv_length) == before[:2]
    assert [other.step().token for _ in range(5)] == [session.step().token for _ in range(5)]
    assert (other.rebuilt_tokens, session.rebuilt_tokens) == (0, 0)
    engine.close()
    model.close()


@pytest.mark.parametrize("arch", ["mamba", "jamba", "gemma3"])
def test_checkpoints_are_saved_too(tiny_model: Callable[..., Path], tmp_path: Path, arch: str) -> None:
    model = Model.load(tiny_model(arch), OPTIONS)
    engine = Engine(model, OPTIONS)
    session = new_session(engine, 60)
    session.extend([(9, SpanKind.USER)] * 60)
    save_sessions(tmp_path / "a", [(session, {})])
    other, _ = restore(engine, read_sessions(tmp_path / "a"))
    other.rewind(70)
    other.extend([(11, SpanKind.USER)])
    assert other.rebuilt_tokens == 10
    fresh = engine.session(Chain("greedy", n_vocab=engine.vocabulary.size))
    fresh.extend([(token, SpanKind.USER) for token in other.tape.tokens])
    np.testing.assert_allclose(other.logits(), fresh.logits(), atol=0.05)
    engine.close()
    model.close()


def changed(saved: SavedSessions, **changes: Any) -> SavedSessions:
    """The file's content with another main branch."""
    memory = changes.pop("memory", saved.main.memory)
    record = msgspec.structs.replace(saved.main.record, **changes)
    return replace(saved, branches=(replace(saved.main, record=record, memory=memory),))


def test_logits_that_differ_decide_whether_memory_is_used(engine: Engine, tmp_path: Path) -> None:
    session = new_session(engine, 60)
    session.step()
    save_sessions(tmp_path / "a", [(session, {})])
    saved = read_sessions(tmp_path / "a")
    probe = saved.main.record.probe
    assert probe is not None
    for shift, verdict, rebuilt in ((0.1, "within tolerance", 0), (4.0, "rebuilt", 60)):
        moved = msgspec.structs.replace(probe, logits=[probe.logits[0] + shift, *probe.logits[1:]])
        other, resumed = restore(engine, changed(saved, probe=moved))
        assert resumed.verdict == verdict
        assert resumed.difference == pytest.approx(shift, abs=1e-4)
        assert resumed.rebuilt_tokens == rebuilt
        assert other.step().token == session.fork().step().token
        assert other.rebuilt_tokens == rebuilt


def test_memory_of_another_tape_is_found_out(engine: Engine, tmp_path: Path) -> None:
    """It fits the context, its digest is right, and only its values are wrong."""
    session, stranger = new_session(engine, 60), new_session(engine)
    stranger.extend([(200 - i, SpanKind.USER) for i in range(60)])
    save_sessions(tmp_path / "a", [(session, {})])
    save_sessions(tmp_path / "b", [(stranger, {})])
    wrong = changed(read_sessions(tmp_path / "a"), memory=read_sessions(tmp_path / "b").main.memory)
    other, resumed = restore(engine, wrong)
    assert resumed.verdict == "rebuilt"
    np.testing.assert_allclose(other.logits(), session.logits(), atol=0.05)


def test_a_file_that_no_chat_was_saved_to_is_refused(engine: Engine, tmp_path: Path) -> None:
    """Its digest is right: whoever makes up a file makes that too."""
    session = new_session(engine, 8)
    save_sessions(tmp_path / "a", [(session, {})])
    saved = read_sessions(tmp_path / "a")
    record, probe = saved.main.record, saved.main.record.probe
    assert probe is not None
    size = engine.vocabulary.size
    for wrong in (
        {"tokens": [*record.tokens[:-1], size]},
        {"tokens": [-1, *record.tokens[1:]]},
        {"kinds": ["forged", *record.kinds[1:]]},
        {"adapter_runs": [(-1, AdapterSet()), (9, AdapterSet())]},
        {"probe": Probe(probe.token, [size, *probe.ids[1:]], probe.logits)},
        {"probe": Probe(probe.token, probe.ids, probe.logits[1:])},
        {"probe": Probe(probe.token, [], [])},
        {"probe": Probe(size, probe.ids, probe.logits)},
    ):
        forged = replace(saved.main, record=msgspec.structs.replace(record, **wrong))
        with pytest.raises(SessionError, match="no chat of this model"):
            restore_session(engine, Chain("greedy", n_vocab=size), saved.record, forged)


@pytest.mark.parametrize(
    ("options", "reason"),
    [({"kv_type_k": "f32"}, "of type f16/f16"), ({"rope_freq_base": 5e5}, "other RoPE settings")],
)
def test_memory_made_with_other_settings_is_rebuilt_and_says_why(
    llama: Model, engine: Engine, tmp_path: Path, options: dict[str, Any], reason: str
) -> None:
    save_sessions(tmp_path / "a", [(new_session(engine, 60), {})])
    elsewhere = Engine(llama, replace(OPTIONS, **options))
    other, resumed = restore(elsewhere, read_sessions(tmp_path / "a"))
    assert resumed.verdict == "rebuilt"
    assert reason in resumed.reason
    other.step()
    assert other.rebuilt_tokens == 60
    elsewhere.close()


def test_full_context_is_saved_with_something_to_compare(engine: Engine, tmp_path: Path) -> None:
    session = new_session(engine, engine.context.n_ctx)
    save_sessions(tmp_path / "a", [(session, {})])
    session.close()
    other, resumed = restore(engine, read_sessions(tmp_path / "a"))
    assert resumed.verdict == "exact"
    assert len(other.tape) == engine.context.n_ctx


def test_file_of_version_1_gives_its_tape(engine: Engine, tmp_path: Path) -> None:
    session = new_session(engine, 20)
    save_sessions(tmp_path / "new", [(session, {"note": "kept"})])
    saved = read_sessions(tmp_path / "new")
    head = msgspec.to_builtins(saved.record)
    old = {**head, **head["branches"][0]}
    for key in ("branches", "made_by", "checkpoints", "blobs", "probe"):
        old.pop(key)
    text = msgspec.json.encode(old)
    body = len(text).to_bytes(8, "little") + text + (3).to_bytes(8, "little") + b"old"
    digest = hashlib.blake2b(body, digest_size=16).digest()
    (tmp_path / "old").write_bytes(b"EDGELLM\x01" + digest + body)
    read = read_sessions(tmp_path / "old")
    assert read.main.record.extra == {"note": "kept"}
    other, resumed = restore(engine, read)
    assert resumed == Resumed("rebuilt", "the file holds no memory that can be checked", 0.0, 20)
    assert other.tape.tokens == session.tape.tokens
    np.testing.assert_allclose(other.logits(), session.logits(), atol=0.05)


def test_file_of_a_later_version_says_so(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"EDGELLM\x09" + bytes(40))
    with pytest.raises(SessionError) as caught:
        read_sessions(tmp_path / "a")
    assert "newer edgellm" in caught.value.hint


# -- chats --------------------------------------------------------------------------------------------------


def peak_bytes(work: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_one_copy_of_one_memory_is_held_at_a_time(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    """Beside the context, which holds them too."""
    options = LoadOptions(n_ctx=4096, n_seq_max=4, threads=1, kv_type_k="f32", kv_type_v="f32")
    model = Model.load(tiny_model("llama", n_ctx=4096), options)
    engine = Engine(model, options)
    first = new_session(engine, 2_000)
    sessions = [(first, {}), (first.fork(), {}), (first.fork(), {})]
    size = engine.context.state_size(sessions[0][0].own_seq())
    saving = peak_bytes(lambda: save_sessions(tmp_path / "a", sessions))
    assert (tmp_path / "a").stat().st_size > 3 * size
    reading = peak_bytes(lambda: read_sessions(tmp_path / "a", 1))
    # Tapes and heads take their part of it: the memory of this model is small.
    assert saving < 2 * size and reading < 2 * size
    memory = read_sessions(tmp_path / "a", 1).main.memory
    assert peak_bytes(lambda: engine.context.set_state(first.own_seq(), memory)) < size / 2
    engine.close()
    model.close()


def test_of_several_branches_the_first_can_be_read_alone(engine: Engine, tmp_path: Path) -> None:
    """The digest counts the others all the same."""
    sessions = [(new_session(engine, 60), {}) for _ in range(2)]
    save_sessions(tmp_path / "a", sessions)
    whole, first = read_sessions(tmp_path / "a"), read_sessions(tmp_path / "a", 1)
    assert (len(whole.branches), first.branches) == (2, whole.branches[:1])
    data = bytearray((tmp_path / "a").read_bytes())
    data[-1] ^= 1
    (tmp_path / "a").write_bytes(bytes(data))
    with pytest.raises(SessionError, match="damaged"):
        read_sessions(tmp_path / "a", 1)


@pytest.mark.parametrize(
    ("name", "wrong", "remedy"),
    [
        ("folder", "Is a directory", "Name a file"),
        ("x" * 300, "File name too long", "shorter"),
        ("a\0b", "no path", "another name"),
        ("a\ud800b", "no path", "another name"),
        ("file/a", "File exists|Not a directory", "folder you can write to"),
    ],
)
def test_place_that_cannot_be_written_is_said_with_its_remedy(
    engine: Engine, tmp_path: Path, name: str, wrong: str, remedy: str
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=wrong) as caught:
        save_sessions(tmp_path / name, [(new_session(engine, 5), {})])
    assert remedy in caught.value.hint
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("name", "wrong", "remedy"),
    [
        ("folder", "is a folder", "Name the file"),
        ("x" * 300, "File name too long", "Check the path"),
        ("a\0b", "no path", "Check the path"),
        ("a\ud800b", "no path", "Check the path"),
        ("file/a", "Not a directory", "Check the path"),
        ("none", "no saved chat at", "Check the path"),
    ],
)
def test_place_that_cannot_be_read_is_said_with_its_remedy(
    tmp_path: Path, name: str, wrong: str, remedy: str
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    for read in (read_sessions, read_record):
        with pytest.raises(SessionError, match=wrong) as caught:
            read(tmp_path / name)
        assert remedy in caught.value.hint
        assert str(caught.value).isprintable()


def test_chat_with_what_is_no_character_is_saved(runtime: edgellm.Runtime, tmp_path: Path) -> None:
    with runtime.chat(sampler="greedy") as chat:
        chat.ask("a\ud800b", max_tokens=3)
        chat.save(tmp_path / "a.chat")
        with runtime.open_chat(tmp_path / "a.chat") as other:
            assert other.messages[0].content == "a?b"
            assert other.tape == chat.tape


@pytest.fixture(scope="module")
def runtime(tiny_model: Callable[..., Path]) -> Iterator[edgellm.Runtime]:
    with edgellm.load(tiny_model("llama", n_ctx=2048), n_ctx=2048, n_seq_max=4, threads=1) as runtime:
        yield runtime


def test_chat_is_saved_with_its_forks(runtime: edgellm.Runtime, tmp_path: Path) -> None:
    chat = runtime.chat(sampler="temperature(1.5) | dist(seed=4)", system="Be brief.")
    chat.ask("Hello.", max_tokens=10)
    fork = chat.fork()
    chat.ask("One?", max_tokens=10)
    fork.ask("Two?", max_tokens=10)
    chat.save(tmp_path / "a.chat", branches=[fork])
    opened = runtime.open_chats(tmp_path / "a.chat")
    assert [one.tape for one in opened] == [chat.tape, fork.tape]
    assert [one.messages for one in opened] == [chat.messages, fork.messages]
    for original, one in zip((chat, fork), opened, strict=True):
        assert one.resumed == Resumed("exact")
        assert one.ask("And?", max_tokens=10) == original.ask("And?", max_tokens=10)
        assert one.usage.rebuilt_tokens == 0
    with pytest.raises(ConfigError, match="keeps its system turn"):
        runtime.open_chat(tmp_path / "a.chat", system="Be long.")
    only = runtime.open_chat(tmp_path / "a.chat", system="Be brief.")
    assert only.messages == chat.messages[: len(only.messages)]
    for one in (chat, fork, *opened, only):
        one.close()


def test_branches_of_an_opened_chat_draw_anew(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    """As those of a chat that never stopped: no number is given out twice."""
    path = tmp_path / "a.chat"
    with edgellm.load(tiny_model(), n_ctx=512, threads=1) as runtime:
        chat = runtime.chat(seed=3)
        first = chat.ask("Say something.", max_tokens=12)
        chat.save(path, branches=[chat.fork()])
    with edgellm.load(tiny_model(), n_ctx=512, threads=1) as runtime:
        chat = runtime.open_chat(path)
        branches = [chat.conversation.session.branch]
        for _ in range(2):
            chat.rewind(0, redraw=True)
            branches.append(chat.conversation.session.branch)
            assert chat.ask("Say something.", max_tokens=12) != first
        branches.append(chat.fork().conversation.session.branch)
    assert branches == [0, 2, 3, 4]


def test_first_turn_tells_of_memory_that_was_of_no_use(
    runtime: edgellm.Runtime, tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    with runtime.chat(sampler="greedy") as chat:
        assert chat.resumed is None
        chat.ask("Hello.", max_tokens=5)
        chat.save(tmp_path / "a.chat")
    file = tiny_model("llama", n_ctx=2048)
    with edgellm.load(file, n_ctx=2048, threads=1, kv_type_k="f32") as other:
        opened = other.open_chat(tmp_path / "a.chat")
        assert opened.resumed is not None
        assert opened.resumed.verdict == "rebuilt"
        events = list(opened.send("And?", max_tokens=3))
        notices = [event.message for event in events if isinstance(event, edgellm.Notice)]
        assert any("saved memory of this chat is not used" in text for text in notices)
        assert opened.usage.rebuilt_tokens == opened.resumed.rebuilt_tokens > 0
        again = list(opened.send("And?", max_tokens=3))
        assert not any(isinstance(event, edgellm.Notice) for event in again)


def test_chats_of_two_runtimes_do_not_go_into_one_file(
    runtime: edgellm.Runtime, tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    with (
        edgellm.load(tiny_model("llama"), threads=1) as other,
        runtime.chat() as chat,
        pytest.raises(ConfigError, match="two runtimes"),
    ):
        chat.save(tmp_path / "a", branches=[other.chat()])
