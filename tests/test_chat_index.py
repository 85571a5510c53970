"""The index of saved chats: listed, found by words, bounded, and whole after a failure."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

import edgellm
from edgellm.types import Message

if TYPE_CHECKING:
    from pathlib import Path


def add(index: edgellm.ChatIndex, id: str, text: str = "", *, title: str = "", size: int = 100) -> list[str]:
    index.folder.mkdir(parents=True, exist_ok=True)
    index.path(id).write_bytes(bytes(size))
    return index.record(id, title=title, model="m", messages=[Message("user", text)], tokens=7)


def ids(index: edgellm.ChatIndex, words: str = "") -> list[str]:
    return [chat.id for chat in index.list(words)]


def test_chats_are_listed_newest_first_and_found_by_their_words(tmp_path: Path) -> None:
    index = edgellm.ChatIndex(tmp_path)
    add(index, "a", "Der Fluß war im März über die Ufer getreten.", title="River")
    add(index, "b", 'She said "no"; and the mill stood still.', title="Mill")
    assert ids(index) == ["b", "a"]
    assert ids(index, "MARZ fluß") == ["a"]
    assert ids(index, "mi st") == ["b"]
    assert ids(index, '"no" said') == ["b"]
    assert ids(index, "river") == ["a"]
    assert ids(index, "river mill") == []
    assert ids(index, "OR NOT ( *") == []
    add(index, "a", "Something else.")
    assert ids(index) == ["a", "b"]
    assert (ids(index, "fluß"), ids(index, "something")) == ([], ["a"])
    assert index.list()[0].title == "River"
    index.rename("a", "Brook")
    assert (ids(index, "river"), ids(index, "brook")) == ([], ["a"])
    index.delete("a")
    assert (ids(index), ids(index, "brook")) == (["b"], [])
    assert not index.path("a").exists()


def test_chats_unused_for_longest_make_room(tmp_path: Path) -> None:
    index = edgellm.ChatIndex(tmp_path, limit_bytes=350)
    for id in "abc":
        assert add(index, id) == []
    index.touch("a")
    index.pin("b")
    assert add(index, "d") == ["c"]
    assert sorted(ids(index)) == ["a", "b", "d"]
    assert add(index, "e", size=1000) == ["a", "d"]
    assert sorted(ids(index)) == ["b", "e"]
    assert index.path("e").exists() and index.path("b").exists() and not index.path("d").exists()


def test_index_of_a_later_version_is_left_alone(tmp_path: Path) -> None:
    index = edgellm.ChatIndex(tmp_path)
    add(index, "a")
    with closing(sqlite3.connect(tmp_path / "index.sqlite3")) as file:
        assert file.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        file.execute("PRAGMA user_version = 99")
    with pytest.raises(edgellm.ConfigError, match="later version"):
        index.list()


def test_failed_change_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = edgellm.ChatIndex(tmp_path, limit_bytes=50)
    add(index, "a", "before", size=10)

    def fail(*_: object) -> None:
        raise OSError("the disk is gone")

    monkeypatch.setattr(index, "_size", fail)
    with pytest.raises(edgellm.ConfigError, match="the disk is gone"):
        index.record("a", title="", model="m", messages=[Message("user", "after")], tokens=7)
    assert (ids(index, "before"), ids(index, "after")) == (["a"], [])


def test_folder_that_cannot_be_used_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    with pytest.raises(edgellm.ConfigError, match="cannot be used"):
        edgellm.ChatIndex(tmp_path / "file" / "chats").list()
