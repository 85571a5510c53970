"""Computed beginnings of prompts on disk: found again, bounded, never taken for another's."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

import edgellm
from edgellm.atomic import replacing
from edgellm.engine.engine import Engine
from edgellm.engine.prefixes import MIN_TOKENS, PrefixStore
from edgellm.native.model import Model
from edgellm.sampling.chain import Chain
from edgellm.types import LoadOptions, SpanKind

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

OPTIONS = LoadOptions(n_ctx=512, n_seq_max=3, n_batch=64, threads=1)
HEAD = [(3 + i * 7 % 250, SpanKind.SYSTEM) for i in range(150)]
TAIL = [(9, SpanKind.USER)] * 5


@pytest.fixture(autouse=True)
def _is_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EDGELLM_PREFIX_CACHE")


def begin(engine: Engine, tail: list[tuple[int, SpanKind]] = TAIL) -> tuple[int, np.ndarray]:
    """(tokens taken from disk, logits) of a prompt that begins with HEAD."""
    session = engine.session(Chain("greedy", n_vocab=engine.vocabulary.size))
    session.extend([*HEAD, *tail], head=len(HEAD))
    assert session.prefilled_tokens + session.snapshot_tokens == len(HEAD) + len(tail)
    assert session.rebuilt_tokens == 0
    assert session.check_memory()
    result = session.snapshot_tokens, session.logits().copy()
    session.close()
    return result


@pytest.mark.parametrize("arch", ["llama", "mamba", "jamba", "gemma3"])
def test_second_engine_takes_the_head_from_disk_and_gets_the_same_logits(
    tiny_model: Callable[..., Path], arch: str
) -> None:
    found: list[tuple[int, np.ndarray]] = []
    for options in (OPTIONS, OPTIONS, replace(OPTIONS, prefix_cache_mb=0)):
        model = Model.load(tiny_model(arch), options)
        engine = Engine(model, options)
        found.append(begin(engine))
        engine.close()
        model.close()
    assert [taken for taken, _ in found] == [0, 150, 0]
    # To the bit: a batch ends with the head, whether it was computed, kept or taken.
    np.testing.assert_array_equal(found[1][1], found[0][1])
    np.testing.assert_array_equal(found[2][1], found[0][1])


def test_head_computed_otherwise_is_another_head(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    copy = tmp_path / "copy.gguf"
    copy.write_bytes(tiny_model("llama").read_bytes())
    for path, options in (
        (tiny_model("llama"), OPTIONS),
        (tiny_model("llama"), replace(OPTIONS, rope_freq_base=5e5)),
        (tiny_model("llama"), replace(OPTIONS, kv_type_k="f32", kv_type_v="f32")),
        (tiny_model("llama", seed=2), OPTIONS),
        (copy, OPTIONS),  # another file time: its weights may have been changed in place
    ):
        model = Model.load(path, options)
        engine = Engine(model, options)
        assert begin(engine)[0] == 0
        assert begin(engine)[0] == 150
        engine.close()
        model.close()
    assert PrefixStore().size()[0] == 5


def test_short_head_and_later_turns_leave_nothing(tiny_model: Callable[..., Path]) -> None:
    model = Model.load(tiny_model("llama"), OPTIONS)
    engine = Engine(model, OPTIONS)
    session = engine.session(Chain("greedy", n_vocab=engine.vocabulary.size))
    session.extend(HEAD[: MIN_TOKENS - 1], head=MIN_TOKENS - 1)
    session.extend(HEAD, head=len(HEAD))
    assert PrefixStore().size() == (0, 0)
    engine.close()
    model.close()


def test_store_forgets_what_was_unused_for_longest(tmp_path: Path) -> None:
    store = PrefixStore(3_000, tmp_path)
    for name in ("a", "b", "c"):
        store.put(name, name.encode() * 900)
    assert store.get("a") == b"a" * 900
    store.put("d", b"d" * 900)
    assert [store.get(name) is not None for name in "abcd"] == [True, False, True, True]
    store.put("huge", b"x" * 4_000)
    assert store.get("huge") is None
    assert store.size()[0] == 3
    assert store.clear() > 2_700
    assert store.size() == (0, 0)
    assert store.get("a") is None


def test_all_files_count_for_the_bound(tmp_path: Path) -> None:
    """Whoever wrote them, and what a killed writer has left, which goes; what is being written stays."""
    store = PrefixStore(3_000, tmp_path)
    store.put("a", b"a" * 900)
    for name in ("old.state", ".a.state.killed.part"):
        (tmp_path / name).write_bytes(b"x" * 2_500)
        os.utime(tmp_path / name, (1, 1))
    (tmp_path / "index.sqlite3").write_bytes(b"no database")
    assert store.size() == (2, 916 + 2_500 + 2_500)
    with replacing(tmp_path / "c.state") as file:
        file.write(b"c" * 100)
        file.flush()
        store.put("b", b"b" * 900)
        assert sorted(path.name for path in tmp_path.glob("*.state")) == ["a.state", "b.state"]
        assert store.size() == (2, 2 * 916 + 100)
    (tmp_path / ".a.state.killed.part").write_bytes(b"x" * 100)
    os.utime(tmp_path / ".a.state.killed.part", (1, 1))
    assert store.clear() == 2 * 916 + 100 + 100
    assert list(tmp_path.iterdir()) == []


def test_damaged_state_is_not_used(tmp_path: Path) -> None:
    store = PrefixStore(10_000, tmp_path)
    store.put("a", b"a" * 900)
    file = tmp_path / "a.state"
    data = bytearray(file.read_bytes())
    data[500] ^= 1
    file.write_bytes(bytes(data))
    assert store.get("a") is None
    assert not file.exists()


def test_folder_that_cannot_be_written_costs_time_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    store = PrefixStore(10_000, tmp_path / "file" / "prefixes")
    store.put("a", b"a")
    assert store.get("a") is None


def test_chats_of_one_configuration_share_system_turn_and_tools(tiny_model: Callable[..., Path]) -> None:
    @edgellm.tool
    def add(a: int, b: int) -> int:
        """Adds two numbers.

        Args:
            a: The first.
            b: The second.
        """
        return a + b

    usages: list[edgellm.Usage] = []
    start = 0
    for _ in range(2):
        with edgellm.load(tiny_model("llama", n_ctx=4096), n_ctx=4096, threads=1) as runtime:
            chat = runtime.chat(
                tools=[add], system="Be brief. " * 10, template="chatml", strategy="free", sampler="greedy"
            )
            chat.ask("What is 2 + 3?", max_tokens=1)
            usages.append(chat.usage)
            start = next(span.start for span in chat.spans if span.kind == "user")
    first, second = usages
    assert (first.reused_tokens, second.reused_tokens) == (0, start)
    assert second.prefill_tokens == first.prefill_tokens - start < 100


def test_switched_off_nothing_is_kept(
    tiny_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGELLM_PREFIX_CACHE", "off")
    model = Model.load(tiny_model("llama"), OPTIONS)
    engine = Engine(model, OPTIONS)
    assert [begin(engine)[0], begin(engine)[0]] == [0, 0]
    assert PrefixStore().size() == (0, 0)
    engine.close()
    model.close()


def test_doctor_shows_and_clears_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from edgellm.cli.main import main
    from edgellm.examination import examine

    PrefixStore(10_000_000).put("a", b"a" * 3_000_000)
    assert examine().prefix_count == 1
    assert main(["doctor", "--clear-prefixes"]) == 0
    assert "3 MB removed" in capsys.readouterr().out
    assert examine().prefix_bytes == 0
