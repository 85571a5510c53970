"""What the current chat's context holds and what gives way next, asked for between turns; and what should worry one."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from edgellm_tui.machine import read_machine
from edgellm_tui.meters import Share, context_shares, warnings_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgellm import ContextOutlook, Ledger
    from edgellm_tui.meters import Worry
    from edgellm_tui.talk import Talk

# Files of /proc and /sys are read at most this often, and only when something is drawn anyway.
_MACHINE_S = 1.5


class Accounts:
    """`ledger` and `outlook` are of the current branch as it was when its last turn ended; None before that."""

    def __init__(self, talk: Talk, clock: Callable[[], float]) -> None:
        self.ledger: Ledger | None = None
        self.outlook: ContextOutlook | None = None
        self.machine = read_machine()
        self._read_at = clock()
        self._talk = talk
        self._clock = clock
        # Branch and length of the tape that were asked about, and those that the answer is of.
        self._asked = self._told = (-1, -1)

    @property
    def is_current(self) -> bool:
        """Nothing that was asked for is still to come."""
        return self._asked == self._told

    def ask_again(self) -> None:
        """What gives way next is another thing now, though nothing was said."""
        self._asked = self._told = (-1, -1)

    def look(self, used: int) -> None:
        """Asks the engine's side again where the branch is another one, or its tape (`used` tokens) differs."""
        talk = self._talk
        strand = talk.current
        if strand.key != self._told[0]:
            self.ledger = self.outlook = None
        if strand.chat is None or not used or self._asked == (strand.key, used):
            return
        if talk.worker.is_busy or talk.worker.is_tidying:
            return
        key = self._asked = (strand.key, used)
        chat = strand.chat

        def job() -> tuple[Ledger, ContextOutlook]:
            return chat.ledger(), chat.outlook()

        def done(found: tuple[Ledger, ContextOutlook]) -> None:
            if self._asked == key:
                self.ledger, self.outlook = found
                self._told = key

        def failed(error: Exception) -> None:
            # A chat that was closed meanwhile: the next one is asked about anew.
            logging.getLogger("edgellm_tui").info("the context's accounts were not read: %s", error)
            self._told = key

        talk.worker.submit(job, done, failed)

    def shares(self, used: int) -> list[Share]:
        """Whose the context is; what the open turn has added so far is its own share."""
        if self.ledger is None:
            return []
        shares = context_shares(self.ledger)
        new = used - self.ledger.used_tokens
        return [*shares, Share("+", "this turn", new)] if new > 0 else shares

    def refresh(self) -> None:
        """Reads the machine's figures anew where they are old."""
        if self._clock() - self._read_at >= _MACHINE_S:
            self._read_at = self._clock()
            self.machine = read_machine()

    def worries(self, used: int) -> list[Worry]:
        """What may make answers slow or calls wrong, as it is or was a moment ago."""
        talk = self._talk
        # Any: a Runtime and a Chat, or what plays them in tests.
        runtime: Any = talk.runtime
        chat: Any = talk.current.chat
        if runtime is None or chat is None:
            return []
        self.refresh()
        return warnings_of(
            self.machine,
            kv_types=(runtime.options.kv_type_k, runtime.options.kv_type_v),
            tools=chat.tools,
            threads=runtime.threads,
            used=used,
            n_ctx=runtime.n_ctx,
        )
