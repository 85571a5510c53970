"""What an answer has to look like: a JSON Schema, a pydantic model, a regular expression, a grammar, or choices."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import msgspec

from edgellm.errors import ConfigError, ConstraintError
from edgellm.sampling.schema_relax import JSON_STYLE

ANSWER_RULE = "answer"
_HINT = "Give a JSON Schema, a pydantic model, {'regex': ...}, {'lark': ...}, or a list of choices."
_START = re.compile(r"^start\b", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class ResponseFormat:
    """A constraint on the answer. `rules` are Lark rules of which `answer` is the whole text (llguidance's dialect).

    `schema` is the JSON Schema of kinds "json" and "model"; `model` the pydantic class.
    """

    kind: Literal["json", "model", "regex", "lark", "choices"]
    rules: str
    schema: Mapping[str, Any] | None = None
    model: Any = None

    @classmethod
    def of(cls, value: Any) -> ResponseFormat:
        """From what `response_format=` takes. Raises ConfigError, ConstraintError."""
        if isinstance(value, ResponseFormat):
            return value
        if isinstance(value, type) and hasattr(value, "model_json_schema"):
            schema: Mapping[str, Any] = cast("Any", value).model_json_schema()
            return cls("model", _json_rule(schema), schema, value)
        if isinstance(value, Mapping):
            return cls._of_mapping(cast("Mapping[str, Any]", value))
        if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
            choices = [item for item in cast("Sequence[Any]", value)]
            if not choices or not all(isinstance(item, str) and item for item in choices):
                raise ConfigError("the choices of a response format are texts, at least one.", hint=_HINT)
            options = " | ".join(json.dumps(item, ensure_ascii=False) for item in choices)
            return cls("choices", f"{ANSWER_RULE}: {options}")
        raise ConfigError(f"{type(value).__name__} is no response format.", hint=_HINT)

    @classmethod
    def _of_mapping(cls, value: Mapping[str, Any]) -> ResponseFormat:
        if isinstance(value.get("json_schema"), Mapping):
            # OpenAI's way to say it.
            inner = cast("Mapping[str, Any]", value["json_schema"])
            schema = cast("Mapping[str, Any]", inner.get("schema", inner))
            return cls("json", _json_rule(schema), schema)
        if len(value) == 1 and isinstance(value.get("regex"), str):
            pattern = value["regex"].replace("/", "\\/")
            return cls("regex", f"{ANSWER_RULE}: /{pattern}/")
        if len(value) == 1 and isinstance(value.get("lark"), str):
            grammar: str = value["lark"]
            if not _START.search(grammar):
                raise ConstraintError("the grammar has no rule `start`.", hint="Name its first rule start.")
            return cls("lark", re.sub(r"\bstart\b", ANSWER_RULE, grammar))
        if value == {"type": "json_object"}:
            return cls("json", _json_rule({"type": "object"}), {"type": "object"})
        return cls("json", _json_rule(value), value)

    def grammar(self, call_grammar: str = "") -> str:
        """A Lark grammar: the answer or, where `call_grammar` is given, a call in its stead."""
        if not call_grammar:
            return f"start: {ANSWER_RULE}\n{self.rules}\n"
        calls = _START.sub("tool_calls", call_grammar, count=1)
        return f"start: {ANSWER_RULE} | tool_calls\n{self.rules}\n{calls}"

    def read(self, text: str) -> tuple[Any, str]:
        """(the answer's value, what is wrong with it): None and a complaint where it does not fit."""
        if self.schema is None:
            return text, ""
        try:
            value = msgspec.json.decode(text.encode())
        except msgspec.DecodeError:
            return None, "The answer is not JSON."
        if self.kind == "model":
            try:
                return self.model.model_validate(value), ""
            except ValueError as error:
                return (
                    None,
                    f"The answer does not fit {self.model.__name__}: {' '.join(str(error).split())[:300]}",
                )
        from jsonschema import Draft202012Validator

        fault = next(iter(Draft202012Validator(self.schema).iter_errors(value)), None)
        if fault is not None:
            return None, f"The answer does not fit the schema: {fault.message}"
        return value, ""


def _json_rule(schema: Mapping[str, Any]) -> str:
    return f"{ANSWER_RULE}: %json {json.dumps({**schema, 'x-guidance': JSON_STYLE}, ensure_ascii=False)}"
