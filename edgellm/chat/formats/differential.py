"""A wire format read off a template: it is rendered with differences that we control, and what changes tells the rest.

One call, another call, and both are rendered; what they share is the template's own, what differs is what we put in.
Three shapes are told apart: a JSON object that holds name and arguments; the name in marks, then JSON; tags with tagged
arguments. What is none of them gives None.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

from edgellm.chat.formats.json_calls import ARGUMENT_KEYS, NAME_KEYS, JsonCalls
from edgellm.chat.formats.named_calls import NamedCalls
from edgellm.chat.formats.tagged import TaggedCalls
from edgellm.chat.formats.wire import Marks, WireFormat
from edgellm.errors import TemplateError
from edgellm.types import Message, ToolCall, ToolSpec

Render = Callable[[list[Message], tuple[ToolSpec, ...]], str]

_FIRST = ("qzfirst", {"qzkey": "qzvalue", "qzmore": "qzlast"})
_SECOND = ("qzother", {"qzfield": "qzword", "qzrest": "qzend"})
_SPECS = tuple(
    ToolSpec(
        name,
        "A tool.",
        {
            "type": "object",
            "properties": {key: {"type": "string", "description": "A word."} for key in arguments},
        },
    )
    for name, arguments in (_FIRST, _SECOND)
)
_SAID = "qzsaid"
_REASONS = ("<think>", "</think>")


def derive_format(render: Render) -> WireFormat | None:
    """The format that a template writes calls in. `render` gives its text for messages and tools.

    None where the template writes no calls, or in a way that is none of the three shapes.
    """
    try:
        one = _between(render, [_FIRST])
        other = _between(render, [_SECOND])
    except TemplateError:
        return None
    try:
        two = _between(render, [_FIRST, _SECOND])
    except TemplateError:
        # Some refuse more than one.
        two = ""
    if one is None or other is None or _FIRST[0] not in one:
        return None
    parts = _Parts.of(one, other, two or "")
    found = _json_object(parts) or _named_json(parts) or _tagged(parts)
    if found is None:
        return None
    if reasoning := _reasoning(render):
        marks = replace(found.marks, reasoning_open=reasoning[0], reasoning_close=reasoning[1])
        found = replace(found, marks=marks)
    return found


@dataclass(frozen=True, slots=True)
class _Parts:
    """What stands around one call (`before`, `body`, `after`), and between two where the template writes two.

    `opening` and `closing` belong to the section: they stand once, whatever the number of calls.
    """

    opening: str
    before: str
    body: str
    after: str
    closing: str
    between: str | None

    @classmethod
    def of(cls, one: str, other: str, two: str) -> _Parts:
        start = _shared(one, other)
        end = _shared(one[::-1], other[::-1])
        end = min(end, len(one) - start)
        before, body, after = one[:start], one[start : len(one) - end], one[len(one) - end :]
        if _SECOND[0] not in two:
            return cls("", before, body, after, "", None)
        inner = other[start : len(other) - end]
        first = two.find(body)
        second = two.find(inner, first + len(body))
        if first < 0 or second < 0:
            return cls("", before, body, after, "", None)
        middle = two[first + len(body) : second]
        # What of the text around stands between two calls as well belongs to each of them.
        size = _common_start(middle, after)
        rest = middle[size:]
        lead = _common_start(rest[::-1], before[::-1])
        gap, cut = rest[: len(rest) - lead], len(before) - lead
        return cls(before[:cut], before[cut:], body, after[:size], after[size:], gap)


def _between(render: Render, calls: list[tuple[str, dict[str, str]]]) -> str | None:
    """What the template writes for an assistant turn with these calls, less what it writes for one with text."""
    user = Message("user", "qzasked")
    made = tuple(ToolCall(f"call0000{n}", name, dict(arguments)) for n, (name, arguments) in enumerate(calls))
    spoken = render([user, Message("assistant", _SAID)], _SPECS)
    called = render([user, Message("assistant", "", tool_calls=made)], _SPECS)
    at = spoken.rfind(_SAID)
    if at < 0:
        return None
    before, after = spoken[:at], spoken[at + len(_SAID) :]
    start = _shared(before, called)
    end = _shared(after[::-1], called[start:][::-1])
    return called[start : len(called) - end]


def _common_start(one: str, other: str) -> int:
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)))


def _shared(one: str, other: str) -> int:
    size = _common_start(one, other)
    # Letters of our own words may agree by chance.
    while size and one[size - 1].isalnum():
        size -= 1
    return size


def _json_object(parts: _Parts) -> WireFormat | None:
    text = parts.before + parts.body + parts.after
    name_at = text.find(json.dumps(_FIRST[0]))
    start = text.rfind("{", 0, name_at) if name_at >= 0 else -1
    while start >= 0:
        try:
            value, end = json.JSONDecoder().raw_decode(text, start)
        except ValueError:
            start = text.rfind("{", 0, start)
            continue
        read = _keys_of(value)
        if read is not None:
            return _json_format(parts, text[:start], text[end:], read)
        start = text.rfind("{", 0, start)
    return None


def _keys_of(value: Any) -> tuple[str, str] | None:
    """(key of the name, key of the arguments) of a call object."""
    if not isinstance(value, dict):
        return None
    item = cast("dict[str, Any]", value)
    name = next((key for key, inner in item.items() if inner == _FIRST[0]), "")
    arguments = next((key for key, inner in item.items() if inner in (_FIRST[1], json.dumps(_FIRST[1]))), "")
    return (name, arguments) if name in NAME_KEYS and arguments in ARGUMENT_KEYS else None


def _json_format(parts: _Parts, lead: str, tail: str, keys: tuple[str, str]) -> WireFormat:
    opening, closing = parts.opening + lead, tail + parts.closing
    is_list = opening.rstrip().endswith("[") and closing.lstrip().startswith("]")
    if is_list:
        opening, closing = opening.rstrip()[:-1], closing.lstrip()[1:]
    mark, close = opening.strip(), closing.strip()
    return JsonCalls(
        id="derived-json",
        marks=Marks(call_open=(mark,) if mark else (), call_close=close, between_calls=parts.between or "\n"),
        before=opening[opening.find(mark) + len(mark) :] if mark else "",
        after=closing[: closing.find(close)] if close else "",
        name_key=keys[0],
        arguments_key=keys[1],
        is_list=is_list,
        item_separator=(parts.between or ", ") if is_list else ", ",
        is_bare=not mark,
    )


def _named_json(parts: _Parts) -> WireFormat | None:
    text = parts.before + parts.body + parts.after
    at = text.find(_FIRST[0])
    brace = text.find("{", at)
    if at < 0 or brace < 0 or _FIRST[0] in text[at + 1 :]:
        return None
    try:
        value, end = json.JSONDecoder().raw_decode(text, brace)
    except ValueError:
        return None
    head, name_end = text[:at], text[at + len(_FIRST[0]) : brace]
    if value != _FIRST[1] or not head.strip() or not (name_end.strip() or "\n" in name_end):
        return None
    return NamedCalls(
        id="derived-named",
        marks=Marks(
            call_open=((parts.opening + head).strip(),)
            if not parts.opening.strip()
            else (parts.opening.strip(),),
            call_close=parts.closing.strip(),
            between_calls=parts.between or "",
        ),
        head=head.lstrip() if parts.opening.strip() else (parts.opening + head).strip(),
        name_end=name_end,
        call_end=text[end:],
        between=parts.between or "",
        sections=bool(parts.opening.strip()),
    )


def _tagged(parts: _Parts) -> WireFormat | None:
    text = parts.before + parts.body + parts.after
    (first, first_value), (second, second_value) = _FIRST[1].items()
    pattern = (
        r"(?s)(?P<head>.*?)" + _FIRST[0] + r"(?P<name_end>.*?)" + first + r"(?P<key_end>.*?)" + first_value
        + r"(?P<middle>.*?)" + second + r"(?P<key_end_2>.*?)" + second_value + r"(?P<rest>.*)"
    )  # fmt: skip
    found = re.fullmatch(pattern, text)
    if found is None or found["key_end"] != found["key_end_2"]:
        return None
    middle, rest = found["middle"], found["rest"]
    # The middle is the end of one value and the beginning of the next argument; the rest begins with that end.
    size = _agreement(middle, rest)
    value_end, argument = middle[:size], middle[size:]
    name_end = found["name_end"].removesuffix(argument)
    if not value_end.strip() or not argument.strip() or found["name_end"] == name_end:
        return None
    head, call_end = found["head"], rest[size:]
    section = parts.opening.strip()
    mark = section or head.strip()
    if not mark:
        return None
    inner = head if section else ""
    return TaggedCalls(
        id="derived-tagged",
        marks=Marks(
            call_open=(mark,),
            call_close=parts.closing.strip() if section else "",
            between_calls=parts.between or "\n",
        ),
        before=parts.opening[len(parts.opening.rstrip()) :] if section else "",
        head=inner.lstrip() if section else head.strip(),
        name_end=name_end,
        argument=argument,
        key_end=found["key_end"],
        value_end=value_end,
        call_end=call_end.rstrip() if section else call_end,
        between=parts.between or "",
        after=parts.closing[: len(parts.closing) - len(parts.closing.lstrip())] if section else "",
        sections=bool(section),
        pads=found["key_end"].endswith("\n") and value_end.startswith("\n"),
    )


def _agreement(middle: str, rest: str) -> int:
    size = _common_start(middle, rest)
    # Up to the end of a tag.
    while size and middle[size - 1] not in ">\n":
        size -= 1
    return size


def _reasoning(render: Render) -> tuple[str, str] | None:
    """The marks around reasoning, where the template writes it."""
    user, thought = Message("user", "qzasked"), "qzthought"
    try:
        with_it = render([user, Message("assistant", _SAID, reasoning=thought)], ())
    except TemplateError:
        return None
    at = with_it.rfind(thought)
    if at < 0:
        return None
    before, after = with_it[:at].rstrip(), with_it[at + len(thought) :].lstrip()
    opening = re.search(r"[<\[][^<>\[\]\s]{1,40}[>\]]$", before)
    closing = re.match(r"[<\[][^<>\[\]\s]{1,40}[>\]]", after)
    return (opening.group(), closing.group()) if opening and closing else None
