"""The open chat as it is kept: what was said at once, the memory of its branches when nothing else runs."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from edgellm_tui.held import hold, let_go
from edgellm_tui.plain import one_line
from edgellm_tui.resume import branches_of
from edgellm_tui.saved_chats import chat_index, record_branches, write_growing

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import edgellm
    from edgellm_tui.strand import Strand
    from edgellm_tui.talk import Talk

_TITLE_CHARS = 60
_MB = 1_000_000
_MOST_TITLES = 3


class KeptChat:
    """`index` has all chats, `id` and `title` are those of the open one; `failed` gets errors.

    `is_unsaved`: something has been said, or changed, since the memory was last written. `deleted` are chats that go as
    soon as the worker comes to it.
    """

    def __init__(
        self, talk: Talk, index: edgellm.ChatIndex | None, failed: Callable[[Exception], None]
    ) -> None:
        self._talk = talk
        self._failed = failed
        self.index = index or chat_index()
        self.id = self.index.new_id()
        self.title = ""
        self.is_unsaved = False
        self.deleted: set[str] = set()
        self._held = ""

    def open(self, id: str, title: str) -> bool:
        """This chat is the open one now. False: another app has it open, and what is said here is kept apart."""
        self.close()
        is_ours = hold(self.index.folder, id)
        if not is_ours:
            id = self.index.new_id()
            hold(self.index.folder, id)
        self.id = self._held = id
        self.title = title
        return is_ours

    def close(self) -> None:
        """No chat is open here any more: another app may go on with it."""
        if self._held:
            let_go(self.index.folder, self._held)
            self._held = ""

    def _strands(self) -> list[Strand]:
        return [strand for strand in self._talk.strands.values() if strand.chat is not None]

    def record(self, saying: tuple[Strand, str] | None = None) -> None:
        """Writes down what was said in all branches: in milliseconds, so it is done at once.

        `saying` is a message that is about to be sent. What it leaves open is the memory: `save` writes that.
        """
        strands, id, model, current = self._strands(), self.id, self._talk.model, self._talk.current
        title = self.title or current.title
        if not strands or not title:
            return
        short = " ".join(title.split())[:_TITLE_CHARS]

        def job() -> None:
            branches = branches_of(strands, current, saying)
            tokens = len(current.chat.tape)
            record_branches(self.index, id, title=short, model=model, branches=branches, tokens=tokens)

        self._talk.worker.submit(job, None, self._failed)

    def keep_growing(self) -> Callable[[], None] | None:
        """What writes the answers that are being written to the disk, on any thread; None where there are none."""
        growing = [
            (strand.number_on_disk, strand.growing_answer)
            for strand in self._talk.strands.values()
            if strand.is_running and strand.growing_answer
        ]
        if not growing:
            return None
        id = self.id

        def job() -> None:
            for number, text in growing:
                write_growing(self.index, id, number, text)

        return job

    def save(self, then: Callable[[], None] | None = None) -> None:
        """Writes all branches with their KV memory, where anything has been said since the last time; then `then`."""
        if not self.is_unsaved or not (self.title or self._talk.current.title):
            if then is not None:
                then()
            return
        self.is_unsaved = False
        self.record()
        id, strands = self.id, self._strands()
        limit_mb = self._talk.settings.saved_chats_mb

        def job() -> list[edgellm.IndexedChat]:
            for strand in strands:
                if not strand.is_written:
                    strand.chat.save(self.index.path(id, strand.number_on_disk))
                    strand.is_written = True
            self.index.keep_branches(id, [strand.number_on_disk for strand in strands])
            return self.index.make_room(limit_mb * _MB, keep=id) if limit_mb > 0 else []

        def done(made: list[edgellm.IndexedChat]) -> None:
            if made:
                text = room_words([chat.title for chat in made], limit_mb)
                logging.getLogger("edgellm_tui").warning("%s", text)
                self._talk.current.note(text)
            if then is not None:
                then()

        def failed(error: Exception) -> None:
            self.is_unsaved = self.is_unsaved or self.id == id
            self._failed(error)

        self._talk.worker.submit(job, done, failed)

    def rename(self, title: str, id: str = "", then: Callable[[], None] | None = None) -> None:
        """Gives a chat another title, the open one where no id is given; then `then` is called."""
        id = id or self.id
        if id == self.id:
            self.title = title

        def done(_: object) -> None:
            if then is not None:
                then()

        self._talk.worker.submit(lambda: self.index.rename(id, title), done, self._failed)

    def delete(self, id: str) -> None:
        """Deletes a chat; where it is the open one, a new chat begins."""

        def failed(error: Exception) -> None:
            self.deleted.discard(id)
            self._failed(error)

        self.deleted.add(id)
        self._talk.worker.submit(lambda: self.index.delete(id), None, failed)
        if id == self.id:
            # Nothing that still comes may be written under the old one.
            self.id, self.title, self.is_unsaved = self.index.new_id(), "", False
            self._talk.give_up()


def room_words(titles: Sequence[str], limit_mb: int) -> str:
    """That the memory of these chats had to go."""
    named = [f'"{one_line(title, 40)}"' for title in titles[:_MOST_TITLES]]
    if len(titles) > _MOST_TITLES:
        named.append(f"{len(titles) - _MOST_TITLES} more")
    who = " and ".join(filter(None, [", ".join(named[:-1]), named[-1]]))
    return (
        f"Saved chats took more than {limit_mb} MB (saved_chats_mb, F9): the memory of {who} made room. "
        "What was said in them stays, and is read again when you go on with one; p on the page of chats (ctrl+o) "
        "keeps the memory of one for good."
    )
