"""How every token that is remembered was drawn, as a file: one JSON object a line."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from edgellm import Rows, Step


def as_trace(steps: Iterable[Step], piece: Callable[[int], bytes]) -> str:
    """A line a token, in the order of the tape.

    `points` are the top rows before any stage ("raw") and behind the stages that are remembered, as [id, text,
    probability]; of older tokens only the last of them. `u` is the random number of the draw, null where there was
    none.
    """
    return "".join(json.dumps(_record(step, piece), ensure_ascii=False) + "\n" for step in steps)


def _record(step: Step, piece: Callable[[int], bytes]) -> dict[str, Any]:
    # Any: JSON values.
    record: dict[str, Any] = {
        "position": step.position,
        "id": step.token,
        "text": _text(step.piece),
        "logprob": None if step.logprob is None else round(step.logprob, 6),
        "is_forced": step.is_forced,
    }
    seen = step.distribution
    if seen is not None:
        record["u"] = None if math.isnan(seen.u) else seen.u
        record["points"] = [_point(rows, piece) for rows in (seen.raw, *seen.stages)]
    return record


def _point(rows: Rows, piece: Callable[[int], bytes]) -> dict[str, Any]:
    return {
        "stage": rows.stage,
        "n_left": rows.n_left,
        "entropy_bits": round(rows.entropy_bits, 6),
        "rows": [
            [int(token), _text(piece(int(token))), round(float(p), 6)]
            for token, p in zip(rows.ids, rows.probs, strict=True)
        ],
    }


def _text(piece: bytes) -> str:
    return piece.decode("utf-8", "backslashreplace")
