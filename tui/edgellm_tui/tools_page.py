"""The tools page: what there is, what new chats get, and calling one by hand."""

from __future__ import annotations

import asyncio
import json
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, cast

from textual.binding import Binding

import edgellm
from edgellm_tui.list_page import ListPage
from edgellm_tui.plain import one_line, visible
from edgellm_tui.settings import save_settings

if TYPE_CHECKING:
    from edgellm import Tool, ToolResult


class ToolsPage(ListPage):
    """All tools with their schema and permission; space turns one on or off for new chats, enter calls it."""

    BINDINGS: ClassVar = [
        Binding("space", "switch", "on/off", id="tools.toggle"),
        Binding("t", "call", "try it", id="tools.call"),
        Binding("r", "reload", "look again", id="tools.reload"),
    ]
    heads: ClassVar = ("tools", "schema")

    def __init__(self, id: str) -> None:
        super().__init__(id=id)
        self._results: dict[str, str] = {}
        self._called = ""

    @property
    def _tools(self) -> list[Tool[..., Any]]:
        # Any: what a tool returns.
        return sorted(self.edge.talk.tools, key=lambda tool: tool.name)

    def refill(self) -> None:
        """Writes list and details anew."""
        tools, failures = self._tools, self.edge.talk.failures
        on = self.edge.settings.tools
        count = sum(tool.name in on for tool in tools)
        self.head(
            f"tools: {count} of {len(tools)} are offered in new chats, {len(failures)} left out",
            self._title(),
        )
        lines = [
            f"[{'x' if tool.name in on else ' '}] {tool.name:<18} {tool.spec.permission:<5} "
            f"{one_line(tool.spec.description, 100)}"
            for tool in tools
        ]
        lines += [f"[!] left out: {one_line(failure, 160)}" for failure in failures]
        self.rows.set(lines or ["no tools were found"])
        self._describe()

    def _title(self) -> str:
        tool = self._chosen
        return tool.name if tool is not None else "why it was left out"

    @property
    def _chosen(self) -> Tool[..., Any] | None:
        tools = self._tools
        return tools[self.rows.chosen] if self.rows.chosen < len(tools) else None

    def on_rows_moved(self) -> None:
        """Another tool is described."""
        self.refill()

    def _describe(self) -> None:
        tool = self._chosen
        if tool is None:
            failures = self.edge.talk.failures
            index = self.rows.chosen - len(self._tools)
            self.pane.set(visible(failures[index]) if 0 <= index < len(failures) else "")
            return
        spec = tool.spec
        asks = {"auto": "runs without asking", "ask": "asks before each call", "deny": "is never run"}
        text = f"{spec.description}\n\npermission {spec.permission}: {asks[spec.permission]}"
        if not spec.is_grantable:
            text += ", and cannot be allowed for always"
        text += f"\nat most {spec.timeout_s:g} s and {spec.max_result_tokens} tokens of result\nfrom {tool.origin}\n\n"
        result = self._results.get(tool.name)
        if result is not None:
            text = f"{result}\n\n{text}"
        self.pane.set(visible(text + json.dumps(spec.parameters, indent=1, ensure_ascii=False)))

    def action_switch(self) -> None:
        """Offers the tool in new chats, or does not."""
        tool, settings = self._chosen, self.edge.settings
        if tool is None:
            return
        names = [name for name in settings.tools if name != tool.name]
        settings.tools = names if len(names) < len(settings.tools) else [*names, tool.name]
        self.say(
            self.tried(lambda: _saved(self.edge.settings)) or "New chats have it so (ctrl+n begins one)."
        )
        self.refill()

    def action_reload(self) -> None:
        """Looks for tools and plugins again."""

        def done(found: Any) -> None:
            # Any: what find_tools gives.
            tools, failures = found
            self.edge.talk.tools = tools
            self.edge.talk.failures = tuple(str(failure.error) for failure in failures)
            self.say(f"{len(tools)} tools, {len(failures)} left out.")
            self.refill()

        self.edge.worker.submit(edgellm.find_tools, done, lambda error: self.say(one_line(str(error))))

    def on_rows_picked(self) -> None:
        """Enter tries the tool."""
        self.action_call()

    def action_call(self) -> None:
        """Asks for arguments as JSON, and calls the tool with them: the user's own hand needs no permission."""
        tool = self._chosen
        if tool is None or self._called:
            return
        self.field.ask(
            f"{tool.name}, arguments as JSON",
            example_arguments(tool.spec.parameters),
            partial(self._call, tool),
        )

    def _call(self, tool: Tool[..., Any], text: str) -> str | None:
        try:
            arguments = json.loads(text or "{}")
        except ValueError as error:
            return f"That is no JSON: {error}."
        if not isinstance(arguments, dict):
            return "Give a JSON object."
        given = cast("dict[str, Any]", arguments)
        problem = self.tried(lambda: _ignored(tool.check(dict(given))))
        if problem is not None:
            return one_line(problem, 100)
        self._called = tool.name
        self.say(f"{tool.name} is running ...")
        self.run_worker(self._run(tool, given))
        return None

    async def _run(self, tool: Tool[..., Any], arguments: dict[str, Any]) -> None:
        try:
            result = await asyncio.to_thread(edgellm.call_tool, tool, arguments)
            self._results[tool.name] = result_text(result)
            self.say(f"{tool.name}: {'OK' if result.is_ok else 'FAILED'} {result.duration_s:.1f} s")
        except edgellm.EdgeError as error:
            self._results[tool.name] = f"FAILED\n{error}"
            self.say(one_line(str(error)))
        finally:
            self._called = ""
            self.refill()


def _ignored(_value: object) -> None:
    """A check is made for what it raises."""


def _saved(settings: Any) -> None:
    # Any: Settings; the path is of no use here.
    save_settings(settings)


def result_text(result: ToolResult) -> str:
    """What a call gave, as the model would read it."""
    cut = ", cut" if result.is_truncated else ""
    return f"result: {'OK' if result.is_ok else 'FAILED'} {result.duration_s:.1f} s{cut}\n{result.text}"


def example_arguments(schema: dict[str, Any]) -> str:
    """Arguments to begin with: the required ones with an empty value of their type."""
    # Any: a JSON Schema.
    empty = {"string": "", "integer": 0, "number": 0, "boolean": False, "array": [], "object": {}}
    properties: dict[str, Any] = schema.get("properties", {})
    return json.dumps(
        {name: empty.get(properties.get(name, {}).get("type", ""), "") for name in schema.get("required", [])}
    )
