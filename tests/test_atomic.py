"""Files written beside their place: what stands at the place before."""

from __future__ import annotations

import errno
import os
import sys
from typing import TYPE_CHECKING, Any

import pytest

from edgellm import atomic
from edgellm.atomic import replacing, temporary_folder

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.mark.parametrize("is_there", [True, False])
def test_through_a_link_the_file_is_written_that_it_points_to(tmp_path: Path, is_there: bool) -> None:
    kept, link = tmp_path / "kept" / "a.chat", tmp_path / "link"
    kept.parent.mkdir()
    if is_there:
        kept.write_bytes(b"old")
    (tmp_path / "between").symlink_to(kept)
    link.symlink_to("between")
    with replacing(link) as file:
        file.write(b"new")
        assert kept.exists() == is_there
    assert kept.read_bytes() == b"new"
    assert link.is_symlink() and (tmp_path / "between").is_symlink()
    assert os.listdir(kept.parent) == ["a.chat"]


def test_what_is_no_file_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "round").symlink_to("round")
    os.mkfifo(tmp_path / "pipe")
    before = sorted(os.listdir(tmp_path))
    for name, number in (
        ("folder", errno.EISDIR),
        ("pipe", errno.EINVAL),
        ("round", errno.ELOOP),
        ("a\0b", errno.EINVAL),
    ):
        with pytest.raises(OSError) as caught, replacing(tmp_path / name) as file:
            file.write(b"new")
        assert caught.value.errno == number
    assert sorted(os.listdir(tmp_path)) == before


def test_where_open_files_cannot_be_renamed_or_removed_none_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def is_open(path: str | Path) -> bool:
        names = (f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd"))
        return any(os.path.exists(name) and os.path.samefile(name, path) for name in names)

    def refusing(act: Callable[..., None]) -> Callable[..., None]:
        def wrapped(path: str | Path, *others: Any, **named: Any) -> None:
            if "dir_fd" not in named and is_open(path):
                raise PermissionError(errno.EACCES, "open")
            act(path, *others, **named)

        return wrapped

    monkeypatch.setattr(atomic, "_IS_POSIX", False)
    monkeypatch.setitem(sys.modules, "fcntl", None)
    monkeypatch.setattr(os, "replace", refusing(os.replace))
    monkeypatch.setattr(os, "unlink", refusing(os.unlink))
    dead, folder = tmp_path / ".a.chat.xyz.part", tmp_path / ".xyz"
    folder.mkdir()
    for left in (dead, tmp_path / ".xyz.owned"):
        left.write_bytes(b"")
        os.utime(left, (0, 0))
    with replacing(tmp_path / "a.chat") as file:
        file.write(b"new")
        assert not dead.exists()
    with temporary_folder(tmp_path):
        assert not folder.exists()
    assert os.listdir(tmp_path) == ["a.chat"] and (tmp_path / "a.chat").read_bytes() == b"new"
