"""Chat templates: a conversation becomes the text a model was trained on, and each stretch keeps its origin."""

from __future__ import annotations

import json
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, get_args

from edgellm.chat import guard
from edgellm.chat.marked import Marked, joined, mark, plain, runs_of, segments_of
from edgellm.errors import TemplateError
from edgellm.types import Message, Role, Segment, SpanKind, ToolCall, ToolSpec

if TYPE_CHECKING:
    from edgellm.chat.sandbox import ChatEnvironment

CHATML = (
    "{%- for message in messages -%}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
)
BUILTIN: Mapping[str, str] = {"chatml": CHATML}

_HINT = "Try another template with `--template chatml` (or `--template FILE`)."
_KIND_OF = {"system": SpanKind.SYSTEM, "user": SpanKind.USER, "assistant": SpanKind.TEXT}
_ROLES = frozenset(get_args(Role))
_TEMPLATE_FILE = "<template>"


class ChatTemplate:
    """One chat template, compiled on first use.

    `bos_text` and `eos_text` are the model's own token texts; `kwargs` are passed to every render
    (enable_thinking and the like). Rendering raises TemplateError with the template's own words when it
    refuses the conversation, and with the line number where it does not parse or fails.
    """

    def __init__(
        self,
        source: str,
        *,
        bos_text: str = "",
        eos_text: str = "",
        name: str = "default",
        kwargs: Mapping[str, Any] | None = None,
        is_guarded: bool = True,
    ) -> None:
        self.source = source
        self.name = name
        self.bos_text = bos_text
        self.eos_text = eos_text
        self.kwargs = dict(kwargs or {})
        self._is_guarded = is_guarded
        self._compiled: Any = None
        self._merges_system = False
        self._wants_text_arguments = False

    def check(self) -> None:
        """Try an unknown template under limits and compile it. Raises TemplateError."""
        if self._compiled is not None:
            return
        if self._is_guarded and self.source not in BUILTIN.values():
            guard.check_template(self.source, bos_text=self.bos_text, eos_text=self.eos_text, name=self.name)
        import jinja2

        try:
            self._compiled = _environment().from_string(self.source)
        except jinja2.TemplateSyntaxError as error:
            raise TemplateError(
                f"chat template {self.name!r} does not parse: line {error.lineno}: {error.message}.",
                hint=_HINT,
            ) from error
        except (RecursionError, SyntaxError, MemoryError) as error:
            raise TemplateError(
                f"chat template {self.name!r} is too deeply nested to be compiled.", hint=_HINT
            ) from error

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[ToolSpec] = (),
        add_generation_prompt: bool = True,
        documents: Sequence[Mapping[str, Any]] | None = None,
        **kwargs: Any,
    ) -> tuple[Segment, ...]:
        """The prompt as segments; joined, they are what the template gives for these contents, to the byte.

        A system message that the template refuses or drops goes in front of the first user message.
        """
        self.check()
        options = {**self.kwargs, **kwargs}
        if documents is not None:
            options["documents"] = list(documents)
        options = _marked_value(options, SpanKind.SYSTEM, "options")
        options["add_generation_prompt"] = add_generation_prompt
        has_system = bool(messages) and messages[0].role == "system"
        if not (has_system and self._merges_system):
            try:
                text = self._render(messages, tools, options)
            except TemplateError as error:
                if not has_system or not _is_refusal(error):
                    raise
                text = self._render(_merge_system(messages), tools, options)
                self._merges_system = True
                return segments_of(text)
            if not has_system or not _is_dropped(messages[0].content, text):
                return segments_of(text)
        return segments_of(self._render(_merge_system(messages), tools, options))

    def text(self, messages: Sequence[Message], tools: Sequence[ToolSpec] = ()) -> str:
        """The prompt as one text, without a generation prompt. Raises TemplateError."""
        segments = self.render(messages, tools=tools, add_generation_prompt=False)
        return "".join(segment.text for segment in segments)

    def _render(self, messages: Sequence[Message], tools: Sequence[ToolSpec], options: dict[str, Any]) -> str:
        has_calls = any(message.tool_calls for message in messages)
        try:
            return self._render_once(messages, tools, options)
        except TemplateError as error:
            # Most templates want arguments as an object, a few as JSON text.
            if not has_calls or _is_refusal(error) or self._wants_text_arguments:
                raise
            self._wants_text_arguments = True
            try:
                return self._render_once(messages, tools, options)
            except TemplateError:
                self._wants_text_arguments = False
                raise error from error.__cause__

    def _render_once(
        self, messages: Sequence[Message], tools: Sequence[ToolSpec], options: dict[str, Any]
    ) -> str:
        import jinja2

        from edgellm.chat.sandbox import GivenList, Refusal

        variables: dict[str, Any] = {
            "bos_token": mark(self.bos_text, SpanKind.GLUE, is_template=True),
            "eos_token": mark(self.eos_text, SpanKind.GLUE, is_template=True),
            "messages": GivenList(
                self._message_value(message, f"message:{index}") for index, message in enumerate(messages)
            ),
            **options,
        }
        if tools:
            # Left undefined otherwise: some templates loop over tools without asking whether there are any.
            variables["tools"] = _marked_value([tool.to_openai() for tool in tools], SpanKind.SYSTEM, "tools")
        try:
            context = self._compiled.new_context(variables)
            return joined(self._compiled.root_render_func(context))
        except Refusal as error:
            raise TemplateError(
                f"chat template {self.name!r} refuses this conversation: {_sentence(error.message)}",
                hint=_HINT,
            ) from error
        except jinja2.TemplateError as error:
            raise self._failure(error, str(error.message)) from error
        except Exception as error:
            # A template is foreign code: whatever it raises is its own failure.
            raise self._failure(error, f"{type(error).__name__}: {error}") from error

    def _failure(self, error: Exception, words: str) -> TemplateError:
        # Frames count the lines of the compiled template.
        lines = [
            self._compiled.get_corresponding_lineno(frame.lineno)
            for frame in traceback.extract_tb(error.__traceback__)
            if frame.filename == _TEMPLATE_FILE
        ]
        place = f" at line {lines[-1]}" if lines else ""
        return TemplateError(f"chat template {self.name!r} fails{place}: {_sentence(words)}", hint=_HINT)

    def _message_value(self, message: Message, source: str) -> dict[str, Any]:
        value: dict[str, Any] = {
            # Templates build control tokens from these words, and from no other.
            "role": mark(message.role, SpanKind.GLUE, is_template=message.role in _ROLES),
            "content": mark(message.content, _KIND_OF.get(message.role, SpanKind.TOOL_RESULT), source=source),
        }
        if message.reasoning:
            value["reasoning_content"] = mark(message.reasoning, SpanKind.REASONING, source=source)
        if message.name:
            value["name"] = mark(message.name, SpanKind.TOOL_RESULT, source=source)
        if message.tool_call_id:
            value["tool_call_id"] = mark(message.tool_call_id, SpanKind.TOOL_RESULT, source=source)
        if message.tool_calls:
            value["tool_calls"] = _marked_value(
                [self._call_value(call) for call in message.tool_calls], SpanKind.TOOL_CALL, source
            )
        return value

    def _call_value(self, call: ToolCall) -> dict[str, Any]:
        arguments: Any = call.arguments
        if self._wants_text_arguments:
            arguments = json.dumps(arguments, ensure_ascii=False)
        return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments}}


def select_template(templates: Mapping[str, str], has_tools: bool) -> tuple[str, str]:
    """(name, source) of the template to use among a model's named ones.

    With tools, "tool_use" where there is one; else "default"; else the only one. Raises TemplateError
    where there is none, or no way to choose.
    """
    if has_tools and "tool_use" in templates:
        return "tool_use", templates["tool_use"]
    if "default" in templates:
        return "default", templates["default"]
    if len(templates) == 1:
        return next(iter(templates.items()))
    if not templates:
        raise TemplateError(
            "the model has no chat template.",
            hint="Name one with `--template chatml`, or take another model.",
        )
    names = ", ".join(map(repr, templates))
    raise TemplateError(f"the model has chat templates {names}, and none is its default.", hint=_HINT)


def probe_conversations() -> list[tuple[list[Message], list[ToolSpec]]]:
    """Small conversations of every shape, with tools where they belong: to find out what a template does."""
    schema = {"type": "object", "properties": {"word": {"type": "string", "description": "A word"}}}
    tool = ToolSpec("look_up", "Looks a word up.", schema)
    call = ToolCall("call00001", "look_up", {"word": "tree"})
    first = [Message("system", "Be brief."), Message("user", "What is a tree?")]
    called = [*first, Message("assistant", tool_calls=(call,))]
    answered = [*called, Message("tool", "A plant.", tool_call_id=call.id, name=call.name)]
    longer = [
        *answered,
        Message("assistant", "A plant.", reasoning="Say it."),
        Message("user", "And a bush?"),
    ]
    return [(first[1:], []), (first, []), (first, [tool]), (answered, [tool]), (longer, [tool])]


def _environment() -> ChatEnvironment:
    from edgellm.chat.sandbox import ChatEnvironment

    return ChatEnvironment()


def _sentence(words: str | None) -> str:
    words = (words or "no reason given").strip()
    return words if words.endswith((".", "!", "?")) else f"{words}."


def _is_refusal(error: TemplateError) -> bool:
    from edgellm.chat.sandbox import Refusal

    return isinstance(error.__cause__, Refusal)


def _is_dropped(content: str, text: str) -> bool:
    """Whether nothing of the first message's content arrived in the prompt."""
    body = plain(content).strip()
    if not body or body in plain(text):
        return False
    return not any(origin.source == "message:0" for _, origin in runs_of(text))


def _merge_system(messages: Sequence[Message]) -> list[Message]:
    """The messages without their first, system one; its text goes in front of the first user message's."""
    system, *rest = messages
    before = mark(system.content, SpanKind.SYSTEM, source="message:0")
    for index, message in enumerate(rest):
        if message.role == "user":
            after = mark(message.content, SpanKind.USER, source=f"message:{index}")
            rest[index] = replace(message, content=joined((before, "\n\n", after)))
            return rest
    return [Message("user", before), *rest]


def _marked_value(value: Any, kind: SpanKind, source: str) -> Any:
    """A copy of JSON data with every string marked, keys too, and lists that cannot be appended to."""
    from edgellm.chat.sandbox import GivenList

    if isinstance(value, str):
        return value if isinstance(value, Marked) else mark(value, kind, source=source)
    if isinstance(value, Mapping):
        return {
            _marked_value(key, kind, source): _marked_value(item, kind, source) for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return GivenList(_marked_value(item, kind, source) for item in value)
    return value
