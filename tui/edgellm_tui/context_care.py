"""Care for the context of the open chat: what gives way when it fills, what stays, room that is made ahead of time."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from edgellm import ConfigError, ContextEvicted, Notice

if TYPE_CHECKING:
    from collections.abc import Sequence

    from textual.timer import Timer

    from edgellm import Event
    from edgellm_tui.app import EdgeApp
    from edgellm_tui.blocks import UserBlock
    from edgellm_tui.strand import Strand


# Later than what was said is written to the disk: that would end it.
_IDLE_S = 6.0
_SHOWN_AFTER_S = 0.3


class ContextCare:
    """Between turns, on the engine's side; what comes of it is told in the chat."""

    def __init__(self, app: EdgeApp) -> None:
        self._app = app
        self._idle: Timer | None = None

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

    # -- ahead of time ------------------------------------------------------------------------------------

    def rest(self) -> None:
        """A turn is over, or the prompt is empty again: sums up soon, where nothing else comes."""
        self.stir()
        if self._app.settings.context_policy == "summarize":
            self._idle = self._app.set_timer(_IDLE_S, self._tidy)

    def stir(self) -> None:
        """The user writes: what is done ahead of time makes way."""
        if self._idle is not None:
            self._idle.stop()
            self._idle = None
        self._app.worker.end_aside()

    def _tidy(self) -> None:
        app, strand = self._app, self._app.talk.current
        if strand.chat is None or app.worker.is_busy or app.prompt.text.strip():
            return

        def done(events: Sequence[Event]) -> None:
            if app.talk.strands.get(strand.key) is not strand:
                return
            told = [each for each in events if isinstance(each, ContextEvicted | Notice)]
            for event in told:
                strand.hear(event, app.worker.clock())
            if told:
                strand.is_written = False
                app.talk.kept.is_unsaved = True
                app.talk.ended(strand, strand.chat.messages)
                app.talk.kept.save()

        def failed(error: Exception) -> None:
            # Nobody has asked for it: the next turn says what is wrong.
            logging.getLogger("edgellm_tui").info("nothing was summed up ahead of time: %s", error)

        app.worker.tidy(strand.key, strand.chat, done, failed)
        # Where it takes longer, the status line says so.
        app.set_timer(_SHOWN_AFTER_S, app.draw)

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
