"""Cases of our own for tool choice by small models, and the check of a call against what a case expects.

A case offers some tools and asks one question. `expect` is None where no offered tool helps, else the
tool's name and, for each argument, the list of acceptable values. "" in that list says that the
argument may be left out; {"evaluates_to": x} accepts any arithmetic expression with that value.
Arguments that are not listed must not be given.
"""

from __future__ import annotations

import ast
import json
import math
import operator
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Verdict = Literal["right", "wrong_tool", "wrong_arguments", "missed_call", "false_call", "right_no_call"]
Split = Literal["tune", "held"]

DATA = Path(__file__).parent / "data"

_OPERATORS: dict[type[ast.AST], Any] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}


@dataclass(frozen=True, slots=True)
class Case:
    """One question with the tools offered; each tool is a dict with `function` and perhaps `examples`."""

    id: str
    split: Split
    tools: tuple[dict[str, Any], ...]
    question: str
    expect: dict[str, Any] | None


def load_cases(split: Split | None = None, folder: Path = DATA) -> list[Case]:
    """All cases of one half, or of both, in file order."""
    tools = {
        tool["function"]["name"]: tool
        for tool in json.loads((folder / "guided_tools.json").read_text(encoding="utf-8"))
    }
    cases: list[Case] = []
    for line in (folder / "guided_cases.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if split is None or row["split"] == split:
            offered = tuple(tools[name] for name in row["tools"])
            cases.append(Case(row["id"], row["split"], offered, row["question"], row["expect"]))
    return cases


def score(expect: Mapping[str, Any] | None, call: Mapping[str, Any] | None) -> Verdict:
    """What became of a case. `call` is {"name", "arguments"}, or None where the model answered in prose."""
    if expect is None:
        return "right_no_call" if call is None else "false_call"
    if call is None:
        return "missed_call"
    if call["name"] != expect["name"]:
        return "wrong_tool"
    return "right" if arguments_match(expect["arguments"], call["arguments"]) else "wrong_arguments"


def arguments_match(expected: Mapping[str, list[Any]], given: Mapping[str, Any]) -> bool:
    """Whether each given argument is acceptable and none that is needed is missing. Null counts as left out."""
    present = {name: value for name, value in given.items() if value is not None}
    if not present.keys() <= expected.keys():
        return False
    for name, acceptable in expected.items():
        if name not in present:
            if "" not in acceptable:
                return False
        elif not any(values_match(wanted, present[name]) for wanted in acceptable):
            return False
    return True


def values_match(wanted: Any, value: Any) -> bool:
    """Equality that forgives case, spaces and punctuation in strings and int against float in numbers."""
    if isinstance(wanted, dict) and set(wanted) == {"evaluates_to"}:
        result = evaluate(value) if isinstance(value, str) else None
        return result is not None and math.isclose(result, wanted["evaluates_to"], rel_tol=1e-6)
    if isinstance(wanted, bool) or isinstance(value, bool):
        return wanted is value
    if isinstance(wanted, int | float) and isinstance(value, int | float):
        return math.isclose(wanted, value, rel_tol=1e-9)
    if isinstance(wanted, str) and isinstance(value, str):
        return _plain(wanted) == _plain(value)
    if isinstance(wanted, list) and isinstance(value, list):
        return len(wanted) == len(value) and all(map(values_match, wanted, value))
    if isinstance(wanted, dict) and isinstance(value, dict):
        return wanted.keys() == value.keys() and all(values_match(wanted[k], value[k]) for k in wanted)
    return wanted is None and value is None


def evaluate(expression: str) -> float | None:
    """Value of an arithmetic expression, None where it is none. `^` is read as a power."""
    try:
        return _evaluate(ast.parse(expression.strip().replace("^", "**"), mode="eval").body)
    except (SyntaxError, ValueError, ArithmeticError, RecursionError):
        return None


def _evaluate(node: ast.expr) -> float:
    match node:
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            return value
        case ast.BinOp(op=ast.Pow()):
            base, exponent = _evaluate(node.left), _evaluate(node.right)
            if abs(exponent) > 64:
                raise ValueError("exponent too large")
            return float(base) ** exponent
        case ast.BinOp() if type(node.op) in _OPERATORS:
            return _OPERATORS[type(node.op)](_evaluate(node.left), _evaluate(node.right))
        case ast.UnaryOp() if type(node.op) in _OPERATORS:
            return _OPERATORS[type(node.op)](_evaluate(node.operand))
        case _:
            raise ValueError("not arithmetic")


def _plain(text: str) -> str:
    kept = "".join(char for char in text.casefold() if char.isalnum())
    return kept or text.strip()


def rates(verdicts: Iterable[Verdict]) -> dict[str, float]:
    """Shares of all cases: `whole_case` counts right calls and rightly made none; then each kind of mistake."""
    counts = Counter(verdicts)
    total = max(1, counts.total())
    names: tuple[Verdict, ...] = ("wrong_tool", "wrong_arguments", "missed_call", "false_call")
    whole = counts["right"] + counts["right_no_call"]
    return {"whole_case": whole / total, **{name: counts[name] / total for name in names}}
