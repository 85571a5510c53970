"""Pages: what can be shown in place of the chat, each made when it is first asked for."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, ClassVar, cast

from textual.containers import Vertical

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgellm_tui.app import EdgeApp


class PageView(Vertical):
    """A page. `show` is called when it comes to the front, `frame` with each frame while it is there."""

    DEFAULT_CSS = "PageView { height: 1fr; }"
    # What the line of keys at the bottom says first while the page is shown, (key, word): where its bindings do not.
    foot: ClassVar[Sequence[tuple[str, str]]] = ()

    @property
    def edge(self) -> EdgeApp:
        """The app."""
        return cast("EdgeApp", self.app)

    def show(self) -> None:
        """The page comes to the front: takes up what has changed, and the focus."""

    def frame(self) -> None:
        """Something may have changed."""

    def pressed(self, key: str) -> None:
        """A key was pressed while the page is in front, before it does what it does."""

    def is_key(self, key: str, binding: str, default: str) -> bool:
        """Whether a key is the one, or one of those, that a binding has now."""
        keys = self.edge.settings.keys.get(binding, default)
        return key in [each.strip() for each in keys.split(",")]

    def leave(self) -> bool:
        """Esc was pressed: True where the page had something of its own to close, and stays."""
        return False


@dataclass(frozen=True, slots=True)
class PageInfo:
    """A page's key, its title in the status line and the palette, and where its class is: "module:Class"."""

    key: str
    title: str
    home: str

    def make(self, name: str) -> PageView:
        """A page of this kind, with `name` as its id."""
        module, _, class_name = self.home.partition(":")
        kind = cast("type[PageView]", getattr(import_module(f"edgellm_tui.{module}"), class_name))
        return kind(id=name)


PAGES: dict[str, PageInfo] = {
    "help": PageInfo("f1", "help", "help_page:HelpPage"),
    "inspect": PageInfo("f3", "inspect", "inspector:InspectorPage"),
    "branches": PageInfo("f6", "branches", "branches:BranchesPage"),
    "tokenizer": PageInfo("f4", "tokenizer", "tokenizer_page:TokenizerPage"),
    "sampler": PageInfo("f7", "sampler", "sampler_page:SamplerPage"),
    "tools": PageInfo("f8", "tools", "tools_page:ToolsPage"),
    "settings": PageInfo("f9", "settings", "settings_page:SettingsPage"),
    "meters": PageInfo("f10", "meters", "meters_page:MetersPage"),
    "adapters": PageInfo("ctrl+g", "adapters", "adapters_page:AdaptersPage"),
    "log": PageInfo("ctrl+l", "log", "log_page:LogPage"),
    "chats": PageInfo("ctrl+o", "chats", "chats:ChatsPage"),
    "model": PageInfo("f5", "models", "model_page:ModelPage"),
}
