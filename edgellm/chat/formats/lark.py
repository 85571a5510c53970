"""Grammar text: Lark as llguidance reads it, for the calls of any format."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from edgellm.errors import FormatError
from edgellm.types import ToolSpec


def literal(text: str) -> str:
    """A text as a Lark terminal."""
    return json.dumps(text, ensure_ascii=False)


def terms(texts: Sequence[str], special_ids: Mapping[str, int]) -> str:
    """Texts in order; what in them spells one of `special_ids` becomes that token."""
    found: list[str] = []
    pending = ""
    for text in _pieces("".join(texts), special_ids):
        if text in special_ids:
            found += _literals(pending)
            found.append(f"<[{special_ids[text]}]>")
            pending = ""
        else:
            pending += text
    return " ".join((*found, *_literals(pending)))


def _pieces(text: str, special_ids: Mapping[str, int]) -> list[str]:
    """The text in pieces, so that what is a token stands alone."""
    marks = [mark for mark in special_ids if mark and mark in text]
    if not marks:
        return [text] if text else []
    at, _, mark = min((text.index(mark), -len(mark), mark) for mark in marks)
    rest = _pieces(text[at + len(mark) :], special_ids)
    return [part for part in (text[:at], mark, *rest) if part]


def _literals(text: str) -> list[str]:
    # The lexer takes the longest match: two literals that begin with the same space could not be told apart.
    body = text.lstrip()
    space = text[: len(text) - len(body)]
    return [literal(part) for part in (space, body) if part]


def json_rule(schema: Mapping[str, Any]) -> str:
    """A JSON value of this schema, in the spelling of the training data: a space behind commas and colons."""
    # One spelling for all: fewer tokens than free white space.
    style = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
    return f"%json {json.dumps({**schema, 'x-guidance': style}, ensure_ascii=False)}"


def object_rule(tool: ToolSpec) -> str:
    """The tool's arguments as a JSON object."""
    return json_rule({"type": "object", **tool.parameters})


def calls(
    tools: Sequence[ToolSpec],
    bodies: Sequence[str],
    *,
    lead: str,
    many: bool,
    section: tuple[str, str] = ("", ""),
    between: str = "",
    rules: Sequence[str] = (),
) -> str:
    """A grammar of the literal `lead`, then one call or, with `many`, one or more.

    `bodies[i]` is the right side of the rule for a call of tool i; `section` are terms around all calls, `between`
    terms between two; `rules` are further rules. Raises FormatError without tools.
    """
    if not tools:
        raise FormatError("a call grammar needs at least one tool.", hint="Register a tool, or ask for none.")
    names = [f"call_{index}" for index in range(len(tools))]
    parts = [literal(lead)] if lead else []
    rest = f"({between} call)*" if many and between else "call*" if many else ""
    parts += [part for part in (section[0], "call", rest, section[1]) if part]
    lines = [f"start: {' '.join(parts)}", f"call: {' | '.join(names)}"]
    lines += [f"{name}: {body}" for name, body in zip(names, bodies, strict=True)]
    return "\n".join((*lines, *rules)) + "\n"
