"""The branches of the chat as a tree: where each began, what it says; switch, name, delete, go on side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from rich.cells import cell_len, set_cell_size
from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding
from textual.widgets import Input

from edgellm_tui.drawn import Row, RowsPane, RowsView, titled
from edgellm_tui.pages import PageView
from edgellm_tui.plain import one_line, visible, when
from edgellm_tui.race import label, race, race_rows
from edgellm_tui.token_text import token_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from textual.events import Resize

    from edgellm_tui.glyphs import Glyphs
    from edgellm_tui.strand import Strand

_MOST_SIDE_BY_SIDE = 4


def tree_of(strands: Sequence[Strand], glyphs: Glyphs) -> list[tuple[str, Strand]]:
    """Every branch behind its parent, with the lines of the tree in front. One without a parent is a root."""
    known = {strand.key for strand in strands}
    children: dict[int | None, list[Strand]] = {}
    for strand in strands:
        parent = strand.origin.parent if strand.origin is not None else None
        children.setdefault(parent if parent in known else None, []).append(strand)
    found: list[tuple[str, Strand]] = []

    def walk(parent: int | None, lead: str) -> None:
        below = children.get(parent, [])
        for index, strand in enumerate(below):
            is_last = index == len(below) - 1
            is_root = parent is None
            found.append(
                (lead if is_root else lead + (glyphs.last_branch if is_last else glyphs.branch), strand)
            )
            walk(strand.key, "" if is_root else lead + ("   " if is_last else glyphs.line))

    walk(None, "")
    return found


class BranchesPage(PageView, can_focus=True):
    """Up and down choose a branch, enter goes there. While branches run side by side, 1 to 4 keeps one of them."""

    BINDINGS: ClassVar = [
        Binding("up", "walk(-1)", "up", show=False, id="branches.up"),
        Binding("down", "walk(1)", "down", show=False, id="branches.down"),
        Binding("enter", "enter", "go there", id="branches.enter"),
        Binding("g", "resume", "go on", id="branches.resume"),
        Binding("f", "fork", "fork", id="branches.fork"),
        Binding("m", "name", "name", id="branches.name"),
        Binding("slash", "search", "search", id="branches.search"),
        Binding("d", "delete", "delete", id="branches.delete"),
        Binding("space", "mark", "mark", id="branches.mark"),
        Binding("s", "side_by_side", "side by side", id="branches.race"),
        *(
            Binding(str(number), f"keep({number})", f"keep {number}", show=False, id=f"branches.keep{number}")
            for number in range(1, 5)
        ),
    ]
    DEFAULT_CSS = """
    BranchesPage #branches-tree { height: 1fr; }
    BranchesPage #branches-preview { height: 9; }
    BranchesPage #branches-race { height: 1fr; }
    BranchesPage Input { height: 3; }
    """

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.chosen = 0
        self.marked: set[int] = set()
        self.note = ""
        self._deleting = -1
        self._keeping: int | None = None
        self._goes_on = False
        # What the field at the bottom is open for, and what was searched last.
        self._searches = False
        self._words = ""

    def compose(self) -> ComposeResult:
        """The tree over a preview, or the branches that run side by side; a field for a name."""
        tree = RowsView(id="branches-tree")
        tree.can_focus = False
        yield tree
        yield RowsPane(id="branches-preview")
        side = RowsPane(id="branches-race")
        side.display = False
        yield side
        field = Input(placeholder="a name for this branch", id="branches-field")
        field.display = False
        yield field

    # -- what is shown ------------------------------------------------------------------------------------

    def _strands(self) -> list[tuple[str, Strand]]:
        return tree_of(list(self.edge.talk.strands.values()), self.edge.glyphs)

    def _racing(self) -> list[Strand]:
        strands = self.edge.talk.strands
        return [strands[key] for key in self.edge.racing if key in strands]

    @property
    def strand(self) -> Strand | None:
        """The branch under the cursor."""
        found = self._strands()
        return found[min(self.chosen, len(found) - 1)][1] if found else None

    def show(self) -> None:
        """The cursor begins at the current branch."""
        keys = [strand.key for _, strand in self._strands()]
        current = self.edge.talk.current.key
        self.chosen = keys.index(current) if current in keys else 0
        self.note, self._deleting = "", -1
        self.focus()
        self.frame()

    def on_resize(self, _event: Resize) -> None:
        """Lays everything out anew."""
        self.frame()

    def frame(self) -> None:
        """Takes up what has changed."""
        racing = self._racing()
        self._finish_keeping(racing)
        racing = self._racing()
        tree = self.query_one("#branches-tree", RowsView)
        preview = self.query_one("#branches-preview", RowsPane)
        side = self.query_one("#branches-race", RowsPane)
        if side.display != bool(racing):
            tree.display = preview.display = not racing
            side.display = bool(racing)
            # What is shown now has no size before the next layout.
            self.call_after_refresh(self.frame)
        if racing:
            width, height = side.size.width, side.size.height
            if width >= 20 and height > 2:
                foot: Row = [
                    (f" 1 to {len(racing)} keeps one   esc stops, then leaves all as branches", "muted")
                ]
                rows = race_rows(racing, width, height - 1, self.app.console, self.edge.glyphs)
                side.set([*rows, foot])
            return
        if tree.text_width >= 20:
            found = self._strands()
            self.chosen = max(0, min(self.chosen, len(found) - 1))
            tree.set(
                [self._head(tree.text_width), *(self._row(index, *each) for index, each in enumerate(found))]
            )
            tree.reveal(self.chosen + 1)
            preview.set(self._preview(preview.size.width, preview.size.height))

    def _head(self, width: int) -> Row:
        count = len(self.edge.talk.strands)
        return titled(
            f"{count} branch{'es' if count != 1 else ''}  * current  + marked", width, self.edge.glyphs
        )

    def _row(self, index: int, lead: str, strand: Strand) -> Row:
        talk = self.edge.talk
        width = self.query_one("#branches-tree", RowsView).text_width
        cursor = ">" if index == self.chosen else " "
        sign = "*" if strand is talk.current else "+" if strand.key in self.marked else " "
        origin = strand.origin
        place = f" @{origin.position}" if origin is not None and origin.position is not None else ""
        name = label(strand) + place
        if strand.name and strand.name != name and not strand.name.startswith(("put ", "again ", "side ")):
            name = f"{strand.name}  {name}" if origin is not None and origin.token else strand.name + place
        end = f"  {strand.state:<8} {when(strand.created)}"
        room = width - cell_len(end) - cell_len(lead) - 4
        text = f"{name}  {one_line(strand.last_answer or strand.title, max(8, room))}"
        line = f"{cursor}{sign} {lead}" + set_cell_size(text, max(8, room)) + end
        role = "chosen" if index == self.chosen else "accent" if strand is talk.current else ""
        return [(line, role)]

    def _preview(self, width: int, height: int) -> list[Row]:
        strand = self.strand
        rows = [titled("preview of the chosen branch", width, self.edge.glyphs)]
        if strand is None or strand.chat is None:
            return rows
        text = visible(strand.last_answer)[-4 * width :]
        lines: list[str] = []
        for line in text.split("\n"):
            lines += [
                part.plain.rstrip() for part in Text(line).wrap(self.app.console, max(8, width - 2))
            ] or [""]
        room = height - 3
        rows += [[(" " + line, "")] for line in lines[-room:]]
        rows += [[] for _ in range(room - len(lines))]
        rows.append([(" " + (self.note or self._origin_words(strand)), "accent" if self.note else "muted")])
        return rows

    def _origin_words(self, strand: Strand) -> str:
        origin = strand.origin
        if origin is None:
            return "the chat's first branch"
        parent = self.edge.talk.strands.get(origin.parent)
        of = f" of {parent.name}" if parent is not None else ""
        if origin.position is None:
            return f"a fork{of}"
        was = parent.steps.get(origin.position) if parent is not None else None
        old = f'"{token_text(was.piece)}" -> ' if was is not None else ""
        new = f'"{token_text(origin.token.encode())}"' if origin.token else "drawn anew"
        return f"begins{of} at token {origin.position}, shares what is before it: {old}{new}"

    # -- the tree -----------------------------------------------------------------------------------------

    def action_walk(self, by: int) -> None:
        """Another branch."""
        self.chosen = max(0, min(len(self._strands()) - 1, self.chosen + by))
        self.note, self._deleting = "", -1
        self.frame()

    async def action_enter(self) -> None:
        """Makes the chosen branch the current one, and shows its chat."""
        strand = self.strand
        if strand is None or self._racing():
            return
        self.edge.talk.show(strand)
        await self.edge.action_page("chat")

    def action_resume(self) -> None:
        """Lets the chosen branch's answer go on."""
        strand = self.strand
        if strand is None or strand.chat is None or self._is_busy():
            return
        if not strand.chat.is_answer_open:
            self._say("its answer is over: there is nothing to go on with")
            return
        self.edge.talk.show(strand)
        self.edge.talk.send(None, strand)
        self.frame()

    def action_fork(self) -> None:
        """A new branch from the current one's end."""
        if self._is_busy():
            return
        self.edge.talk.fork(lambda _strand: self.frame())

    def action_name(self) -> None:
        """Asks for a name."""
        strand = self.strand
        if strand is not None and not self._racing():
            self._ask("a name for this branch", strand.name)

    def action_search(self) -> None:
        """Asks for words, and goes to the next branch that has them."""
        if not self._racing():
            self._ask("words of a branch", self._words, is_search=True)

    def _ask(self, what: str, value: str, *, is_search: bool = False) -> None:
        self._searches = is_search
        field = self.query_one("#branches-field", Input)
        field.placeholder, field.value, field.display = what, value, True
        field.focus()

    def _find(self, words: str) -> None:
        """The next branch behind the chosen one, in a circle, with these words in name or messages."""
        self._words = words
        parts, found = words.lower().split(), self._strands()
        order = [(self.chosen + by) % len(found) for by in range(1, len(found) + 1)]
        for index in order if parts else []:
            strand = found[index][1]
            text = " ".join([label(strand), strand.name, *(block.plain() for block in strand.blocks)]).lower()
            if all(part in text for part in parts):
                self.chosen, self.note = index, ""
                return
        self.note = "no branch has these words" if parts else ""

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """The name or the words were typed."""
        strand = self.strand
        if self._searches:
            self._find(event.value)
        elif strand is not None and event.value.strip():
            strand.name = one_line(event.value, 40)
        self.leave()
        self.frame()

    def pressed(self, key: str) -> None:
        """Another key than that of the deletion keeps the branch."""
        if self._deleting != -1 and not self.is_key(key, "branches.delete", "d"):
            self.note, self._deleting = "", -1
            self.frame()

    def leave(self) -> bool:
        """Esc closes the field, then the view of branches side by side."""
        field = self.query_one("#branches-field", Input)
        if field.display:
            field.display = False
            self.focus()
            return True
        if self.edge.racing:
            self.edge.racing = []
            self._keeping = None
            self.frame()
            return True
        return False

    def action_delete(self) -> None:
        """Asked twice, removes the chosen branch."""
        strand, talk = self.strand, self.edge.talk
        if strand is None or self._racing():
            return
        if strand is talk.current or strand.is_running:
            self._say("the current branch stays: go to another one first")
        elif self._deleting != strand.key:
            self._deleting = strand.key
            self._say(f"d again deletes {strand.name}")
        else:
            self._deleting = -1
            self.marked.discard(strand.key)
            self.note = ""
            talk.close_strand(strand)
            self.frame()

    def _say(self, note: str) -> None:
        self.note = note
        self.frame()

    def _is_busy(self) -> bool:
        if self.edge.talk.worker.is_busy:
            self._say("when the answer is over (esc stops it)")
            return True
        return False

    # -- side by side -------------------------------------------------------------------------------------

    def action_mark(self) -> None:
        """Marks the chosen branch, to go on side by side with others."""
        strand = self.strand
        if strand is not None:
            self.marked ^= {strand.key}
            self.frame()

    def action_side_by_side(self) -> None:
        """Lets the marked branches go on together."""
        if self._is_busy():
            return
        found = [each for _, each in self._strands() if each.key in self.marked and each.chat.is_answer_open]
        if not 2 <= len(found) <= _MOST_SIDE_BY_SIDE:
            self._say("mark two to four branches whose answers can go on (space)")
            return
        self.marked.clear()
        race(self.edge, found)

    def action_keep(self, number: int) -> None:
        """Keeps one of the branches that run side by side; the others are removed once they have stopped."""
        racing = self._racing()
        if not 1 <= number <= len(racing):
            return
        strand = racing[number - 1]
        self._keeping, self._goes_on = strand.key, strand.is_running
        self.edge.worker.stop()
        self.frame()

    def _finish_keeping(self, racing: Sequence[Strand]) -> None:
        if self._keeping is None or any(strand.is_running for strand in racing):
            return
        talk, key = self.edge.talk, self._keeping
        self._keeping, self.edge.racing = None, []
        kept = talk.strands.get(key)
        if kept is None:
            return
        talk.show(kept)
        for strand in racing:
            talk.close_strand(strand)
        if self._goes_on and kept.chat.is_answer_open:
            # What runs on is the same answer: it was only stopped to end the others.
            talk.send(None, kept)
        self.edge.run_worker(self.edge.action_page("chat"))
