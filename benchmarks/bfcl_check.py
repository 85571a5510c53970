"""BFCL's data in our terms: its functions as JSON Schema tools, its answers as a check of one call.

Covers the categories simple_python and multiple (Python, exactly one call), parallel (several, in any order) and
irrelevance (none). The verdicts are those of BFCL's
own AST checker (Berkeley Function-Calling Leaderboard, gorilla.cs.berkeley.edu), oddities included, because
figures are compared with other people's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Category = Literal["simple_python", "multiple", "parallel", "irrelevance"]
Verdict = Literal["right", "wrong_tool", "wrong_arguments", "missed_call", "false_call"]

_JSON_TYPES = {"dict": "object", "float": "number", "tuple": "array"}
_PYTHON_TYPES: dict[str, type] = {
    "string": str,
    "integer": int,
    "float": float,
    "boolean": bool,
    "array": list,
    "tuple": list,
    "dict": dict,
    "any": str,
}
_IGNORED = re.compile(r"[ ,./\-_*^]")


@dataclass(frozen=True, slots=True)
class BfclCase:
    """One question. `functions` are BFCL's own descriptions, `answer` maps arguments to acceptable values.

    `more` are the further calls, (name, answer), that are right in parallel; `name` is "" where no call is.
    """

    id: str
    messages: tuple[dict[str, str], ...]
    functions: tuple[dict[str, Any], ...]
    name: str
    answer: dict[str, list[Any]]
    more: tuple[tuple[str, dict[str, list[Any]]], ...] = ()


def load_bfcl(folder: Path, category: Category, limit: int | None = None) -> list[BfclCase]:
    """Cases of a category from a folder with BFCL's files, in file order; `limit` takes the first ones."""
    path = folder / f"BFCL_v4_{category}.json"
    questions = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()[:limit]]
    key = folder / "possible_answer" / path.name
    answers: dict[str, list[dict[str, Any]]] = {}
    if category != "irrelevance":
        rows = map(json.loads, key.read_text(encoding="utf-8").splitlines())
        answers = {row["id"]: row["ground_truth"] for row in rows}
    cases: list[BfclCase] = []
    for row in questions:
        wanted = [next(iter(call.items())) for call in answers.get(row["id"], ())] or [("", {})]
        (name, answer), *more = wanted
        messages, functions = tuple(row["question"][0]), tuple(row["function"])
        cases.append(BfclCase(row["id"], messages, functions, name, answer, tuple(more)))
    return cases


def tool_name(name: str) -> str:
    """A function's name as a tool may be called: dots become underscores, as BFCL does for OpenAI models."""
    return name.replace(".", "_")


def tool_of(function: Mapping[str, Any]) -> dict[str, Any]:
    """An OpenAI-style tool from BFCL's description of a function."""
    return {
        "type": "function",
        "function": {
            "name": tool_name(function["name"]),
            "description": function["description"],
            "parameters": schema_of(function["parameters"]),
        },
    }


def schema_of(described: Mapping[str, Any]) -> dict[str, Any]:
    """JSON Schema from BFCL's dialect: dict, float, tuple and any are renamed, `optional` is dropped.

    A default of another type than the parameter's (BFCL has some) is dropped too.
    """
    schema: dict[str, Any] = {}
    kind = described.get("type")
    for key, value in described.items():
        if key == "type":
            if value != "any":
                schema["type"] = _JSON_TYPES.get(value, value)
        elif key == "properties":
            schema["properties"] = {name: schema_of(part) for name, part in value.items()}
        elif key == "items":
            schema["items"] = schema_of(value)
        elif key in ("description", "required", "enum", "maximum", "minimum") or (
            key == "default" and isinstance(value, _PYTHON_TYPES.get(kind or "", object))
        ):
            schema[key] = value
    return schema


def check_calls(case: BfclCase, calls: Sequence[Mapping[str, Any]]) -> Verdict:
    """What became of a case in which these calls were made. Parallel ones may come in any order."""
    if not case.name:
        return "false_call" if calls else "right"
    if not calls:
        return "missed_call"
    if not case.more:
        return check(case, calls[0])
    left = list(calls)
    worst: Verdict = "right"
    for name, answer in ((case.name, case.answer), *case.more):
        one = BfclCase(case.id, case.messages, case.functions, name, answer)
        verdicts = [check(one, call) for call in left]
        if "right" in verdicts:
            del left[verdicts.index("right")]
        else:
            worst = (
                "wrong_arguments"
                if "wrong_arguments" in verdicts
                else "wrong_tool"
                if left
                else "missed_call"
            )
    return worst if not left or worst != "right" else "wrong_tool"


def check(case: BfclCase, call: Mapping[str, Any] | None) -> Verdict:
    """What became of a case. `call` is {"name", "arguments"} with the name as `tool_name` gives it."""
    if call is None:
        return "missed_call"
    if call["name"] != tool_name(case.name):
        return "wrong_tool"
    function = next(item for item in case.functions if item["name"] == case.name)
    parameters = function["parameters"]
    given: Mapping[str, Any] = call["arguments"]
    if any(name not in given for name in parameters["required"]):
        return "wrong_arguments"
    for name, value in given.items():
        if name not in parameters["properties"] or name not in case.answer:
            return "wrong_arguments"
        if not _is_acceptable(value, parameters["properties"][name], case.answer[name]):
            return "wrong_arguments"
    missing = any(name not in given and "" not in values for name, values in case.answer.items())
    return "wrong_arguments" if missing else "right"


def _is_acceptable(value: Any, described: Mapping[str, Any], answers: Sequence[Any]) -> bool:
    kind = described["type"]
    expected = _PYTHON_TYPES[kind]
    inner = _PYTHON_TYPES[described["items"]["type"]] if kind in ("array", "tuple") else None
    if kind == "float" and type(value) is int:
        value = float(value)
    # An answer of another type than the parameter's stands for a variable: only the very value counts.
    is_exact = _answer_type(answers) not in (None, expected)
    if type(value) is not expected:
        if type(value) is not _answer_type(answers):
            return False
        is_exact = True
    elif inner is not None and not _items_fit(value, inner, answers):
        return False
    if is_exact:
        return value in answers
    if expected is dict:
        return _dict_fits(value, answers)
    if inner is dict:
        return any(
            len(value) == len(wanted)
            and all(_dict_fits(one, [other]) for one, other in zip(value, wanted, strict=True))
            for wanted in answers
        )
    if expected is str:
        return _plain(value) in [_plain(answer) for answer in answers if isinstance(answer, str)]
    if expected is list:
        return [_plain(item) for item in value] in [[_plain(item) for item in answer] for answer in answers]
    return value in answers


def _items_fit(value: list[Any], inner: type, answers: Sequence[Any]) -> bool:
    return any(
        not isinstance(answer, list) or all(type(item) in (inner, _answer_type(answer)) for item in value)
        for answer in answers
    )


def _dict_fits(value: Mapping[str, Any], answers: Sequence[Any]) -> bool:
    for answer in answers:
        if answer == "":
            continue
        known = all(
            key in answer and _plain(item) in [_plain(wanted) for wanted in answer[key]]
            for key, item in value.items()
        )
        if known and all(key in value or "" in wanted for key, wanted in answer.items()):
            return True
    return False


def _answer_type(answers: Sequence[Any]) -> type | None:
    return next((type(answer) for answer in answers if answer != ""), None)


def _plain(value: Any) -> Any:
    return _IGNORED.sub("", value).lower().replace("'", '"') if isinstance(value, str) else value
