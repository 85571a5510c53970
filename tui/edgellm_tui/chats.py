"""The page of chats: list, search, go on with one, rename, pin, delete."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from textual.binding import Binding
from textual.widgets import Input, OptionList

import edgellm
from edgellm_tui.chooser import Chooser
from edgellm_tui.pages import PageView
from edgellm_tui.plain import one_line, visible, when
from edgellm_tui.status import Line

if TYPE_CHECKING:
    from textual.app import ComposeResult

    from edgellm import IndexedChat, SessionError

_PREVIEW_LINES = 6
_PINNED = "^"


class ChatsPage(PageView):
    """All chats, the newest first."""

    foot = (
        ("enter", "go on"),
        ("/", "search"),
        ("r", "rename"),
        ("p", "pin"),
        ("d", "delete"),
        ("n", "new"),
        ("esc", "back"),
    )
    DEFAULT_CSS = """
    ChatsPage Input, ChatsPage Input:focus { height: 1; border: none; padding: 0 1; background: $panel; }
    ChatsPage #preview { height: 7; border-top: solid $panel; color: $text-muted; }
    ChatsPage #saying { color: $warning; }
    """
    BINDINGS: ClassVar = [
        Binding("slash", "search", show=False, id="chats.search"),
        Binding("r", "rename", show=False, id="chats.rename"),
        Binding("p", "pin", show=False, id="chats.pin"),
        Binding("d", "delete", show=False, id="chats.delete"),
        Binding("n", "new", show=False, id="chats.new"),
    ]

    def __init__(self, id: str) -> None:
        super().__init__(id=id)
        self.chats: list[IndexedChat] = []
        self._renames = ""
        self._doomed = ""

    def compose(self) -> ComposeResult:
        search = Input(placeholder="/ search in titles and texts", id="words")
        search.cursor_blink = False
        yield search
        yield Chooser(id="list")
        yield Line(id="saying")
        preview = Line(id="preview")
        yield preview

    @property
    def _list(self) -> Chooser:
        return self.query_one(Chooser)

    def show(self) -> None:
        """Reads the index anew; the chat that is open is saved first."""
        self.edge.talk.kept.save()
        self._renames = self._doomed = ""
        self.query_one("#words", Input).placeholder = "/ search in titles and texts"
        talk = self.edge.talk
        talk.worker.submit(talk.kept.index.adopt, self._adopted, self.edge.report)
        self.refill()
        self._list.focus()

    def _adopted(self, found: tuple[list[str], list[SessionError]]) -> None:
        for error in found[1]:
            logging.getLogger("edgellm_tui").warning("%s %s", error.message, error.hint)
        self.refill()

    def on_resize(self) -> None:
        """Lays the lines out for the new width."""
        self.refill()

    def search(self, words: str) -> None:
        """Shows the chats that hold these words."""
        self.query_one("#words", Input).value = words
        self.refill()

    def refill(self) -> None:
        """Lists what there is now."""
        if not self.is_attached:
            return
        words = "" if self._renames else self.query_one("#words", Input).value
        kept_chats = self.edge.talk.kept
        try:
            self.chats = [each for each in kept_chats.index.list(words) if each.id not in kept_chats.deleted]
        except edgellm.EdgeError as error:
            self.edge.report(error)
            self.chats = []
        kept = self.chosen
        width = max(20, self.size.width - 45)
        lines: list[str] = []
        for saved in self.chats:
            mark = "*" if saved.id == self.edge.talk.kept.id else " "
            # Of a model that is a file, its name tells more than the folders in front of it.
            title, model = one_line(saved.title, width), one_line(Path(saved.model).name, 18)
            head = f"{mark}{_PINNED if saved.is_pinned else ' '} {title:<{width}} {saved.messages:>4} msg"
            lines.append(f"{head}  {model:<18} {when(saved.updated):>6}")
        at = next((i for i, saved in enumerate(self.chats) if kept and saved.id == kept.id), 0)
        self._list.fill(lines, at)
        told = (
            f" {len(self.chats)} chat{'s' * (len(self.chats) > 1)}"
            if self.chats
            else " no chats" + (" with these words" if words else " yet")
        )
        pinned = sum(saved.is_pinned for saved in self.chats)
        self.query_one("#saying", Line).set(told + (f", {_PINNED} {pinned} pinned" if pinned else ""))
        self._preview()

    @property
    def chosen(self) -> IndexedChat | None:
        """The chat under the cursor."""
        index = self._list.highlighted
        return self.chats[index] if index is not None and index < len(self.chats) else None

    def _preview(self) -> None:
        saved = self.chosen
        text = ""
        if saved is not None:
            words = "" if self._renames else self.query_one("#words", Input).value
            index = self.edge.talk.kept.index
            shown: list[str] = []
            try:
                # Words of the title alone stand in no line.
                shown = (index.lines(saved.id, words) or index.lines(saved.id))[:_PREVIEW_LINES]
            except edgellm.EdgeError as error:
                self.edge.report(error)
            text = "\n".join(" " + one_line(visible(line), max(20, self.size.width - 3)) for line in shown)
        self.query_one("#preview", Line).set(text)

    def on_option_list_option_highlighted(self, _event: OptionList.OptionHighlighted) -> None:
        """Shows what the chat under the cursor says."""
        if self._doomed and (self.chosen is None or self.chosen.id != self._doomed):
            self._doomed = ""
            self.query_one("#saying", Line).set("")
        self._preview()

    def on_option_list_option_selected(self, _event: OptionList.OptionSelected) -> None:
        """Goes on with the chosen chat."""
        saved = self.chosen
        if saved is not None:
            self.run_worker(self.edge.go_on_with(saved))

    def on_input_changed(self, _event: Input.Changed) -> None:
        """Searches while the words are typed."""
        if not self._renames:
            self.refill()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Takes the new title, or goes to the list of what was found."""
        if self._renames:
            title = " ".join(event.value.split())
            if title:
                self.edge.talk.kept.rename(title, self._renames, self.refill)
            self._renames = ""
            event.input.value = ""
            event.input.placeholder = "/ search in titles and texts"
            self.refill()
        self._list.focus()

    def pressed(self, key: str) -> None:
        """Another key than that of the deletion, or Esc, keeps the chat."""
        if self._doomed and key != "escape" and not self.is_key(key, "chats.delete", "d"):
            self._doomed = ""
            self.refill()

    def leave(self) -> bool:
        """Esc: gives up the renaming, the search, or the deletion. False: there was none."""
        field = self.query_one("#words", Input)
        if not (self._renames or self._doomed or field.value or field.has_focus):
            return False
        self._renames = self._doomed = ""
        field.value = ""
        field.placeholder = "/ search in titles and texts"
        self._list.focus()
        self.refill()
        return True

    def action_search(self) -> None:
        """To the search field."""
        self.query_one("#words", Input).focus()

    def action_rename(self) -> None:
        """Asks for another title."""
        saved = self.chosen
        if saved is None or not self._list.has_focus:
            return
        field = self.query_one("#words", Input)
        self._renames = saved.id
        field.placeholder = "another title"
        field.value = saved.title
        field.focus()
        self.query_one("#saying", Line).set(" enter takes the title")

    def action_pin(self) -> None:
        """Pins the chosen chat, or lets it go: the memory of a pinned one never makes room for others."""
        saved = self.chosen
        if saved is None or not self._list.has_focus:
            return
        try:
            self.edge.talk.kept.index.pin(saved.id, not saved.is_pinned)
        except edgellm.EdgeError as error:
            self.edge.report(error)
        self.refill()

    def action_delete(self) -> None:
        """Deletes the chosen chat when it is asked for twice."""
        saved = self.chosen
        if saved is None or not self._list.has_focus:
            return
        if self._doomed != saved.id:
            self._doomed = saved.id
            told = f' d once more deletes "{one_line(saved.title, 40)}" for good; any other key keeps it'
            self.query_one("#saying", Line).set(told)
            return
        self._doomed = ""
        self.edge.talk.kept.delete(saved.id)
        self.refill()

    def action_new(self) -> None:
        """Begins a new chat."""
        if self._list.has_focus:
            self.edge.action_new_chat()
            self.run_worker(self.edge.action_page("chat"))
