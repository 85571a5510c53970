"""What the app talks about: the loaded model, and the branches of the open chat."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from itertools import chain, count
from typing import TYPE_CHECKING, Any

import edgellm
from edgellm_tui.kept_chat import KeptChat
from edgellm_tui.resume import Opened, all_in_file, all_opened, restored
from edgellm_tui.saved_chats import recorded_branches
from edgellm_tui.strand import Origin, Strand

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from edgellm import Event, Message, Runtime, Step, Tool, ToolCall
    from edgellm_tui.settings import Settings
    from edgellm_tui.transcript import Transcript
    from edgellm_tui.worker import EngineWorker


Load = "Callable[[str], Runtime]"
_OPEN_ELSEWHERE = (
    "This chat is open in another edgellm as well. What is said here is kept as a chat of its own."
)

# Settings whose words only the engine can judge, and what a chat takes where one means nothing.
_MAY_BE_WRONG = {"sampler": None, "context_policy": "stop", "speculate": "off"}


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
        leaving: Callable[[], None],
        load: Callable[[str], Any] | None = None,
        index: edgellm.ChatIndex | None = None,
    ) -> None:
        # Any: a Runtime, or what plays one in tests.
        self.worker = worker
        self.settings = settings
        self.runtime: Any = None
        self.tools: tuple[Tool[..., Any], ...] = ()
        self.failures: tuple[str, ...] = ()
        self.strands: dict[int, Strand] = {}
        self.current = Strand(0, None)
        self.model = ""
        self.load_fraction = 0.0
        self.is_loading = False
        # The chats that are on their way; the one so far takes no message any more.
        self._coming = 0
        self._checks = load is None
        self._load = load or self._load_model
        self._changed = changed
        self._failed = failed
        self._leaving = leaving
        self._next_key = 1
        self._next_number = 0
        self.kept = KeptChat(self, index, failed)
        worker.listen = self._listen

    # -- opening ------------------------------------------------------------------------------------------

    def open_model(self, model: str, then: Callable[[], None], missing: Callable[[Exception], None]) -> None:
        """Loads a model; `missing` is called where it has not been fetched yet."""

        def job() -> tuple[Any, Any]:
            if self._checks:
                # A model that is not there, or a broken file, leaves the one that is loaded as it is.
                edgellm.inspect(model)
            old, self.runtime = self.runtime, None
            if old is not None:
                old.close()
            tools, failures = edgellm.find_tools()
            return self._load(model), (tools, failures)

        def done(found: tuple[Any, Any]) -> None:
            self.is_loading = False
            self._arrived()
            self.runtime, (self.tools, failures) = found
            self._forget_closed()
            self.failures = tuple(str(failure.error) for failure in failures)
            entry = self.runtime.entry
            self.model = model or (entry.name if entry is not None else str(self.runtime.model.path))
            then()

        def failed(error: Exception) -> None:
            self.is_loading = False
            if self.runtime is None:
                self._forget_closed()
            self._arrived(is_there=False)
            (missing if isinstance(error, edgellm.ModelNotFound) else self._failed)(error)

        self._leave()
        self.load_fraction = 0.0
        self.is_loading = True
        self.worker.submit(job, done, failed)

    def _leave(self) -> None:
        """The chat so far is over on the screen, and saved; what comes next is on its way."""
        if self.is_ready:
            self._leaving()
        self.kept.save()
        self._coming += 1

    def _arrived(self, *, is_there: bool = True) -> None:
        self._coming -= 1
        if not is_there and self.is_ready:
            # The chat so far stays after all, but what was written meanwhile was not meant for it.
            self._leaving()

    def _forget_closed(self) -> None:
        """The chats of a runtime that is closed are closed too; what the current one showed stays."""
        if self.current.chat is not None:
            blocks = self.current.blocks
            self.strands, self.current = {}, Strand(0, None)
            self.current.blocks = blocks
            self._changed()

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
            "context_policy": self.settings.context_policy,
            "speculate": self.settings.speculate,
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

        def job() -> list[Opened]:
            chat, note = self._begun()
            return [Opened(chat, None, note)]

        self._open(job, self.kept.index.new_id(), "")

    def _begun(self) -> tuple[Any, str]:
        """A chat with what the settings say; without the one of them that cannot be used, and the words for it."""
        # Any: a Chat, or what plays one in tests.
        options = self.chat_options()
        try:
            return self.runtime.chat(**options), ""
        except edgellm.EdgeError as error:
            for name, usual in _MAY_BE_WRONG.items():
                if options[name] == usual:
                    continue
                with suppress(edgellm.EdgeError):
                    chat = self.runtime.chat(**{**options, name: usual})
                    return chat, f"The setting {name} cannot be used, so this chat does without (F9): {error}"
            raise

    def open_saved(
        self, saved: edgellm.IndexedChat, failed: Callable[[Exception], None] | None = None
    ) -> None:
        """Goes on with a saved chat and its branches, without computing them again; `failed` gets why it cannot."""

        def job() -> list[Opened]:
            index = self.kept.index
            branches = recorded_branches(index, saved.id)
            if branches:
                return all_opened(partial(restored, self, saved.id, branch) for branch in branches)
            numbers = index.branches(saved.id)
            if not numbers:
                raise edgellm.SessionError(
                    f"nothing is left of the chat {saved.title!r}: it has no file.",
                    hint="Put its file back, or delete the chat from the list.",
                )
            # Of a file that was copied here, a branch may have none of its own yet.
            free = count(numbers[-1] + 1)
            return all_opened(
                partial(all_in_file, self, index.path(saved.id, number), chain([number], free))
                for number in numbers
            )

        self.worker.submit(partial(self.kept.index.touch, saved.id), None, self._failed)
        self._open(job, saved.id, saved.title, failed)

    def open_file(self, path: Path) -> None:
        """Goes on with the branches that were saved in a file, as a new chat of the list."""
        self._open(lambda: all_in_file(self, path, count()), self.kept.index.new_id(), "")
        self.kept.is_unsaved = True

    def save_file(self, path: Path, then: Callable[[int], None]) -> None:
        """Writes all branches into a file, the current one first; `then` gets how many these are."""
        strands = [self.current, *(each for each in self.strands.values() if each is not self.current)]

        def job() -> int:
            for strand in strands:
                strand.chat.name = strand.name
            first, *others = [strand.chat for strand in strands]
            first.save(path, branches=others)
            return len(strands)

        self.worker.submit(job, then, self._failed)

    def give_up(self) -> None:
        """Begins a chat; what is still to come of the one so far is not kept."""
        self.new_chat()
        # The end of an open turn finds no branch that it could be recorded with.
        self.strands = {}
        self.show(Strand(0, None))

    def kept_options(self) -> dict[str, Any]:
        """Fields of ChatOptions for a saved chat, which keeps its own system turn and sampler."""
        # Any: fields of many types.
        options = self.chat_options()
        del options["system"], options["sampler"]
        return options

    def _open(
        self,
        make: Callable[[], list[Opened]],
        id: str,
        title: str,
        failed: Callable[[Exception], None] | None = None,
    ) -> None:
        self._leave()
        old = list(self.strands.values())

        def job() -> list[Opened]:
            opened = make()
            for strand in old:
                if strand.chat is not None:
                    strand.chat.close()
            return [each.looked_up() for each in opened]

        def done(found: list[Opened]) -> None:
            self._arrived()
            self.strands = {}
            strands: list[Strand] = []
            for each in found:
                saved = each.branch
                origin = None
                if saved is not None and saved.parent is not None:
                    origin = Origin(strands[saved.parent].key, saved.position, saved.token, saved.why)
                strand = self._add(each.chat, origin, saved.name if saved is not None else "main")
                strand.transcript = each.transcript
                strand.load()
                strand.number_on_disk = saved.number if saved is not None else strand.number_on_disk
                strand.say_resumed(each.chat.resumed)
                if each.note:
                    strand.note(each.note)
                strands.append(strand)
            self._next_number = 1 + max(strand.number_on_disk for strand in strands)
            current = next((at for at, each in enumerate(found) if each.branch and each.branch.is_current), 0)
            if not self.kept.open(id, title):
                strands[current].note(_OPEN_ELSEWHERE)
                for strand in strands:
                    strand.is_written = False
            self.show(strands[current])

        def not_opened(error: Exception) -> None:
            self._arrived(is_there=False)
            (failed or self._failed)(error)

        self.worker.submit(job, done, not_opened)

    def _add(self, chat: Any, origin: Origin | None, name: str) -> Strand:
        strand = Strand(self._next_key, chat, origin=origin, name=name)
        strand.number_on_disk = self._next_number
        self._next_number += 1
        self._next_key += 1
        self.strands[strand.key] = strand
        return strand

    def show(self, strand: Strand) -> None:
        """Makes a branch the current one."""
        self.current = strand
        self._changed()

    @property
    def is_opening(self) -> bool:
        """A chat, or the model for one, is on its way."""
        return self._coming > 0

    @property
    def is_ready(self) -> bool:
        """A chat is open, and no other one is on its way."""
        return self.current.chat is not None and not self._coming

    # -- talking ------------------------------------------------------------------------------------------

    def send(self, text: str | None, strand: Strand | None = None, **options: Any) -> None:
        """One turn of the current branch."""
        strand = strand or self.current
        strand.begin(text, self.worker.clock())
        strand.is_written = False
        self.kept.is_unsaved = True
        self.kept.record(saying=(strand, text) if text is not None else None)
        self.worker.turn(strand.key, strand.chat, text, **options)

    def draft(self, text: str) -> None:
        """The user types: computes ahead what of it is settled, where nothing else is to be done."""
        if self.settings.compute_drafts and self.is_ready and not self.worker.is_busy:
            self.worker.draft(self.current.chat, text)

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

        def job() -> Any:
            chat = parent.chat.fork()
            if keep is not None:
                chat.rewind(keep, redraw=redraw)
            return chat

        self._adopt(job, parent, Origin(parent.key, why=why), then)

    def branch(self, position: int, token: int | None, then: Callable[[Strand], None], *, why: str) -> None:
        """A new branch that shares the tape up to `position`; `token` stands there (None: it is drawn anew)."""
        parent = self.current

        def job() -> Any:
            # Any: a Chat, or what plays one in tests.
            return parent.chat.fork(at=position) if token is None else parent.chat.branch(position, token)

        piece = self.piece(token) if token is not None else ""
        self._adopt(job, parent, Origin(parent.key, position, piece, why), then)

    def _adopt(
        self,
        fork: Callable[[], Any],
        parent: Strand,
        origin: Origin,
        then: Callable[[Strand], None],
    ) -> None:
        # Any: a Chat, or what plays one in tests.
        def job() -> tuple[Any, Transcript]:
            chat = fork()
            parent.transcript.follow(parent.chat.messages)
            return chat, parent.transcript.fork(chat.messages)

        def done(found: tuple[Any, Transcript]) -> None:
            chat, transcript = found
            strand = self._add(chat, origin, f"{origin.why} {self._next_key - 1}")
            length = len(chat.tape)
            for step in parent.step_list():
                if step.position < length and (origin.position is None or step.position < origin.position):
                    strand.keep(step)
            strand.transcript = transcript
            strand.load(is_open=chat.is_answer_open)
            then(strand)

        self.worker.submit(job, done, self._failed)

    def piece(self, token: int) -> str:
        """A token's text."""
        return self.piece_bytes(token).decode("utf-8", "backslashreplace")

    def piece_bytes(self, token: int) -> bytes:
        """A token's bytes; none while one model gives way to another."""
        runtime = self.runtime
        return runtime.vocabulary.piece(token) if runtime is not None else b""

    def _listen(self, key: int, event: Event) -> None:
        """On the engine's thread: what the context loses is noted before anything can be written down."""
        strand = self.strands.get(key)
        if strand is not None and isinstance(event, edgellm.ContextEvicted):
            strand.transcript.let_go(event.messages)

    def race(self, strands: Sequence[Strand]) -> None:
        """Lets several branches go on side by side, in shared batches."""
        for strand in strands:
            strand.begin(None, self.worker.clock())
            strand.is_written = False
        self.kept.is_unsaved = True
        self.worker.race([(strand.key, strand.chat) for strand in strands])

    def close_strand(self, strand: Strand) -> None:
        """Removes a branch that is not the current one."""
        if strand is self.current or strand.is_running:
            return
        self.strands.pop(strand.key, None)
        for other in self.strands.values():
            if other.origin is not None and other.origin.parent == strand.key:
                other.origin = strand.origin
        self.kept.is_unsaved = True
        self.worker.submit(strand.chat.close, None, self._failed)
        self._changed()

    def ended(self, strand: Strand, messages: Sequence[Message]) -> None:
        """A turn is over: takes down which blocks are which messages, and what was said."""
        strand.number(messages)
        self.kept.record()

    def close(self) -> None:
        """Saves, and gives everything back."""
        self.kept.save()

        def job() -> None:
            if self.runtime is not None:
                self.runtime.close()
                self.runtime = None
            self.kept.close()

        self.worker.submit(job)
