"""The page of adapters: LoRA adapters and control vectors, put on the open chat, scaled and taken off."""

from __future__ import annotations

import math
import shlex
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from textual.binding import Binding

from edgellm import EdgeError
from edgellm_tui.adapters import price_words
from edgellm_tui.list_page import ListPage
from edgellm_tui.plain import one_line, visible

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgellm_tui.adapters import Entry

_STEP = 0.1
_WORDS = (
    "A LoRA adapter is what a fine-tuning learned; a control vector is a direction that is added behind each layer. "
    "Both are GGUF files made for this model. They hold for this branch of the chat and its forks; a new chat has none."
)


class AdaptersPage(ListPage):
    """Those of the model that is loaded; `[x]` are in use by the branch of the chat that is open."""

    BINDINGS: ClassVar = [
        Binding("a", "add", "load a file", id="adapters.add"),
        Binding("space", "switch", "on/off", id="adapters.toggle"),
        Binding("left", "scale(-1)", "scale -0.1", id="adapters.less"),
        Binding("right", "scale(1)", "scale +0.1", id="adapters.more"),
        Binding("d,delete", "remove", "take off", id="adapters.remove"),
    ]
    heads: ClassVar = ("adapters", "what it is")

    def __init__(self, id: str) -> None:
        super().__init__(id=id)
        self._entries: list[Entry] = []

    def show(self) -> None:
        """What was said about another chat is old."""
        self.say("")
        super().show()

    def refill(self) -> None:
        """Writes list and details anew."""
        self._entries = self.edge.adapters.entries()
        used = sum(entry.is_used for entry in self._entries)
        self.head(f"adapters: {len(self._entries)} loaded, {used} in use by this chat")
        width = max(10, self.size.width - 34)
        self.rows.set(
            [
                f"[{'x' if entry.is_used else ' '}] {entry.adapter.scale:>6.2f}  {entry.kind:<14}  "
                f"{one_line(entry.name, width)}"
                for entry in self._entries
            ]
            or ["no adapters: a loads one from a file"]
        )
        self._describe()

    @property
    def _chosen(self) -> Entry | None:
        return self._entries[self.rows.chosen] if self.rows.chosen < len(self._entries) else None

    def on_rows_moved(self) -> None:
        """Another one is described."""
        self._describe()

    def _describe(self) -> None:
        entry = self._chosen
        lines: list[str] = []
        if entry is not None:
            lines += [f"{entry.kind}, scale {entry.adapter.scale:g}", visible(entry.adapter.path)]
            last = getattr(entry.adapter, "last_layer", None)
            if last is not None:
                first = getattr(entry.adapter, "first_layer", 1)
                lines.append(f"added behind layers {first} to {last or 'the last'}")
            lines.append("")
        else:
            lines += [_WORDS, ""]
        used = self.edge.used_tokens
        if used:
            ledger = self.edge.accounts.ledger
            price = price_words(used, ledger.prefill_tok_s if ledger is not None else None)
            lines.append(f"After a change: {price[0].lower()}{price[1:]}")
        self.pane.set("\n".join(lines))

    # -- changing -----------------------------------------------------------------------------------------

    def _told(self, text: str) -> None:
        self.say(text)
        self.refill()

    def _failed(self, error: Exception) -> None:
        self._tell(f"{error.message} {error.hint}" if isinstance(error, EdgeError) else str(error))

    def _change(self, action: Callable[[], None]) -> str | None:
        problem = self.tried(action)
        if problem is None or self.field.is_open:  # the field says it itself
            self.refill()
        else:
            self._tell(problem)
        return problem

    def _tell(self, problem: str) -> None:
        """What is wrong: as far as it fits in a line, and whole in place of the details."""
        self.say(one_line(problem, max(10, self.size.width - 2)))
        self.refill()
        self.pane.set(visible(problem))

    def action_add(self) -> None:
        """Asks for a file."""
        self.field.ask("FILE or FILE:SCALE", "", self._add)

    def _add(self, text: str) -> str | None:
        try:
            names = shlex.split(text)
        except ValueError as error:
            return f"That cannot be read: {error}."
        if not names:
            return None
        problem = self._change(lambda: self.edge.adapters.add(names, self._told, self._failed))
        return problem

    def on_rows_picked(self) -> None:
        """Enter asks for a scale; without an adapter, for a file."""
        entry = self._chosen
        if entry is None:
            self.action_add()
        else:
            self.field.ask(f"scale of {entry.name}", f"{entry.adapter.scale:g}", partial(self._scaled, entry))

    def _scaled(self, entry: Entry, text: str) -> str | None:
        try:
            scale = float(text.replace(",", "."))
        except ValueError:
            scale = math.nan
        if not math.isfinite(scale):
            return f"{one_line(text, 20)!r} is no number."
        return self._set_scale(entry, scale)

    def _set_scale(self, entry: Entry, scale: float) -> str | None:
        return self._change(lambda: self.edge.adapters.set_scale(entry, scale, self._told, self._failed))

    def action_scale(self, by: int) -> None:
        """A step more or less; of one that is off, from 0 on."""
        entry = self._chosen
        if entry is not None:
            self._set_scale(entry, (entry.adapter.scale if entry.is_used else 0.0) + by * _STEP)

    def action_switch(self) -> None:
        """Takes it off, or puts it on with the scale it had."""
        entry = self._chosen
        if entry is not None:
            self._set_scale(entry, 0.0 if entry.is_used else entry.adapter.scale)

    def action_remove(self) -> None:
        """Takes it off; one that is off leaves the list."""
        entry = self._chosen
        if entry is None:
            return
        if entry.is_used:
            self._set_scale(entry, 0.0)
        else:
            self.edge.adapters.forget(entry)
            self.refill()
