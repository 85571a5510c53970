"""What the app talks about: the loaded model, the branches of the open chat, and where the chat is kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import edgellm
from edgellm_tui.sessions import Sessions
from edgellm_tui.strand import Origin, Strand

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from edgellm import Runtime, Step, Tool, ToolCall
    from edgellm_tui.sessions import SavedChat
    from edgellm_tui.settings import Settings
    from edgellm_tui.worker import EngineWorker

Load = "Callable[[str], Runtime]"


class Talk:
    """Everything that needs the engine goes through here to the worker; results come back on the screen's side.

    `changed` is called (on the screen's side) when another strand is current or the list of them differs; `failed`
    gets errors. `load` makes a runtime from a model's name: tests give one that plays events.
    """

    def __init__(
        self,
        worker: EngineWorker,
        settings: Settings,
        *,
        changed: Callable[[], None],
        failed: Callable[[Exception], None],
        load: Callable[[str], Any] | None = None,
        sessions: Sessions | None = None,
    ) -> None:
        # Any: a Runtime, or what plays one in tests.
        self.worker = worker
        self.settings = settings
        self.sessions = sessions or Sessions()
        self.runtime: Any = None
        self.tools: tuple[Tool[..., Any], ...] = ()
        self.failures: tuple[str, ...] = ()
        self.strands: dict[int, Strand] = {}
        self.current = Strand(0, None)
        self.session_id = self.sessions.new_id()
        self.model = ""
        self.load_fraction = 0.0
        self._load = load or self._load_model
        self._changed = changed
        self._failed = failed
        self._next_key = 1
        self.unsaved = False

    # -- opening ------------------------------------------------------------------------------------------

    def open_model(self, model: str, then: Callable[[], None], missing: Callable[[Exception], None]) -> None:
        """Loads a model; `missing` is called where it has not been fetched yet."""

        def job() -> tuple[Any, Any]:
            old, self.runtime = self.runtime, None
            if old is not None:
                old.close()
            tools, failures = edgellm.find_tools()
            return self._load(model), (tools, failures)

        def done(found: tuple[Any, Any]) -> None:
            self.runtime, (self.tools, failures) = found
            self.failures = tuple(str(failure.error) for failure in failures)
            self.model = model
            then()

        def failed(error: Exception) -> None:
            (missing if isinstance(error, edgellm.ModelNotFound) else self._failed)(error)

        self.load_fraction = 0.0
        self.worker.submit(job, done, failed)

    def _load_model(self, model: str) -> Runtime:
        def progress(fraction: float) -> None:
            self.load_fraction = fraction

        return edgellm.load(model, progress=progress)

    def offered(self) -> list[Tool[..., Any]]:
        """The tools that new chats get."""
        return [tool for tool in self.tools if tool.name in self.settings.tools]

    def chat_options(self) -> dict[str, Any]:
        """Fields of ChatOptions for a new chat."""
        # Any: fields of many types.
        return {
            "tools": self.offered(),
            "approve": self.approve,
            "trace": self.settings.trace_rows,
            "system": self.settings.system,
            "sampler": self.settings.sampler_chain(),
        }

    def approve(self, call: Any, spec: Any, reason: str) -> Any:
        """Asks the user, unless they have allowed the tool for always."""
        # Any: ToolCall, ToolSpec, Approval.
        tool = self.tool_of(spec.name)
        origin = edgellm.grant_origin(tool.origin) if tool is not None else ""
        if spec.is_grantable and edgellm.Grants().holds(spec.name, origin):
            return edgellm.Approval("session", reason="allowed for always")
        approval = self.worker.ask(call, spec, reason)
        if approval.decision == "always" and spec.is_grantable and origin:
            edgellm.Grants().add(spec.name, origin)
        return approval

    def tool_of(self, name: str) -> Tool[..., Any] | None:
        """The tool of that name."""
        return next((tool for tool in self.tools if tool.name == name), None)

    def steps_of(self, call: ToolCall) -> list[Step]:
        """The tokens that a call was written in, of the branch that waits for it."""
        for strand in self.strands.values():
            card = strand.card_of(call)
            if card is not None and card.state == "ASKS":
                return strand.steps_between(*card.positions)
        return []

    def new_chat(self) -> None:
        """Begins a chat; the one so far is saved and closed."""
        self._open(lambda: self.runtime.chat(**self.chat_options()), self.sessions.new_id())

    def open_saved(self, saved: SavedChat) -> None:
        """Goes on with a saved chat, without computing it again."""
        options = self.chat_options()
        del options["system"], options["sampler"]
        path = self.sessions.path(saved.id)
        self._open(lambda: self.runtime.open_chat(path, **options), saved.id)

    def _open(self, make: Callable[[], Any], session_id: str) -> None:
        self.save()
        old = list(self.strands.values())

        def job() -> tuple[Any, Sequence[Any]]:
            chat = make()
            for strand in old:
                if strand.chat is not None:
                    strand.chat.close()
            return chat, chat.messages

        def done(found: tuple[Any, Sequence[Any]]) -> None:
            chat, messages = found
            strand = self._add(chat, None, "main")
            self.strands = {strand.key: strand}
            strand.load(messages)
            self.session_id = session_id
            self.show(strand)

        self.worker.submit(job, done, self._failed)

    def _add(self, chat: Any, origin: Origin | None, name: str) -> Strand:
        strand = Strand(self._next_key, chat, origin=origin, name=name)
        self._next_key += 1
        self.strands[strand.key] = strand
        return strand

    def show(self, strand: Strand) -> None:
        """Makes a branch the current one."""
        self.current = strand
        self._changed()

    @property
    def is_ready(self) -> bool:
        """A chat is open."""
        return self.current.chat is not None

    # -- talking ------------------------------------------------------------------------------------------

    def send(self, text: str | None, strand: Strand | None = None, **options: Any) -> None:
        """One turn of the current branch."""
        strand = strand or self.current
        strand.begin(text, self.worker.clock())
        self.unsaved = True
        self.worker.turn(strand.key, strand.chat, text, **options)

    def fork(
        self,
        then: Callable[[Strand], None],
        *,
        keep: int | None = None,
        why: str = "fork",
        redraw: bool = False,
    ) -> None:
        """A new branch of the current one that keeps its first `keep` messages (None: all)."""
        parent = self.current

        def job() -> tuple[Any, Sequence[Any]]:
            chat = parent.chat.fork()
            if keep is not None:
                chat.rewind(keep, redraw=redraw)
            return chat, chat.messages

        self._adopt(job, parent, Origin(parent.key, why=why), then)

    def branch(self, position: int, token: int | None, then: Callable[[Strand], None], *, why: str) -> None:
        """A new branch that shares the tape up to `position`; `token` stands there (None: it is drawn anew)."""
        parent = self.current

        def job() -> tuple[Any, Sequence[Any]]:
            chat = parent.chat.fork(at=position) if token is None else parent.chat.branch(position, token)
            return chat, chat.messages

        piece = self.piece(token) if token is not None else ""
        self._adopt(job, parent, Origin(parent.key, position, piece, why), then)

    def _adopt(
        self,
        job: Callable[[], tuple[Any, Sequence[Any]]],
        parent: Strand,
        origin: Origin,
        then: Callable[[Strand], None],
    ) -> None:
        def done(found: tuple[Any, Sequence[Any]]) -> None:
            chat, messages = found
            strand = self._add(chat, origin, f"{origin.why} {self._next_key - 1}")
            length = len(chat.tape)
            for step in parent.step_list():
                if step.position < length and (origin.position is None or step.position < origin.position):
                    strand.keep(step)
            strand.load(messages, is_open=chat.is_answer_open)
            then(strand)

        self.worker.submit(job, done, self._failed)

    def piece(self, token: int) -> str:
        """A token's text."""
        return self.runtime.vocabulary.piece(token).decode("utf-8", "backslashreplace")

    def race(self, strands: Sequence[Strand]) -> None:
        """Lets several branches go on side by side, in shared batches."""
        for strand in strands:
            strand.begin(None, self.worker.clock())
        self.unsaved = True
        self.worker.race([(strand.key, strand.chat) for strand in strands])

    def close_strand(self, strand: Strand) -> None:
        """Removes a branch that is not the current one."""
        if strand is self.current or strand.is_running:
            return
        self.strands.pop(strand.key, None)
        self.worker.submit(strand.chat.close, None, self._failed)
        self._changed()

    def ended(self, strand: Strand, then: Callable[[], None]) -> None:
        """A turn is over: takes down which blocks are which messages."""

        def done(messages: Sequence[Any]) -> None:
            strand.number(messages)
            then()

        if strand.chat is not None:
            self.worker.submit(lambda: strand.chat.messages, done, self._failed)

    # -- keeping ------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Writes the current branch with its KV memory, if anything has been said since the last time."""
        strand = self.current
        if not self.unsaved or strand.chat is None or not strand.title:
            return
        self.unsaved = False
        session_id, title, model = self.session_id, strand.title, self.model
        path = self.sessions.path(session_id)

        def job() -> None:
            strand.chat.save(path)
            short = " ".join(title.split())[:60]
            messages = strand.chat.messages
            self.sessions.record(
                session_id, title=short, model=model, messages=messages, tokens=len(strand.chat.tape)
            )

        self.worker.submit(job, None, self._failed)

    def close(self) -> None:
        """Saves, and gives everything back."""
        self.save()

        def job() -> None:
            if self.runtime is not None:
                self.runtime.close()
                self.runtime = None

        self.worker.submit(job)
