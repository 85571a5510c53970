"""The index of saved chats: listed, found by words, bounded, and whole after a failure."""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import time
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

import edgellm
from edgellm.chat_files import ChatFile
from edgellm.chat_index_schema import MIGRATIONS
from edgellm.types import Message

if TYPE_CHECKING:
    from collections.abc import Callable
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


@pytest.mark.parametrize(
    ("text", "found", "absent"),
    [
        ("我们在中国学习汉语", ["中国", "学习汉语", "我"], ["国中", "中学", "中国 饭"]),
        ("東京タワーへ行きました", ["タワー", "行きまし", "京タ"], ["京行"]),
        ("ฉันเรียนภาษาไทย", ["ภาษา", "ไทย"], ["ไทยภาษา"]),
        ("Python 入門 for beginners", ["入門", "門 begin", "pyth 入"], ["門入"]),
        ("한국어를 배웁니다", ["한국"], ["국어"]),
    ],
)
def test_words_in_scripts_without_spaces_are_found(
    tmp_path: Path, text: str, found: list[str], absent: list[str]
) -> None:
    index = edgellm.ChatIndex(tmp_path)
    add(index, "a", f"first line\n{text}")
    assert [words for words in found if ids(index, words) != ["a"]] == []
    assert [words for words in absent if ids(index, words)] == []
    assert index.lines("a", found[0]) == [text]
    assert index.lines("a") == ["first line", text]
    index.rename("a", "数学")
    assert ids(index, "学") == ["a"] and index.list()[0].title == "数学"


def test_index_of_an_earlier_version_finds_such_words_too(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "index.sqlite3", isolation_level=None)) as file:
        for script in MIGRATIONS[:2]:
            file.executescript(script)
        file.execute("INSERT INTO chats VALUES (1, 'a', '数学', 'm', 1, 1, 1, 1, 1, 0, '{}')")
        file.execute("INSERT INTO texts (rowid, title, body) VALUES (1, '数学', '我们在中国')")
        file.execute("PRAGMA user_version = 2")
    index = edgellm.ChatIndex(tmp_path)
    assert ids(index, "中国") == ids(index, "学") == ["a"] and index.lines("a") == ["我们在中国"]


@pytest.mark.slow
def test_index_is_made_by_several_at_once(tmp_path: Path) -> None:
    failures: list[edgellm.EdgeError] = []

    def use(folder: Path, start: threading.Barrier) -> None:
        start.wait()
        try:
            edgellm.ChatIndex(folder).list()
        except edgellm.EdgeError as error:
            failures.append(error)

    for number in range(40):
        start = threading.Barrier(4)
        users = [threading.Thread(target=use, args=(tmp_path / str(number), start)) for _ in range(4)]
        for user in users:
            user.start()
        for user in users:
            user.join()
    assert failures == []


def test_what_is_no_text_is_searched_and_recorded_all_the_same(tmp_path: Path) -> None:
    """Lone surrogates and NULs; only an id must be text."""
    index = edgellm.ChatIndex(tmp_path)
    message = edgellm.Message("user", "the mill\ud800 by the river")
    index.record(
        "a", title="old\udc80", model="m\ud800", messages=[message], tokens=1, extra={"said": message.content}
    )
    index.rename("a", "new\udc80")
    assert index.list("river\ud800")[0].title == "new?"
    assert ids(index, "mill\0riv") == ids(index, "new\udc80") == ["a"]
    assert ids(index, "mill\0sea") == []
    assert index.lines("a", "mill\ud800") == ["the mill? by the river"]
    assert index.extra("a") == {"said": "the mill? by the river"}
    with pytest.raises(edgellm.ConfigError, match=r"'\\ud800' cannot be in the index"):
        index.find("\ud800")


def test_file_whose_name_is_not_utf_8_keeps_no_other_from_being_taken_up(
    tmp_path: Path, tiny_model: Callable[..., Path]
) -> None:
    index = edgellm.ChatIndex(tmp_path)
    with edgellm.load(tiny_model("llama"), n_ctx=512, threads=1) as runtime:
        for id in ("\udcff", "b"):
            runtime.chat().save(index.path(id))
    adopted, (failure,) = index.adopt()
    assert adopted == ["b"]
    assert r"'\udcff'" in failure.message and "Rename" in failure.hint


def test_damaged_extra_is_said(tmp_path: Path) -> None:
    index = edgellm.ChatIndex(tmp_path)
    add(index, "a")
    with closing(sqlite3.connect(tmp_path / "index.sqlite3", isolation_level=None)) as file:
        file.execute("UPDATE chats SET extra = '{broken'")
    with pytest.raises(edgellm.SessionError, match="damaged"):
        index.extra("a")


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

    monkeypatch.setattr(index, "_sizes", fail)
    with pytest.raises(edgellm.ConfigError, match="the disk is gone"):
        index.record("a", title="", model="m", messages=[Message("user", "after")], tokens=7)
    assert (ids(index, "before"), ids(index, "after")) == (["a"], [])


def test_lines_are_those_that_hold_a_word(tmp_path: Path) -> None:
    index = edgellm.ChatIndex(tmp_path)
    add(index, "a", "The März was wet.\n\nNothing here.\nA mill at the river.", title="Brook")
    assert index.lines("a") == ["The März was wet.", "Nothing here.", "A mill at the river."]
    assert index.lines("a", "riv marz") == ["The März was wet.", "A mill at the river."]
    assert index.lines("a", "brook") == [] == index.lines("b")


def test_branches_are_found_kept_and_deleted_with_their_chat(tmp_path: Path) -> None:
    index = edgellm.ChatIndex(tmp_path)
    one, other = Message("user", "the river"), Message("user", "the mill")
    index.record("a", title="A", model="m", messages=[one], tokens=1, others=[one, other], extra={"at": [1]})
    for path in (
        index.path("a"),
        index.path("a", 2),
        index.path("a", 7),
        index.path("a.b"),
        tmp_path / "a.2.growing",
        tmp_path / "a.2.new",
    ):
        path.write_bytes(b"x")
    assert ids(index, "mill") == ["a"]
    found = index.find("a")
    assert found is not None and found.messages == 1 and index.find("b") is None
    assert index.lines("a") == ["the river", "the mill"]
    index.record("a", title="", model="m", messages=[one], tokens=1)
    assert index.extra("a") == {"at": [1]}
    assert index.branches("a") == [0, 2, 7]
    index.keep_branches("a", [0, 7])
    assert index.branches("a") == [0, 7]
    index.delete("a")
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix not in ("", ".sqlite3")) == [
        "a.b.chat"
    ]
    assert index.extra("a") == {}


def test_all_files_of_a_chat_count_for_the_bound(tmp_path: Path) -> None:
    index = edgellm.ChatIndex(tmp_path, limit_bytes=250)
    add(index, "a")
    index.path("a", 1).write_bytes(bytes(100))
    assert add(index, "b") == ["a"]
    assert index.branches("a") == []


def test_index_that_the_app_once_kept_is_taken_over(tmp_path: Path) -> None:
    branches = json.dumps([{"number": 0, "name": "main"}])
    with closing(sqlite3.connect(tmp_path / "index.sqlite3")) as file, file:
        file.execute(
            "CREATE TABLE chats (id TEXT PRIMARY KEY, title TEXT NOT NULL, model TEXT NOT NULL, created REAL NOT NULL, "
            "updated REAL NOT NULL, messages INTEGER NOT NULL, tokens INTEGER NOT NULL, body TEXT NOT NULL, "
            "branches TEXT NOT NULL DEFAULT '[]')"
        )
        file.execute(
            "INSERT INTO chats VALUES ('a', 'Old', 'm', 5, 7, 3, 40, 'by the river', ?)", (branches,)
        )
        file.execute("INSERT INTO chats VALUES ('b', 'Older', 'm', 4, 6, 2, 30, 'at the mill', '[{broken')")
    index = edgellm.ChatIndex(tmp_path)
    assert index.list() == [
        edgellm.IndexedChat("a", "Old", "m", 5.0, 7.0, 3, 40),
        edgellm.IndexedChat("b", "Older", "m", 4.0, 6.0, 2, 30),
    ]
    assert ids(index, "mill") == ["b"] and ids(index, "river old") == ["a"]
    assert index.extra("a") == {"branches": [{"number": 0, "name": "main"}]}
    assert index.extra("b") == {"branches": []}
    add(index, "a", "something else")
    assert index.list()[0].title == "Old"


def test_files_without_a_row_are_taken_up(tmp_path: Path, tiny_model: Callable[..., Path]) -> None:
    index = edgellm.ChatIndex(tmp_path / "kept")
    with edgellm.load(tiny_model("llama"), n_ctx=512, threads=1) as runtime:
        chat = runtime.chat()
        chat.ask("By the river", max_tokens=2)
        index.folder.mkdir()
        chat.save(index.path("a", 1))
        chat.ask("And at the mill", max_tokens=2)
        tape, messages = chat.tape, chat.messages
        chat.save(index.path("a"))
        later = time.time() + 10
        os.utime(index.path("a"), (later, later))
        index.path("b").write_text("no chat")
        adopted, failures = index.adopt()
        assert adopted == ["a"] and [index.path("b").name in error.message for error in failures] == [True]
        (row,) = index.list("mill river")
        assert (row.title, row.model) == ("By the river", runtime.model.path.name)
        assert (row.messages, row.tokens, row.updated) == (len(messages), len(tape), pytest.approx(later))
        assert runtime.open_chat(index.path("a")).messages == messages
    assert index.adopt()[0] == []
    index.rename("a", "Brook")
    assert ids(index, "brook") == ["a"]


def test_names_with_dots_are_chats_of_their_own_unless_their_chat_is_there(
    tmp_path: Path, tiny_model: Callable[..., Path]
) -> None:
    index = edgellm.ChatIndex(tmp_path / "kept")
    index.folder.mkdir()
    with edgellm.load(tiny_model("llama"), n_ctx=512, threads=1) as runtime:
        chat = runtime.chat()
        chat.ask("By the river", max_tokens=2)
        chat.save(index.path("notes"))
    written = index.path("notes").read_bytes()
    dated = ["2026.01.05", "2026.11.27", "2026.11.28"]
    for name in (*dated, "notes.0", "notes.03", "notes.3", "notes.3.1"):
        (index.folder / f"{name}.chat").write_bytes(written)
    (index.folder / "folder.chat").mkdir()
    adopted, failures = index.adopt()
    assert adopted == [*dated, "notes", "notes.0", "notes.03", "notes.3.1"] and failures == []
    assert index.branches("notes") == [0, 3] and index.branches("2026.11.27") == [0]
    # A branch stays one where the chat's own file is no longer there.
    index.path("notes").unlink()
    assert index.branches("notes") == [3] and index.adopt() == ([], [])
    # A chat that is known stays one where a file of the shorter name comes.
    (index.folder / "2026.11.chat").write_bytes(written)
    assert index.adopt() == (["2026.11"], [])
    index.delete("2026.11")
    assert index.path("2026.11.27").exists() and index.branches("2026.11.27") == [0]


def test_file_that_goes_while_it_is_taken_up_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(folder: Path, known: object) -> dict[str, list[ChatFile]]:
        return {"a": [ChatFile(folder / "a.chat", 0)]}

    monkeypatch.setattr("edgellm.chat_index.chat_files", gone)
    adopted, (failure,) = edgellm.ChatIndex(tmp_path).adopt()
    assert adopted == [] and "a.chat" in failure.message and failure.hint


@pytest.mark.parametrize("by_size", [False, True])
def test_only_a_chats_own_files_go_with_it(tmp_path: Path, by_size: bool) -> None:
    index = edgellm.ChatIndex(tmp_path, limit_bytes=150 if by_size else 0)
    add(index, "notes")
    (tmp_path / "notes.7.chat").mkdir()
    leftover = tmp_path / ".notes.chat.abc.part"
    own = [tmp_path / "notes.2.chat", tmp_path / "notes.2.growing", leftover]
    others = [
        tmp_path / name for name in ("notes.md", "notes.2.md", "notes.03.chat", "notes.b.0.growing", "notes")
    ]
    for path in (*own, *others):
        path.write_bytes(b"x")
    os.utime(leftover, (1, 1))
    if by_size:
        assert add(index, "b") == ["notes"]
    else:
        index.delete("notes")
    assert [path.name for path in own if path.exists()] == [] and not index.path("notes").exists()
    assert all(path.exists() for path in (*others, tmp_path / "notes.7.chat"))


def test_folder_that_cannot_be_used_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    with pytest.raises(edgellm.ConfigError, match="cannot be used"):
        edgellm.ChatIndex(tmp_path / "file" / "chats").list()
