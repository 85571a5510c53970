"""A message that is being typed: what of it is settled is computed before it is sent."""

from __future__ import annotations

import re
import threading
from typing import TYPE_CHECKING

from edgellm.errors import Cancelled, ContextFull, TemplateError
from edgellm.types import Message
from edgellm.waiting import NEXT_TOKEN, Waiting

if TYPE_CHECKING:
    from collections.abc import Generator

    from edgellm.conversation import Conversation
    from edgellm.upkeep import Upkeep

# The last word may still become another one: "hel" is a token, and "hello" one as well.
_WHOLE_WORDS = re.compile(r"(.*\S)\s", re.DOTALL)


class Draft:
    """Computes ahead what the next turn begins with: the template's text in front, and the words that are whole."""

    def __init__(self, conversation: Conversation, upkeep: Upkeep) -> None:
        self._conversation = conversation
        self._upkeep = upkeep
        self._running = threading.Lock()
        # Held while a cancel is given, so that none comes behind the draft's end and hits a turn.
        self._stopping = threading.Lock()
        self._is_active = False

    def compute(self, text: str, is_idle: threading.Lock) -> Generator[Waiting, None, int]:
        """Computes what is settled of `text`; gives how many tokens are ahead. Nothing where `is_idle` is taken.

        A cancel of the session ends it; the chunks that are done stay. Raises DecodeError, ConfigError.
        """
        if not self._running.acquire(blocking=False):
            return 0
        try:
            if not is_idle.acquire(blocking=False):
                return 0
            session = self._conversation.session
            try:
                self._is_active = True
                tokens, head = self._settled(text)
                # Not where older turns will give way first: the tape will be another one.
                if not self._upkeep.excess(len(tokens) - len(session.tape), 0):
                    for _ in session.prefill_ahead(tokens, head=head):
                        yield NEXT_TOKEN
            except (Cancelled, ContextFull, TemplateError):
                pass  # the turn itself will meet what there is to say
            finally:
                with self._stopping:
                    self._is_active = False
                    session.is_cancelled = False
                is_idle.release()
            return len(session.memory.expected)
        finally:
            self._running.release()

    def _settled(self, text: str) -> tuple[list[int], int]:
        found = _WHOLE_WORDS.match(text)
        # Two ways in which the text may go on: what both begin with is certain.
        ways = (found[1], f"{text}x") if found else ("?", "1x")
        one, other = ([Message("user", way)] for way in ways)
        return self._conversation.foresee(one, other)

    @property
    def is_running(self) -> bool:
        """It is being computed."""
        return self._running.locked()

    def stop(self) -> None:
        """Ends it within one decode. Safe from any thread."""
        with self._stopping:
            if self._is_active:
                self._conversation.session.cancel()

    def is_over(self, wait_s: float) -> bool:
        """True once it has ended, which is waited for."""
        if not self._running.acquire(timeout=max(0.0, wait_s)):
            return False
        self._running.release()
        return True
