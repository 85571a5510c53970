"""What is in front: the chat, or a page in its place; and the line of keys that belongs to it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from textual.widgets import ContentSwitcher

from edgellm_tui.footer import KeyInfo, foot_line, keys_of
from edgellm_tui.pages import PAGES, PageView
from edgellm_tui.status import Line

if TYPE_CHECKING:
    from collections.abc import Callable

    from textual.widget import Widget

    from edgellm_tui.app import EdgeApp


class Pager:
    """Pages are made when they are first shown. `came_from` had the focus before the one in front."""

    def __init__(self, app: EdgeApp) -> None:
        self._app = app
        self.came_from: Widget | None = None

    @property
    def _switcher(self) -> ContentSwitcher:
        return self._app.query_one("#pages", ContentSwitcher)

    @property
    def front(self) -> PageView | None:
        """The page in front; None is the chat."""
        shown = self._switcher.visible_content
        return shown if isinstance(shown, PageView) else None

    async def show(self, name: str) -> None:
        """Brings a page, or the chat, to the front."""
        app, switcher = self._app, self._switcher
        if name != "chat" and not switcher.query(f"#{name}"):
            await switcher.mount(PAGES[name].make(name))
        self.came_from = app.focused
        switcher.current = name
        page = self.front
        self.show_keys()
        if page is None:
            app.prompt.focus()
        else:
            self.guarded(page.show)

    def guarded(self, action: Callable[[], None]) -> None:
        """Runs something of a page. Its failure is a message in the chat, which comes to the front."""
        try:
            action()
        except Exception as error:
            self._switcher.current = "chat"
            self.show_keys()
            self._app.prompt.focus()
            self._app.report(error)

    def show_keys(self, width: int = 0) -> None:
        """Writes the line of keys, for a terminal of `width` cells (0: as wide as it is)."""
        app, page = self._app, self.front
        everywhere = [KeyInfo("app.palette", app.COMMAND_PALETTE_BINDING, "palette"), *keys_of(type(app))]
        line = foot_line(page, everywhere, app.settings.keys, width or app.size.width)
        app.query_one("#keys", Line).set(line)
