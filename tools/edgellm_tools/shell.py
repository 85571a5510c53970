"""A shell command, asked for each time: see `confined.py` for what holds it."""

from __future__ import annotations

import os

import edgellm
from edgellm_tools.confined import run

MAX_CHARACTERS = 20_000


@edgellm.tool(permission="ask", is_grantable=False, timeout_s=30, max_result_tokens=2048)
def shell(command: str, *, call: edgellm.ToolContext) -> str:
    """Runs a shell command; /tmp is writable.

    Args:
        command: Such as "ls | wc -l".
    """
    if "\0" in command or len(command) > MAX_CHARACTERS:
        raise edgellm.ToolError(f"A command has no NUL character and at most {MAX_CHARACTERS} characters.")
    # Models write bash; where there is none, the system's sh.
    interpreter = next((path for path in ("/bin/bash", "/usr/bin/bash") if os.path.exists(path)), "/bin/sh")
    return run([interpreter, "-c", command], call=call)
