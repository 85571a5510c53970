"""Files written beside their place: what stands at the place before."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest

from edgellm.atomic import replacing

if TYPE_CHECKING:
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
