"""Room that is made in a conversation between its turns, ahead of time."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from edgellm.errors import Cancelled, EdgeError
from edgellm.events import Notice
from edgellm.usage import Leg
from edgellm.waiting import Waiting

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgellm.conversation import Conversation
    from edgellm.events import Event
    from edgellm.upkeep import Upkeep


class Tidying:
    """Lets the oldest turns of a conversation give way as its `upkeep` says, and computes what that costs."""

    def __init__(self, conversation: Conversation, upkeep: Upkeep) -> None:
        self._conversation = conversation
        self._upkeep = upkeep
        # Held while a stop is given, so that none comes behind the end and hits a turn.
        self._stopping = threading.Lock()
        self._is_active = False

    def run(self, is_wanted: Callable[[], bool]) -> tuple[Event, ...]:
        """Gives what was done, also where it was stopped or `is_wanted` (asked between steps) had become false: what is
        then not computed is left to the next turn. Raises EdgeError where nothing had been done yet.
        """
        session = self._conversation.session
        happened: list[Event] = []
        try:
            self._is_active = True
            if not is_wanted():
                return ()
            for item in self._upkeep.tidy():
                if not isinstance(item, Waiting):
                    happened.append(item)
                if not is_wanted():
                    session.cancel()
        except Cancelled:
            pass  # what went by then is told
        except EdgeError as error:
            if not happened:
                raise
            happened.append(Notice(f"The rest is computed with the next turn: {error.message}"))
        finally:
            with self._stopping:
                self._is_active = False
                session.is_cancelled = False
        return tuple(happened)

    def stop(self) -> None:
        """Ends it within one decode. Safe from any thread; where nothing runs: nothing."""
        with self._stopping:
            if self._is_active:
                self._conversation.session.cancel()

    def legs(self) -> tuple[Leg, ...]:
        """What it came to since the last call."""
        tally = self._upkeep.taken()
        legs = list(self._upkeep.legs)
        self._upkeep.legs.clear()
        if tally.removed_tokens or tally.prefill_tokens or tally.rebuilt_tokens:
            legs.append(
                Leg(
                    prefill_tokens=tally.prefill_tokens,
                    reused_tokens=0,
                    decode_tokens=0,
                    rebuilt_tokens=tally.rebuilt_tokens,
                    removed_tokens=tally.removed_tokens,
                    prefill_s=tally.prefill_s,
                    finish_reason="tidy",
                )
            )
        return tuple(legs)
