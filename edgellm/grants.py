"""What the user allowed for always: which tool, from which file."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from pathlib import Path


class Grants:
    """Tools that the user allowed for always: name and file, in `grants.json` of the configuration folder."""

    @property
    def path(self) -> Path:
        """The file they are kept in."""
        from edgellm.trust import config_dir

        return config_dir() / "grants.json"

    def holds(self, name: str, origin: str) -> bool:
        """Whether the tool of that name from that file was allowed."""
        return bool(origin) and self._read().get(name) == origin

    def add(self, name: str, origin: str) -> None:
        """Remembers a tool. Raises OSError where the file cannot be written."""
        if not origin:
            return
        from edgellm.models.files import write_text

        granted = {**self._read(), name: origin}
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_text(self.path, json.dumps(granted, indent=1, sort_keys=True) + "\n")

    def _read(self) -> dict[str, str]:
        try:
            found: Any = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return cast("dict[str, str]", found) if isinstance(found, dict) else {}


def grant_origin(origin: str) -> str:
    """A tool's origin without its line, which moves whenever the file is edited."""
    return origin.rpartition(":")[0]
