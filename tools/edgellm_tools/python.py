"""Python code in a process of its own, asked for each time: see `confined.py` for what holds it."""

from __future__ import annotations

import sys

import edgellm
from edgellm_tools.confined import run

MAX_CHARACTERS = 100_000


@edgellm.tool(permission="ask", is_grantable=False, timeout_s=30, max_result_tokens=2048)
def python(code: str, *, call: edgellm.ToolContext) -> str:
    """Runs a Python program and gives what it prints.

    Args:
        code: Whole program.
    """
    if len(code) > MAX_CHARACTERS:
        raise edgellm.ToolError(f"The code has {len(code)} characters; at most {MAX_CHARACTERS}.")
    # Isolated: no user site, no PYTHON* variables, nothing imported from the working folder.
    result = run([sys.executable, "-I", "-"], call=call, stdin=code.encode("utf-8", "replace"))
    return result.replace("[no output]", "[no output: print() what you want to see]", 1)
