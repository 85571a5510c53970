"""Formats whose tags nest, or carry attributes: MiniMax M3 and Kimi K3."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from edgellm.chat.formats import lark
from edgellm.chat.formats.arguments import Arguments
from edgellm.chat.formats.script import Fault, Scripted, Source
from edgellm.chat.formats.tagged import TaggedCalls
from edgellm.chat.formats.typed_value import is_text, properties, typed, types_of
from edgellm.chat.formats.wire import Begun, CallReader, Complete, Mark, Marks, Named
from edgellm.types import ToolCall, ToolSpec

Reading = Generator[None, None, None]
_NS = "]<]minimax[>["
_MAX_DEPTH = 32
_ATTRIBUTE = re.compile(r'(\w+)="([^"]*)"')


_MINIMAX_M3 = Marks(
    call_open=(f"{_NS}<tool_call>",),
    call_close=f"{_NS}</tool_call>",
    between_calls="",
    reasoning_open="<mm:think>",
    reasoning_close="</mm:think>",
    # It closes what it has not opened where it does not think.
    more=(Mark("</mm:think>", "drop", "start", "text"),),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class MiniMaxM3(TaggedCalls):
    """Every tag has a prefix; the name of an argument is its tag; objects and lists are tags inside it."""

    id: str = "minimax-m3"
    marks: Marks = _MINIMAX_M3
    signs: tuple[tuple[str, ...], ...] = (("]<]minimax[>[",),)
    head: str = f'{_NS}<invoke name="'
    name_end: str = '">'
    call_end: str = f"{_NS}</invoke>"
    argument: str = f"{_NS}<"
    key_end: str = ">"
    value_end: str = f"{_NS}</"
    sections: bool = True
    broken_is_text: bool = True

    def reader(self, tools: Sequence[ToolSpec] = (), mark: str = "") -> CallReader:
        return Scripted(lambda source: self.section(source, tools))

    def _arguments(
        self, source: Source, arguments: Arguments, schemas: Mapping[str, Any] | None, *, is_open: bool
    ) -> Generator[None, None, str]:
        while True:
            yield from source.skip_space()
            if (yield from source.one_of((self.call_end,))):
                return self.call_end
            yield from source.expect(self.argument)
            key, _ = yield from source.until((">",), limit=200)
            if key.startswith("/"):
                raise Fault(f"a closing tag {key!r} stands where none was opened")
            schema = (schemas or {}).get(key)
            arguments.key(key)
            value = yield from self._node(source, key, schema, 0)
            arguments.give(json.dumps(value, ensure_ascii=False))

    def _node(self, source: Source, tag: str, schema: Any, depth: int) -> Generator[None, None, Any]:
        """What stands in a tag up to its closing tag: text, or further tags."""
        if depth > _MAX_DEPTH:
            raise Fault("it is nested too deeply")
        text, _ = yield from source.until((self.argument,))
        children: list[tuple[str, Any]] = []
        while True:
            name, _ = yield from source.until((">",), limit=200)
            if name.startswith("/"):
                if name[1:] != tag:
                    raise Fault(f"</{tag}> was expected, not <{name}>")
                break
            inner = self._child_schema(schema, name)
            children.append((name, (yield from self._node(source, name, inner, depth + 1))))
            yield from source.until((self.argument,))
        if not children:
            return self._leaf(text, schema)
        is_list = "array" in types_of(schema) or (
            all(name == "item" for name, _ in children) and "object" not in types_of(schema)
        )
        return [value for _, value in children] if is_list else dict(children)

    @staticmethod
    def _child_schema(schema: Any, name: str) -> Any:
        """The schema of the tag `name` inside one of `schema`; the first alternative that has it says."""
        if not isinstance(schema, Mapping):
            return None
        found = cast("Mapping[str, Any]", schema)
        inner = (found.get("properties") or {}).get(name)
        if inner is None:
            inner = found.get("items")
        options = [option for word in ("anyOf", "oneOf", "allOf") for option in found.get(word) or []]
        for option in options if inner is None else []:
            inner = inner or MiniMaxM3._child_schema(option, name)
        return inner

    @staticmethod
    def _leaf(text: str, schema: Any) -> Any:
        return text if is_text(schema) else typed(text, schema)

    def render_arguments(self, arguments: Mapping[str, Any]) -> str:
        return "".join(self._written(key, value) for key, value in arguments.items())

    def _written(self, tag: str, value: Any) -> str:
        if isinstance(value, Mapping):
            inner = "".join(self._written(str(k), v) for k, v in cast("Mapping[str, Any]", value).items())
        elif isinstance(value, list):
            inner = "".join(self._written("item", item) for item in cast("list[Any]", value))
        else:
            inner = self.plain(value)
        return f"{_NS}<{tag}>{inner}{_NS}</{tag}>"

    def _argument_terms(self, key: str, schema: Any) -> tuple[str, str]:
        return f"{_NS}<{key}>", f"{_NS}</{key}>"

    def _value_rule(self, rule: str, schema: Any, closing: str) -> tuple[str, list[str], bool]:
        types = types_of(schema)
        children: list[tuple[str, Any, bool]] = []
        if types == ("array",):
            children = [("item", schema.get("items"), False)]
        elif types == ("object",) and schema.get("properties"):
            required = schema.get("required", ())
            children = [(key, inner, key in required) for key, inner in schema["properties"].items()]
        if not children:
            return TaggedCalls._value_rule(self, rule, schema, closing)
        rules: list[str] = []
        parts: list[str] = []
        for number, (key, inner, is_required) in enumerate(children):
            opening, end = self._argument_terms(key, inner)
            value, extra, is_closed = self._value_rule(f"{rule}_{number}", inner, end)
            rules += extra
            part = f"{lark.literal(opening)} {value} {'' if is_closed else lark.literal(end)}".strip()
            parts.append(part if is_required else f"({part}){'*' if key == 'item' else '?'}")
        return rule, [*rules, f"{rule}: {' '.join(parts)}"], False


_KIMI_K3 = Marks(
    call_open=("<|open|>tools<|sep|>",),
    call_close="<|close|>tools<|sep|>",
    reasoning_open="<|open|>think<|sep|>",
    reasoning_close="<|close|>think<|sep|>",
    more=(
        Mark("<|open|>response<|sep|>", "answer"),
        Mark("<|close|>response<|sep|>", "drop"),
        Mark("<|close|>message<|sep|>", "drop"),
        Mark("<|close|>tools<|sep|>", "drop"),
        Mark("<|end_of_msg|>", "drop"),
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class KimiK3(TaggedCalls):
    """`<|open|>TAG attributes<|sep|>...<|close|>TAG<|sep|>`; arguments say their type."""

    id: str = "kimi-k3"
    marks: Marks = _KIMI_K3
    signs: tuple[tuple[str, ...], ...] = (("<|open|>", "<|close|>", "<|end_of_msg|>"),)
    head: str = '<|open|>call tool="'
    name_end: str = '" index="1"<|sep|>'
    argument: str = '<|open|>argument key="'
    key_end: str = '" type="object"<|sep|>'
    text_key_end: str = '" type="string"<|sep|>'
    value_end: str = "<|close|>argument<|sep|>"
    call_end: str = "<|close|>call<|sep|>"
    sections: bool = True
    skips_junk: bool = True

    def _call(self, source: Source, tools: Sequence[ToolSpec]) -> Reading:
        source.tell(Begun())
        attributes, _ = yield from source.until(("<|sep|>",), limit=400)
        name = html.unescape(attributes.partition('"')[0])
        if not name:
            raise Fault("it has no name")
        source.tell(Named(name))
        arguments = Arguments(source)
        schemas = properties(tools, name) or {}
        while True:
            yield from source.skip_space()
            found = yield from source.one_of((self.argument, self.call_end))
            if found != self.argument:
                if not found:
                    yield from source.expect(self.argument)
                break
            attributes, _ = yield from source.until(("<|sep|>",), limit=2000)
            key = html.unescape(attributes.partition('"')[0])
            kind = dict(_ATTRIBUTE.findall(attributes)).get("type", "")
            arguments.key(key)
            if kind == "string" or (not kind and is_text(schemas.get(key))):
                arguments.give('"')
                yield from source.until((self.value_end,), arguments.text)
                arguments.give('"')
            else:
                text, _ = yield from source.until((self.value_end,))
                value = typed(text, {"type": kind} if kind else schemas.get(key))
                arguments.give(json.dumps(value, ensure_ascii=False))
        source.tell(Complete(name, arguments.end(), source.rest))

    def render_calls(self, calls: Sequence[ToolCall]) -> str:
        written = [
            self.head
            + call.name
            + self.name_end.replace("1", str(number))
            + self.render_arguments(call.arguments)
            + self.call_end
            for number, call in enumerate(calls, 1)
        ]
        return f"{self._open()}{self.between.join(written)}{self.marks.call_close}"

    def _head_terms(self, name: str, ids: Mapping[str, int]) -> str:
        # Calls are numbered.
        before, _, behind = self.name_end.partition("1")
        return f"{lark.terms([self.head, name, before], ids)} /[1-9][0-9]{{0,2}}/ {lark.terms([behind], ids)}"

    def _key_end_for(self, schema: Any) -> str:
        kind = next(iter(types_of(schema)), "string")
        return f'" type="{"number" if kind == "integer" else kind}"<|sep|>'

    def key_end_of(self, value: Any) -> str:
        if isinstance(value, bool):
            kind = "boolean"
        else:
            names = {str: "string", int: "number", float: "number", list: "array", type(None): "null"}
            kind = names.get(type(value), "object")
        return f'" type="{kind}"<|sep|>'


ALL = (MiniMaxM3(), KimiK3())
