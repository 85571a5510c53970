"""The tokenizer page: a text as the model reads it, and how a token is merged from bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from rich.cells import set_cell_size
from textual.app import ComposeResult
from textual.binding import Binding
from textual.widgets import TextArea

import edgellm
from edgellm_tui.area import Area
from edgellm_tui.halves import HalvesPage
from edgellm_tui.plain import visible
from edgellm_tui.rows import Pane, Rows, Rule

if TYPE_CHECKING:
    from edgellm import Merges

_MOST_TOKENS = 4000


@dataclass(frozen=True, slots=True)
class TokenRow:
    """One token of the text. `kind`: normal, control, or part of a character."""

    token: int
    piece: bytes
    kind: str

    def line(self, index: int) -> str:
        """As a row of the list."""
        shown = set_cell_size(piece_text(self.piece), 18)
        dump = self.piece.hex(" ")
        return f"{index:<5} {self.token:<8} {shown} {dump[:26] + ('..' if len(dump) > 26 else ''):<29} {self.kind}"


def piece_text(piece: bytes) -> str:
    """A token's bytes to look at: a space is `·`, what is no whole character is shown as bytes."""
    try:
        text = piece.decode("utf-8")
    except UnicodeDecodeError:
        text = piece.decode("utf-8", "backslashreplace")
        return visible(text).replace("\\x", "\\").replace(" ", "·") if text.strip("\\") else text
    return visible(text.replace("\n", "\\n").replace("\t", "\\t")).replace(" ", "·")


def token_rows(vocabulary: Any, text: str, *, has_special: bool) -> list[TokenRow]:
    """The tokens of a text."""
    # Any: a Vocabulary, or what plays one in tests.
    rows: list[TokenRow] = []
    for token in vocabulary.tokenize(text, parse_special=has_special):
        piece = vocabulary.piece(token)
        kind = (
            "control"
            if vocabulary.is_control(token)
            else "normal"
            if _is_whole(piece)
            else "part of a character"
        )
        rows.append(TokenRow(token, piece, kind))
    return rows


def _is_whole(piece: bytes) -> bool:
    try:
        piece.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def merge_text(merges: Merges, piece: bytes) -> str:
    """The merges that make a token, a line each."""
    parts = " ".join(piece_text(piece[at : at + 1]) for at in range(len(piece)))
    lines = [f"bytes          {parts}"]
    steps = merges.steps(piece)
    for number, step in enumerate(steps, 1):
        pair = f"{piece_text(step.left)} + {piece_text(step.right)}"
        lines.append(f"{number:>2}. merge {step.rank:<6} {pair:<24} {' '.join(map(piece_text, step.parts))}")
    if len(piece) > 1 and (not steps or len(steps[-1].parts) > 1):
        lines.append("No merges join the rest: the vocabulary lists this token as a whole.")
    return "\n".join(lines)


class TokenizerPage(HalvesPage):
    """Type above, see the tokens below; the chosen one is taken apart at the bottom."""

    BINDINGS: ClassVar = [
        Binding("ctrl+t", "special", "special tokens", id="tokenizer.special"),
        Binding("c", "copy", "copy ids", id="tokenizer.copy"),
    ]
    DEFAULT_CSS = """
    TokenizerPage TextArea { height: 4; border: none; padding: 0 1; }
    TokenizerPage TextArea:focus { border: none; }
    """

    def __init__(self, id: str) -> None:
        super().__init__(id=id)
        self.found: list[TokenRow] = []
        self.has_special = False
        self._merges: Merges | str | None = None
        self._merges_of = ""

    def compose(self) -> ComposeResult:
        """Text, tokens, merges."""
        yield Rule(self.edge.glyphs, id="text-head")
        area = Area("", soft_wrap=True, compact=True, tab_behavior="focus", placeholder="type a text")
        area.cursor_blink = False
        area.highlight_cursor_line = False
        yield area
        yield from self.halves()

    def show(self) -> None:
        """The text gets the focus; tokens are those of the model that is loaded now."""
        self.refill()
        self.query_one(TextArea).focus()

    def on_text_area_changed(self) -> None:
        """The tokens follow the typing."""
        self.refill()

    def refill(self) -> None:
        """Tokenizes the text anew."""
        runtime, area = self.edge.talk.runtime, self.query_one(TextArea)
        self.found = (
            [] if runtime is None else token_rows(runtime.vocabulary, area.text, has_special=self.has_special)
        )
        n_bytes = len(area.text.encode("utf-8", "replace"))
        size = f"{len(self.found)} tokens, {len(area.text)} characters, {n_bytes} bytes"
        special = "ON" if self.has_special else "OFF"
        self._head("#text-head", f"text   spellings of special tokens become them: {special} (ctrl+t)")
        self._head("#left-head", f"tokens: {size}")
        rows = [row.line(index) for index, row in enumerate(self.found[:_MOST_TOKENS])]
        if len(self.found) > _MOST_TOKENS:
            rows.append(f"and {len(self.found) - _MOST_TOKENS} more")
        empty = "no model is loaded" if runtime is None else "no tokens"
        self.query_one(Rows).set(rows or [empty])
        self._describe()

    def _head(self, id: str, text: str) -> None:
        self.query_one(id, Rule).set(text)

    def on_rows_moved(self) -> None:
        """Another token is taken apart."""
        self._describe()

    def _describe(self) -> None:
        chosen = self.query_one(Rows).chosen
        pane = self.query_one(Pane)
        if chosen >= len(self.found):
            self._head("#right-head", "how the chosen token is made")
            pane.set("")
            return
        row = self.found[chosen]
        self._head("#right-head", f"how token {row.token} is made")
        if row.kind == "control":
            pane.set("A control token: it stands for itself and is not merged from bytes.")
            return
        merges = self._known_merges()
        pane.set(merges if isinstance(merges, str) else merge_text(merges, row.piece))

    def _known_merges(self) -> Merges | str:
        """The merges of the loaded model, read once; or why there are none."""
        runtime = self.edge.talk.runtime
        if self._merges is None or self._merges_of != runtime.name:
            self._merges_of = runtime.name
            try:
                self._merges = edgellm.read_merges(runtime.model.path)
            except edgellm.EdgeError as error:
                self._merges = visible(f"{error.message} {error.hint}".strip())
        return self._merges

    def action_special(self) -> None:
        """Whether `<|im_start|>` in the text becomes the control token."""
        self.has_special = not self.has_special
        self.refill()

    def action_copy(self) -> None:
        """Copies the ids."""
        self.edge.copy(" ".join(str(row.token) for row in self.found))
