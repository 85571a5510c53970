"""The reference of all stages as text, made from the registry: docs/samplers.md is this, and a test says so."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgellm.sampling.registry import format_value
from edgellm.sampling.spec import DEFAULT_CHAIN

if TYPE_CHECKING:
    from collections.abc import Iterable

    from edgellm.sampling.registry import StageInfo

_HEAD = f"""# Samplers

A chain is stages joined by `|`: `penalties(repeat=1.1) | top_k(40) | top_p(0.95) | temperature(0.7) | dist(seed=7)`.
The first argument may stand without its name. The last stage chooses the token; where none does, `dist` is added.
The default is `{DEFAULT_CHAIN}`; a model's own metadata, then the catalogue, then you, override it.

The draw of `dist` is computed, not stored: `u` is a hash of seed, branch and tape position
(`edgellm/sampling/draw.py` says exactly which), and picks from the rows left in descending order of probability.
So rewinding, forking and loading a session need no generator's state. Only mirostat, mirostat_v2 and adaptive_p
keep a state that cannot be rebuilt; it starts again after a rewind.
"""


def reference(stages: Iterable[StageInfo]) -> str:
    """Markdown: each stage with what it does, its arguments, their ranges and defaults, and its source."""
    parts = [_HEAD]
    for info in stages:
        parts.append(f"## {info.name}\n\n`{info.signature()}`\n\n{info.doc}\n")
        if info.params:
            rows = ["| argument | is | default | |", "|---|---|---|---|"]
            for param in info.params:
                default = "required" if param.is_required else f"`{format_value(param.default)}`"
                rows.append(f"| `{param.name}` | {param.expected()} | {default} | {param.doc} |")
            parts.append("\n".join(rows) + "\n")
        notes = [f"From {info.source}."]
        if info.reference:
            notes.append(f"Source: {info.reference}.")
        if info.chooses:
            notes.append("Chooses the token: must be last.")
        parts.append(" ".join(notes) + "\n")
    return "\n".join(parts)


def write() -> None:
    """Writes docs/samplers.md of the checkout the current directory is in."""
    from pathlib import Path

    from edgellm.sampling.registry import NATIVE_STAGES

    Path("docs/samplers.md").write_text(reference(NATIVE_STAGES), encoding="utf-8")


if __name__ == "__main__":
    write()
