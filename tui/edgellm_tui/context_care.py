"""Care for the context of the open chat: what gives way when it fills, and what stays."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from edgellm import ConfigError

if TYPE_CHECKING:
    from edgellm_tui.app import EdgeApp
    from edgellm_tui.blocks import UserBlock
    from edgellm_tui.strand import Strand


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

    # -- what stays ---------------------------------------------------------------------------------------

    def pin(self, strand: Strand, block: UserBlock) -> None:
        """The turn that begins with this message stays when the context fills; one that is pinned no longer."""
        app, chat, text = self._app, strand.chat, block.text
        first, is_pinned = block.message or 0, not block.is_pinned

        def job() -> tuple[int, ...]:
            messages = chat.messages
            if first >= len(messages) or messages[first].content != text:
                raise ConfigError("That message has not been read.", hint="/retry sends it again.")
            if is_pinned:
                chat.pin(first)
                return chat.pinned
            later = (at for at in range(first + 1, len(messages)) if messages[at].role == "user")
            end = next(later, len(messages))
            for index in chat.pinned:
                if first <= index < end:
                    chat.unpin(index)
            return chat.pinned

        def done(pinned: tuple[int, ...]) -> None:
            strand.mark(pinned)
            strand.is_written = False
            app.talk.kept.is_unsaved = True
            app.talk.kept.record()
            app.hint(self._told_of(is_pinned))

        app.talk.worker.submit(job, done, app.report)

    def _told_of(self, is_pinned: bool) -> str:
        if not is_pinned:
            return "not pinned any more: this turn goes with the others when the context fills"
        if self._app.settings.context_policy == "stop":
            return "pinned: this turn stays once context_policy (F9) lets others go"
        return "pinned: this turn stays when the context fills"
