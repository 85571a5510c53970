"""Discovery of tools, samplers and context policies.

They come from entry points, the user's folders, trusted folders, and files named by hand. A plugin is a module;
what it offers are its objects marked by a decorator (`@edgellm.tool`, `@edgellm.sampler`, `@edgellm.policy`).
Three grains: `sources` and `names` import nothing, `load` and `load_path` raise, `load_all` skips what is broken
and lists it in `failures`.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from edgellm.errors import EdgeError, PluginError
from edgellm.trust import FOLDER, Trust, config_dir

Kind = Literal["tool", "sampler", "policy"]

PLUGIN_ATTRIBUTE = "__edgellm_plugin__"
"""Set by the decorators on what they return; its value is the kind."""
NAME_ATTRIBUTE = "__edgellm_name__"
"""The name an object goes by, where that is not its `__name__`."""
CHECK_ATTRIBUTE = "__edgellm_check__"
"""A method without arguments that raises EdgeError where the object is declared wrongly; optional."""

GROUPS: dict[Kind, str] = {
    "tool": "edgellm.tools",
    "sampler": "edgellm.samplers",
    "policy": "edgellm.context_policies",
}
FOLDERS: dict[Kind, str] = {"tool": "tools", "sampler": "samplers", "policy": "context_policies"}
_MANY: dict[Kind, str] = {"tool": "tools", "sampler": "samplers", "policy": "policies"}
_PACKAGE = "edgellm_user_plugins"


@dataclass(frozen=True, slots=True)
class PluginSource:
    """A plugin that could be imported. `origin` is its package and version, or its path; `path` None: an
    entry point, whose module is `module`."""

    name: str
    kind: Kind
    origin: str
    path: Path | None = None
    module: str = ""


@dataclass(frozen=True, slots=True)
class PluginFailure:
    """A discovered plugin that was left out, and why; for warnings and `doctor`."""

    name: str
    kind: Kind
    origin: str
    error: EdgeError


class Plugins:
    """What can be found from here. Constructing it reads nothing.

    `config` is the configuration folder (default: config_dir()); trusted folders count when they are the
    working directory `cwd` or one of its parents.
    """

    def __init__(self, *, config: Path | None = None, cwd: Path | None = None) -> None:
        self._config = config
        self._cwd = cwd
        self._failures: dict[tuple[Kind, str, str], PluginFailure] = {}

    @property
    def failures(self) -> tuple[PluginFailure, ...]:
        """Discovered plugins that were left out so far."""
        return tuple(self._failures.values())

    def sources(self, kind: Kind) -> tuple[PluginSource, ...]:
        """All plugins of a kind, without importing any; of two with one name the first counts."""
        found: dict[str, PluginSource] = {}
        for source in self._found(kind):
            present = found.get(source.name)
            if present is None:
                found[source.name] = source
            elif present != source:
                self._fail(
                    source,
                    PluginError(
                        f"{kind.capitalize()} plugin {source.name!r} ({source.origin}) is left out: "
                        f"the name is taken by {present.origin}.",
                        hint="Rename it.",
                    ),
                )
        return tuple(found.values())

    def names(self, kind: Kind) -> tuple[str, ...]:
        """Names of all plugins of a kind, sorted, without importing any."""
        return tuple(sorted(source.name for source in self.sources(kind)))

    def load(self, kind: Kind, name: str) -> tuple[Any, ...]:
        """The objects of the plugin of that name, else the one object of that name in any plugin.

        Raises PluginError where there is none, or where the plugin does not import.
        """
        sources = self.sources(kind)
        for source in sources:
            if source.name == name:
                return _objects(source)
        everything = self.load_all(kind)
        found = tuple(item for item in everything if object_name(item) == name)
        if found:
            return found
        known = sorted({*(source.name for source in sources), *map(object_name, everything)})
        near = difflib.get_close_matches(name, known, n=1)
        broken = [failure.name for failure in self.failures if failure.kind == kind]
        hint = f"Did you mean {near[0]!r}?" if near else f"There is {', '.join(known) or 'none'}."
        if broken:
            hint += f" These do not load: {', '.join(broken)} (`edgellm doctor` says why)."
        raise PluginError(f"There is no {kind} {name!r}.", hint=hint)

    def load_all(self, kind: Kind) -> tuple[Any, ...]:
        """The objects of all plugins of a kind; broken ones, and names that are taken, go to `failures`."""
        found: dict[str, tuple[Any, PluginSource]] = {}
        for source in self.sources(kind):
            try:
                objects = _objects(source)
            except PluginError as error:
                self._fail(source, error)
                continue
            for item in objects:
                name = object_name(item)
                present = found.get(name)
                if present is None:
                    found[name] = (item, source)
                elif present[0] is not item:
                    self._fail(
                        source,
                        PluginError(
                            f"{kind.capitalize()} {name!r} of {source.origin} is left out: "
                            f"the name is taken by {present[1].origin}.",
                            hint="Rename it.",
                        ),
                    )
        return tuple(item for item, _ in found.values())

    def load_path(self, kind: Kind, path: Path) -> tuple[Any, ...]:
        """The objects of a file named by hand, of a package folder, or of all .py files of a plain folder.

        Raises PluginError for whatever is wrong with it, also where nothing is decorated.
        """
        path = Path(path).expanduser()
        if not path.exists():
            raise PluginError(
                f"{path} does not exist.", hint=f"Name a .py file or a folder with {_MANY[kind]}."
            )
        sources = tuple(_sources_at(kind, path))
        if not sources:
            raise PluginError(
                f"{path} holds no .py file.", hint=f"Name a .py file or a folder with {_MANY[kind]}."
            )
        found: dict[str, Any] = {}
        for source in sources:
            for item in _objects(source):
                present = found.setdefault(object_name(item), item)
                if present is not item:
                    raise PluginError(
                        f"Two {_MANY[kind]} in {path} are called {object_name(item)!r}.", hint="Rename one."
                    )
        return tuple(found.values())

    def _found(self, kind: Kind) -> Iterator[PluginSource]:
        # The bundled ones come first: nobody replaces them by adding a package or a file.
        points = sorted(
            metadata.entry_points(group=GROUPS[kind]),
            key=lambda point: (_package_of(point) != "edgellm", point.name),
        )
        for point in points:
            origin = f"package {_package_of(point)}, module {point.value}"
            yield PluginSource(point.name, kind, origin, module=point.value)
        config = self._config or config_dir()
        yield from self._discovered(kind, config / FOLDERS[kind])
        yield from self._in_trusted_folders(kind)

    def _discovered(self, kind: Kind, folder: Path) -> tuple[PluginSource, ...]:
        try:
            return tuple(_sources_at(kind, folder))
        except PluginError as error:
            self._fail(PluginSource(folder.name, kind, str(folder), path=folder), error)
            return ()

    def _in_trusted_folders(self, kind: Kind) -> Iterator[PluginSource]:
        trust = Trust(self._config)
        here = (self._cwd or Path.cwd()).resolve()
        for directory in (here, *here.parents):
            folder = directory / FOLDER / FOLDERS[kind]
            if not folder.is_dir():
                continue
            place = PluginSource(str(directory), kind, str(folder), path=folder)
            try:
                state = trust.state(directory)
            except EdgeError as error:
                self._fail(place, error)
                continue
            if state == "trusted":
                yield from self._discovered(kind, folder)
            else:
                why = "has changed since it was trusted" if state == "changed" else "is not trusted"
                self._fail(
                    place,
                    PluginError(
                        f"{directory / FOLDER} {why}: nothing in it is loaded.",
                        hint=f"Look through it, then run `edgellm trust {directory}`.",
                    ),
                )

    def _fail(self, source: PluginSource, error: EdgeError) -> None:
        failure = PluginFailure(source.name, source.kind, source.origin, error)
        self._failures[source.kind, source.origin, str(error)] = failure


def object_name(item: Any) -> str:
    """The name a decorated object goes by."""
    return str(getattr(item, NAME_ATTRIBUTE, None) or getattr(item, "__name__", None) or type(item).__name__)


def collect(kind: Kind, module: ModuleType) -> tuple[Any, ...]:
    """The decorated objects of a module, in the order of their definition, each once."""
    found: dict[int, Any] = {}
    for value in vars(module).values():
        if getattr(value, PLUGIN_ATTRIBUTE, None) == kind:
            found[id(value)] = value
    return tuple(found.values())


def _objects(source: PluginSource) -> tuple[Any, ...]:
    module = _imported(source)
    found = collect(source.kind, module)
    if not found:
        raise PluginError(
            f"{source.path or source.origin} has nothing decorated with @edgellm.{source.kind}.",
            hint=f"Put @edgellm.{source.kind} above what it should offer.",
        )
    for item in found:
        check: Callable[[], None] | None = getattr(item, CHECK_ATTRIBUTE, None)
        if check is None:
            continue
        try:
            check()
        except EdgeError as error:
            raise PluginError(error.message, hint=error.hint) from error
    return found


def _imported(source: PluginSource) -> ModuleType:
    """Imports a plugin; prints of its module go to stderr. Raises PluginError with file, line and remedy."""
    # stdout may carry JSON lines; a module that says hello would corrupt them.
    with contextlib.redirect_stdout(sys.stderr):
        try:
            if source.path is None:
                return importlib.import_module(source.module.partition(":")[0])
            return _import_file(source.path)
        except (Exception, SystemExit) as error:
            raise _explained(source, error) from error


def _import_file(path: Path) -> ModuleType:
    path = path.resolve()
    is_package = path.is_dir()
    file = path / "__init__.py" if is_package else path
    content = file.read_bytes()
    key = hashlib.sha256(os.fsencode(path) + b"\0" + content).hexdigest()[:12]
    name = f"{_PACKAGE}.{path.stem.replace('.', '_')}_{key}"
    present = sys.modules.get(name)
    if present is not None:
        return present
    if _PACKAGE not in sys.modules:
        parent = ModuleType(_PACKAGE, "Plugins that were loaded from files.")
        parent.__path__ = []
        sys.modules[_PACKAGE] = parent
    locations = [str(path)] if is_package else None
    spec = importlib.util.spec_from_file_location(name, file, submodule_search_locations=locations)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    # No .pyc is written or read for the file itself: what runs is what was looked at, and trusted folders
    # stay as they were hashed.
    writes_bytecode = sys.dont_write_bytecode
    sys.dont_write_bytecode = True
    try:
        exec(compile(content, str(file), "exec", dont_inherit=True), module.__dict__)
    except BaseException:
        for loaded in [loaded for loaded in sys.modules if loaded == name or loaded.startswith(name + ".")]:
            del sys.modules[loaded]
        raise
    finally:
        sys.dont_write_bytecode = writes_bytecode
    return module


def _explained(source: PluginSource, error: BaseException) -> PluginError:
    what = (
        f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}".rstrip(
            ": "
        )
    )
    place = str(source.path or source.origin)
    root = source.path.resolve() if source.path is not None else None
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if root is not None and Path(frame.filename).is_relative_to(root):
            place = f"{frame.filename}, line {frame.lineno}"
            break
        if root is None and "importlib" not in frame.filename and frame.filename != __file__:
            place = f"{source.origin} ({frame.filename}, line {frame.lineno})"
            break
    hint = "Correct the file."
    if isinstance(error, SyntaxError) and error.filename:
        what = f"SyntaxError: {error.msg}"
        place = f"{error.filename}, line {error.lineno}"
    elif isinstance(error, ModuleNotFoundError) and error.name:
        own = source.module.partition(".")[0]
        if source.path is None and error.name.partition(".")[0] == own:
            hint = "Update, reinstall or uninstall that package."
        else:
            hint = f"Install what provides {error.name!r} into this environment."
        if source.path is not None and "." not in error.name:
            hint += f" A file beside it: `from . import {error.name}`, in a folder with an __init__.py."
    elif isinstance(error, EdgeError):
        what = error.message
        hint = error.hint or hint
    elif isinstance(error, SystemExit):
        hint = "A plugin must not exit while it is imported."
    elif isinstance(error, OSError) and source.path is not None:
        hint = "Check that the file can be read."
    if source.path is None and hint == "Correct the file.":
        hint = "Update or uninstall that package."
    return PluginError(
        f"{source.kind.capitalize()} plugin {source.name!r} does not load: {what} ({place}).", hint=hint
    )


def _sources_at(kind: Kind, path: Path) -> Iterator[PluginSource]:
    try:
        if path.is_file():
            yield PluginSource(path.stem, kind, str(path), path=path)
            return
        if (path / "__init__.py").is_file():
            yield PluginSource(path.name, kind, str(path), path=path)
            return
        for entry in sorted(path.iterdir()) if path.is_dir() else ():
            is_plugin = (entry.suffix == ".py" and entry.is_file()) or (entry / "__init__.py").is_file()
            if is_plugin and not entry.name.startswith(("_", ".")):
                yield PluginSource(entry.stem, kind, str(entry), path=entry)
    except OSError as error:
        raise PluginError(f"{path} cannot be read: {error}.", hint="Check its permissions.") from error


def _package_of(point: metadata.EntryPoint) -> str:
    return point.dist.name if point.dist is not None else "unknown"


def warnings_of(failures: Iterable[PluginFailure]) -> tuple[str, ...]:
    """One line each, for stderr."""
    return tuple(f"warning: {failure.error}" for failure in failures)
