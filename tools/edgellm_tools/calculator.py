"""Arithmetic without `eval`: tokens, then Python's syntax tree, then a walk over the few nodes allowed.

What is accepted beyond Python's own operators: `^` is power (nobody asks a calculator for xor); `×` `·` `÷`
`−` `π` are their ASCII twins; `15% of 80` and `15% * 80` are per cent; a trailing `=` is dropped. `1,234` is
a thousands separator outside the parentheses of a function, where a comma separates arguments.

Bounds: 500 characters, 200 levels, integers of 4096 bits at any step. Whatever passes them takes well under
a millisecond, so there is no clock to watch.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Callable
from typing import Any

import edgellm

MAX_CHARACTERS = 500
MAX_DEPTH = 200
MAX_BITS = 4096
MAX_FACTORIAL = 500
MAX_ROUND_DIGITS = 300

Number = int | float

_TOKEN = re.compile(
    r"""\s*(?:
      (?P<number> 0[xX][0-9a-fA-F]+ | 0[bB][01]+
                | (?: \d+(?:_\d+)* (?:\.\d*)? | \.\d+ ) (?:[eE][+-]?\d+)? )
    | (?P<name> [A-Za-z][A-Za-z0-9_]* )
    | (?P<operator> \*\* | // | [-+*/%^(),] )
    )""",
    re.VERBOSE | re.ASCII,
)
_THOUSANDS = re.compile(r"\s*([1-9]\d{0,2}(?:,\d{3})+(?!\d)(?!,\d)(?:\.\d*)?)", re.ASCII)
_PER_CENT = re.compile(r"\s*(?:of\b|\*(?!\*))")
_TWINS = str.maketrans({**dict.fromkeys("×·⋅∗", "*"), **dict.fromkeys("−–", "-"), "÷": "/", "π": " pi "})


def _sqrt(value: Number) -> Number:
    if isinstance(value, int) and value >= 0:
        root = math.isqrt(value)
        if root * root == value:
            return root
    return math.sqrt(value)


def _factorial(value: Number) -> int:
    if not isinstance(value, int) or not 0 <= value <= MAX_FACTORIAL:
        raise edgellm.ToolError(f"factorial takes a whole number from 0 to {MAX_FACTORIAL}.")
    return math.factorial(value)


def _round(value: Number, digits: Number = 0) -> Number:
    if not isinstance(digits, int) or abs(digits) > MAX_ROUND_DIGITS:
        raise edgellm.ToolError(f"round takes whole digits from -{MAX_ROUND_DIGITS} to {MAX_ROUND_DIGITS}.")
    return round(value, digits) if digits else round(value)


def _whole(function: Callable[..., int], name: str) -> Callable[..., int]:
    def checked(*values: Number) -> int:
        if not all(isinstance(value, int) for value in values):
            raise edgellm.ToolError(f"{name} takes whole numbers.")
        return function(*values)

    return checked


# name -> (function, fewest arguments, most arguments)
# Any: the builtins are generic; `_bounded` looks at what they gave.
FUNCTIONS: dict[str, tuple[Callable[..., Any], int, int]] = {
    "abs": (abs, 1, 1),
    "acos": (math.acos, 1, 1),
    "asin": (math.asin, 1, 1),
    "atan": (math.atan, 1, 1),
    "atan2": (math.atan2, 2, 2),
    "cbrt": (math.cbrt, 1, 1),
    "ceil": (math.ceil, 1, 1),
    "cos": (math.cos, 1, 1),
    "cosh": (math.cosh, 1, 1),
    "degrees": (math.degrees, 1, 1),
    "exp": (math.exp, 1, 1),
    "factorial": (_factorial, 1, 1),
    "floor": (math.floor, 1, 1),
    "gcd": (_whole(math.gcd, "gcd"), 1, 20),
    "hypot": (math.hypot, 1, 20),
    "lcm": (_whole(math.lcm, "lcm"), 1, 2),
    "ln": (math.log, 1, 1),
    "log": (math.log, 1, 2),
    "log10": (math.log10, 1, 1),
    "log2": (math.log2, 1, 1),
    "max": (max, 2, 50),
    "min": (min, 2, 50),
    "radians": (math.radians, 1, 1),
    "round": (_round, 1, 2),
    "sin": (math.sin, 1, 1),
    "sinh": (math.sinh, 1, 1),
    "sqrt": (_sqrt, 1, 1),
    "tan": (math.tan, 1, 1),
    "tanh": (math.tanh, 1, 1),
    "trunc": (math.trunc, 1, 1),
}
CONSTANTS: dict[str, float] = {"pi": math.pi, "e": math.e, "tau": math.tau}


def evaluate(expression: str) -> Number:
    """The value of an arithmetic expression: whole numbers stay exact, the rest are floats.

    Raises ToolError: not an expression, an unknown name, out of bounds, division by zero, not a real number.
    """
    if len(expression) > MAX_CHARACTERS:
        raise edgellm.ToolError(
            f"The expression has {len(expression)} characters.", hint=f"At most {MAX_CHARACTERS}: split it."
        )
    source = _normalized(expression)
    try:
        tree = ast.parse(source, mode="eval")
        return _value(tree.body, 0)
    except SyntaxError as error:
        raise edgellm.ToolError(
            f"{_shown(expression)} is not a complete arithmetic expression.",
            hint="Write it like (23 * 17 + 4) / 2.",
        ) from error
    except ZeroDivisionError as error:
        raise edgellm.ToolError("Division by zero.") from error
    except OverflowError as error:
        raise edgellm.ToolError("The result is too large for a decimal number.") from error
    except (RecursionError, MemoryError) as error:
        raise edgellm.ToolError("The expression is nested too deeply.") from error
    except ValueError as error:
        raise edgellm.ToolError("A function got a value outside its domain, such as sqrt(-1).") from error


def format_number(value: Number) -> str:
    """Whole numbers in full, others with 15 significant digits (so that 0.1 + 0.2 reads 0.3)."""
    return str(value) if isinstance(value, int) else f"{value:.15g}"


def _shown(expression: str) -> str:
    return repr(expression if len(expression) <= 60 else expression[:57] + "...")


# Small models copy a request's words into the expression.
_OPERATOR_WORDS = tuple(
    (re.compile(rf"(?i)(?<=[\d)\s])\s*\b(?:{words})\b\s*"), f" {operator} ")
    for words, operator in (
        ("(?:raised )?to the power of", "**"),
        ("multiplied by|times", "*"),
        ("divided by|over", "/"),
        ("plus", "+"),
        ("minus|less", "-"),
        ("squared", "** 2"),
        ("cubed", "** 3"),
        ("percent of|per cent of", "% of"),
        ("percent|per cent", "/ 100"),
    )
)


def _normalized(expression: str) -> str:
    """The expression as Python source made of known tokens only; raises ToolError at the first other."""
    text = expression.translate(_TWINS).strip().removesuffix("=").rstrip()
    for words, operator in _OPERATOR_WORDS:
        text = words.sub(operator, text).rstrip()
    if not text:
        raise edgellm.ToolError("The expression is empty.", hint="Write it like (23 * 17 + 4) / 2.")
    tokens: list[str] = []
    call_parentheses: list[bool] = []  # for each open "(": is it a function's?
    before = ""
    position = 0
    while position < len(text):
        is_in_call = bool(call_parentheses) and call_parentheses[-1]
        match = None if is_in_call else _THOUSANDS.match(text, position)
        if match is not None:
            tokens.append(match[1].replace(",", ""))
            before, position = "number", match.end()
            continue
        match = _TOKEN.match(text, position)
        if match is None:
            where = len(text) - len(text[position:].lstrip())
            raise edgellm.ToolError(
                f"{text[where]!r} at character {where + 1} of the expression means nothing here.",
                hint="Use numbers, + - * / // % ** ( ) and functions such as sqrt.",
            )
        position = match.end()
        if number := match["number"]:
            # Python refuses 007; people do not.
            tokens.append(number if number[1:2] in {*"xXbB"} else re.sub(r"^0+(?=\d)", "", number))
            if before == "number":
                raise edgellm.ToolError(
                    f"Two numbers in a row before {number!r}.", hint="Put an operator between."
                )
            before = "number"
        elif name := match["name"]:
            if name.lower() not in FUNCTIONS and name.lower() not in CONSTANTS:
                known = ", ".join((*FUNCTIONS, *CONSTANTS))
                raise edgellm.ToolError(f"{name!r} is not known.", hint=f"Known names: {known}.")
            before = name.lower()
            tokens.append(before)
        else:
            before = _operator(match["operator"], before, tokens, call_parentheses)
            if before == "%" and (per_cent := _PER_CENT.match(text, position)):
                tokens[-1:] = ["/", "100", "*"]
                before, position = "*", per_cent.end()
    return " ".join(tokens)


def _operator(operator: str, before: str, tokens: list[str], call_parentheses: list[bool]) -> str:
    if operator == "(":
        if before in {"number", ")"} or before in CONSTANTS:
            raise edgellm.ToolError(
                "An operator is missing before '('.", hint="Write 2 * (3 + 4), not 2(3 + 4)."
            )
        call_parentheses.append(before in FUNCTIONS)
    elif operator == ")":
        if not call_parentheses:
            raise edgellm.ToolError("A ')' has no '(' before it.")
        call_parentheses.pop()
    elif operator == "," and not (call_parentheses and call_parentheses[-1]):
        raise edgellm.ToolError(
            "A comma may only separate thousands, as in 1,234, or the arguments of a function.",
            hint="Write decimals with a point.",
        )
    tokens.append("**" if operator == "^" else operator)
    return operator


def _value(node: ast.expr, depth: int) -> Number:
    if depth > MAX_DEPTH:
        raise edgellm.ToolError("The expression is nested too deeply.", hint="Split it.")
    match node:
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            result: Number = value
        case ast.Name(id=name) if name in CONSTANTS:
            return CONSTANTS[name]
        case ast.Name(id=name):
            raise edgellm.ToolError(f"{name} is a function.", hint=f"Write {name}(...).")
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand, depth + 1)
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            return _value(operand, depth + 1)
        case ast.BinOp(left=left, op=operator, right=right):
            result = _binary(operator, _value(left, depth + 1), _value(right, depth + 1))
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in FUNCTIONS:
            function, fewest, most = FUNCTIONS[name]
            if not fewest <= len(arguments) <= most:
                wanted = str(fewest) if fewest == most else f"{fewest} to {most}"
                raise edgellm.ToolError(
                    f"{name} takes {wanted} argument(s), not {len(arguments)}.",
                    hint="Inside a function's parentheses write numbers without thousands separators.",
                )
            # A loop, not a comprehension: one Python frame a level.
            values: list[Number] = []
            for argument in arguments:
                values.append(_value(argument, depth + 1))
            result = function(*values)
        case _:
            raise edgellm.ToolError("Only numbers, + - * / // % **, parentheses and functions are allowed.")
    return _bounded(result)


def _binary(operator: ast.operator, left: Number, right: Number) -> Number:
    match operator:
        case ast.Add():
            return left + right
        case ast.Sub():
            return left - right
        case ast.Mult():
            return left * right
        case ast.Div():
            is_exact = isinstance(left, int) and isinstance(right, int) and right != 0 and left % right == 0
            return left // right if is_exact else left / right
        case ast.FloorDiv():
            return left // right
        case ast.Mod():
            return left % right
        case ast.Pow():
            return _power(left, right)
        case _:
            raise edgellm.ToolError("Only the operators + - * / // % ** are allowed.")


def _power(base: Number, exponent: Number) -> Number:
    is_whole = isinstance(base, int) and isinstance(exponent, int) and abs(base) > 1
    # The bound is looked at before the power is computed: 9**9**9 would fill the memory.
    if is_whole and (abs(int(base)).bit_length() - 1) * exponent > MAX_BITS:
        raise edgellm.ToolError(f"The power is too large: whole numbers may have {MAX_BITS} bits.")
    result = base**exponent
    if isinstance(result, complex):
        raise edgellm.ToolError("The power is not a real number.")
    return result


def _bounded(value: Number) -> Number:
    if isinstance(value, int):
        if value.bit_length() > MAX_BITS:
            raise edgellm.ToolError(f"The number is too large: whole numbers may have {MAX_BITS} bits.")
    elif not math.isfinite(value):
        raise OverflowError
    return value


@edgellm.tool(
    permission="auto",
    timeout_s=5,
    examples=[
        ("How much is 12 times 8, minus 5?", {"expression": "12 * 8 - 5"}),
        ("What is the square root of 2, cubed?", {"expression": "sqrt(2) ** 3"}),
    ],
)
def calculator(expression: str) -> str:
    """Computes an arithmetic expression.

    Args:
        expression: Such as "sqrt(9) * (2 + 3)".
    """
    return format_number(evaluate(expression))
