"""A list to choose from: the chosen line is told by a mark, not by colour alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text
from textual.widgets import OptionList
from textual.widgets.option_list import Option

if TYPE_CHECKING:
    from collections.abc import Sequence


class Chooser(OptionList):
    """Lines of plain text, one of them chosen. Its messages are OptionList's."""

    DEFAULT_CSS = """
    Chooser, Chooser:focus { height: 1fr; border: none; background: transparent; padding: 0;
        scrollbar-size-vertical: 1; }
    Chooser > .option-list--option { padding: 0; }
    """

    def __init__(self, *, id: str) -> None:
        super().__init__(id=id, markup=False)
        self._texts: list[str] = []
        self._marked: int | None = None

    def fill(self, texts: Sequence[str], chosen: int = 0) -> None:
        """Shows other lines; the place of the chosen one is kept within them."""
        self._texts = list(texts)
        self._marked = None
        self.clear_options()
        self.add_options([Option(Text(f"  {text}", no_wrap=True)) for text in texts])
        if texts:
            self.highlighted = min(max(0, chosen), len(texts) - 1)

    def relabel(self, index: int, text: str) -> None:
        """Shows another text in one line."""
        if index < len(self._texts):
            self._texts[index] = text
            self._label(index)

    def _label(self, index: int) -> None:
        mark = ">" if index == self._marked else " "
        prompt = Text(f"{mark} {self._texts[index]}", no_wrap=True)
        self.replace_option_prompt_at_index(index, prompt)

    def watch_highlighted(self, highlighted: int | None) -> None:
        """Moves the mark."""
        super().watch_highlighted(highlighted)
        before, self._marked = self._marked, highlighted
        for index in {before, highlighted} - {None}:
            if index is not None and index < len(self._texts):
                self._label(index)
