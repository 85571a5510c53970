"""`EdgeApp`: pages, keys, and the one timer that brings what the engine's side says to the screen."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import os
import sys
import time
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

os.environ.setdefault("TEXTUAL_ANIMATIONS", "none")
os.environ.setdefault("TEXTUAL_FPS", "15")

from textual.app import App, ComposeResult, SystemCommand
from textual.binding import Binding
from textual.containers import Horizontal, Vertical
from textual.widgets import ContentSwitcher

import edgellm
from edgellm_tui import glyphs
from edgellm_tui.answer import ConversationView
from edgellm_tui.applog import AppLog
from edgellm_tui.approval import ApprovalModal
from edgellm_tui.commands import COMMANDS, obey
from edgellm_tui.footer import KeyInfo, foot_line, keys_of
from edgellm_tui.looks import Looks
from edgellm_tui.pages import PAGES, PageView
from edgellm_tui.panel import DistributionPanel
from edgellm_tui.prompt import History, Prompt, with_attachments
from edgellm_tui.settings import Settings, load_settings
from edgellm_tui.status import Line, state_words, status_line
from edgellm_tui.strand import told
from edgellm_tui.talk import Talk
from edgellm_tui.worker import Called, Ended, EngineWorker, Heard, Question

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from textual.screen import Screen
    from textual.widget import Widget

    from edgellm_tui.sessions import Sessions

_SLOWEST_S, _FASTEST_S = 0.5, 0.1
_SAVE_AFTER_S = 3.0


class EdgeApp(App[int]):
    """The app. `load`, `sessions` and `clock` are for tests; `model` "" is the settings' or the catalogue's default."""

    TITLE = "edgellm"
    PAUSE_GC_ON_SCROLL = True
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (110, "-medium"), (170, "-wide")]  # noqa: RUF012
    VERTICAL_BREAKPOINTS = [(0, "-short"), (36, "-tall")]  # noqa: RUF012
    CSS = """
    Screen { layout: vertical; }
    #status { background: $panel; }
    #keys { color: $text-muted; }
    #pages { height: 1fr; }
    #chat { height: 1fr; }
    #middle { height: 1fr; layout: horizontal; }
    .-narrow #middle { layout: vertical; }
    .-medium #panel { width: 50; height: 1fr; }
    .-wide #panel { width: 68; height: 1fr; }
    #prompt-line { border-top: solid $panel; height: auto; }
    """
    BINDINGS: ClassVar = [
        Binding("ctrl+q", "quit", "quit", priority=True, id="app.quit"),
        Binding("escape", "stop", "stop", priority=True, id="app.stop"),
        Binding("f2", "page('chat')", "chat", priority=True, id="app.chat"),
        Binding("ctrl+y", "copy_answer", "copy", priority=True, id="app.copy"),
        Binding("p", "toggle_panel", "distribution", id="app.panel"),
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
        sessions: Sessions | None = None,
        history: History | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        # Any: a Runtime, or what plays one in tests.
        super().__init__()
        self.settings = settings or Settings()
        self.glyphs = glyphs.fitting(self.settings.glyphs)
        self.worker = EngineWorker(self._wake, clock)
        self.app_log = AppLog()
        self.came_from: Widget | None = None
        self.talk = Talk(
            self.worker,
            self.settings,
            changed=self.strand_changed,
            failed=self.report,
            load=load,
            sessions=sessions,
        )
        self.looks = Looks(self.talk)
        # Where the inspector begins; None is the newest token.
        self.inspect_at: int | None = None
        self._wanted_model = model or self.settings.model
        self._history = history
        self._ui_loop: asyncio.AbstractEventLoop | None = None
        self._ui_context = contextvars.copy_context()
        self._frame_due = False
        self._last_frame = 0.0
        self._frame_cost = 0.0
        self._waiting: list[str] = []
        self._questions: list[Question] = []
        self._is_leaving = False
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
        self._draw()

    @property
    def prompt(self) -> Prompt:
        """The prompt."""
        return self.query_one("#prompt", Prompt)

    def on_mount(self) -> None:
        """Starts the engine's side; the model is loaded while the user may already type."""
        self._ui_loop = asyncio.get_running_loop()
        self._ui_context = contextvars.copy_context()
        if self.settings.theme:
            self.theme = self.settings.theme
        elif os.environ.get("TERM") == "linux":
            self.theme = "textual-ansi" if "textual-ansi" in self.available_themes else self.theme
        self.app_log.attach()
        self._show_keys()
        self.panel.display = self.settings.show_distribution
        self.prompt.focus()
        self.worker.approval_timeout_s = float(self.settings.approval_timeout_s) or None
        self.worker.start()
        self.open_model(self._wanted_model)
        self._show_status()

    def open_model(self, model: str) -> None:
        """Loads a model in the background and begins a chat on it."""
        self.talk.open_model(model, self._on_model_ready, self._model_missing)

    def _on_model_ready(self) -> None:
        for failure in self.talk.failures:
            self.talk.current.note(failure)
        self.talk.new_chat()

    def _model_missing(self, error: Exception) -> None:
        self.report(error)

    # -- frames -------------------------------------------------------------------------------------------

    def _wake(self) -> None:
        # Called on the engine's side. One call a frame crosses over, however many items come.
        if not self._frame_due and self._ui_loop is not None and not self._is_leaving:
            self._frame_due = True
            try:
                self._ui_loop.call_soon_threadsafe(self._schedule, context=self._ui_context)
            except RuntimeError:  # the loop has ended
                self._is_leaving = True

    @property
    def frame_interval_s(self) -> float:
        """Seconds between two frames: as many as keep their cost within the share of a core."""
        return min(_SLOWEST_S, max(_FASTEST_S, self._frame_cost / max(0.01, self.settings.redraw_share)))

    @property
    def is_quiet(self) -> bool:
        """All that came is on the screen."""
        return not self.worker.items and not self._frame_due

    def _schedule(self) -> None:
        wait = self._last_frame + self.frame_interval_s - time.perf_counter()
        if wait <= 0:
            self._run_frame()
        else:
            self.set_timer(wait, self._run_frame)

    def _run_frame(self) -> None:
        started = time.thread_time()
        self._frame_due = False
        self._last_frame = time.perf_counter()
        items = self.worker.items
        while items:
            self._take(items.popleft())
        self._draw()
        if isinstance(self.screen, ApprovalModal) and not self.screen.question.is_open:
            self.screen.close()
        self.call_after_refresh(self._frame_over, started)

    def _frame_over(self, started: float) -> None:
        # CPU of this thread: what a frame costs does not grow because the decode has the cores.
        self._frame_cost = 0.7 * self._frame_cost + 0.3 * max(0.0, time.thread_time() - started)

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
            self.ask(item)

    def _turn_over(self, item: Ended) -> None:
        strand = self.talk.strands.get(item.key)
        if strand is None:
            return
        strand.end(item.error)
        if item.error is not None:
            logging.getLogger("edgellm_tui").error("a turn failed", exc_info=item.error)
        self.talk.ended(strand, self._draw)
        self.set_timer(_SAVE_AFTER_S, self._save_if_idle)
        if self._waiting and not self.worker.is_busy:
            self.talk.send(self._waiting.pop(0))

    def _save_if_idle(self) -> None:
        if not self.worker.is_busy:
            self.talk.save()

    def _draw(self) -> None:
        if not self.is_running or self._is_leaving:
            return
        page = self.page
        if page is None:
            self.conversation.sync()
            self.panel.frame()
        else:
            page.frame()
        self._show_status()

    def _show_status(self) -> None:
        talk, strand = self.talk, self.talk.current
        runtime = talk.runtime
        used = self.used_tokens
        state = state_words(strand, self.worker.clock() - strand.prefill_started)
        if runtime is None:
            state = f"LOADING {100 * talk.load_fraction:.0f} %" if not talk.is_ready else state
        name = runtime.name if runtime is not None else talk.model or self._wanted_model
        page = self.page
        title = PAGES[page.id].title.upper() if page is not None and page.id in PAGES else ""
        n_ctx = runtime.n_ctx if runtime else 0
        line = status_line(name, state, used, n_ctx, strand.tok_s, self.size.width, title)
        self.query_one("#status", Line).set(line)

    @property
    def used_tokens(self) -> int:
        """Tokens on the tape of the current branch, as far as the screen knows."""
        chat = self.talk.current.chat
        return len(chat.tape) if chat is not None else 0

    # -- what happens -------------------------------------------------------------------------------------

    def strand_changed(self) -> None:
        """Another branch is current."""
        self.conversation.show(self.talk.current.blocks)
        self._draw()
        if self._waiting and self.talk.is_ready and not self.worker.is_busy:
            self.talk.send(self._waiting.pop(0))

    def report(self, error: Exception) -> None:
        """Shows an error in the chat; the app goes on."""
        logging.getLogger("edgellm_tui").error("reported", exc_info=error)
        self.talk.current.note(told(error), is_error=True)
        self.conversation.blocks = self.talk.current.blocks
        self._draw()

    def ask(self, question: Question) -> None:
        """Asks the user about a call; where a question stands already, this one comes after it."""
        self._questions.append(question)
        self._ask_next()

    def _ask_next(self, _over: object = None) -> None:
        if self._is_leaving or isinstance(self.screen, ApprovalModal):
            return
        while self._questions:
            question = self._questions.pop(0)
            if question.is_open:
                steps = self.talk.steps_of(question.call)
                tool = self.talk.tool_of(question.spec.name)
                modal = ApprovalModal(
                    question,
                    clock=self.worker.clock,
                    stop=self.worker.stop,
                    steps=steps,
                    origin=tool.origin if tool is not None else "",
                    check=tool.check if tool is not None else None,
                )
                self.push_screen(modal, self._ask_next)
                return

    def on_prompt_sent(self, message: Prompt.Sent) -> None:
        """The user has sent something: a command, or a message."""
        self.query_one("#hint", Line).set("")
        if message.text.startswith("/"):
            try:
                obey(self, message.text)
            except edgellm.EdgeError as error:
                self.report(error)
            self._draw()
            return
        self.say(message.text)

    def say(self, text: str) -> None:
        """Sends a message, with its @files; waits with it while there is no model or a turn is open."""
        try:
            whole = with_attachments(text)
        except edgellm.EdgeError as error:
            self.report(error)
            return
        if not self.talk.is_ready or self.worker.is_busy:
            self._waiting.append(whole)
            self.query_one("#hint", Line).set(f" {len(self._waiting)} waiting to be sent")
            return
        self.talk.send(whole)
        self._draw()
        self.conversation.scroll_end(animate=False)

    def on_prompt_offered(self, message: Prompt.Offered) -> None:
        """Shows what tab may complete to."""
        self.query_one("#hint", Line).set(" " + "  ".join(message.choices[:12]))

    # -- keys ---------------------------------------------------------------------------------------------

    def _show_keys(self) -> None:
        page = self.page
        everywhere = [KeyInfo("app.palette", self.COMMAND_PALETTE_BINDING, "palette"), *keys_of(EdgeApp)]
        line = (
            page.foot
            if page is not None and page.foot
            else foot_line(page, everywhere, self.settings.keys, self.size.width)
        )
        self.query_one("#keys", Line).set(line)

    def on_resize(self) -> None:
        """As many keys as fit are listed."""
        self._show_keys()

    async def action_stop(self) -> None:
        """Stops the answer; with nothing to stop, goes back to the chat and the prompt."""
        self._waiting.clear()
        if self.worker.stop():
            return
        page = self.page
        if page is None or not page.leave():
            await self.action_page("chat")

    @property
    def page(self) -> PageView | None:
        """The page in front; None is the chat."""
        shown = self.query_one("#pages", ContentSwitcher).visible_content
        return shown if isinstance(shown, PageView) else None

    async def action_page(self, name: str) -> None:
        """Shows a page."""
        switcher = self.query_one("#pages", ContentSwitcher)
        if name != "chat" and not switcher.query(f"#{name}"):
            await switcher.mount(PAGES[name].make(name))
        self.came_from = self.focused
        switcher.current = name
        page = self.page
        self._show_keys()
        if page is None:
            self.prompt.focus()
        else:
            page.show()
        self._draw()

    def action_new_chat(self) -> None:
        """Begins a new chat."""
        if self.talk.runtime is not None:
            self.worker.stop()
            self.talk.new_chat()

    def action_copy_answer(self) -> None:
        """Copies the newest answer."""
        self.copy(self.talk.current.last_answer)

    def copy(self, text: str) -> None:
        """Puts a text on the terminal's clipboard (OSC 52)."""
        if text:
            self.copy_to_clipboard(text)
            self.query_one("#hint", Line).set(f" copied {len(text)} characters")

    async def action_quit(self) -> None:
        """Stops, saves, and leaves."""
        self._is_leaving = True
        self.app_log.detach()
        self.worker.stop()
        self.talk.close()
        await asyncio.to_thread(self.worker.close)
        self.exit(0)

    def get_system_commands(self, screen: Screen[Any]) -> Iterable[SystemCommand]:
        """Everything the app does, by name."""
        yield SystemCommand("Chat: new", "Begin a new chat", self.action_new_chat)
        for name, info in PAGES.items():
            yield SystemCommand(
                f"Page: {info.title}", f"Show it ({info.key})", partial(self.action_page, name)
            )
        yield SystemCommand("App: quit", "Stop, save and leave", self.action_quit)
        yield from super().get_system_commands(screen)


def run_app(model: str = "") -> int:
    """Opens the app on the terminal; gives the exit code."""
    problem: edgellm.EdgeError | None = None
    try:
        settings = load_settings()
    except edgellm.EdgeError as error:
        settings, problem = Settings(), error
    app = EdgeApp(model, settings=settings, history=History.of_user())
    if problem is not None:
        app.talk.current.note(str(problem), is_error=True)
    return app.run() or 0


if __name__ == "__main__":
    sys.exit(run_app(*sys.argv[1:2]))
