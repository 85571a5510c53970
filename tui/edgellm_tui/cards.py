"""Tool cards: a call fills in while its arguments stream, then shows state, duration and result."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len

from edgellm_tui.blocks import Block
from edgellm_tui.plain import one_line, visible

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.style import Style
    from textual.strip import Strip

    from edgellm import ToolResult
    from edgellm_tui.look import Look

_LONG_LINES = 6


class CardBlock(Block):
    """One call. `state` is a word: WRITING, BROKEN, ASKS, RUNNING, OK, FAILED, DENIED, STOPPED; DONE of one that is
    read back, of which nobody has kept how it ended."""

    kind = "card"
    can_fold = True

    def __init__(self, index: int = 0) -> None:
        super().__init__()
        self.index = index
        self.id = ""
        self.name = ""
        self.written = ""
        self.arguments: Mapping[str, Any] | None = None
        self.state = "WRITING"
        self.note = ""
        self.result = ""
        self.duration_s = 0.0
        # First and last tape position of its tokens.
        self.positions: tuple[int, int] = (0, 0)
        self.is_folded = True

    def set(self, **values: Any) -> None:
        """Changes some of the fields."""
        # Any: the fields' own types.
        for name, value in values.items():
            setattr(self, name, value)
        self.changed()

    def finish(self, result: ToolResult) -> None:
        """The tool has ended, or did not run: a call that was denied stays so."""
        if self.state == "DENIED":
            return
        self.set(state="OK" if result.is_ok else "FAILED", result=result.text, duration_s=result.duration_s)

    def make_lines(self, look: Look) -> list[Strip]:
        palette, glyphs = look.palette, look.glyphs
        style = {"OK": palette.good, "FAILED": palette.bad, "DENIED": palette.bad}.get(
            self.state, palette.accent
        )
        mark = glyphs.closed if self.is_folded else glyphs.opened
        told = self.state + (f" {self.duration_s:.1f} s" if self.state in ("OK", "FAILED") else "")
        tokens = self.positions[1] - self.positions[0] + 1
        if tokens > 1 and look.width >= 60:
            told += f"  {tokens} tok"
        room = max(12, look.width - len(told) - 6)
        head = one_line(f"{mark} tool {self.name or '...'}({self._arguments_line()})", room)
        gap = " " * max(1, look.width - 3 - cell_len(head) - len(told))
        lines = look.wrap(f"  {head}{gap}{told}", style)[:1]
        if not self.is_folded:
            lines += self._body(look, self._arguments_text(), "args ", palette.muted)
        if self.note:
            lines += look.wrap(visible(self.note), palette.muted, first="    | ", rest="    | ")
        if self.result:
            lines += self._result_lines(look)
        return lines

    def _result_lines(self, look: Look) -> list[Strip]:
        lines = self._body(look, self.result, "", look.palette.text)
        if self.is_folded and len(lines) > _LONG_LINES:
            hidden = len(lines) - _LONG_LINES + 1
            return lines[: _LONG_LINES - 1] + look.wrap(
                f"    | ... {hidden} more lines (space unfolds)", look.palette.muted
            )
        return lines

    def _body(self, look: Look, text: str, label: str, style: Style) -> list[Strip]:
        lead = f"    {look.glyphs.column} "
        return look.wrap(label + visible(text.rstrip("\n")), style, first=lead, rest=lead)

    def _arguments_line(self) -> str:
        if self.arguments is None:
            return self.written.strip()
        return ", ".join(
            f"{key}={json.dumps(value, ensure_ascii=False, default=str)}"
            for key, value in self.arguments.items()
        )

    def _arguments_text(self) -> str:
        if self.arguments is None:
            return self.written
        return json.dumps(self.arguments, ensure_ascii=False, indent=1, default=str)

    def plain(self) -> str:
        return f"{self.name}({self._arguments_line()}) -> {self.result or self.state}"
