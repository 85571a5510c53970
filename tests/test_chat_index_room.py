"""Room among saved chats: memory goes, what was said stays."""

from __future__ import annotations

from typing import TYPE_CHECKING

import edgellm

if TYPE_CHECKING:
    from pathlib import Path


def test_memory_makes_room_and_what_was_said_stays(tmp_path: Path) -> None:
    index = edgellm.ChatIndex(tmp_path)
    for id in "abcdef":
        index.path(id).write_bytes(bytes(100))
        extra = {"said": id} if id != "d" else None
        told = [edgellm.Message("user", f"said in {id}")]
        index.record(id, title=id, model="m", messages=told, tokens=7, extra=extra)
    index.path("b", 3).write_bytes(bytes(50))
    (tmp_path / "b.3.growing").write_text("so far", encoding="utf-8")
    index.pin("c")
    index.touch("a")
    assert index.make_room(1000) == []
    assert [chat.title for chat in index.make_room(320, keep="f")] == ["b", "e", "a"]
    assert sorted(path.name for path in tmp_path.glob("*.chat")) == ["c.chat", "d.chat", "f.chat"]
    # An answer that was being written is nowhere else.
    assert (tmp_path / "b.3.growing").exists()
    assert len(index.list()) == 6 and index.extra("b") == {"said": "b"}
    assert [chat.id for chat in index.list("said")] == list("fedcba")
    assert index.make_room(1) == [index.find("f")]
