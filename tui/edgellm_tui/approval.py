"""The question whether a call may run: a modal that nothing but the user's own key answers with yes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, ClassVar, cast

from rich.cells import cell_len
from textual.binding import Binding
from textual.containers import Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Input, Static, TextArea

import edgellm
from edgellm_tui.area import Area
from edgellm_tui.doubt import marked_lines
from edgellm_tui.plain import one_line, visible
from edgellm_tui.token_text import MARKS_LEGEND, mark, probability

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from textual.app import ComposeResult
    from textual.events import Key

    from edgellm import Step
    from edgellm_tui.worker import Question

_MOST_JSON_ERROR = 200
# A yes counts only after this long without any key: who types into the prompt when the question appears says nothing.
_CALM_S = 0.6
_QUIET_KEYS = ("up", "down", "pageup", "pagedown", "enter")
# Below so many lines of screen the answers stand beside each other, in one word each.
_TIGHT_LINES = 20
_MOST_LINES_TOLD = 12
_WORD = {
    "reject": "reject",
    "reason": "reason",
    "once": "once",
    "session": "session",
    "always": "always",
    "edit": "edit",
    "raw": "tokens",
}
Line = tuple[str, str, str]
"""Action, key and words of one answer."""


class ApprovalModal(ModalScreen[None]):
    """Asks about one call. However it is closed without a yes, and when the time is over, the answer is no.

    `steps` are the tokens the call was written in; `check` raises EdgeError for arguments that do not fit; `origin`
    says where the tool comes from; `stop` stops the whole answer.
    """

    DEFAULT_CSS = """
    ApprovalModal { align: center bottom; background: $background 40%; }
    ApprovalModal #ask { width: 100%; max-width: 110; height: auto; max-height: 90%; border: heavy $warning;
        padding: 0 1; background: $surface; }
    ApprovalModal #told { height: auto; }
    ApprovalModal Static { height: auto; }
    ApprovalModal TextArea { height: 8; border: solid $primary; }
    ApprovalModal #why { border: solid $primary; height: 3; }
    ApprovalModal.-tight #ask { max-height: 100%; }
    ApprovalModal.-tight TextArea { height: 4; }
    """
    BINDINGS: ClassVar = [
        Binding("a", "once", show=False, id="approval.once"),
        Binding("A", "session", show=False, id="approval.session"),
        Binding("t", "always", show=False, id="approval.always"),
        Binding("e", "edit", show=False, id="approval.edit"),
        Binding("r", "reject", show=False, id="approval.reject"),
        Binding("R", "reason", show=False, id="approval.reason"),
        Binding("v", "raw", show=False, id="approval.raw"),
        Binding("up,shift+tab", "move(-1)", show=False, id="approval.up"),
        Binding("down,tab", "move(1)", show=False, id="approval.down"),
        Binding("enter", "chosen", show=False, id="approval.enter"),
        Binding("pageup", "scroll(-1)", show=False, id="approval.pageup"),
        Binding("pagedown", "scroll(1)", show=False, id="approval.pagedown"),
        Binding("ctrl+s", "apply", show=False, priority=True, id="approval.apply"),
        Binding("escape", "leave", show=False, priority=True, id="approval.stop"),
        Binding("ctrl+q", "quit", show=False, priority=True, id="approval.quit"),
    ]

    def __init__(
        self,
        question: Question,
        *,
        clock: Callable[[], float],
        stop: Callable[[], Any],
        steps: Sequence[Step] = (),
        origin: str = "",
        check: Callable[[dict[str, Any]], Any] | None = None,
    ) -> None:
        super().__init__()
        self.question = question
        self._clock = clock
        self._stop = stop
        self._steps = list(steps)
        self._origin = origin
        self._check = check
        self._since = self._last_key = clock()
        self._call = question.call
        self._is_raw = self._is_calm = False
        self._at = 0
        self._error = "" if not question.reason.startswith("The edited") else question.reason
        self._lines = self._answers()
        # What is being written: "" nothing, "edit" the arguments, "reason" a reason for the no.
        self._writes = ""

    def _answers(self) -> list[Line]:
        lines: list[Line] = [("reject", "r", "reject"), ("reason", "R", "reject, and tell the model why")]
        lines.append(("once", "a", "allow once"))
        if self.question.spec.is_grantable:
            lines.append(("session", "A", "allow this tool for this session"))
            lines.append(("always", "t", "allow this tool of this file for always"))
        lines.append(("edit", "e", "edit the arguments"))
        lines.append(("raw", "v", "show the tokens as they were written"))
        return lines

    def compose(self) -> ComposeResult:
        with Vertical(id="ask"):
            yield Static(id="head", markup=False)
            with VerticalScroll(id="told", can_focus=False):
                yield Static(id="arguments", markup=False)
            yield Static(id="error", markup=False)
            yield Static(id="answers", markup=False)

    def on_mount(self) -> None:
        self.set_interval(1.0, self._tick)
        self._draw()

    def on_unmount(self) -> None:
        # However the modal went away: no answer is a no.
        self.question.answer(edgellm.Approval("deny", reason="The question was closed."))

    def on_resize(self) -> None:
        """Lays all of it out for the new size."""
        is_tight = self.size.height < _TIGHT_LINES
        self.set_class(is_tight, "-tight")
        title = "PAUSED: may this tool run?" if is_tight else "PAUSED: the model asks to run a tool"
        self.query_one("#ask").border_title = title
        self._draw()

    # -- drawing ------------------------------------------------------------------------------------------

    def _draw(self) -> None:
        spec = self.question.spec
        origin = f"   from {self._origin}" if self._origin else ""
        first = f"tool  {visible(spec.name)}{origin}"
        if self.has_class("-tight"):
            first = one_line(first, self.size.width - 4)
        head = f"{first}\n{visible(self.question.reason)}"
        self.query_one("#head", Static).update(head)
        self.query_one("#arguments", Static).update(self._told())
        error = self.query_one("#error", Static)
        error.update(f"! {visible(self._error)}" if self._error else "")
        error.display = bool(self._error)
        self._tick()

    def _told(self) -> str:
        width = max(20, min(self.size.width, 110) - 8)
        if self._is_raw:
            if not self._steps:
                return "The tokens of this call were not kept.\n" + visible(self._call.raw)
            return _with_marks(marked_lines(self._steps, width)) + f"\n{MARKS_LEGEND}"
        lines = [f"{visible(key)}\n{_indented(value)}" for key, value in self._call.arguments.items()]
        doubtful = [step for step in self._steps if mark(probability(step)) in ("=", "*")]
        if doubtful and self._call == self.question.call:
            lines.append("unsure tokens (= p<.50, * p<.10):")
            lines += [
                f"  {mark(p)} {visible(step.piece.decode('utf-8', 'backslashreplace'))!r}  p {p:.2f}"
                for step in doubtful
                if (p := probability(step)) is not None
            ]
        return "\n".join(lines) or "(no arguments)"

    def _tick(self) -> None:
        if not self.question.is_open:
            self.close()
            return
        if not self.is_attached:
            return
        if self._writes == "edit":
            foot = "ctrl+s takes the arguments   esc leaves them as they were"
        elif self._writes == "reason":
            foot = "enter sends the no with this reason   esc goes back"
        elif self.has_class("-tight"):
            words = [
                f"{'>' if index == self._at else ' '}[{key}] {_WORD[action]} "
                for index, (action, key, _) in enumerate(self._lines)
            ]
            foot = _side_by_side([*words, " [esc] stop"], self.size.width - 4)
        else:
            foot = "\n".join(
                f"{'>' if index == self._at else ' '} [{key}] {words}"
                for index, (_, key, words) in enumerate(self._lines)
            )
            foot += "\n  [esc] stop the answer, keep the text so far"
        left = self.left_s
        if left is not None:
            foot += f"\nrejected by itself in {left // 60}:{left % 60:02d}"
        self.query_one("#answers", Static).update(foot)
        self._fit()

    def _fit(self) -> None:
        """The arguments have the lines that are left, and scroll: what can be answered is always on the screen."""
        told = self.query_one("#told", VerticalScroll)
        ask = self.query_one("#ask")
        inside = ask.content_size.width or max(20, min(self.size.width, 110) - 4)
        most = self.size.height if self.has_class("-tight") else self.size.height * 9 // 10
        others = ask.gutter.height + sum(
            child.outer_size.height
            if isinstance(child, TextArea | Input)
            else child.get_content_height(self.size, self.size, inside)
            for child in ask.children
            if child is not told and child.display
        )
        told.styles.max_height = max(1, min(_MOST_LINES_TOLD, most - others))
        told.display = others < most

    @property
    def left_s(self) -> int | None:
        """Seconds until the answer is no by itself; None: it waits."""
        limit = self.question.timeout_s
        return None if limit is None else max(0, round(limit - (self._clock() - self._since)))

    # -- answers ------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Goes away; without an answer so far it is a no."""
        if self.is_attached and self.app.screen is self:
            self.dismiss(None)

    def _answer(self, decision: str) -> None:
        if self._writes:
            return
        if decision in ("session", "always") and not self.question.spec.is_grantable:
            return
        if not self._is_calm:
            return
        edited = self._call if self._call != self.question.call else None
        # The names of the decisions are Approval's own.
        self.question.answer(edgellm.Approval(cast("Any", decision), edited))
        self.close()

    def action_once(self) -> None:
        """Lets this call run."""
        self._answer("once")

    def action_session(self) -> None:
        """Lets calls of this tool run in this chat."""
        self._answer("session")

    def action_always(self) -> None:
        """Lets calls of this tool run from now on."""
        self._answer("always")

    def action_reject(self) -> None:
        """Says no."""
        self.question.answer(edgellm.Approval("deny"))
        self.close()

    def action_raw(self) -> None:
        """Shows the tokens of the call, or the arguments again."""
        self._is_raw = not self._is_raw
        self._draw()

    def action_move(self, by: int) -> None:
        """Chooses another line."""
        if not self._writes:
            self._at = (self._at + by) % len(self._lines)
            self._tick()

    def action_chosen(self) -> None:
        """Does what the chosen line says."""
        if not self._writes:
            getattr(self, f"action_{self._lines[self._at][0]}")()

    def action_scroll(self, by: int) -> None:
        """Scrolls long arguments."""
        told = self.query_one("#told", VerticalScroll)
        told.scroll_relative(y=by * max(1, told.size.height - 1), animate=False)

    async def action_edit(self) -> None:
        """Opens the arguments as JSON."""
        if self._writes:
            return
        self._writes = "edit"
        text = json.dumps(self._call.arguments, ensure_ascii=False, indent=1)
        area = Area(text, id="edit", show_line_numbers=False)
        area.cursor_blink = False
        await self.query_one("#ask").mount(area, before="#error")
        area.focus()
        self._tick()

    async def action_apply(self) -> None:
        """Takes the edited arguments, if they are JSON and fit the tool's schema."""
        if self._writes != "edit":
            return
        text = self.query_one("#edit", TextArea).text
        try:
            arguments: Any = json.loads(text)
            if not isinstance(arguments, dict):
                raise edgellm.ConfigError("The arguments are no JSON object.", hint="Begin with {.")
            if self._check is not None:
                self._check(cast("dict[str, Any]", arguments))
        except json.JSONDecodeError as error:
            self._error = f"Line {error.lineno}, column {error.colno}: {error.msg}."
        except RecursionError:
            self._error = "The arguments are nested too deeply."
        except edgellm.EdgeError as error:
            self._error = str(error)[:_MOST_JSON_ERROR]
        else:
            self._call = edgellm.ToolCall(self._call.id, self._call.name, arguments, self._call.raw)
            self._error = ""
            await self._written()
        self._draw()

    async def action_reason(self) -> None:
        """Asks for a reason that the model is told."""
        if self._writes:
            return
        self._writes = "reason"
        field = Input(placeholder="why not?", id="why")
        field.cursor_blink = False
        await self.query_one("#ask").mount(field, before="#error")
        field.focus()
        self._tick()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """The reason is written."""
        self.question.answer(edgellm.Approval("deny", reason=event.value.strip()))
        self.close()

    async def _written(self) -> None:
        self._writes = ""
        await self.query("#edit, #why").remove()
        self.set_focus(None)

    async def action_leave(self) -> None:
        """Leaves the field, else stops the answer."""
        if self._writes:
            self._error = ""
            await self._written()
            self._draw()
            return
        self._stop()
        self.question.answer(edgellm.Approval("deny", reason="The user stopped the answer."))
        self.close()

    async def action_quit(self) -> None:
        """Leaves the app; the call does not run."""
        self.question.answer(edgellm.Approval("deny", reason="The user left."))
        self.close()
        await self.app.action_quit()

    def on_key(self, event: Key) -> None:
        """Notes that somebody types. Keys without a meaning here, y and n among them, do nothing else."""
        now = self._clock()
        self._is_calm = now - self._last_key >= _CALM_S
        if event.key not in _QUIET_KEYS:
            self._last_key = now


def _side_by_side(words: Sequence[str], width: int) -> str:
    """As many of them in a line as fit."""
    lines = [""]
    for word in words:
        if lines[-1] and cell_len(lines[-1] + word.rstrip()) > width:
            lines.append("")
        lines[-1] += word
    return "\n".join(lines)


def _indented(value: Any) -> str:
    # Any: what JSON holds. Text stands as it is, all of it; anything else as JSON.
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=1)
    return "\n".join(f"  | {line}" for line in visible(text).split("\n"))


def _with_marks(lines: Sequence[tuple[str, str]]) -> str:
    return "\n".join(f"{text}\n{marks}".rstrip() for text, marks in lines)
