"""From branches to what is kept of them, and back: with their memory where it was written, else with messages alone."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import edgellm
from edgellm_tui.plain import one_line
from edgellm_tui.saved_chats import SavedBranch, read_growing
from edgellm_tui.transcript import Transcript

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from edgellm import Message
    from edgellm_tui.strand import Strand
    from edgellm_tui.talk import Talk

_NAME_CHARS = 40


@dataclass(frozen=True, slots=True)
class Opened:
    """A chat that was opened, and the saved branch it is; `note` is told to the user, `transcript` what was said."""

    # Any: a Chat, or what plays one in tests.
    chat: Any
    branch: SavedBranch | None
    note: str = ""
    transcript: Transcript = field(default_factory=Transcript)

    def looked_up(self) -> Opened:
        """With the transcript; on the engine's thread."""
        saved = self.branch
        transcript = Transcript(saved.messages, saved.gone) if saved is not None else Transcript()
        transcript.follow(self.chat.messages)
        return replace(self, transcript=transcript)


def all_opened(makers: Iterable[Callable[[], Sequence[Opened]]]) -> list[Opened]:
    """The chats that all of these open, or none: where one raises, those before it are closed."""
    opened: list[Opened] = []
    try:
        for make in makers:
            opened += make()
    except BaseException:
        for each in opened:
            each.chat.close()
        raise
    return opened


def all_in_file(talk: Talk, path: Path, numbers: Iterator[int]) -> list[Opened]:
    """The branches that were saved in one file; they get these numbers."""
    opened: list[Opened] = []
    for chat in talk.runtime.open_chats(path, **talk.kept_options()):
        number = next(numbers)
        name = one_line(chat.name, _NAME_CHARS) or (f"branch {number}" if number else "main")
        opened.append(Opened(chat, SavedBranch(number, name, ())))
    return opened


def branches_of(
    strands: Sequence[Strand], current: Strand, saying: tuple[Strand, str] | None = None
) -> list[SavedBranch]:
    """What is kept of branches. `saying` is a message that is about to be sent in one of them.

    For the engine's thread.
    """
    places = {strand.key: at for at, strand in enumerate(strands)}
    found: list[SavedBranch] = []
    for strand in strands:
        strand.transcript.follow(strand.chat.messages)
        messages = strand.transcript.messages
        if saying is not None and saying[0] is strand:
            messages += (edgellm.Message("user", saying[1]),)
        origin = strand.origin
        parent = places.get(origin.parent) if origin is not None else None
        branch = SavedBranch(strand.number_on_disk, strand.name, messages, strand is current, parent)
        if origin is not None:
            branch = replace(branch, position=origin.position, token=origin.token, why=origin.why)
        gone = tuple(sorted(strand.transcript.gone))
        kept = replace(branch, adapters=strand.chat.adapters, gone=gone, system=strand.chat.system)
        found.append(replace(kept, pinned=strand.chat.pinned))
    return found


def restored(talk: Talk, id: str, branch: SavedBranch) -> tuple[Opened]:
    """One branch with its memory; where that was not written, or is another model's, with its messages alone.

    Where its adapters cannot be used, it goes on without them, and the note says so.
    """
    problem = "its memory had not been saved yet, or had to make room"
    growing = read_growing(talk.kept.index, id, branch.number)
    if growing:
        branch = replace(branch, messages=(*branch.messages, edgellm.Message("assistant", growing)))
    own = {"adapters": branch.adapters} if branch.adapters is not None else {}
    path = talk.kept.index.path(id, branch.number)
    if path.exists():
        try:
            chat = talk.runtime.open_chat(path, **talk.kept_options(), **own)
        except edgellm.EdgeError as error:
            problem = error.message
        else:
            if _said(chat.messages) == _said(branch.in_context):
                _pin(chat, branch)
                return (Opened(chat, branch),)
            chat.close()
    options = {**talk.chat_options(), "history": branch.in_context}
    if branch.system is not None:
        options["system"] = branch.system
    try:
        chat = talk.runtime.chat(**options, **own)
    except edgellm.EdgeError as error:
        if not own:
            raise
        # A file of an adapter may be gone.
        problem = f"{error.message.rstrip('.')}, so it goes on without adapters"
        chat = talk.runtime.chat(**options)
    _pin(chat, branch)
    note = f"This chat is read again with your next message: {problem}."
    return (Opened(chat, branch, note if branch.is_current else ""),)


def _pin(chat: Any, branch: SavedBranch) -> None:
    """Pins what the record says: the file may have been written before the last pin."""
    if branch.pinned is None:
        return
    # Any: a Chat, or what plays one in tests.
    for index in set(chat.pinned) - set(branch.pinned):
        chat.unpin(index)
    for index in set(branch.pinned) - set(chat.pinned):
        if index < len(chat.messages):
            chat.pin(index)


def _said(messages: Sequence[Message]) -> list[tuple[str, str, str]]:
    return [(message.role, message.content, message.reasoning) for message in messages]
