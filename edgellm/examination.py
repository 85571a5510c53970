"""What this machine and installation offer a model, and what is wrong with them."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, get_args

from edgellm.errors import EdgeError
from edgellm.machine import MemoryInfo, memory, usable_cores

TESTED_SERIES = "0.3.36"
"""The llama-cpp-python series this version is tested with."""

_PACKAGES = ("llama-cpp-python", "gguf", "numpy", "jinja2", "llguidance", "huggingface-hub")
_OPTIONAL = ("huggingface-hub",)


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is wrong. `is_broken` false: worth knowing, and nothing fails for it yet."""

    what: str
    remedy: str
    is_broken: bool = True


@dataclass(frozen=True, slots=True)
class DoctorReport:
    """All that was found. `versions` maps packages to versions, "" where one is missing.

    `features` are the instruction sets and build features that llama.cpp reports; `devices` its devices in words.
    `vocabulary_scan`: "compiled", or "numpy" where there was no C compiler. `barrier`: "edgellm's" or "llama.cpp's",
    where its threads wait for each other.
    """

    versions: dict[str, str]
    python: str
    system: str
    backends: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    wait_policy: str = ""
    vocabulary_scan: str = ""
    barrier: str = ""
    cores: int = 0
    usable_cores: int = 0
    memory: MemoryInfo = field(default_factory=MemoryInfo)
    store: str = ""
    store_bytes: int = 0
    store_free_bytes: int = 0
    store_models: tuple[str, ...] = ()
    prefixes: str = ""
    prefix_count: int = 0
    prefix_bytes: int = 0
    config: str = ""
    plugins: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = ()

    @property
    def is_well(self) -> bool:
        """True where nothing is broken."""
        return not any(problem.is_broken for problem in self.problems)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        return {"is_well": self.is_well, **asdict(self)}


def examine() -> DoctorReport:
    """Looks at everything; whatever is wrong becomes a Problem, nothing is raised."""
    problems: list[Problem] = []
    versions = {"edgellm": _version("edgellm"), **{name: _version(name) for name in _PACKAGES}}
    _check_versions(versions, problems)
    found: dict[str, Any] = {}
    for look in (_library, _cores, _store, _prefixes, _configuration, _plugins):
        try:
            found |= look(problems)
        except EdgeError as error:
            problems.append(Problem(error.message, error.hint or "Install edgellm again."))
        except OSError as error:
            place = f"{error.filename}: " if error.filename else ""
            problems.append(Problem(f"{place}{error.strerror or error}.", "Check its permissions."))
    return DoctorReport(
        versions=versions,
        python=f"{platform.python_version()} ({sys.executable})",
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        memory=memory(),
        problems=tuple(problems),
        **found,
    )


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _check_versions(versions: dict[str, str], problems: list[Problem]) -> None:
    for name, version in versions.items():
        if not version and name not in _OPTIONAL and name != "edgellm":
            problems.append(
                Problem(f"{name} is not installed.", "Install edgellm again: pip install edgellm")
            )
    llama = versions["llama-cpp-python"]
    if llama and llama != TESTED_SERIES and not llama.startswith((TESTED_SERIES + ".", TESTED_SERIES + "+")):
        problems.append(
            Problem(
                f"llama-cpp-python {llama} is installed; edgellm is tested with {TESTED_SERIES}.",
                f'pip install "llama-cpp-python=={TESTED_SERIES}"',
                is_broken=False,
            )
        )


def _library(problems: list[Problem]) -> dict[str, Any]:
    from edgellm.native import barrier
    from edgellm.native.devices import backends, devices
    from edgellm.native.library import system_info, wait_policy
    from edgellm.native.scan import is_compiled

    if not is_compiled():
        problems.append(
            Problem(
                "The scan of the vocabulary was not compiled: numpy does it, tenths of a millisecond a token slower.",
                "Install a C compiler and then edgellm again.",
                is_broken=False,
            )
        )

    words = [part.strip() for part in system_info().replace(":", "|").split("|")]
    features = [word.removesuffix("= 1").strip() for word in words if word.endswith("= 1")]
    return {
        "backends": tuple(backends()),
        "devices": tuple(
            f"{one.name} ({one.kind}): {one.description}"
            + (
                f", {one.free_bytes / 1e9:.1f} of {one.total_bytes / 1e9:.1f} GB free"
                if one.total_bytes
                else ""
            )
            for one in devices()
        ),
        "features": tuple(dict.fromkeys(features)),
        # As the loaded library has read it.
        "wait_policy": wait_policy(),
        "vocabulary_scan": "compiled" if is_compiled() else "numpy",
        "barrier": "edgellm's" if barrier.is_installed else "llama.cpp's",
    }


def _cores(problems: list[Problem]) -> dict[str, Any]:
    if os.environ.get("OMP_WAIT_POLICY", "").lower() == "active":
        problems.append(
            Problem(
                "OMP_WAIT_POLICY is active: waiting threads spin, and one busy neighbour slows a token to seconds.",
                "Unset it.",
                is_broken=False,
            )
        )
    return {"cores": os.cpu_count() or 1, "usable_cores": usable_cores()}


def _store(problems: list[Problem]) -> dict[str, Any]:
    from edgellm.models.store import Store

    store = Store()
    place = _first_existing(store.root)
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        problems.append(
            Problem(
                f"The store {store.root} cannot be written.", "Correct its permissions, or set EDGELLM_HOME."
            )
        )
    for reason in store.broken().values():
        what, _, remedy = reason.partition(" Fetch ")
        problems.append(Problem(what, f"Fetch {remedy}" if remedy else "edgellm models verify"))
    models = store.list()
    return {
        "store": str(store.root),
        "store_bytes": sum(model.size_bytes for model in models),
        "store_free_bytes": shutil.disk_usage(place).free,
        "store_models": tuple(model.name for model in models),
    }


def _prefixes(problems: list[Problem]) -> dict[str, Any]:
    from edgellm.engine.prefixes import PrefixStore

    store = PrefixStore()
    place = _first_existing(store.folder)
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        problems.append(
            Problem(
                f"The cache {store.folder} cannot be written: system turns are computed at each start.",
                "Correct its permissions, or set EDGELLM_HOME.",
                is_broken=False,
            )
        )
    count, size = store.size()
    return {"prefixes": str(store.folder), "prefix_count": count, "prefix_bytes": size}


def _first_existing(path: Path) -> Path:
    path = path.absolute()
    return next(one for one in (path, *path.parents) if one.exists())


def _configuration(problems: list[Problem]) -> dict[str, Any]:
    from edgellm.offline import catalog
    from edgellm.trust import config_dir

    folder = config_dir()
    place = _first_existing(folder)
    if not os.access(place, os.W_OK | os.X_OK):
        problems.append(
            Problem(
                f"The configuration folder {folder} cannot be written: what you allow is not remembered.",
                "Correct its permissions, or set EDGELLM_CONFIG_DIR.",
                is_broken=False,
            )
        )
    try:
        catalog()
    except EdgeError as error:
        problems.append(Problem(error.message, error.hint))
    return {"config": str(folder)}


def _plugins(problems: list[Problem]) -> dict[str, Any]:
    from edgellm.plugins import Kind, Plugins, object_name

    plugins = Plugins()
    loaded: list[str] = []
    for kind in get_args(Kind):
        names = sorted(map(object_name, plugins.load_all(kind)))
        loaded += [f"{kind} {name}" for name in names]
    for failure in plugins.failures:
        # A folder that nobody trusted is left alone on purpose: nothing is broken.
        is_broken = "edgellm trust" not in failure.error.hint
        problems.append(
            Problem(failure.error.message, failure.error.hint or "Correct the plugin.", is_broken)
        )
    return {"plugins": tuple(loaded)}
