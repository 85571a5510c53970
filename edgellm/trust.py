"""Which folders the user trusts: a hash of their `.edgellm` is kept; a change has to be trusted anew."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, cast

from edgellm.errors import ConfigError

FOLDER = ".edgellm"
_MOST_BYTES = 64 * 1024 * 1024

TrustState = Literal["trusted", "changed", "unknown", "absent"]


def config_dir() -> Path:
    """Where the user's settings live: EDGELLM_CONFIG_DIR, else the system's place for them."""
    chosen = os.environ.get("EDGELLM_CONFIG_DIR")
    if chosen:
        return Path(chosen).expanduser()
    import platformdirs

    return Path(platformdirs.user_config_dir("edgellm", appauthor=False))


def content_hash(folder: Path) -> str:
    """sha256 over names and contents of all files below. Raises ConfigError where that would not tell all.

    Nothing is left out, `__pycache__` included: Python would run a planted .pyc in place of its source.
    """
    total = hashlib.sha256()
    size_bytes = 0
    try:
        for path in sorted(_walk(folder)):
            content = path.read_bytes()
            size_bytes += len(content)
            if size_bytes > _MOST_BYTES:
                raise ConfigError(
                    f"{folder} holds more than {_MOST_BYTES // 2**20} MiB.",
                    hint="Keep only plugins and settings there.",
                )
            name = path.relative_to(folder).as_posix().encode("utf-8", "surrogateescape")
            total.update(len(name).to_bytes(8, "big") + name + hashlib.sha256(content).digest())
    except OSError as error:
        raise ConfigError(f"{folder} cannot be read: {error}.", hint="Check its permissions.") from error
    return total.hexdigest()


def _walk(folder: Path) -> Iterator[Path]:
    with os.scandir(folder) as entries:
        for entry in entries:
            path = Path(entry.path)
            if entry.is_symlink():
                raise ConfigError(
                    f"{path} is a symbolic link: what it points to may change unseen.",
                    hint="Copy the file instead.",
                )
            if entry.is_dir():
                yield from _walk(path)
            elif entry.is_file():
                yield path
            else:
                raise ConfigError(f"{path} is not a plain file.", hint="Remove it.")


class Trust:
    """The list of trusted folders, kept in `trusted.json` of the configuration folder."""

    def __init__(self, config: Path | None = None) -> None:
        self._config = config

    @property
    def path(self) -> Path:
        """The file the list is kept in."""
        return (self._config or config_dir()) / "trusted.json"

    def trusted(self) -> dict[str, str]:
        """Folder → hash of its `.edgellm` when it was trusted. Raises ConfigError for a broken list."""
        try:
            found: Any = json.loads(self.path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise ConfigError(
                f"{self.path} cannot be read: {error}.", hint="Set EDGELLM_CONFIG_DIR to a folder of yours."
            ) from error
        except ValueError as error:
            raise ConfigError(
                f"{self.path} cannot be read: {error}.",
                hint="Repair or delete it, then trust the folders again.",
            ) from error
        if not isinstance(found, dict) or not all(
            isinstance(part, str) for pair in cast("dict[Any, Any]", found).items() for part in pair
        ):
            raise ConfigError(
                f"{self.path} is not a list of trusted folders.",
                hint="Delete it, then trust the folders again.",
            )
        return cast("dict[str, str]", found)

    def state(self, directory: Path) -> TrustState:
        """Whether `directory/.edgellm` is trusted as it is now; "absent" where there is none."""
        directory = directory.resolve()
        folder = directory / FOLDER
        if not folder.is_dir():
            return "absent"
        kept = self.trusted().get(str(directory))
        if kept is None:
            return "unknown"
        return "trusted" if not folder.is_symlink() and content_hash(folder) == kept else "changed"

    def trust(self, directory: Path) -> str:
        """Trusts `directory/.edgellm` as it is now; gives its hash. Raises ConfigError."""
        directory = directory.resolve()
        folder = directory / FOLDER
        if folder.is_symlink() or not folder.is_dir():
            raise ConfigError(
                f"{folder} is not a folder.",
                hint="Make it, and put tools/, samplers/ or context_policies/ inside.",
            )
        found = content_hash(folder)
        self._write({**self.trusted(), str(directory): found})
        return found

    def forget(self, directory: Path) -> bool:
        """Trusts a folder no longer; false where it was not trusted."""
        listed = self.trusted()
        if listed.pop(str(directory.resolve()), None) is None:
            return False
        self._write(listed)
        return True

    def _write(self, listed: dict[str, str]) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            handle, name = tempfile.mkstemp(dir=self.path.parent, prefix=".trusted-")
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump(listed, file, indent=1, sort_keys=True)
            os.replace(name, self.path)
        except OSError as error:
            raise ConfigError(
                f"{self.path} cannot be written: {error}.",
                hint="Set EDGELLM_CONFIG_DIR to a folder you may write.",
            ) from error
