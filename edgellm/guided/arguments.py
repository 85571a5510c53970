"""The arguments of a chosen tool, decoded greedily from the request: one property after another."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edgellm.chat.formats.json_text import loads
from edgellm.engine.scoring import score_continuations
from edgellm.errors import ConstraintError, TemplateError
from edgellm.guided.copy_bias import CopyBias
from edgellm.guided.grounding import NOTHING, Unused, is_stated, stated_choice, stated_flag
from edgellm.guided.sessions import SessionsByAdapters
from edgellm.sampling.schema_relax import relax
from edgellm.types import Message, SpanKind, ToolCall, ToolExample, ToolSpec
from edgellm.waiting import NEXT_TOKEN

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping, Sequence

    from edgellm.chat.formats.wire import WireFormat
    from edgellm.chat.template import ChatTemplate
    from edgellm.engine.engine import Engine
    from edgellm.engine.session import Session
    from edgellm.native.overlay import Overlay
    from edgellm.sampling.chain import Chain
    from edgellm.sampling.constraint import Constraint
    from edgellm.waiting import Waiting

NULL_REQUEST = "Please do it."
NULL_WEIGHT = 0.7
"""How much of a choice's log-probability after the null request is taken off: it corrects for what the worked
examples and the word itself make likely."""

_MAX_VALUE_TOKENS = 160
_STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}

_MADE_UP = (
    ToolSpec(
        "find_book",
        "Find a book in the library.",
        {
            "type": "object",
            "properties": {"title": {"type": "string", "description": "Title of the book."}},
            "required": ["title"],
        },
        examples=(ToolExample("Do you have Moby Dick?", {"title": "Moby Dick"}),),
    ),
    ToolSpec(
        "feed_pets",
        "Give food to pets.",
        {
            "type": "object",
            "properties": {
                "animals": {
                    "type": "array",
                    "items": {"type": "string"},
                    "description": "Names of the pets.",
                },
                "grams": {"type": "integer", "description": "Amount of food for each."},
                "warm": {"type": "boolean", "description": "Whether to warm it up."},
            },
            "required": ["animals", "grams", "warm"],
        },
        examples=(
            ToolExample(
                "Give Rex and Bella 200 grams of warm food each",
                {"animals": ["Rex", "Bella"], "grams": 200, "warm": True},
            ),
        ),
    ),
)


@dataclass(slots=True)
class _Writing:
    """Where the decoding of one call stands."""

    spec: ToolSpec
    request: str
    overlay: Overlay
    arguments: dict[str, Any]
    examples: tuple[str, ...]


class ArgumentWriter:
    """Decodes arguments in sessions of its own: what the chat's tape holds is only the finished call."""

    def __init__(
        self,
        engine: Engine,
        template: ChatTemplate,
        wire_format: WireFormat,
        *,
        make_chain: Callable[[str], Chain],
        make_constraint: Callable[[str], Constraint],
    ) -> None:
        self._engine = engine
        self._template = template
        self._format = wire_format
        self._make_chain = make_chain
        self._make_constraint = make_constraint
        self.sessions = SessionsByAdapters()
        self._bias: CopyBias | None = None

    def write(
        self, spec: ToolSpec, request: str, overlay: Overlay
    ) -> Generator[Waiting, None, dict[str, Any] | None]:
        """Arguments for a call of the tool: all required properties, and the optional ones the request states.
        The model has the adapters of `overlay`.

        None where a required value did not come to its end. Raises Cancelled, ContextFull, DecodeError.
        """
        properties: dict[str, Any] = spec.parameters.get("properties", {})
        required = [name for name in properties if name in spec.parameters.get("required", ())]
        writing = _Writing(spec, request, overlay, {}, _example_texts((*_MADE_UP, spec)))
        unused = Unused(request)
        for name in required:
            value = yield from self._required(writing, name, properties[name])
            if value is NOTHING:
                return None
            writing.arguments[name] = value
        for value in writing.arguments.values():
            unused.take(value)
        for name, schema in properties.items():
            if name not in required:
                value = yield from self._optional(writing, name, schema, unused)
                if value is not NOTHING:
                    writing.arguments[name] = value
                    unused.take(value)
        return writing.arguments

    # -- one value ---------------------------------------------------------------------------------------------

    def _required(
        self, writing: _Writing, name: str, schema: Mapping[str, Any]
    ) -> Generator[Waiting, None, Any]:
        choices = [True, False] if schema.get("type") == "boolean" else schema.get("enum")
        if choices:
            yield NEXT_TOKEN
            return self._choose(writing, name, choices)
        return (yield from self._decode(writing, name, schema))

    def _optional(
        self, writing: _Writing, name: str, schema: Mapping[str, Any], unused: Unused
    ) -> Generator[Waiting, None, Any]:
        kind = schema.get("type")
        if "enum" in schema:
            return stated_choice(schema, unused)
        if kind == "boolean":
            return stated_flag(name, unused)
        if kind not in ("string", "integer", "number") or (kind != "string" and not unused.numbers()):
            return NOTHING
        value = yield from self._decode(writing, name, schema, source=unused.text)
        return value if is_stated(name, schema, value, unused) else NOTHING

    def _choose(self, writing: _Writing, name: str, choices: Sequence[Any]) -> Any:
        """The choice that the request makes likelier than the null request does."""
        tokenize = self._engine.vocabulary.tokenize
        continuations = [tokenize(" " + json.dumps(choice, ensure_ascii=False)) for choice in choices]
        totals = np.zeros(len(choices))
        for request, weight in ((writing.request, 1.0), (NULL_REQUEST, -NULL_WEIGHT)):
            session = self._prepared(writing, name, request)
            totals += weight * np.array([s.sum() for s in score_continuations(session, continuations)])
        return choices[int(totals.argmax())]

    def _decode(
        self, writing: _Writing, name: str, schema: Mapping[str, Any], *, source: str | None = None
    ) -> Generator[Waiting, None, Any]:
        """One value under its own schema, greedily, with the copy bias; NOTHING where none came out whole."""
        try:
            constraint = self._value_constraint(schema)
        except ConstraintError:
            return NOTHING  # one that only makes sense inside the whole: "$ref": "#", say
        session = self._prepared(writing, name, writing.request)
        vocabulary = self._engine.vocabulary
        if self._bias is None:
            self._bias = CopyBias(vocabulary)
        written: list[int] = []
        while len(written) < _MAX_VALUE_TOKENS and not constraint.is_stopped:
            new = constraint.forced_tokens()
            for token in new:
                constraint.consume(token)
            if not new:
                yield NEXT_TOKEN
                logits = session.logits().copy()
                text = vocabulary.text_of(written).decode("utf-8", "ignore").lstrip()
                self._bias.apply(logits, text, source or writing.request, writing.examples)
                constraint.mask(logits)
                new = [int(logits.argmax())]
                constraint.consume(new[0])
                if vocabulary.is_eog(new[0]):
                    break
            written += new
            session.extend([(token, SpanKind.TOOL_CALL) for token in new])
        text = vocabulary.text_of(written).decode("utf-8", "replace").strip()
        try:
            return loads(text[:-1])
        except ValueError:
            return NOTHING

    def _value_constraint(self, schema: Mapping[str, Any]) -> Constraint:
        bare = {key: value for key, value in schema.items() if key not in ("description", "default")}
        inner = json.dumps({**relax(bare)[0], "x-guidance": _STYLE}, ensure_ascii=False)
        # What follows the value ends it: a number has no end of its own.
        return self._make_constraint(f'%llguidance {{}}\nstart: " " value /[,}}]/\nvalue: %json {inner}')

    # -- the prompt ----------------------------------------------------------------------------------------------

    def _prepared(self, writing: _Writing, name: str, request: str) -> Session:
        """The session of a tool, its tape ending where the value of property `name` is to be written."""
        spec = writing.spec
        so_far = json.dumps(writing.arguments, ensure_ascii=False)[:-1] + (", " if writing.arguments else "")
        head = self._format.render_call_head(spec.name).rstrip() + "\n" + so_far + json.dumps(name) + ":"
        vocabulary = self._engine.vocabulary
        entries = vocabulary.encode(self._prompt(spec, request))
        entries += [(token, SpanKind.TOOL_CALL) for token in vocabulary.tokenize(head)]
        key = f"{request == NULL_REQUEST} {spec.name} {spec.parameters} {spec.examples}"
        session = self._session(writing.overlay, key)
        shared = 0
        for (token, _), known in zip(entries[:-1], session.tape.tokens, strict=False):
            if token != known:
                break
            shared += 1
        session.rewind(shared)
        session.extend(entries[shared:])
        return session

    def _session(self, overlay: Overlay, key: str) -> Session:
        """Tools share what their prompts have in common: a new one forks the first, and rewinds to that."""
        known = self.sessions.of(overlay)
        session = known.get(key)
        if session is None:
            first = next(iter(known.values()), None)
            session = (
                first.fork()
                if first is not None
                else self._engine.session(self._make_chain("greedy"), overlay)
            )
            known[key] = session
        return session

    def _prompt(self, spec: ToolSpec, request: str) -> Sequence[Any]:
        first = Message(
            "system",
            "You are a helpful assistant. You may call these tools:\n" + "\n".join(map(_signature, _MADE_UP)),
        )
        second = Message(
            "system", f"Now you may call this tool:\n{_signature(spec)}\n{_parameter_lines(spec)}"
        )
        made_up, own = self._turns(_MADE_UP), self._turns((spec,))
        messages = [first, *made_up, second, *own, Message("user", request)]
        try:
            return self._template.render(self._format.to_template(messages))
        except TemplateError:
            # Only one system message, and in front: everything is said there.
            joined = Message("system", f"{first.content}\n{second.content}")
            return self._template.render(self._format.to_template([joined, *made_up, *own, messages[-1]]))

    def _turns(self, specs: Sequence[ToolSpec]) -> list[Message]:
        messages: list[Message] = []
        for spec in specs:
            for example in spec.examples:
                call = ToolCall("call00000", spec.name, dict(example.arguments))
                text = self._format.render_call(call)
                messages += [Message("user", example.request), Message("assistant", text)]
        return messages


def _signature(spec: ToolSpec) -> str:
    required = spec.parameters.get("required", ())
    parts = []
    for name, schema in spec.parameters.get("properties", {}).items():
        kind = "|".join(map(str, schema["enum"])) if "enum" in schema else schema.get("type", "any")
        parts.append(f"{name}{'' if name in required else '?'}: {kind}")
    return f"{spec.name}({', '.join(parts)}): {spec.description}"


def _parameter_lines(spec: ToolSpec) -> str:
    lines = []
    for name, schema in spec.parameters.get("properties", {}).items():
        kind = schema.get("type", "any")
        if kind == "array":
            items = schema.get("items")
            kind = f"list of {items.get('type', 'any') if isinstance(items, dict) else 'any'}"
        if "enum" in schema:
            kind = "one of " + ", ".join(json.dumps(value, ensure_ascii=False) for value in schema["enum"])
        lines.append(f"- {name} ({kind}): {schema.get('description', '')}")
    return "\n".join(lines)


def _example_texts(specs: Sequence[ToolSpec]) -> tuple[str, ...]:
    """String values of worked examples."""
    values = [value for spec in specs for example in spec.examples for value in example.arguments.values()]
    items = [item for value in values for item in (value if isinstance(value, list) else [value])]
    return tuple(item for item in items if isinstance(item, str) and item)
