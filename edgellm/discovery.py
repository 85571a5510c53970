"""What plugins bring: tools to find and to run, sampler stages and context policies to know by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgellm.errors import ConfigError, SamplerError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edgellm.plugins import PluginFailure
    from edgellm.sampling.registry import StageInfo
    from edgellm.toolbox.tool import Tool
    from edgellm.types import ToolResult


def find_tools() -> tuple[tuple[Tool[..., Any], ...], tuple[PluginFailure, ...]]:
    """All tools that are installed or lie in the user's and trusted folders, and the plugins that were left out."""
    from edgellm.plugins import Plugins

    plugins = Plugins()
    return plugins.load_all("tool"), plugins.failures


def call_tool(
    tool: Tool[..., Any], arguments: Mapping[str, Any], *, settings: Mapping[str, Any] | None = None
) -> ToolResult:
    """Runs a tool as a chat would, without asking anybody: time limit, capture and conversions included.

    Failure is data: see ToolResult. Raises ToolError where the arguments do not fit the schema.
    """
    from edgellm.toolbox.runner import Runner
    from edgellm.types import ToolCall

    given = dict(arguments)
    tool.check(given)
    return Runner(settings=settings).start(tool, ToolCall("call_0", tool.name, given)).result()


def sampler_stages() -> tuple[StageInfo, ...]:
    """All sampler stages with what they do, their arguments, ranges and defaults; those of plugins behind llama.cpp's.

    `discover_samplers` says which plugins were left out, and why.
    """
    from edgellm.sampling.registry import REGISTRY

    discover_samplers()
    return tuple(REGISTRY.all())


def discover_samplers() -> tuple[PluginFailure, ...]:
    """Makes the sampler stages of all plugins known by name; gives those that were left out."""
    from edgellm.plugins import PluginFailure, Plugins, object_name
    from edgellm.sampling.stage import register

    plugins = Plugins()
    taken: list[PluginFailure] = []
    for stage in plugins.load_all("sampler"):
        try:
            register(stage)
        except SamplerError as error:
            taken.append(PluginFailure(object_name(stage), "sampler", str(stage), error))
    return (*plugins.failures, *taken)


def discover_policies() -> tuple[PluginFailure, ...]:
    """Makes the context policies of all plugins known by name; gives those that were left out."""
    from edgellm.context_policy import POLICIES
    from edgellm.plugins import PluginFailure, Plugins, object_name

    plugins = Plugins()
    taken: list[PluginFailure] = []
    for policy in plugins.load_all("policy"):
        try:
            POLICIES.register(policy)
        except ConfigError as error:
            origin = str(getattr(policy, "__module__", ""))
            taken.append(PluginFailure(object_name(policy), "policy", origin, error))
    return (*plugins.failures, *taken)
