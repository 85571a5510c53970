"""The stages of a draft as lines to walk in: the stage under the cursor shows its arguments, each with a slider."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgellm_tui.chain_draft import share
from edgellm_tui.plain import one_line

if TYPE_CHECKING:
    from edgellm_tui.chain_draft import ChainDraft

_SLIDER = 12


class ChainRows:
    """`at` is the chosen stage, `name` the chosen argument of it, "" the stage itself."""

    def __init__(self) -> None:
        self.at = 0
        self.name = ""
        self._where: list[tuple[int, str]] = []

    def go(self, at: int, name: str = "") -> None:
        """Chooses another one."""
        self.at, self.name = at, name

    def go_to_line(self, index: int) -> bool:
        """Chooses what stands in a line. False: nothing does."""
        if index >= len(self._where):
            return False
        self.go(*self._where[index])
        return True

    @property
    def index(self) -> int:
        """The line of what is chosen, of those that `lines` gave."""
        chosen = (self.at, self.name)
        return self._where.index(chosen if chosen in self._where else (self.at, ""))

    def lines(self, draft: ChainDraft, width: int) -> list[str]:
        """All stages, each cut to `width` cells."""
        self._where, lines = [], []
        for at, slot in enumerate(draft.slots):
            spec = slot.spec
            self._where.append((at, ""))
            state = "" if slot.is_on else "OFF "
            written = f"{at + 1:>2} {state}{spec}"
            lines.append(
                f"{written:<28} {one_line(spec.info.doc, max(8, width - max(28, len(written)) - 4))}"
            )
            if at != self.at:
                continue
            for param in spec.info.params:
                self._where.append((at, param.name))
                value = spec.complete_args[param.name]
                part = share(param, value)
                slider = "" if part is None else _slider(part)
                written = one_line(str(value), 14)
                row = f"     {param.name:<15} {written:<14} {slider:<14} "
                lines.append(row + one_line(param.doc or param.expected(), max(8, width - len(row) - 3)))
        return lines


def _slider(part: float) -> str:
    filled = round(part * _SLIDER)
    return f"[{'=' * filled}{'.' * (_SLIDER - filled)}]"
