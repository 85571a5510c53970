"""The one-line chain syntax: `top_k(40) | temperature(0.7) | dist(seed=7)`, with errors that point at a column.

    chain = stage { "|" stage }
    stage = name [ "(" [ argument { "," argument } [","] ] ")" ]
    argument = [ name "=" ] value
    value = number | string | True | False | None | [ values ] | ( values ) | { value: value, ... }

Values are Python literals; nothing is evaluated.
"""

from __future__ import annotations

import ast
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgellm.errors import SamplerError
from edgellm.sampling.registry import nearest

if TYPE_CHECKING:
    from edgellm.sampling.registry import StageInfo, StageRegistry

_TOKEN = re.compile(
    r"""(?P<space>\s+)
      | (?P<number>-?(?:(?:\d[\d_]*)?\.\d+(?:[eE][-+]?\d+)?|\d[\d_]*\.?(?:[eE][-+]?\d+)?|inf\b))
      | (?P<string>"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*')
      | (?P<name>[A-Za-z_][A-Za-z0-9_]*)
      | (?P<mark>[|(),=\[\]{}:])""",
    re.VERBOSE,
)
_CONSTANTS = {"True": True, "False": False, "None": None, "true": True, "false": False, "inf": math.inf}
_MAX_DEPTH = 8


class ChainSyntaxError(SamplerError):
    """A chain's text does not parse. `column` counts from 1; `text` is the chain."""

    def __init__(self, message: str, text: str, column: int, *, hint: str = "") -> None:
        # One line of text, so that the caret stands under its column.
        shown = re.sub(r"\s", " ", text)
        start = max(0, column - 61)
        window = shown[start : start + 100]
        super().__init__(
            f"sampler chain, column {column}: {message}\n  {window}\n  {' ' * (column - 1 - start)}^",
            hint=hint,
        )
        self.column = column
        self.text = text

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if self.hint else self.message


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    column: int

    def __str__(self) -> str:
        return "the end" if self.kind == "end" else f"'{self.text}'"


def _tokenize(text: str) -> list[_Token]:
    tokens: list[_Token] = []
    at = 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            what = "a string without its end" if text[at] in "\"'" else f"{text[at]!r} has no meaning here"
            raise ChainSyntaxError(what, text, at + 1)
        if match.lastgroup != "space":
            tokens.append(_Token(str(match.lastgroup), match.group(), at + 1))
        at = match.end()
    tokens.append(_Token("end", "", len(text) + 1))
    return tokens


class _Parser:
    def __init__(self, text: str, registry: StageRegistry) -> None:
        self.text = text
        self.registry = registry
        self.tokens = _tokenize(text)
        self.at = 0

    @property
    def token(self) -> _Token:
        return self.tokens[self.at]

    def fail(self, message: str, token: _Token, hint: str = "") -> ChainSyntaxError:
        return ChainSyntaxError(message, self.text, token.column, hint=hint)

    def take(self) -> _Token:
        token = self.token
        self.at += 1
        return token

    def take_mark(self, mark: str) -> bool:
        if self.token.kind == "mark" and self.token.text == mark:
            self.at += 1
            return True
        return False

    def chain(self) -> list[ParsedStage]:
        stages = [self.stage()]
        while self.take_mark("|"):
            stages.append(self.stage())
        if self.token.kind != "end":
            raise self.fail(f"expected '|' or the end, found {self.token}", self.token)
        return stages

    def stage(self) -> ParsedStage:
        token = self.token
        if token.kind != "name":
            raise self.fail(
                f"expected the name of a stage, found {token}", token, "Write, for example, top_k(40)."
            )
        self.take()
        info = self.registry.get(token.text)
        if info is None:
            raise self.fail(f"unknown stage '{token.text}'", token, self.registry.suggestion(token.text))
        args: dict[str, Any] = {}
        if self.take_mark("("):
            self.arguments(info, args)
        missing = [p.name for p in info.params if p.is_required and p.name not in args]
        if missing:
            raise self.fail(f"{info.name} needs '{missing[0]}'", token, f"Its form is {info.signature()}.")
        return ParsedStage(info, args, token.column)

    def arguments(self, info: StageInfo, args: dict[str, Any]) -> None:
        is_named = False
        while not self.take_mark(")"):
            token = self.token
            follows = self.tokens[min(self.at + 1, len(self.tokens) - 1)]
            if token.kind == "name" and follows.kind == "mark" and follows.text == "=":
                is_named = True
                self.at += 2
                param = info.param(token.text)
                if param is None:
                    wanted = nearest(token.text, [p.name for p in info.params])
                    hint = f"Did you mean '{wanted}'?" if wanted else f"Its form is {info.signature()}."
                    raise self.fail(f"{info.name} has no argument '{token.text}'", token, hint)
            else:
                if is_named:
                    raise self.fail("an argument without a name after one with a name", token)
                if len(args) >= len(info.params):
                    raise self.fail(
                        f"{info.name} takes at most {len(info.params)} arguments",
                        token,
                        f"Its form is {info.signature()}.",
                    )
                param = info.params[len(args)]
            if param.name in args:
                raise self.fail(f"'{param.name}' is given twice", token)
            value_token = self.token
            value = self.value(0)
            try:
                args[param.name] = param.checked(value)
            except ValueError as error:
                raise self.fail(
                    f"{info.name}: '{param.name}' must be {error}, not {value!r}",
                    value_token,
                    param.doc and f"{param.name}: {param.doc}.",
                ) from None
            if not self.take_mark(","):
                if self.take_mark(")"):
                    return
                raise self.fail(f"expected ',' or ')', found {self.token}", self.token)

    def value(self, depth: int) -> Any:
        # Any: a Python literal.
        token = self.take()
        if depth > _MAX_DEPTH:
            raise self.fail(f"values nested deeper than {_MAX_DEPTH}", token)
        if token.kind == "number":
            return _number(token.text)
        if token.kind == "string":
            try:
                return ast.literal_eval(token.text)
            except (ValueError, SyntaxError):
                raise self.fail("a string with a broken escape", token) from None
        if token.kind == "name" and token.text in _CONSTANTS:
            return _CONSTANTS[token.text]
        if token.kind == "mark" and token.text in "[(":
            return self.items("]" if token.text == "[" else ")", depth)
        if token.kind == "mark" and token.text == "{":
            return self.pairs(depth)
        hint = f"Text needs quotes: '{token.text}'." if token.kind == "name" else ""
        self.at -= 1
        raise self.fail(f"expected a value, found {token}", token, hint)

    def items(self, end: str, depth: int) -> list[Any]:
        items: list[Any] = []
        while not self.take_mark(end):
            items.append(self.value(depth + 1))
            if not self.take_mark(",") and not (self.token.kind == "mark" and self.token.text == end):
                raise self.fail(f"expected ',' or '{end}', found {self.token}", self.token)
        return items

    def pairs(self, depth: int) -> dict[Any, Any]:
        pairs: dict[Any, Any] = {}
        while not self.take_mark("}"):
            token = self.token
            key = self.value(depth + 1)
            if isinstance(key, list | dict):
                raise self.fail("a key must be a number or a string", token)
            if not self.take_mark(":"):
                raise self.fail(f"expected ':', found {self.token}", self.token)
            pairs[key] = self.value(depth + 1)
            if not self.take_mark(",") and not (self.token.kind == "mark" and self.token.text == "}"):
                raise self.fail(f"expected ',' or '}}', found {self.token}", self.token)
        return pairs


def _number(text: str) -> int | float:
    plain = text.replace("_", "")
    return int(plain) if re.fullmatch(r"-?\d+", plain) else float(plain)


@dataclass(frozen=True, slots=True)
class ParsedStage:
    """One stage as written: checked arguments by name, and the column of its name (from 1)."""

    info: StageInfo
    args: dict[str, Any]
    column: int


def parse_stages(text: str, registry: StageRegistry) -> list[ParsedStage]:
    """The stages of a chain's text. Raises ChainSyntaxError."""
    if not text.strip():
        raise ChainSyntaxError(
            "an empty sampler chain", text, 1, hint="Write, for example: top_k(40) | temperature(0.7) | dist."
        )
    return _Parser(text, registry).chain()
