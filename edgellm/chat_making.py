"""The making of a chat: its template and wire format, how its tools are chosen, and what runs its turns."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from edgellm.agent import Agent
from edgellm.chat.continuation import Continuation
from edgellm.chat.formats import choose_format
from edgellm.chat.template import BUILTIN, ChatTemplate, select_template
from edgellm.conversation import Conversation
from edgellm.dialogue import Chat
from edgellm.errors import ConfigError
from edgellm.guided.strategy import Guided, worked_turns
from edgellm.toolbox.permission import Permissions
from edgellm.toolbox.results import ResultStore
from edgellm.toolbox.runner import Runner
from edgellm.toolbox.toolset import Toolset
from edgellm.upkeep import Upkeep

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgellm.chat.formats.wire import WireFormat
    from edgellm.chat_options import ChatOptions
    from edgellm.engine.session import Session
    from edgellm.native.vocabulary import Vocabulary
    from edgellm.runtime import Runtime
    from edgellm.types import ToolSpec


def make_chat(runtime: Runtime, options: ChatOptions, session: Session) -> Chat:
    """A chat on a session, which is closed where that fails. Raises ConfigError, ToolError, TemplateError."""
    try:
        toolset = options.tools if isinstance(options.tools, Toolset) else Toolset(options.tools)
        template = _template(runtime, options, has_tools=bool(toolset))
        wire_format = _format(runtime, options, template)
        guided = _guided(runtime, options, template, wire_format) if len(toolset) else None
        conversation = _conversation(
            options, session, template, wire_format, toolset.specs, is_guided=guided is not None
        )
        conversation.offered = toolset.specs
        agent = Agent(
            conversation,
            toolset,
            Runner(
                truncate=partial(_truncated, runtime.vocabulary),
                settings=options.settings,
                results=ResultStore(),
            ),
            Permissions(options.permissions, approve=options.approve),
            limits=options.limits,
            make_constraint=runtime.grammar_constraint,
            constraint_mode=options.constraint,
            guided=guided,
            upkeep=Upkeep(conversation, options.context_policy, make_chain=runtime.make_chain),
        )
        session.trace = options.trace
        session.speculation = runtime.speculation(options.speculate, options.speculate_from)
    except BaseException:
        session.close()
        raise
    conversation.reasoning_policy = options.reasoning_policy
    agent.checks_exactness = options.check_exactness
    return Chat(runtime, conversation, agent, options)


def _conversation(
    options: ChatOptions,
    session: Session,
    template: ChatTemplate,
    wire_format: WireFormat,
    specs: Sequence[ToolSpec],
    *,
    is_guided: bool,
) -> Conversation:
    return Conversation(
        session,
        template,
        Continuation(template, wire_format),
        wire_format,
        system=options.system,
        # Where the runtime chooses, the model need not read about tools: what it learns from are the turns.
        specs=() if is_guided else specs,
        preamble=worked_turns(wire_format) if is_guided else (),
        history=options.history,
    )


def _template(runtime: Runtime, options: ChatOptions, *, has_tools: bool) -> ChatTemplate:
    given = options.template or (runtime.entry.chat_template if runtime.entry is not None else "")
    if given:
        name, source = ("named", BUILTIN[given]) if given in BUILTIN else ("given", given)
        if given not in BUILTIN and "{" not in given:
            raise ConfigError(
                f"chat template {given!r} is unknown.",
                hint=f"Give the template's text, or one of: {', '.join(BUILTIN)}.",
            )
    else:
        name, source = select_template(_templates(runtime), has_tools)
    vocabulary = runtime.vocabulary

    def text_of(token: int | None) -> str:
        return vocabulary.piece(token).decode("utf-8", "replace") if token is not None else ""

    return ChatTemplate(
        source,
        bos_text=text_of(vocabulary.bos),
        eos_text=text_of(vocabulary.eos),
        name=name,
        kwargs={**_reasoning_switches(options), **options.template_kwargs},
    )


def _templates(runtime: Runtime) -> dict[str, str]:
    if runtime.info is not None:
        return dict(runtime.info.chat_templates)
    source = runtime.model.chat_template()
    return {"default": source} if source else {}


def _reasoning_switches(options: ChatOptions) -> dict[str, Any]:
    """The names under which templates ask whether, and how much, to think."""
    found: dict[str, Any] = {}
    if options.thinking is not None:
        found |= {"enable_thinking": options.thinking, "thinking": options.thinking}
    if options.effort:
        found["reasoning_effort"] = options.effort
    return found


def _format(runtime: Runtime, options: ChatOptions, template: ChatTemplate) -> WireFormat:
    override = options.chat_format
    if override == "auto" and runtime.entry is not None:
        override = runtime.entry.chat_format
    return choose_format(template.source, runtime.vocabulary.special_tokens, override, template.text)


def _guided(
    runtime: Runtime, options: ChatOptions, template: ChatTemplate, wire_format: WireFormat
) -> Guided | None:
    """The guided strategy, where the chat, or the catalogue for this model, asks for it."""
    strategy = options.strategy
    if strategy == "auto" and runtime.entry is not None:
        strategy = runtime.entry.tool_strategy
    if strategy not in ("auto", "free", "guided"):
        raise ConfigError(f"tool strategy {strategy!r} is unknown.", hint="Choose auto, guided or free.")
    if strategy != "guided":
        return None
    guided = runtime.guided_by_template.get(template.source)
    if guided is None:
        guided = runtime.guided_by_template[template.source] = Guided(
            runtime.engine,
            template,
            wire_format,
            make_chain=runtime.make_chain,
            make_constraint=runtime.grammar_constraint,
        )
    return guided


def _truncated(vocabulary: Vocabulary, text: str, max_tokens: int) -> tuple[str, int]:
    """(text cut to so many tokens, how many it had)."""
    tokens = vocabulary.tokenize(text)
    if len(tokens) <= max_tokens:
        return text, len(tokens)
    return vocabulary.text_of(tokens[:max_tokens]).decode("utf-8", "ignore"), len(tokens)
