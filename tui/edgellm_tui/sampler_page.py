"""The sampler page: the chain as a list of stages to change, and what each change would do to a token, at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from textual.app import ComposeResult
from textual.binding import Binding

import edgellm
from edgellm import ChainSpec
from edgellm_tui.chain_draft import ChainDraft
from edgellm_tui.chain_preview import Preview
from edgellm_tui.chain_race import Race
from edgellm_tui.chain_rows import ChainRows
from edgellm_tui.list_page import ListPage
from edgellm_tui.plain import one_line, visible
from edgellm_tui.rows import Rows
from edgellm_tui.settings import save_settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgellm import StageInfo


class SamplerPage(ListPage):
    """The chain of the current chat as a draft; nothing changes before it is applied."""

    BINDINGS: ClassVar = [
        Binding("u", "apply", "use it", id="sampler.apply"),
        Binding("a", "add", "add", id="sampler.add"),
        Binding("d,delete", "remove", "remove", id="sampler.remove"),
        Binding("left,minus", "nudge(-1)", "less", show=False, id="sampler.less"),
        Binding("right,plus", "nudge(1)", "more", show=False, id="sampler.more"),
        Binding("shift+left", "nudge(-10)", "much less", show=False, id="sampler.much_less"),
        Binding("shift+right", "nudge(10)", "much more", show=False, id="sampler.much_more"),
        Binding("K,shift+up", "move(-1)", "move up", show=False, id="sampler.up"),
        Binding("J,shift+down", "move(1)", "move down", show=False, id="sampler.down"),
        Binding("space", "switch", "on/off", id="sampler.toggle"),
        Binding("x", "race", "A/B", id="sampler.race"),
        Binding("l", "presets", "load", id="sampler.load"),
        Binding("s", "save", "save", id="sampler.save"),
        Binding("z", "undo", "undo", show=False, id="sampler.undo"),
        Binding("e", "type_chain", "type the chain", show=False, id="sampler.type"),
        Binding(
            "left_square_bracket", "token(-1)", "preview the token before", show=False, id="sampler.before"
        ),
        Binding("right_square_bracket", "token(1)", "preview the next token", show=False, id="sampler.after"),
        Binding("1", "keep(0)", "keep A", show=False, id="sampler.keep_a"),
        Binding("2", "keep(1)", "keep B", show=False, id="sampler.keep_b"),
    ]
    DEFAULT_CSS = """
    SamplerPage .left { height: 1fr; }
    SamplerPage .right { height: 1fr; }
    SamplerPage.-racing .body { display: none; }
    """

    def __init__(self, id: str) -> None:
        super().__init__(id=id)
        self.draft: ChainDraft | None = None
        self._chat: Any = None  # Any: the Chat whose chain the draft began with, or what plays one in tests
        self._applied = ""
        self._cursor = ChainRows()
        self._choices: list[tuple[str, Callable[[], None]]] = []
        self.preview = Preview()

    def compose(self) -> ComposeResult:
        """The list with its preview; in their place, two answers while they race."""
        yield from super().compose()
        yield Race(self.edge.glyphs)

    @property
    def race(self) -> Race:
        """The two answers."""
        return self.query_one(Race)

    # -- the list -------------------------------------------------------------------------------------------

    def show(self) -> None:
        """Takes up the chat's chain, unless a draft of it is there."""
        chat = self.edge.talk.current.chat
        if chat is not None and (chat is not self._chat or self.draft is None):
            self._chat = chat
            self.draft = ChainDraft(chat.chain.spec)
            self._applied = self.draft.text
            self._cursor.go(0)
            self.preview.position = None
            self.preview.forget()
        self._choices.clear()
        self.refill()
        self.rows.focus()

    def refill(self) -> None:
        """Writes list and preview anew."""
        if self.draft is None:
            self.head("sampler chain", "preview")
            self.rows.set(["no chat is open yet"])
            return
        if self._choices:
            self.head("choose with enter, esc goes back")
            self.rows.set([text for text, _ in self._choices])
            return
        self._ask_preview()
        is_changed = self.draft.text != self._applied
        width = self.rows.size.width or self.edge.size.width
        self.head(
            f"sampler chain{': a draft, u uses it' if is_changed else ', in use'}", self._preview_title()
        )
        lines = self._cursor.lines(self.draft, width)
        self.rows.set(lines, self._cursor.index)
        self._show_preview()

    def _go(self, at: int, name: str = "") -> None:
        self._cursor.go(at, name)
        self.refill()

    def on_rows_moved(self) -> None:
        """The stage under the cursor shows its arguments."""
        if self._choices or self.draft is None:
            return
        if self._cursor.go_to_line(self.rows.chosen):
            self.refill()

    def on_rows_picked(self, message: Rows.Picked) -> None:
        """Enter types a value, or takes a choice."""
        message.stop()
        if self._choices:
            _, take = self._choices[self.rows.chosen]
            self._choices = []
            self._tried(take)
            return
        if self.draft is None:
            return
        at, name = self._cursor.at, self._cursor.name
        spec = self.draft.slots[at].spec
        if not name:
            if spec.info.params:
                self._go(at, spec.info.params[0].name)
            return
        param = spec.info.param(name)
        label = f"{name}, {param.expected()}" if param is not None else name
        value = str(spec.complete_args[name])
        self.field.ask(label, value, lambda text: self._typed(at, name, text))

    def _typed(self, at: int, name: str, text: str) -> str | None:
        draft = self.draft
        problem = self.tried(lambda: draft.type(at, name, text)) if draft is not None else None
        if problem is None:
            self.refill()
        return problem

    def _tried(self, action: Callable[[], None]) -> None:
        self.say(self.tried(action) or "")
        self.refill()

    def leave(self) -> bool:
        """Esc leaves the field, the choices, the race; then the page."""
        if self.field.put_away():
            return True
        if self._choices:
            self._choices = []
            self.refill()
            return True
        if self.race.is_on:
            self._end_race()
            return True
        return False

    # -- changes ----------------------------------------------------------------------------------------------

    def _change(self, action: Callable[[ChainDraft], None]) -> None:
        draft = self.draft
        if draft is not None and not self._choices and not self.race.is_on:
            self._tried(lambda: action(draft))

    def action_nudge(self, by: int) -> None:
        """Moves the number under the cursor."""
        at, name = self._cursor.at, self._cursor.name
        if name:
            self._change(lambda draft: draft.nudge(at, name, by))

    def action_move(self, by: int) -> None:
        """Moves the stage."""

        def move(draft: ChainDraft) -> None:
            self._cursor.go(draft.move(self._cursor.at, by))

        self._change(move)

    def action_switch(self) -> None:
        """Leaves the stage out, or takes it in again."""
        self._change(lambda draft: draft.toggle(self._cursor.at))

    def action_remove(self) -> None:
        """Takes the stage out."""

        def remove(draft: ChainDraft) -> None:
            draft.remove(self._cursor.at)
            self._cursor.go(self._cursor.at)

        self._change(remove)

    def action_undo(self) -> None:
        """Takes the last change back."""

        def undo(draft: ChainDraft) -> None:
            if not draft.undo():
                raise edgellm.ConfigError("there is nothing to undo.")
            self._cursor.go(min(self._cursor.at, len(draft.slots) - 1))

        self._change(undo)

    def action_add(self) -> None:
        """Offers all stages, those of plugins too."""
        if self.draft is None or self.race.is_on:
            return
        stages = edgellm.sampler_stages()
        self._choices = [
            (one_line(f"{info.name:<20} {info.doc} ({info.source})", 160), self._adder(info))
            for info in stages
        ]
        self.rows.chosen = 0
        self.refill()

    def _adder(self, info: StageInfo) -> Callable[[], None]:
        def add() -> None:
            if self.draft is not None:
                self._cursor.go(self.draft.add(info, self._cursor.at + 1))

        return add

    def action_type_chain(self) -> None:
        """The whole chain as one line."""
        draft = self.draft
        if draft is None:
            return

        def typed(text: str) -> str | None:
            problem = self.tried(lambda: draft.load(ChainSpec.parse(text)))
            if problem is None:
                self._go(0)
            return problem and one_line(problem, 60)

        self.field.ask("chain", draft.text, typed)

    def action_apply(self) -> None:
        """The chat draws from the draft from here on."""
        draft, chat, app = self.draft, self._chat, self.edge
        if draft is None or self._choices:
            return
        if app.worker.is_busy:
            self.say("An answer is being written: stop it first (esc).")
            return
        spec = draft.spec

        def done(_: object) -> None:
            self._applied = str(spec)
            self.preview.forget()
            self.say("The chat draws from this chain now.")
            self.refill()

        app.worker.submit(lambda: chat.set_sampler(spec), done, self._failed)

    def _failed(self, error: Exception) -> None:
        self.say(one_line(str(error)))

    # -- presets ----------------------------------------------------------------------------------------------

    def action_presets(self) -> None:
        """Offers the presets and the chains that are there."""
        if self.draft is None or self.race.is_on:
            return
        settings = self.edge.settings
        found = {"the chain in use": self._applied, **settings.presets}
        self._choices = [
            (one_line(f"{name:<18} {chain}", 160), self._loader(chain)) for name, chain in found.items()
        ]
        self.rows.chosen = 0
        self.refill()

    def _loader(self, chain: str) -> Callable[[], None]:
        def load() -> None:
            if self.draft is not None:
                self.draft.load(ChainSpec.parse(chain))
                self._cursor.go(0)

        return load

    def action_save(self) -> None:
        """Keeps the draft under a name; new chats can use it (settings, sampler)."""
        draft, app = self.draft, self.edge
        if draft is None:
            return

        def named(name: str) -> str | None:
            name = name.strip()
            if not name:
                return "A preset needs a name."
            presets = {**app.settings.presets, name: draft.text}

            def keep() -> None:
                app.settings.presets = presets
                save_settings(app.settings)

            problem = self.tried(keep)
            if problem is None:
                self.say(
                    f"Saved as {visible(name)}. New chats take it where the settings' sampler says {visible(name)}."
                )
            return problem

        self.field.ask("name of the preset", "", named)

    # -- preview ----------------------------------------------------------------------------------------------

    def _target(self) -> int | None:
        return self.preview.target(self.edge.talk.current, self.edge.used_tokens)

    def _preview_title(self) -> str:
        position = self._target()
        if position is None:
            return "preview: nothing is on the tape yet"
        return f"preview: token {position} ([ ] another one)"

    def _ask_preview(self) -> None:
        position = self._target()
        if position is None or self.draft is None:
            return
        wanted = (self.draft.text, position)
        self.preview.ask(self.edge.worker, self._chat, self._applied, wanted, self._preview_over)

    def _preview_over(self) -> None:
        # The draft may have changed meanwhile.
        if self.draft is not None and (self.draft.text, self._target()) != self.preview.shown_for:
            self._ask_preview()
        self._show_preview()

    def _show_preview(self) -> None:
        def piece(token: int) -> bytes:
            return self.edge.talk.piece_bytes(token)

        width, height = max(60, self.pane.size.width - 2), max(8, self.pane.size.height)
        is_busy = self.edge.worker.is_busy
        self.pane.set(self.preview.text(piece, self.edge.glyphs, width, height, is_busy=is_busy))

    def action_token(self, by: int) -> None:
        """Previews another token."""
        if self.preview.move(self.edge.talk.current, self.edge.used_tokens, by):
            self.refill()

    # -- A/B --------------------------------------------------------------------------------------------------

    def action_race(self) -> None:
        """The last answer twice from its beginning: with the chain in use and with the draft, in shared batches."""
        app, chat, draft = self.edge, self._chat, self.draft
        if draft is None or self._choices or self.race.is_on or app.worker.is_busy:
            return
        users = [index for index, message in enumerate(chat.messages) if message.role == "user"]
        if not users:
            self.say("Say something first: the two chains answer your last message.")
            return
        keep, specs = users[-1] + 1, (ChainSpec.parse(self._applied), draft.spec)

        self.race.start(app.talk, keep, specs, self._race_begun, self._failed)

    def _race_begun(self) -> None:
        self.add_class("-racing")
        # The list is hidden now: without a focus of its own the page would not hear its keys.
        self.can_focus = True
        self.focus()
        self.say("1 keeps A, 2 keeps B, esc keeps neither")
        self.frame()

    def action_keep(self, which: int) -> None:
        """Goes on with one of the two."""
        if len(self.race.strands) == 2 and not self.edge.worker.is_busy:
            self.race.keep(self.edge.talk, which)
            self._end_race()
            self.draft = None
            self.run_worker(self.edge.action_page("chat"))

    def _end_race(self) -> None:
        self.race.end(self.edge.talk)
        self.remove_class("-racing")
        self.can_focus = False
        self.say("")
        self.refill()
        self.rows.focus()

    def frame(self) -> None:
        """Answers that race grow; a preview that had to wait is made."""
        if self.race.is_on:
            self.race.frame()
        elif self.draft is not None and not self.edge.worker.is_busy and not self.preview.is_asking:
            target = self._target()
            if target is not None and self.preview.shown_for != (self.draft.text, target):
                self.refill()
