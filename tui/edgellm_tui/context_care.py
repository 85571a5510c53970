"""Care for the context of the open chat: what gives way when it fills."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgellm_tui.app import EdgeApp


class ContextCare:
    """Between turns, on the engine's side; what comes of it is told in the chat."""

    def __init__(self, app: EdgeApp) -> None:
        self._app = app

    # -- what gives way -----------------------------------------------------------------------------------

    def use_policy(self) -> None:
        """Lets the settings' policy say what gives way in all branches of the open chat, from the next turn on."""
        app, talk = self._app, self._app.talk
        policy = app.settings.context_policy
        strands = [
            strand
            for strand in talk.strands.values()
            if strand.chat is not None and strand.chat.context_policy != policy
        ]
        if not strands:
            return

        def job() -> None:
            for strand in strands:
                strand.chat.set_context_policy(policy)

        def done(_none: None) -> None:
            app.accounts.ask_again()
            app.hint(f"when the context fills: {policy}, from the next message on")

        def failed(error: Exception) -> None:
            if any(talk.strands.get(strand.key) is not strand for strand in strands):
                # Branches that were closed meanwhile: those in their place are asked about when they are shown.
                logging.getLogger("edgellm_tui").info("the context policy was not changed: %s", error)
            else:
                app.report(error)

        talk.worker.submit(job, done, failed)
