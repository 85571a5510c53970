"""The Jinja environment chat templates run in: what transformers offers them, and no more.

Template text is marked as the template's own (see `marked`), so that a render tells it from content.
"""

from __future__ import annotations

import json
import string
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter

from edgellm.chat.marked import (
    MAX_CHARS,
    TEMPLATE,
    Marked,
    Origin,
    formatted,
    joined,
    mark,
    plain,
    runs_of,
)
from edgellm.types import SpanKind

MAX_RANGE = 100_000
MAX_REPEAT = 1_000_000
MAX_POWER_BITS = 4_096


class Refusal(jinja2.TemplateError):
    """The template called raise_exception: it refuses this conversation."""


class GivenList(list[Any]):
    """A list passed in: templates may read it, slice it and add to copies of it, but not change it."""


class _OwnTextGenerator(CodeGenerator):
    """Compiles every piece of the template's own text to a marked string."""

    def _output_const_repr(self, group: Iterable[Any]) -> str:
        return f"environment.own({''.join(map(str, group))!r})"

    def visit_Const(self, node: nodes.Const, frame: Frame) -> None:
        value = node.as_const(frame.eval_ctx)
        if isinstance(value, str):
            self.write(f"environment.own({plain(value)!r})")
        else:
            super().visit_Const(node, frame)

    def visit_TemplateData(self, node: nodes.TemplateData, frame: Frame) -> None:
        self.write(f"environment.own({node.data!r})")

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self.write("environment.join_all((")
        for child in node.nodes:
            self.visit(child, frame)
            self.write(", ")
        self.write("))")


class _Generation(Extension):
    """`{% generation %} ... {% endgeneration %}`: marks training targets; here its body is simply rendered."""

    tags = {"generation"}  # noqa: RUF012 - declared so by jinja2's Extension

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class ChatEnvironment(ImmutableSandboxedEnvironment):
    """Immutable sandbox; `append` and `pop` work on lists the template made, sizes are bounded."""

    code_generator_class = _OwnTextGenerator
    concat = staticmethod(joined)
    intercepted_binops = frozenset({"*", "**", "%"})

    def __init__(self) -> None:
        # The optimizer would fold strings into tuples and lists, where they could not be marked.
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,
            autoescape=False,
            cache_size=0,
            extensions=[loopcontrols, _Generation],
        )
        self._owned: dict[str, Marked] = {}
        self.binop_table.update({"*": _times, "**": _power, "%": _modulo})
        # jinja2 types both tables by the functions it ships.
        names: dict[str, Any] = self.globals
        names.update(range=_bounded_range, raise_exception=_refuse, strftime_now=_strftime_now)
        filters: dict[str, Any] = self.filters
        filters.update(tojson=to_json, join=_join, indent=_indent)
        # Markup would escape whatever is added to it; models are trained on the plain text.
        filters.update(safe=_unchanged, escape=_escape, e=_escape, forceescape=_escape)

    def own(self, text: str) -> Marked:
        """The template's own text, marked; one object for each text."""
        found = self._owned.get(text)
        if found is None:
            found = self._owned[text] = Marked(text, ((len(text), TEMPLATE),) if text else ())
        return found

    def join_all(self, values: Iterable[Any]) -> str:
        """What the `~` operator gives."""
        return joined([str(value) for value in values])

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if attr in ("append", "pop") and type(obj) is list:
            return True
        return super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        pattern = getattr(value, "__self__", None)
        name = getattr(value, "__name__", "")
        if name not in ("format", "format_map") or not isinstance(pattern, str) or isinstance(value, type):
            return super().wrap_str_format(value)
        formatter = SandboxedFormatter(self)

        def wrapper(*args: Any, **kwargs: Any) -> str:
            if name == "format_map":
                args, kwargs = (), dict(args[0])
            return _format(formatter, pattern, args, kwargs)

        return wrapper


def to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as transformers writes it into prompts: no HTML escapes, key order kept, generators as lists."""
    if indent is not None and not isinstance(indent, str) and indent > 64:
        raise SecurityError("tojson: indent above 64")
    if not isinstance(value, (str, Mapping, list, tuple)) and hasattr(value, "__iter__"):
        value = _as_list(value)
    text = json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
        default=_as_list,
    )
    # Content as a whole: JSON's own punctuation never needs to be a control token.
    origin = _first_origin(value)
    return mark(text, origin.kind, source=origin.source)


def _first_origin(value: Any) -> Origin:
    if isinstance(value, str):
        for _, origin in runs_of(value):
            if not origin.is_template:
                return origin
    elif isinstance(value, Mapping):
        for pair in value.items():
            if (origin := _first_origin(pair)).source:
                return origin
    elif isinstance(value, (list, tuple)):
        for item in value:
            if (origin := _first_origin(item)).source:
                return origin
    return Origin(SpanKind.GLUE)


def _as_list(value: Any) -> list[Any]:
    if isinstance(value, jinja2.Undefined) or not hasattr(value, "__iter__"):
        raise TypeError(f"tojson: {type(value).__name__} is not JSON")
    return list(value)


def _refuse(message: str = "") -> NoReturn:
    raise Refusal(plain(str(message)))


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(plain(pattern))


def _bounded_range(*args: int) -> range:
    made = range(*args)
    if len(made) > MAX_RANGE:
        raise SecurityError(f"range of {len(made)} items; at most {MAX_RANGE} are allowed")
    return made


def _times(left: Any, right: Any) -> Any:
    for sized, count in ((left, right), (right, left)):
        if (
            isinstance(sized, (str, list, tuple))
            and isinstance(count, int)
            and len(sized) * count > MAX_REPEAT
        ):
            raise SecurityError(f"repeating to {len(sized) * count} items; at most {MAX_REPEAT} are allowed")
    if isinstance(left, int) and isinstance(right, int):
        _check_bits(left.bit_length() + right.bit_length())
    return left * right


def _power(left: Any, right: Any) -> Any:
    if isinstance(left, int) and isinstance(right, int):
        _check_bits(left.bit_length() * abs(right))
    return left**right


def _modulo(left: Any, right: Any) -> Any:
    if isinstance(left, str) and not isinstance(left, Marked):
        return mark(left, SpanKind.GLUE) % right
    return left % right


def _check_bits(bits: int) -> None:
    if bits > MAX_POWER_BITS:
        raise SecurityError(f"a number of about {bits} bits; at most {MAX_POWER_BITS} are allowed")


def _unchanged(value: Any) -> Any:
    return value


def _escape(value: Any) -> str:
    text = str(value)
    for char, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ('"', "&#34;"), ("'", "&#39;")):
        text = text.replace(char, entity)
    return text


@jinja2.pass_environment
def _join(environment: ChatEnvironment, value: Iterable[Any], d: str = "", attribute: Any = None) -> str:
    if attribute is not None:
        value = [environment.getitem(item, attribute) for item in value]
    separator = mark(str(d), SpanKind.GLUE)
    return separator.join([str(item) for item in value])


def _indent(s: str, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    margin = width if isinstance(width, str) else " " * min(width, 1_000)
    lines = mark(str(s), SpanKind.GLUE).split("\n")
    padded = [
        joined((margin, line)) if (line or blank) and (index or first) else line
        for index, line in enumerate(lines)
    ]
    return mark("\n", SpanKind.GLUE).join(padded)


def _format(
    formatter: SandboxedFormatter, pattern: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> str:
    pieces: list[tuple[str, str | None]] = []
    counter = 0
    for literal, field, spec, conversion in string.Formatter().parse(plain(pattern)):
        if field is None:
            pieces.append((literal, None))
            continue
        if "{" in (spec or "") or any(len(digits) > 4 for digits in _digit_runs(spec or "")):
            raise SecurityError("a format asks for a width of its own choice, or one above 9999")
        if not field or field[0] in ".[":
            field, counter = f"{counter}{field}", counter + 1
        value, _ = formatter.get_field(field, args, kwargs)
        if conversion:
            value = formatter.convert_field(value, conversion)
        pieces.append((literal, format(value, spec) if spec else str(value)))
    result = formatted(pattern, pieces)
    if len(result) > MAX_CHARS:
        raise OverflowError("the rendered text is longer than 64 MiB")
    return result


def _digit_runs(text: str) -> list[str]:
    return "".join(char if char.isdigit() else " " for char in text).split()
