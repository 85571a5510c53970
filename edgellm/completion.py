"""Plain continuation of a text: a session decoded to events, without template and tools."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from edgellm.chat.utf8 import TextDecoder
from edgellm.errors import Cancelled, ContextFull
from edgellm.events import PrefillProgress, TextDelta, TokenDrawn, TurnFinished
from edgellm.usage import Leg, Usage

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from edgellm.engine.engine import Engine
    from edgellm.events import Event
    from edgellm.native.overlay import Overlay
    from edgellm.sampling.chain import Chain
    from edgellm.sampling.constraint import Constraint
    from edgellm.types import FinishReason, SpanKind


def complete(
    engine: Engine,
    chain: Chain,
    entries: Sequence[tuple[int, SpanKind]],
    *,
    max_tokens: int,
    trace: int,
    constraint: Constraint | None,
    overlay: Overlay | None = None,
) -> Iterator[Event]:
    """Events of one completion, ending with TurnFinished, on a session of its own that is closed at the end."""
    finish: FinishReason = "length"
    decoder = TextDecoder()
    parts: list[str] = []
    decoded = forced = 0
    # Made here: of a generator that nobody starts, nothing is left over.
    session = engine.session(chain, overlay)
    session.trace = trace
    try:
        started = time.perf_counter()
        for done, total in session.prefill(entries):
            yield PrefillProgress(done, total)
        prefill_s = time.perf_counter() - started
        session.constraint = constraint
        started = time.perf_counter()
        while decoded < max_tokens:
            try:
                step = session.step()
            except Cancelled:
                finish = "cancelled"
                break
            except ContextFull:
                finish = "context_full"
                break
            decoded += 1
            forced += step.is_forced
            if trace:
                yield TokenDrawn(step)
            if step.is_eog:
                finish = "eog"
                break
            text = decoder.feed(step.piece)
            if text:
                parts.append(text)
                yield TextDelta(text)
        rest = decoder.finish()
        if rest:
            parts.append(rest)
            yield TextDelta(rest)
        leg = Leg(
            prefill_tokens=session.prefilled_tokens,
            reused_tokens=0,
            decode_tokens=decoded,
            forced_tokens=forced,
            rebuilt_tokens=session.rebuilt_tokens,
            prefill_s=prefill_s,
            decode_s=time.perf_counter() - started,
            finish_reason=finish,
        )
        yield TurnFinished("".join(parts), finish, Usage((leg,)))
    finally:
        session.close()
