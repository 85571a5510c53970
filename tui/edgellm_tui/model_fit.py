"""Whether a model fits this machine: a rough word where it is not here, else the plan of `load`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import edgellm

if TYPE_CHECKING:
    from edgellm import Plan

# Beside the weights there are the KV memory and the buffers of the computation: a rough word, not a promise.
_ROOM_BYTES = 300_000_000


def available_bytes() -> int:
    """Memory that can be used without swapping; 0 where the system does not tell."""
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return 0


def megabytes(size_bytes: int) -> str:
    """Bytes as MB, `?` where none are known."""
    if not size_bytes:
        return "?"
    return f"{size_bytes / 1e6:,.0f} MB" if size_bytes >= 10_000_000 else f"{size_bytes / 1e6:.1f} MB"


def fits(size_bytes: int, available: int) -> str:
    """Whether a model of that size fits beside what runs, in a word: by its size alone."""
    if not size_bytes or not available:
        return "?"
    return "fits" if size_bytes + _ROOM_BYTES <= available else "too big"


def plan_of(model: str) -> Plan | None:
    """What `load` would choose for a model that is here; None where that cannot be said. Takes up to a second of one
    core and loads nothing: not for the screen's thread.
    """
    try:
        return edgellm.plan(model, is_measured=False)
    except edgellm.EdgeError:
        # A file that is broken or of an unknown kind: loading it says so, in full.
        return None


def plan_words(plan: Plan) -> str:
    """A plan in a line."""
    if plan.refusal:
        return f"does not fit: {plan.refusal}"
    options, demand = plan.options, plan.demand
    need, room = megabytes(demand.host_bytes), plan.machine.room_bytes
    free = "?" if room is None else megabytes(room) if room else "0 MB"
    words = f"takes {need} of {free} free: context {options.n_ctx}, KV {options.kv_type_k}"
    return f"{words}, about {plan.speed.decode_tok_s:.0f} tok/s" if plan.speed is not None else words
