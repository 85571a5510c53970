"""`EdgeApp`: pages, keys, and the one timer that brings what the engine's side says to the screen."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar

os.environ.setdefault("TEXTUAL_ANIMATIONS", "none")
# A key is echoed with the next tick: at most 25 ms later.
os.environ.setdefault("TEXTUAL_FPS", "40")

from textual.app import App, ComposeResult, SystemCommand
from textual.binding import Binding
from textual.containers import Horizontal, Vertical
from textual.events import Key
from textual.widgets import ContentSwitcher, TextArea

import edgellm
from edgellm_tui import edits, glyphs
from edgellm_tui.accounts import Accounts
from edgellm_tui.adapters import Adapters
from edgellm_tui.answer import ConversationView
from edgellm_tui.applog import AppLog
from edgellm_tui.chats import ChatsPage
from edgellm_tui.clipboard import copied
from edgellm_tui.commands import COMMANDS, obey
from edgellm_tui.context_care import ContextCare
from edgellm_tui.frames import Frames
from edgellm_tui.keeper import Keeper
from edgellm_tui.look import fitting_theme
from edgellm_tui.looks import Looks
from edgellm_tui.model_choice import ModelChoice
from edgellm_tui.outbox import Outbox
from edgellm_tui.pager import Pager
from edgellm_tui.pages import PAGES, PageView
from edgellm_tui.palette import palette
from edgellm_tui.panel import DistributionPanel
from edgellm_tui.prompt import History, Prompt
from edgellm_tui.questions import Questions
from edgellm_tui.settings import Settings, usable_settings
from edgellm_tui.slow_link import Pacer, paced_driver
from edgellm_tui.status import Line, status_line
from edgellm_tui.status_now import status_of
from edgellm_tui.strand import told
from edgellm_tui.talk import Talk
from edgellm_tui.typed_bytes import take_any_bytes
from edgellm_tui.worker import Called, Ended, EngineWorker, Heard, Question

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from textual.events import Event, Resize
    from textual.screen import Screen


_SWITCH_S = 0.0005
_SAVE_AFTER_S = 3.0
_RESTING = ("stop", "page", "copy_answer", "search", "new_chat", "toggle_panel", "command_palette")


class EdgeApp(App[int]):
    """The app. `load`, `index` and `clock` are for tests; `model` "" is the settings' or the catalogue's default."""

    TITLE = "edgellm"
    PAUSE_GC_ON_SCROLL = True
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (110, "-medium"), (170, "-wide")]  # noqa: RUF012
    VERTICAL_BREAKPOINTS = [(0, "-tiny"), (20, "-short"), (36, "-tall")]  # noqa: RUF012
    CSS_PATH = "app.tcss"
    BINDINGS: ClassVar = [
        Binding("ctrl+q", "quit", "quit", priority=True, id="app.quit"),
        Binding("escape", "stop", "stop", priority=True, id="app.stop"),
        Binding("f2", "page('chat')", "chat", priority=True, id="app.chat"),
        Binding("ctrl+y", "copy_answer", "copy", priority=True, id="app.copy"),
        Binding("p", "toggle_panel", "distribution", id="app.panel"),
        Binding("ctrl+f", "search", "search", priority=True, id="app.search"),
        Binding("ctrl+n", "new_chat", "new chat", priority=True, id="app.new"),
        *(
            Binding(info.key, f"page('{name}')", info.title, priority=True, id=f"app.{name}")
            for name, info in PAGES.items()
        ),
    ]

    def __init__(
        self,
        model: str = "",
        *,
        settings: Settings | None = None,
        load: Callable[[str], Any] | None = None,
        index: edgellm.ChatIndex | None = None,
        history: History | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        # Any: a Runtime, or what plays one in tests.
        self.settings = settings or Settings()
        speed = self.settings.slow_link_bps
        self.pacer = Pacer(speed) if speed > 0 else None
        kind = self.get_driver_class()
        take_any_bytes(kind)
        super().__init__(driver_class=paced_driver(kind, self.pacer) if self.pacer is not None else kind)
        self.glyphs = glyphs.fitting(self.settings.glyphs)
        glyphs.draw_scroll_bars(self.glyphs)
        self.set_class(self.glyphs is glyphs.ASCII, "-ascii")
        self.frames = Frames(
            self._run_frame,
            share=lambda: self.settings.redraw_share,
            owed_s=lambda: self.pacer.owed_s if self.pacer is not None else 0.0,
        )
        self.worker = EngineWorker(self.frames.wake, clock)
        self.app_log = AppLog()
        self.pager = Pager(self)
        self.talk = Talk(
            self.worker,
            self.settings,
            changed=self.strand_changed,
            failed=self.report,
            leaving=self._leave_chat,
            load=load,
            index=index,
        )
        self.adapters = Adapters(self.talk)
        self.looks = Looks(self.talk)
        self.accounts = Accounts(self.talk, clock)
        self.care = ContextCare(self)
        # Where the inspector begins; None is the newest token.
        self.inspect_at: int | None = None
        # Keys of the branches that run side by side.
        self.racing: list[int] = []
        self.choice = ModelChoice(self, model or self.settings.model)
        self.outbox = Outbox(self)
        self._questions = Questions(self)
        self._history = history
        self._keeper = Keeper(self.talk.kept, clock)
        # What has to be said as soon as there is a chat to say it in.
        self.news: list[str] = []
        self.set_keymap(self.settings.keys)

    # -- composition --------------------------------------------------------------------------------------

    def compose(self) -> ComposeResult:
        """The page frame with the chat in it; other pages are made when they are first shown."""
        yield Line(id="status")
        with ContentSwitcher(initial="chat", id="pages"), Vertical(id="chat"):
            with Horizontal(id="middle"):
                yield ConversationView(id="conversation", glyphs=self.glyphs, empty="")
                yield DistributionPanel(id="panel")
            with Vertical(id="prompt-line"):
                yield Prompt(list(COMMANDS), history=self._history, keys=self.settings.keys, id="prompt")
            yield Line(id="hint")
        yield Line(id="keys")

    @property
    def conversation(self) -> ConversationView:
        """The view of the current branch."""
        return self.query_one("#conversation", ConversationView)

    @property
    def panel(self) -> DistributionPanel:
        """The window into the decode, beside or under the conversation."""
        return self.query_one("#panel", DistributionPanel)

    def action_toggle_panel(self) -> None:
        """Shows or hides it."""
        self.panel.display = not self.panel.display
        self.settings.show_distribution = bool(self.panel.display)
        # What is shown now has no size before the next layout.
        self.call_after_refresh(self.draw)

    @property
    def prompt(self) -> Prompt:
        """The prompt."""
        return self.query_one("#prompt", Prompt)

    def on_mount(self) -> None:
        """Starts the engine's side; the model is loaded while the user may already type."""
        self.frames.start()
        self.settings_changed()
        self.app_log.attach()
        self.pager.show_keys()
        self.panel.display = self.settings.show_distribution
        self.prompt.focus()
        self.worker.approval_timeout_s = float(self.settings.approval_timeout_s) or None
        self.worker.start()
        self.open_model(self.choice.wanted)
        self._show_status()
        with suppress(NotImplementedError, RuntimeError, ValueError):
            # Otherwise the process would end there and then, with the terminal as the app had set it.
            asyncio.get_running_loop().add_signal_handler(
                signal.SIGTERM, lambda: self.run_worker(self.action_quit())
            )

    def open_model(self, model: str) -> None:
        """Loads a model in the background and begins a chat on it."""
        self.choice.open(model)

    # -- frames -------------------------------------------------------------------------------------------

    @property
    def is_quiet(self) -> bool:
        """All that came is on the screen."""
        return not self.worker.items and not self.frames.is_due

    def _run_frame(self) -> None:
        if not self.is_running or not self._screen_stack:
            return  # a frame that was asked for just before the end
        try:
            self._frame()
        except Exception as error:
            # The loop would only log it: raised again among the app's messages, it ends the app.
            self.call_later(_raise, error)

    def _frame(self) -> None:
        self.frames.begun()
        items = self.worker.items
        while items:
            self._take(items.popleft())
        self.draw()
        if self.worker.is_busy:
            self._keeper.look()
        self._questions.close_answered()

    def _take(self, item: object) -> None:
        if isinstance(item, Heard):
            strand = self.talk.strands.get(item.key)
            if strand is not None:
                strand.hear(item.event, item.at)
        elif isinstance(item, Ended):
            self._turn_over(item)
        elif isinstance(item, Called):
            try:
                item.then()
            except Exception as error:
                self.report(error)
        elif isinstance(item, Question):
            self._questions.ask(item)

    def _turn_over(self, item: Ended) -> None:
        strand = self.talk.strands.get(item.key)
        if strand is None:
            return
        strand.end(item.error)
        if item.error is not None:
            logging.getLogger("edgellm_tui").error("a turn failed", exc_info=item.error)
        self.talk.ended(strand, item.messages)
        self.set_timer(_SAVE_AFTER_S, self._save_if_idle)
        self.care.rest()
        self.outbox.send_next()

    def _save_if_idle(self) -> None:
        if not self.worker.is_busy:
            self.talk.kept.save()

    def draw(self) -> None:
        """Brings what is in front up to date."""
        if not self.is_running or self.frames.is_over:
            return
        page = self.page
        if page is None:
            self.conversation.sync()
            self.panel.frame()
        else:
            self.pager.guarded(page.frame)
        self._show_status()

    def _show_status(self, width: int = 0) -> None:
        status = status_of(self)
        self.query_one("#status", Line).set(status_line(status, width or self.size.width))

    @property
    def used_tokens(self) -> int:
        """Tokens on the tape of the current branch, as far as the screen knows."""
        chat = self.talk.current.chat
        return len(chat.tape) if chat is not None else 0

    # -- what happens -------------------------------------------------------------------------------------

    def strand_changed(self) -> None:
        """Another branch is current."""
        if self.talk.is_ready:
            for text in self.news:
                self.talk.current.note(text, is_error=True)
            self.news.clear()
        self.care.use_policy()
        self.conversation.show(self.talk.current.blocks)
        self.outbox.strand_changed()
        self.draw()
        self.outbox.send_next()

    def _leave_chat(self) -> None:
        """Another chat is about to be opened: what was meant for this one is not sent to that."""
        self.outbox.take_back()
        self.worker.stop()

    def report(self, error: Exception) -> None:
        """Shows an error in the chat; the app goes on."""
        logging.getLogger("edgellm_tui").error("reported", exc_info=error)
        self.talk.current.note(told(error), is_error=True)
        self.conversation.blocks = self.talk.current.blocks
        self.draw()

    def on_prompt_sent(self, message: Prompt.Sent) -> None:
        """The user has sent something: a command, or a message."""
        self.query_one("#hint", Line).set("")
        if message.text.startswith("/"):
            self.command(message.text)
            return
        try:
            self.outbox.say(message.text)
        except edgellm.EdgeError as error:
            self.report(error)

    def on_text_area_changed(self, event: TextArea.Changed) -> None:
        """The user writes, or has taken all of it back."""
        if event.text_area is self.prompt:
            if self.prompt.text:
                self.care.stir()
            else:
                self.care.rest()

    def on_prompt_paused(self, message: Prompt.Paused) -> None:
        """The user thinks about what to write next."""
        text = message.text.lstrip()
        if text and not text.startswith("/") and self.outbox.editing is None:
            self.talk.draft(text)

    def on_conversation_view_acted(self, message: ConversationView.Acted) -> None:
        """The user asks for something about a block."""
        try:
            edits.act(self, message.action, message.block)
        except edgellm.EdgeError as error:
            self.hint(str(error))

    def on_prompt_offered(self, message: Prompt.Offered) -> None:
        """Shows what tab may complete to."""
        self.query_one("#hint", Line).set(" " + "  ".join(message.choices[:12]))

    async def on_event(self, event: Event) -> None:
        """A page hears of each key before it is obeyed: what asks for the same key twice is given up by another."""
        if isinstance(event, Key) and self._screen_stack and (page := self.page) is not None:
            page.pressed(event.key)
        await super().on_event(event)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """The app's own keys rest while a question or the palette is in front of everything, but for quit."""
        is_covered = bool(self._screen_stack) and self.screen.is_modal
        if is_covered and action in _RESTING:
            return False
        return super().check_action(action, parameters)

    # -- keys ---------------------------------------------------------------------------------------------

    def settings_changed(self) -> None:
        """Takes over theme, keys and context policy; what else is set counts from the next chat or start on."""
        theme = self.settings.theme or fitting_theme(self.available_themes)
        if theme in self.available_themes:
            self.theme = theme
        self.set_keymap(self.settings.keys)
        self.prompt.set_keys(self.settings.keys)
        self.pager.show_keys()
        self.care.use_policy()

    def on_resize(self, event: Resize) -> None:
        """The first and the last line say what fits."""
        self._show_status(event.size.width)
        self.pager.show_keys(event.size.width)

    async def action_stop(self) -> None:
        """Stops the answer; with nothing to stop, goes back to the chat and the prompt."""
        self.outbox.take_back()
        self.care.stir()
        if self.worker.stop() or self.outbox.stop_editing():
            return
        page = self.page
        if page is None or not page.leave():
            await self.action_page("chat")

    @property
    def page(self) -> PageView | None:
        """The page in front; None is the chat."""
        return self.pager.front

    async def action_page(self, name: str) -> None:
        """Shows a page, or the chat."""
        await self.pager.show(name)
        self.draw()

    def action_new_chat(self) -> None:
        """Begins a new chat."""
        if self.talk.runtime is not None:
            self.talk.new_chat()

    def action_copy_answer(self) -> None:
        """Copies the newest answer."""
        self.copy(self.talk.current.last_answer)

    def copy(self, text: str) -> None:
        """Copies a text, and says where it went."""
        self.run_worker(copied(self, text, self.hint))

    def hint(self, text: str) -> None:
        """Says something in the line below the prompt."""
        self.query_one("#hint", Line).set(f" {text}" if text else "")

    async def show_chats(self, words: str = "") -> None:
        """Shows the page of chats, and on it those with these words."""
        await self.action_page("chats")
        page = self.page
        if isinstance(page, ChatsPage) and words:
            page.search(words)

    async def action_search(self) -> None:
        """To the search field of the page of chats."""
        await self.show_chats()
        if isinstance(self.page, ChatsPage):
            self.page.action_search()

    async def go_on_with(self, saved: edgellm.IndexedChat) -> None:
        """Opens a saved chat; another model is loaded first where the chat was held with one."""
        self.choice.open_chat(saved)
        await self.action_page("chat")

    def action_edit_last(self) -> None:
        """Changes the last message and sends it again."""
        self._try(edits.edit)

    def action_retry(self) -> None:
        """Draws another answer."""
        self._try(edits.retry)

    def action_resume(self) -> None:
        """Lets a stopped answer go on."""
        self._try(edits.resume)

    def _try(self, action: Callable[[EdgeApp], None]) -> None:
        try:
            action(self)
        except edgellm.EdgeError as error:
            self.hint(str(error))

    def command(self, line: str) -> None:
        """Runs a slash command; what is wrong with it is said in the chat."""
        try:
            obey(self, line)
        except edgellm.EdgeError as error:
            self.report(error)
        self.draw()

    async def action_quit(self) -> None:
        """Stops, saves, and leaves."""
        self.frames.is_over = True
        self.app_log.detach()
        if self._history is not None and self.prompt.text.strip():
            # What was being written waits under the up arrow.
            self._history.add(self.prompt.text.strip())
        self.worker.stop()
        self.talk.close()
        await asyncio.to_thread(self.worker.close)
        self.exit(0)

    def get_system_commands(self, screen: Screen[Any]) -> Iterable[SystemCommand]:
        """Everything the app does, by name."""
        yield from palette(self)
        yield from super().get_system_commands(screen)


def run_app(model: str = "") -> int:
    """Opens the app on the terminal; gives the exit code."""
    # Decoding waits for the screen's thread no longer than this between two tokens; it sleeps most of the time.
    sys.setswitchinterval(_SWITCH_S)
    settings, wrong = usable_settings()
    app = EdgeApp(model, settings=settings, history=History.of_user())
    app.news += map(str, wrong)
    return app.run() or 0


def _raise(error: Exception) -> None:
    raise error


if __name__ == "__main__":
    sys.exit(run_app(*sys.argv[1:2]))
