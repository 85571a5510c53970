"""What the user has written: sent at once, in place of an older message, or when the turn that is open has ended."""

from __future__ import annotations

from typing import TYPE_CHECKING

import edgellm
from edgellm_tui import edits
from edgellm_tui.prompt import with_attachments

if TYPE_CHECKING:
    from edgellm_tui.app import EdgeApp
    from edgellm_tui.strand import Strand


class Outbox:
    """`editing` is the branch and its message that the next text replaces, None where it replaces none."""

    def __init__(self, app: EdgeApp) -> None:
        self._app = app
        self._waiting: list[str] = []
        self.editing: tuple[Strand, int] | None = None

    def say(self, text: str) -> None:
        """Sends a message, with its @files; waits with it while there is no model or a turn is open."""
        app = self._app
        try:
            whole = with_attachments(text)
        except edgellm.EdgeError as error:
            app.report(error)
            return
        if self.editing is not None and app.talk.is_ready:
            (_, index), self.editing = self.editing, None
            edits.resend(app, index, whole)
            return
        if not app.talk.is_ready or app.worker.is_busy:
            self._waiting.append(text)
            app.hint(f"{len(self._waiting)} waiting to be sent")
            return
        app.talk.send(whole)
        app.draw()
        app.conversation.scroll_end(animate=False)

    def send_next(self) -> None:
        """Sends the first of those that wait, where that is possible now; one that cannot be sent gives way."""
        app = self._app
        while self._waiting and app.talk.is_ready and not app.worker.is_busy:
            text = self._waiting.pop(0)
            app.hint(f"{len(self._waiting)} waiting to be sent" if self._waiting else "")
            self.say(text)

    def take_back(self) -> None:
        """What has not been sent yet goes back to where it was written."""
        prompt = self._app.prompt
        if self._waiting:
            prompt.text = "\n\n".join([*self._waiting, *filter(None, [prompt.text])])
            prompt.move_cursor(prompt.document.end)
            self._waiting.clear()
            self._app.hint("")

    def strand_changed(self) -> None:
        """Another branch is current: what is being written replaces no message of it."""
        if self.editing is not None and self.editing[0] is not self._app.talk.current:
            self.editing = None
            self._app.hint("")

    def stop_editing(self) -> bool:
        """Leaves the message as it is. False: none was being changed."""
        if self.editing is None:
            return False
        self.editing = None
        self._app.prompt.text = ""
        self._app.hint("")
        return True
