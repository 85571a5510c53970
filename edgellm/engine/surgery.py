"""Surgery: changes in the middle of a session's tape, such that what stands behind need not be computed anew."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgellm.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgellm.engine.session import Session
    from edgellm.types import SpanKind


def excise(session: Session, start: int, end: int) -> bool:
    """Takes tokens [start, end) out of the middle of the tape. True where the memory of what stands behind was
    moved up (it was computed with them in view: approximate), false where it will be computed anew.
    """
    session.check_open()
    session.settle()
    if not 0 <= start <= end <= len(session.tape):
        raise ConfigError(
            f"cannot take out tokens {start} to {end} of a tape of {len(session.tape)}.",
            hint="Give two positions on the tape, in order.",
        )
    if start == end:
        return True
    can_move = session.memory.excise(start, end)
    session.hold_logits(None)
    session.drawing.tell_anew()
    return can_move


def splice(session: Session, start: int, end: int, entries: Sequence[tuple[int, SpanKind]]) -> bool:
    """Puts (token, kind) pairs in the place of tokens [start, end), without computing anything.

    True where nothing is put in and the memory of what stands behind could be moved up, as `excise` does; idle
    chats are parked for that. False where what stands behind is computed anew by the next decode.
    """
    engine = session.engine
    if not entries:
        if engine.context.can_shift:
            # Cells can be moved where nobody else is in the context.
            with engine.kept(session.memory):
                while engine.holds_others(session.memory) and engine.make_room():
                    pass
        return excise(session, start, end)
    session.check_open()
    session.settle()
    whole = session.tape.copy()
    session.rewind(start)
    session.tape.extend(entries)
    session.tape.take(whole, end)
    session.hold_logits(None)
    session.drawing.tell_anew()
    return False
