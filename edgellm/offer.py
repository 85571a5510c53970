"""The tools that the model may call in a turn: those of the chat that a choice leaves, and one that reads on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgellm.errors import ConfigError, ToolError

if TYPE_CHECKING:
    from edgellm.agent import ToolChoice
    from edgellm.conversation import Conversation
    from edgellm.toolbox.results import ResultStore
    from edgellm.toolbox.tool import Tool
    from edgellm.toolbox.toolset import Toolset
    from edgellm.types import ToolCall, ToolSpec


class Offer:
    """What a chat's toolset comes to. `results` has the results that were cut; None where they are not kept."""

    def __init__(self, conversation: Conversation, toolset: Toolset, results: ResultStore | None) -> None:
        self._conversation = conversation
        self._toolset = toolset
        self._results = results

    def chosen(self, choice: ToolChoice) -> tuple[ToolSpec, ...]:
        """The tools that a choice leaves. Raises ConfigError for one that is not there."""
        specs = self._toolset.specs
        if choice == "none":
            return ()
        if choice == "auto":
            return specs
        if not specs:
            raise ConfigError(
                f"tool_choice is {choice!r}, but there are no tools.", hint="Give the chat tools."
            )
        if choice == "required":
            return specs
        chosen = tuple(spec for spec in specs if spec.name == choice)
        if not chosen:
            names = ", ".join(spec.name for spec in specs)
            raise ConfigError(
                f"tool_choice {choice!r} is not a tool of this chat.", hint=f"There are: {names}."
            )
        return chosen

    def with_more(self, specs: tuple[ToolSpec, ...]) -> tuple[ToolSpec, ...]:
        """These tools, and the one that reads on in a result that was cut, once there is such a result."""
        more = self._read_more()
        if more is None or not specs or more.spec in specs:
            return specs
        conversation = self._conversation
        if more.spec not in conversation.offered:
            conversation.offered = (*conversation.offered, more.spec)
        return (*specs, more.spec)

    def tool(self, name: str) -> Tool[..., Any]:
        """The tool of that name. Raises ToolError in words for the model."""
        more = self._read_more()
        return more if more is not None and name == more.name else self._toolset.get(name)

    def fault_of(self, call: ToolCall) -> str:
        """What is wrong with a call, in words for the model; "" where nothing is."""
        try:
            self.tool(call.name).check(call.arguments)
        except ToolError as error:
            return str(error)
        return ""

    def _read_more(self) -> Tool[..., Any] | None:
        results = self._results
        is_there = results is not None and len(results) > 0 and results.tool.name not in self._toolset
        return results.tool if results is not None and is_there else None
