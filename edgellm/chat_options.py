"""What a chat is made with."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, get_args

from edgellm.agent import AgentLimits
from edgellm.errors import ConfigError
from edgellm.types import AdapterSet, ConstraintMode, Message, ReasoningPolicy
from edgellm.value_rules import SWITCH, TEXT, Rule, check, instance, one_of, several, whole

if TYPE_CHECKING:
    from edgellm.context_policy import ContextPolicy
    from edgellm.engine.speculation import SpeculateMode
    from edgellm.sampling.spec import ChainLike
    from edgellm.toolbox.permission import Approve
    from edgellm.types import Permission


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatOptions:
    """What a chat is made with.

    `tools` are functions, Tool objects, instances, modules or a Toolset. `sampler` None is the model's own chain,
    else the default one. `trace` above 0 sends TokenDrawn events with that many rows a point. `permissions` may
    only tighten what a tool declares; `approve` None: whatever asks is denied. `strategy`: "auto" (the
    catalogue's word), "guided" or "free". `constraint`: how calls are kept to their grammar, once one has begun:
    "off" (written freely; what breaks is repaired), "check" (drawn freely, and again among what is allowed where
    the token is refused: cheap; cuts such as top_p then see all tokens) or "force" (always drawn among those).
    `chat_format` and `template` override what the GGUF says (`template`: "chatml", or the template's text).

    `thinking` and `effort` ("low", "medium", "high" ...) are passed to the template under the names that templates use.
    `reasoning_policy`: what becomes of earlier reasoning at the next user turn: "keep" (the tape only grows), "excise"
    (cut out; where the memory can be shifted, what stands behind is not computed again: approximate) or "render"
    (rendered anew; computed again from the first token that differs).
    `context_policy`: what gives way when the context fills: "stop" (nothing: the answer ends there), "evict" (the
    oldest turns), "summarize" (the oldest turns, once the model has summed them up), "drop-results" (old tool results,
    then the oldest turns), or a function of your own; ContextEvicted says what went. `check_exactness` compares the
    tape with a full render after each tool result and sends ExactnessChecked.
    `speculate`: tokens that may follow are computed along with the next one; the text stays what the chain draws.
    "ngram": always, by what the tape and `speculate_from` (texts that are likely to be quoted) have said before;
    "draft": always, by these where they have a long run that came before, else by the draft model; "auto": the same,
    or without a draft model as "ngram", while measurements say that it pays. None is "auto" with a draft model or
    `speculate_from`, else "off".
    `adapters`: LoRA adapters and control vectors for this chat alone; None are those the model was loaded with (of an
    opened chat, those it was saved with), AdapterSet() is none. `Chat.set_adapters` changes them.
    """

    system: str = ""
    tools: Any = ()
    sampler: ChainLike | None = None
    seed: int | None = None
    trace: int = 0
    chat_format: str = "auto"
    template: str | None = None
    template_kwargs: Mapping[str, Any] = field(default_factory=dict[str, Any])
    approve: Approve | None = None
    permissions: Mapping[str, Permission] = field(default_factory=dict[str, "Permission"])
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    strategy: str = "auto"
    constraint: ConstraintMode = "check"
    thinking: bool | None = None
    effort: str = ""
    reasoning_policy: ReasoningPolicy = "keep"
    context_policy: str | ContextPolicy = "stop"
    check_exactness: bool = False
    limits: AgentLimits = field(default_factory=AgentLimits)
    history: Sequence[Message] = ()
    speculate: SpeculateMode | None = None
    speculate_from: Sequence[str] = ()
    adapters: AdapterSet | None = None


_MAPPING = instance("a dict", Mapping)
_MESSAGES = several("Message objects", lambda value: isinstance(value, Message))

# Not here: what is checked where it is read, with words of its own.
_RULES: dict[str, Rule] = {
    "system": TEXT.or_none(),
    "trace": whole(),
    "template": TEXT.or_none(),
    "template_kwargs": _MAPPING,
    "approve": Rule("a function", callable).or_none(),
    "permissions": _MAPPING,
    "settings": _MAPPING,
    "strategy": one_of("auto", "guided", "free"),
    "constraint": one_of(*get_args(ConstraintMode)),
    "thinking": SWITCH.or_none(),
    "effort": TEXT,
    "reasoning_policy": one_of(*get_args(ReasoningPolicy)),
    "check_exactness": SWITCH,
    "limits": instance("an AgentLimits object", AgentLimits),
    "history": _MESSAGES,
    "speculate_from": several("texts", lambda value: isinstance(value, str)),
    "adapters": instance("an AdapterSet (edgellm.adapter_set reads names)", AdapterSet).or_none(),
}

_LIMITS: dict[str, Rule] = {
    "max_steps": whole(low=1),
    "max_tokens": whole(sys.maxsize),
    "max_calls_per_step": whole(),
    "max_repeats": whole(),
    "approval_timeout_s": instance("a number of seconds", int, float).or_none(),
    "reasoning_budget": whole().or_none(),
}


def checked_options(options: Mapping[str, Any]) -> ChatOptions:
    """ChatOptions from keywords. Raises ConfigError for a name that is none of its fields, and for a value that it
    cannot have."""
    known = [item.name for item in fields(ChatOptions)]
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise ConfigError(
                f"chat option {name!r} is unknown.",
                hint=f"Did you mean {near[0]!r}?" if near else f"There are: {', '.join(known)}.",
            )
    check_values(options)
    chosen = ChatOptions(**options)
    check(_LIMITS, {name: getattr(chosen.limits, name) for name in _LIMITS}, where="limit ")
    return chosen


def check_values(options: Mapping[str, Any]) -> None:
    """Raises ConfigError for the first of these fields of ChatOptions whose value is impossible."""
    check(_RULES, options, where="chat option ")


def check_message(text: object, max_tokens: object) -> None:
    """Looks at what a turn is begun with (no text: it goes on from where it stands). Raises ConfigError."""
    if text is not None:
        if not isinstance(text, str):
            raise ConfigError(f"the message is no text but {type(text).__name__}.", hint="Give a str.")
        if not text.strip():
            raise ConfigError("the message is empty.", hint="Say something.")
    if max_tokens is not None:
        check_budget(max_tokens)


def check_budget(max_tokens: object) -> None:
    """Raises ConfigError for what is no number of tokens."""
    check({"max_tokens": whole(sys.maxsize)}, {"max_tokens": max_tokens}, where="")
