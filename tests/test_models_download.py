"""Downloads from a server that cuts, refuses, lies and forgets."""

from __future__ import annotations

import errno
import hashlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest
from model_server import Served, serving

from edgellm.errors import DownloadError, ModelCorrupt
from edgellm.models import files as disk
from edgellm.models.download import download_url, keeps_login
from edgellm.models.files import Wanted, throttled

DATA = bytes(range(256)) * 4000
WHOLE = Wanted(len(DATA), hashlib.sha256(DATA).hexdigest())


@pytest.fixture
def server() -> Iterator[Served]:
    with serving(Served(files={"m.gguf": DATA})) as served:
        yield served


def fetch(server: Served, tmp_path: Path, wanted: Wanted = WHOLE) -> Path:
    return download_url(server.url("m.gguf"), tmp_path / "m.gguf", wanted, backoff_s=0.001, timeout_s=5)


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_whole_file_with_progress(server: Served, tmp_path: Path) -> None:
    seen: list[tuple[int, int, str]] = []
    path = download_url(server.url("m.gguf"), tmp_path / "m.gguf", WHOLE, lambda *args: seen.append(args))
    assert path.read_bytes() == DATA
    assert files(tmp_path) == {"m.gguf"}
    assert seen[0] == (0, len(DATA), "fetching m.gguf")
    assert (len(DATA), len(DATA), "fetching m.gguf") in seen


def test_cut_connections_are_resumed(server: Served, tmp_path: Path) -> None:
    server.cut_after = [300_000, 200_000, 1]
    assert fetch(server, tmp_path).read_bytes() == DATA
    assert server.ranges() == ["", "bytes=300000-", "bytes=500000-", "bytes=500001-"]


def test_later_call_resumes_what_an_earlier_one_left(server: Served, tmp_path: Path) -> None:
    server.cut_after = [100_000]
    server.statuses = [0, 404]
    with pytest.raises(DownloadError, match="404"):
        fetch(server, tmp_path)
    assert files(tmp_path) == {"m.gguf.part", "m.gguf.part.json"}
    assert fetch(server, tmp_path).read_bytes() == DATA
    assert server.ranges()[-1] == "bytes=100000-"


def test_part_of_another_address_is_not_continued(server: Served, tmp_path: Path) -> None:
    (tmp_path / "m.gguf.part").write_bytes(b"x" * 5000)
    (tmp_path / "m.gguf.part.json").write_text(
        '{"key": "http://elsewhere/", "validator": ""}', encoding="utf-8"
    )
    assert fetch(server, tmp_path).read_bytes() == DATA
    assert server.ranges() == [""]


def test_changed_file_starts_over(server: Served, tmp_path: Path) -> None:
    server.cut_after = [100_000]
    server.statuses = [0, 404]
    with pytest.raises(DownloadError):
        fetch(server, tmp_path, Wanted())
    server.files["m.gguf"] = DATA[::-1]
    assert fetch(server, tmp_path, Wanted()).read_bytes() == DATA[::-1]


def test_server_without_ranges_starts_over(server: Served, tmp_path: Path) -> None:
    server.has_ranges = False
    server.cut_after = [300_000]
    assert fetch(server, tmp_path).read_bytes() == DATA
    assert server.ranges() == ["", "bytes=300000-"]


def test_without_hash_or_validator_nothing_is_resumed(server: Served, tmp_path: Path) -> None:
    server.has_validator = False
    server.cut_after = [300_000]
    assert fetch(server, tmp_path, Wanted()).read_bytes() == DATA
    assert server.ranges() == ["", ""]


def test_part_with_lost_bytes_is_fetched_once_more(server: Served, tmp_path: Path) -> None:
    server.cut_after = [100_000]
    server.statuses = [0, 404]
    with pytest.raises(DownloadError):
        fetch(server, tmp_path)
    part = tmp_path / "m.gguf.part"
    part.write_bytes(bytes(part.stat().st_size))
    assert fetch(server, tmp_path).read_bytes() == DATA
    assert server.ranges()[-2:] == ["bytes=100000-", ""]


def test_part_that_is_complete_needs_no_request(server: Served, tmp_path: Path) -> None:
    (tmp_path / "m.gguf.part").write_bytes(DATA)
    (tmp_path / "m.gguf.part.json").write_text(f'{{"key": "{server.url("m.gguf")}"}}', encoding="utf-8")
    assert fetch(server, tmp_path).read_bytes() == DATA
    assert server.log == []


def test_wrong_hash_leaves_nothing(server: Served, tmp_path: Path) -> None:
    with pytest.raises(ModelCorrupt, match="has the hash") as caught:
        fetch(server, tmp_path, Wanted(len(DATA), "0" * 64))
    assert caught.value.hint
    assert files(tmp_path) == set()


def test_wrong_size_is_noticed_before_the_download(server: Served, tmp_path: Path) -> None:
    with pytest.raises(ModelCorrupt, match="1,024,000 bytes"):
        fetch(server, tmp_path, Wanted(17, ""))
    assert not (tmp_path / "m.gguf").exists()


def test_server_that_promises_more_than_it_has(server: Served, tmp_path: Path) -> None:
    server.claims_length = len(DATA) + 10
    server.has_ranges = False
    with pytest.raises(DownloadError, match="could not be fetched"):
        fetch(server, tmp_path, Wanted())
    assert not (tmp_path / "m.gguf").exists()


def test_passing_trouble_is_retried(server: Served, tmp_path: Path) -> None:
    server.statuses = [503, 429]
    assert fetch(server, tmp_path).read_bytes() == DATA


@pytest.mark.parametrize(("status", "words"), [(404, "moved"), (403, "licence"), (401, "login")])
def test_refusals_are_final(server: Served, tmp_path: Path, status: int, words: str) -> None:
    server.statuses = [status]
    with pytest.raises(DownloadError, match=str(status)) as caught:
        fetch(server, tmp_path)
    assert words in caught.value.hint
    assert len(server.log) == 1


@pytest.mark.parametrize(("host", "is_kept"), [("127.0.0.1", True), ("localhost", False)])
def test_login_stays_with_its_host(server: Served, tmp_path: Path, host: str, is_kept: bool) -> None:
    server.moved = {"/m.gguf": server.address.replace("127.0.0.1", host) + "/cdn/m.gguf"}
    headers = {"Authorization": "Bearer secret"}
    download_url(server.url("m.gguf"), tmp_path / "m.gguf", WHOLE, headers=headers, backoff_s=0.001)
    assert [item[3] for item in server.log] == ["Bearer secret", "Bearer secret" if is_kept else ""]


def test_login_is_not_sent_in_the_clear() -> None:
    assert keeps_login("https://host/a", "http://host/b")
    assert not keeps_login("http://host/a", "https://host/b")


def test_redirect_to_itself_is_one_line(server: Served, tmp_path: Path) -> None:
    server.moved = {"/m.gguf": "/m.gguf"}
    with pytest.raises(DownloadError, match="infinite loop") as caught:
        fetch(server, tmp_path)
    assert "\n" not in str(caught.value)


def test_address_with_spaces_and_letters_of_any_language(server: Served, tmp_path: Path) -> None:
    url = server.url("für dich/m.gguf?a=%20&b=ü")
    assert download_url(url, tmp_path / "m.gguf", WHOLE, backoff_s=0.001).read_bytes() == DATA
    assert server.log[0][1] == "/f%C3%BCr%20dich/m.gguf"


def test_no_server_at_all(tmp_path: Path) -> None:
    with serving(Served()) as served:
        url = served.url("m.gguf")
    with pytest.raises(DownloadError, match="refused") as caught:
        download_url(url, tmp_path / "m.gguf", WHOLE, backoff_s=0.001)
    assert "\n" not in str(caught.value)


def test_too_little_space_is_said_before_the_download(
    server: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "free_bytes", lambda _folder: 1_000_000)
    with pytest.raises(DownloadError, match="MB free") as caught:
        fetch(server, tmp_path)
    assert "EDGELLM_HOME" in caught.value.hint
    assert not (tmp_path / "m.gguf.part").exists()


def test_disk_that_fills_up_keeps_what_was_fetched(
    server: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, room = disk.write_block, [400_000]

    def write_until_full(file: IO[bytes], block: bytes) -> None:
        room[0] -= len(block)
        if room[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(file, block)

    monkeypatch.setattr(disk, "write_block", write_until_full)
    with pytest.raises(DownloadError, match="disk is full"):
        fetch(server, tmp_path)
    kept = (tmp_path / "m.gguf.part").stat().st_size
    assert kept > 0
    room[0] = 10**9
    assert fetch(server, tmp_path).read_bytes() == DATA
    assert server.ranges()[-1] == f"bytes={kept}-"


def test_interrupt_keeps_the_part(server: Served, tmp_path: Path) -> None:
    def interrupt(done: int, _total: int, _what: str) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        download_url(server.url("m.gguf"), tmp_path / "m.gguf", WHOLE, interrupt)
    assert "m.gguf" not in files(tmp_path)
    assert fetch(server, tmp_path).read_bytes() == DATA


def test_folder_that_cannot_be_written(server: Served, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DownloadError, match="cannot be written"):
        download_url(server.url("m.gguf"), tmp_path / "file" / "m.gguf", WHOLE)


def test_text_that_is_written_through_a_link_leaves_the_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("kept")
    for text in ("one", "two"):
        disk.write_text(tmp_path / "link", text)
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "kept").read_text(encoding="utf-8") == text


def test_progress_is_throttled_but_ends_are_told() -> None:
    seen: list[int] = []
    tell = throttled(lambda done, _total, _what: seen.append(done), seconds=60)
    for done in range(101):
        tell(done, 100, "x")
    assert seen == [0, 100]


def test_parallel_downloads_of_different_files(tmp_path: Path) -> None:
    with serving(Served(files={f"{n}.gguf": bytes([n]) * 100_000 for n in range(4)})) as served:
        threads = [
            threading.Thread(
                target=download_url, args=(served.url(f"{n}.gguf"), tmp_path / f"{n}.gguf", Wanted(100_000))
            )
            for n in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [set((tmp_path / f"{n}.gguf").read_bytes()) for n in range(4)] == [{0}, {1}, {2}, {3}]
