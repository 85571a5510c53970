"""Events as JSON objects: one line each, `type` in snake case."""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any

from edgellm.events import (
    ApprovalRequested,
    ContextEvicted,
    TokenDrawn,
    ToolApproved,
    ToolCallReady,
    ToolChoiceScored,
    ToolDenied,
    ToolFinished,
    ToolRunning,
    TurnFinished,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgellm.distribution import Rows
    from edgellm.events import Event
    from edgellm.types import ToolCall
    from edgellm.usage import Usage

_WORD_START = re.compile(r"(?<!^)(?=[A-Z])")


def event_line(event: Event, piece: Callable[[int], bytes]) -> str:
    """The event as one line of JSON, in ASCII; `piece` gives a token's bytes."""
    return json.dumps(event_object(event, piece), allow_nan=False, default=str)


def event_object(event: Event, piece: Callable[[int], bytes]) -> dict[str, Any]:
    """The event as a JSON object."""
    # Any: JSON values of many types.
    body: dict[str, Any]
    match event:
        case TokenDrawn():
            body = _token(event, piece)
        case ToolCallReady(index=index, call=call):
            body = {"index": index, **_call(call)}
        case ToolFinished(call=call, result=result):
            body = {
                **_call(call),
                "ok": result.is_ok,
                "result": result.text,
                "is_truncated": result.is_truncated,
                "duration_s": round(result.duration_s, 6),
            }
        case ApprovalRequested(call=call, reason=reason) | ToolDenied(call=call, reason=reason):
            body = {**_call(call), "reason": reason}
        case ToolApproved(call=call, by=by):
            body = {**_call(call), "by": by}
        case ToolRunning(call=call):
            body = _call(call)
        case ToolChoiceScored(scores=scores, chosen=chosen, threshold=threshold):
            body = {
                "scores": {name: _number(score) for name, score in scores},
                "chosen": chosen,
                "threshold": _number(threshold),
            }
        case ContextEvicted(messages=messages):
            gone = [{"role": one.role, "content": one.content, "name": one.name} for one in messages]
            body = {field.name: getattr(event, field.name) for field in fields(event)} | {"messages": gone}
        case TurnFinished(text=text, finish_reason=reason, usage=usage, value=value):
            body = {"text": text, "finish_reason": reason, "usage": usage_object(usage)}
            if value is not None:
                body["value"] = value
        case _:
            body = {field.name: getattr(event, field.name) for field in fields(event)}
    return {"type": _WORD_START.sub("_", type(event).__name__).lower(), **body}


def usage_object(usage: Usage) -> dict[str, Any]:
    """Sums of a turn, and one record for each uninterrupted decode."""
    return {
        "prefill_tokens": usage.prefill_tokens,
        "reused_tokens": usage.reused_tokens,
        "decode_tokens": usage.decode_tokens,
        "rebuilt_tokens": usage.rebuilt_tokens,
        "forced_tokens": usage.forced_tokens,
        "free_tokens": usage.free_tokens,
        "repaired_calls": usage.repaired_calls,
        "prefill_s": round(usage.prefill_s, 6),
        "decode_s": round(usage.decode_s, 6),
        "decode_tok_s": round(usage.decode_tok_s, 3),
        "legs": [
            {
                key: round(value, 6) if isinstance(value, float) else value
                for key, value in asdict(leg).items()
            }
            for leg in usage.legs
        ],
    }


def _call(call: ToolCall) -> dict[str, Any]:
    return {"id": call.id, "name": call.name, "arguments": call.arguments}


def _token(event: TokenDrawn, piece: Callable[[int], bytes]) -> dict[str, Any]:
    step = event.step
    body: dict[str, Any] = {
        "token": step.token,
        "position": step.position,
        **_piece(step.piece),
        "logprob": None if step.logprob is None else _number(step.logprob),
        "is_eog": step.is_eog,
        "is_forced": step.is_forced,
        "is_constrained": step.is_constrained,
    }
    if step.distribution is not None:
        body["u"] = _number(step.distribution.u)
        body["top"] = _rows(step.distribution.raw, piece)
        body["final"] = _rows(step.distribution.final, piece)
        body["entropy_bits"] = _number(step.distribution.raw.entropy_bits)
    return body


def _rows(rows: Rows, piece: Callable[[int], bytes]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for token, p in zip(rows.ids.tolist(), rows.probs.tolist(), strict=True):
        logprob = round(math.log(p), 6) if p > 0 else None
        found.append({"token": token, **_piece(piece(token)), "p": round(p, 9), "logprob": logprob})
    return found


def _piece(raw: bytes) -> dict[str, Any]:
    """The text, and the bytes where they are no text by themselves."""
    try:
        return {"piece": raw.decode("utf-8")}
    except UnicodeDecodeError:
        return {"piece": raw.decode("utf-8", "replace"), "bytes": raw.hex()}


def _number(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None
