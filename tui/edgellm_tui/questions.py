"""Questions whether a call may run, shown one after the other in front of everything."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgellm_tui.approval import ApprovalModal

if TYPE_CHECKING:
    from edgellm_tui.app import EdgeApp
    from edgellm_tui.worker import Question


class Questions:
    """Those that wait for the user's yes."""

    def __init__(self, app: EdgeApp) -> None:
        self._app = app
        self._waiting: list[Question] = []

    def ask(self, question: Question) -> None:
        """Asks the user about a call; where a question stands already, this one comes after it."""
        self._waiting.append(question)
        self._ask_next()

    def close_answered(self) -> None:
        """Takes a question away that was answered elsewhere, or whose time is over."""
        screen = self._app.screen
        if isinstance(screen, ApprovalModal) and not screen.question.is_open:
            screen.close()

    def _ask_next(self, _over: object = None) -> None:
        app = self._app
        if app.frames.is_over or isinstance(app.screen, ApprovalModal):
            return
        while self._waiting:
            question = self._waiting.pop(0)
            if question.is_open:
                tool = app.talk.tool_of(question.spec.name)
                modal = ApprovalModal(
                    question,
                    clock=app.worker.clock,
                    stop=app.worker.stop,
                    steps=app.talk.steps_of(question.call),
                    origin=tool.origin if tool is not None else "",
                    check=tool.check if tool is not None else None,
                )
                app.push_screen(modal, self._ask_next)
                return
