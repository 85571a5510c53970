"""What the app keeps in the index of chats: the branches of each, and answers that were being written."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import edgellm
from edgellm import Message, ToolCall

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class SavedBranch:
    """One branch of a chat: its messages as they were last seen, and the file that may hold its memory.

    `gone` has the places, in `messages`, of those that are no longer in the context. `system` is its system turn, None
    where that was not written. `parent` is its place in the list of branches, None for the first; `position`, `token`
    and `why` say where it began. `adapters` are those it decoded with, `pinned` the indices of messages that stay when
    the context fills: None where that was not written.
    """

    number: int
    name: str
    messages: tuple[Message, ...]
    is_current: bool = False
    parent: int | None = None
    position: int | None = None
    token: str = ""
    why: str = ""
    adapters: edgellm.AdapterSet | None = None
    gone: tuple[int, ...] = ()
    system: str | None = None
    pinned: tuple[int, ...] | None = None

    @property
    def in_context(self) -> tuple[Message, ...]:
        """The messages that the chat itself has."""
        gone = frozenset(self.gone)
        return tuple(message for place, message in enumerate(self.messages) if place not in gone)


def chat_index() -> edgellm.ChatIndex:
    """The index of the app's chats, in the user's state folder."""
    return edgellm.ChatIndex(edgellm.state_dir() / "chats")


def record_branches(
    index: edgellm.ChatIndex,
    id: str,
    *,
    title: str,
    model: str,
    branches: Sequence[SavedBranch],
    tokens: int = 0,
) -> None:
    """Writes what was said in all branches; `tokens` are those of the current one. Raises ConfigError."""
    current = next((branch for branch in branches if branch.is_current), branches[0])
    others = [message for branch in branches if branch is not current for message in branch.messages]
    index.record(
        id,
        title=title,
        model=model,
        messages=current.messages,
        tokens=tokens,
        others=others,
        extra={"branches": [dataclasses.asdict(branch) for branch in branches]},
    )
    index.remove_growing(id)


def recorded_branches(index: edgellm.ChatIndex, id: str) -> list[SavedBranch]:
    """The branches of a chat, in the order they began; of one that is known by its files alone, none."""
    return [_read_branch(record) for record in index.extra(id).get("branches", [])]


def write_growing(index: edgellm.ChatIndex, id: str, number: int, text: str) -> None:
    """Keeps what there is of an answer that is still being written, until the branches are recorded. Raises OSError."""
    path = index.folder / f"{id}.{number}.growing"
    beside = path.with_suffix(".new")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)


def read_growing(index: edgellm.ChatIndex, id: str, number: int) -> str:
    """An answer that was being written when the app died, "" where there is none."""
    try:
        return (index.folder / f"{id}.{number}.growing").read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""


def model_of(saved: edgellm.IndexedChat, runtime: Any, loaded: str) -> str:
    """What to load for a chat; "" where it is the model that is loaded.

    The index knows some chats by their files alone: those name the file of the model.
    """
    # Any: a Runtime, or what plays one in tests.
    if not saved.model or saved.model == loaded or (runtime and runtime.model.path.name == saved.model):
        return ""
    stored = (model.name for model in edgellm.stored_models() if model.path.name == saved.model)
    return next(stored, saved.model)


def _read_branch(record: dict[str, Any]) -> SavedBranch:
    # Any: JSON that `record_branches` wrote.
    messages = cast("list[dict[str, Any]]", record.pop("messages"))
    adapters = record.pop("adapters", None)
    if adapters is not None:
        adapters = edgellm.AdapterSet(
            tuple(edgellm.LoraAdapter(**one) for one in adapters["lora"]),
            tuple(edgellm.ControlVector(**one) for one in adapters["control"]),
        )
    told = tuple(_read_message(message) for message in messages)
    gone = tuple(record.pop("gone", ()))
    pinned = record.pop("pinned", None)
    return SavedBranch(
        messages=told,
        adapters=adapters,
        gone=gone,
        pinned=tuple(pinned) if pinned is not None else None,
        **record,
    )


def _read_message(record: dict[str, Any]) -> Message:
    calls = tuple(ToolCall(**call) for call in record.pop("tool_calls", ()))
    return Message(tool_calls=calls, **record)
