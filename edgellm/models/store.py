"""Models on this machine: pulled, checked, listed and removed.

    ROOT/models/NAME/FILE.gguf + model.json    a complete, verified model and where it came from
    ROOT/parts/NAME/                           downloads under way, to be resumed
    ROOT/locks/NAME.lock                       held by the process that changes NAME

A model appears by one rename of its folder, so it is there as a whole or not at all.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from edgellm.errors import ConfigError, DownloadError, EdgeError, ModelCorrupt, ModelNotFound
from edgellm.models.catalogue import ModelEntry, nearest_names
from edgellm.models.files import (
    Progress,
    Wanted,
    check_file,
    disk_errors,
    sha256_of,
    silent,
    write_text,
)
from edgellm.models.gguf_file import read_gguf

_MARKER = "model.json"
_LOCK_POLL_S = 0.2


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One file of a stored model."""

    name: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class StoredModel:
    """A complete model in the store. `path` is what is loaded (a split model's first part)."""

    name: str
    path: Path
    files: tuple[StoredFile, ...]
    source: str
    licence: str
    licence_accepted: bool
    pulled_at: str

    @property
    def size_bytes(self) -> int:
        """Size of all files."""
        return sum(file.size_bytes for file in self.files)


def default_root() -> Path:
    """Folder of the user's store: EDGELLM_HOME, else the user data folder of this system."""
    override = os.environ.get("EDGELLM_HOME")
    if override:
        return Path(override).expanduser()
    import platformdirs

    return Path(platformdirs.user_data_dir("edgellm", appauthor=False))


class Store:
    """The models below one folder, by default the user's own. Making one touches nothing."""

    def __init__(self, root: str | Path | None = None) -> None:
        self.root = default_root() if root is None else Path(root)
        self._models = self.root / "models"
        self._parts = self.root / "parts"
        self._locks = self.root / "locks"

    def list(self) -> tuple[StoredModel, ...]:
        """All complete models, by name; those whose marker cannot be read are in `broken`."""
        found: list[StoredModel] = []
        for name in self._names():
            try:
                model = self.find(name)
            except ModelCorrupt:
                continue
            if model is not None:
                found.append(model)
        return tuple(found)

    def broken(self) -> dict[str, str]:
        """Models that cannot be read, and why."""
        found: dict[str, str] = {}
        for name in self._names():
            try:
                self.find(name)
            except ModelCorrupt as error:
                found[name] = str(error)
        return found

    def find(self, name: str) -> StoredModel | None:
        """The model, if it has been pulled. Raises ModelCorrupt where its files are gone or cut."""
        folder = self._models / _checked(name)
        try:
            raw = json.loads((folder / _MARKER).read_text(encoding="utf-8"))
            files = tuple(StoredFile(**file) for file in raw.pop("files"))
            model = StoredModel(name=name, path=folder / files[0].name, files=files, **raw)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError, TypeError, KeyError, IndexError):
            raise ModelCorrupt(f"{folder / _MARKER} cannot be read.", hint=_again(name)) from None
        for file in files:
            path = folder / file.name
            if not path.exists():
                raise ModelCorrupt(f"{path} is gone.", hint=_again(name))
            if path.stat().st_size != file.size_bytes:
                raise ModelCorrupt(
                    f"{path} has {path.stat().st_size:,} bytes instead of {file.size_bytes:,}.",
                    hint=_again(name),
                )
        return model

    def path(self, name: str) -> Path:
        """Path of a pulled model. Raises ModelNotFound."""
        return self._present(name).path

    def path_of(self, name: str) -> Path | None:
        """Path of a model, None where it has not been pulled."""
        model = self.find(name)
        return model.path if model is not None else None

    def pull(
        self, entry: ModelEntry, *, accept: bool = False, force: bool = False, progress: Progress = silent
    ) -> StoredModel:
        """The model, fetched from the first of its sources that works, unless it is there already.

        `accept` says that the user has read and accepted the licence; `force` fetches it again. Safe against
        kills and against other processes pulling the same. Raises DownloadError, ModelCorrupt, ConfigError.
        """
        name = _checked(entry.name)
        is_landing = (self._parts / name / "landing").exists()
        if not force and not is_landing and (present := self._usable(entry)) is not None:
            # Without the lock: the store may be somebody else's, and not to be written to.
            return present
        with self._locked(name, progress):
            if not force:
                self._finish_landing(name)
                present = self._usable(entry)
                if present is not None:
                    return present
            if entry.needs_acceptance and not accept:
                raise DownloadError(
                    f"{name} is under the {entry.licence}, which must be accepted first.",
                    hint=f"Read {entry.licence_url or 'it'}, then: edgellm models pull {name} --accept-licence",
                )
            source, files = self._fetch(entry, progress)
            return self._land(entry, source, files, progress)

    def verify(self, name: str, progress: Progress = silent) -> StoredModel:
        """The model, after reading all of it. Raises ModelNotFound, ModelCorrupt."""
        model = self._present(name)
        for file in model.files:
            path = model.path.with_name(file.name)
            try:
                check_file(path, Wanted(file.size_bytes, file.sha256), progress, label=str(path))
            except ModelCorrupt as error:
                raise ModelCorrupt(error.message, hint=_again(name)) from None
        return model

    def remove(self, name: str) -> int:
        """Removes a model and what was fetched of it; gives the bytes freed. Raises ModelNotFound."""
        folder, parts = self._models / _checked(name), self._parts / name
        if not folder.exists() and not parts.exists():
            self._present(name)
        with self._locked(name, silent):
            freed = sum(_bytes_in(each) for each in (folder, parts))
            if folder.exists():
                # Out of sight first: a kill while deleting must not leave half a model.
                parts.mkdir(parents=True, exist_ok=True)
                shutil.rmtree(parts / "removed", ignore_errors=True)
                os.rename(folder, parts / "removed")
            shutil.rmtree(parts, ignore_errors=True)
        return freed

    def entry_name(self, path: str | Path) -> str | None:
        """Name of the stored model whose file `path` is."""
        folder = Path(path).absolute().parent
        return folder.name if folder.parent == self._models.absolute() else None

    def _present(self, name: str) -> StoredModel:
        model = self.find(name)
        if model is None:
            near = nearest_names(name, self._names())
            meant = f" Did you mean {near[0]!r}?" if near else ""
            raise ModelNotFound(
                f"There is no model {name!r} in {self._models}.{meant}",
                hint=f"See `edgellm models list`, or fetch it: edgellm models pull {name}",
            )
        return model

    def _names(self) -> tuple[str, ...]:
        try:
            return tuple(sorted(folder.name for folder in self._models.iterdir() if folder.is_dir()))
        except (FileNotFoundError, NotADirectoryError):
            return ()

    def _usable(self, entry: ModelEntry) -> StoredModel | None:
        """What is stored, if it is whole and still what the catalogue says."""
        try:
            model = self.find(entry.name)
        except ModelCorrupt:
            return None
        if model is None or (
            entry.sha256 and len(model.files) == 1 and model.files[0].sha256 != entry.sha256
        ):
            return None
        return model

    def _fetch(self, entry: ModelEntry, progress: Progress) -> tuple[str, tuple[Path, ...]]:
        # Only a pull needs the network's modules: a start must not wait for them.
        from edgellm.models.fetch import fetch

        failures: list[tuple[str, EdgeError]] = []
        for source in entry.sources:
            try:
                return str(source), fetch(source, entry, self._parts / entry.name, progress)
            except (DownloadError, ModelCorrupt, ModelNotFound, ConfigError) as error:
                failures.append((source.kind, error))
        if len(failures) == 1:
            raise failures[0][1]
        told = "; ".join(f"{kind}: {error.message.rstrip('.')}" for kind, error in failures)
        raise DownloadError(f"{entry.name}: none of its sources worked. {told}.", hint=failures[0][1].hint)

    def _land(
        self, entry: ModelEntry, source: str, files: tuple[Path, ...], progress: Progress
    ) -> StoredModel:
        parts = self._parts / entry.name
        for file in files:
            try:
                read_gguf(file)
            except ModelCorrupt:
                if file.parent == parts:
                    file.unlink()
                raise
        stored = [StoredFile(file.name, file.stat().st_size, sha256_of(file, progress)) for file in files]
        landing = parts / "landing"
        with disk_errors(parts):
            shutil.rmtree(landing, ignore_errors=True)
            landing.mkdir(parents=True)
            for file in files:
                if file.parent == parts:
                    _sync(file)
                    os.rename(file, landing / file.name)
                else:
                    _link(file, landing / file.name)
            marker = {
                "files": [asdict(file) for file in stored],
                "source": source,
                "licence": entry.licence,
                "licence_accepted": entry.needs_acceptance,
                "pulled_at": datetime.now(UTC).isoformat(timespec="seconds"),
            }
            write_text(landing / _MARKER, json.dumps(marker, indent=2) + "\n")
            _sync(landing / _MARKER)
            _sync(landing)
        self._finish_landing(entry.name)
        return self._present(entry.name)

    def _finish_landing(self, name: str) -> None:
        """Moves a complete landing folder into place; also one that a kill has left behind."""
        parts, target = self._parts / name, self._models / name
        landing = parts / "landing"
        if not (landing / _MARKER).exists():
            return
        with disk_errors(target):
            self._models.mkdir(parents=True, exist_ok=True)
            if target.exists():
                shutil.rmtree(parts / "old", ignore_errors=True)
                os.rename(target, parts / "old")
            os.rename(landing, target)
            _sync(self._models)
        shutil.rmtree(parts, ignore_errors=True)

    @contextmanager
    def _locked(self, name: str, progress: Progress) -> Generator[None]:
        """Waits until no other process changes this model. The lock falls with the process, however it ends."""
        with disk_errors(self._locks):
            self._locks.mkdir(parents=True, exist_ok=True)
            file = (self._locks / f"{name}.lock").open("ab")
        with file:
            while not _try_lock(file.fileno()):
                progress(0, 0, f"waiting for another process that changes {name}")
                time.sleep(_LOCK_POLL_S)
            yield


def _try_lock(handle: int) -> bool:
    if sys.platform == "win32":
        import msvcrt

        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True
    import fcntl

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _checked(name: str) -> str:
    if not name or name.startswith(".") or any(mark in name for mark in "/\\\0"):
        raise ModelNotFound(f"{name!r} is not a model name.", hint="See `edgellm models list`.")
    return name


def _again(name: str) -> str:
    return f"Fetch it again: `edgellm models remove {name}`, then `edgellm models pull {name}`."


def _bytes_in(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir())


def _link(file: Path, target: Path) -> None:
    try:
        target.symlink_to(file)
    except OSError:
        shutil.copyfile(file, target)


def _sync(path: Path) -> None:
    """Forces a file or a folder to the disk, so that a rename is not remembered without what it names."""
    try:
        # Windows forces out only what is open for writing.
        handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError:
        # Windows and some network file systems refuse folders; the hash in the marker still tells.
        if not path.is_dir():
            raise
