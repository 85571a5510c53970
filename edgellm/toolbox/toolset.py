"""`Toolset`: the tools of a chat, in order, by name."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from types import ModuleType
from typing import Any, cast

from edgellm.errors import ToolError
from edgellm.toolbox.arguments import unknown_name
from edgellm.toolbox.tool import Tool, as_tool, raw_tool, tool
from edgellm.types import ToolSpec


class Toolset:
    """Tools in the order they were added. A name that is taken raises ToolError with both places.

    A source is a function, a Tool, an instance with `@tool` methods, a module with decorated functions, a
    pair (OpenAI-style description, callable), another Toolset, or a list of sources.
    """

    def __init__(self, *sources: Any) -> None:
        self._tools: dict[str, Tool[..., Any]] = {}
        for source in sources:
            self.add(source)

    def add(self, source: Any) -> tuple[Tool[..., Any], ...]:
        """Adds all tools of a source and gives them; on ToolError none of this source is added."""
        found = tuple(_tools_of(source))
        together = dict(self._tools)
        for one in found:
            present = together.get(one.name)
            if present is not None and not present.is_same(one):
                raise ToolError(
                    f"Two tools are called {one.name!r}: {present.origin} and {one.origin}.",
                    hint="Give one of them another name: edgellm.tool(function, name=...).",
                )
            _ = one.spec  # a wrong declaration is an error now, not in the middle of an answer
            together.setdefault(one.name, one)
        self._tools = together
        return found

    @property
    def specs(self) -> tuple[ToolSpec, ...]:
        """What the model is told, in order."""
        return tuple(one.spec for one in self._tools.values())

    @property
    def names(self) -> tuple[str, ...]:
        """Names, in order."""
        return tuple(self._tools)

    def get(self, name: str) -> Tool[..., Any]:
        """The tool of that name. Raises ToolError in words for the model, with the nearest name."""
        found = self._tools.get(name)
        if found is None:
            raise ToolError(
                f"Nothing was run: {unknown_name('tool', name, list(self._tools))}.",
                hint="Call a tool that exists, or answer without one.",
            )
        return found

    def subset(self, names: Iterable[str]) -> Toolset:
        """Only these tools, in the order of `names`. Raises ToolError for an unknown one."""
        return Toolset(*(self.get(name) for name in names))

    def __iter__(self) -> Iterator[Tool[..., Any]]:
        return iter(self._tools.values())

    def __len__(self) -> int:
        return len(self._tools)

    def __contains__(self, name: object) -> bool:
        return name in self._tools

    def __repr__(self) -> str:
        return f"Toolset({', '.join(self._tools)})"


def _tools_of(source: Any) -> Iterator[Tool[..., Any]]:
    if isinstance(source, Tool):
        yield _bound(cast("Tool[..., Any]", source))
    elif isinstance(source, Toolset):
        yield from source
    elif isinstance(source, ModuleType):
        yield from _of_module(source)
    elif _is_pair(source):
        yield raw_tool(source[0], source[1])
    elif isinstance(source, (list, tuple, set, frozenset)):
        for item in cast("Iterable[Any]", source):
            yield from _tools_of(item)
    elif inspect.isroutine(source) or type(source).__name__ == "partial":
        yield tool(source)
    elif isinstance(source, (str, type, Mapping)) or source is None:
        raise ToolError(
            f"{_shown(source)} is not a tool.",
            hint="Give a function, a @tool object, an instance with @tool methods, a module, "
            "or (description, callable).",
        )
    else:
        yield from _of_instance(source)


def _is_pair(source: Any) -> bool:
    if not isinstance(source, tuple):
        return False
    pair = cast("tuple[Any, ...]", source)
    return len(pair) == 2 and isinstance(pair[0], Mapping) and callable(pair[1])


def _bound(found: Tool[..., Any]) -> Tool[..., Any]:
    if found.is_unbound:
        raise ToolError(
            f"Tool {found.name!r} ({found.origin}) is a method without its object.",
            hint="Give the instance, or its method: instance.method.",
        )
    return found


def _of_module(module: ModuleType) -> Iterator[Tool[..., Any]]:
    found = list(dict.fromkeys(value for value in vars(module).values() if isinstance(value, Tool)))
    if not found:
        raise ToolError(
            f"Module {module.__name__!r} has no tool.", hint="Decorate a function with @edgellm.tool."
        )
    for one in found:
        yield _bound(cast("Tool[..., Any]", one))


def _of_instance(instance: Any) -> Iterator[Tool[..., Any]]:
    names: dict[str, None] = {}
    for owner in reversed(type(instance).__mro__):
        for name, value in vars(owner).items():
            if isinstance(value, (Tool, staticmethod, classmethod)):
                names[name] = None
    found = [value for name in names if (value := as_tool(getattr(instance, name))) is not None]
    if not found:
        raise ToolError(
            f"{_shown(instance)} has no method with @edgellm.tool.",
            hint="Decorate its methods, or give a function.",
        )
    for one in found:
        yield _bound(one)


def _shown(source: Any) -> str:
    text = repr(source)
    return text if len(text) <= 60 else text[:60] + "..."
