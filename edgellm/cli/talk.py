"""What the line chat is about: the branches of a conversation, and sending to the current one."""

from __future__ import annotations

import re
import sys
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from edgellm.cli.approval import Approver
from edgellm.cli.interrupt import Interrupt
from edgellm.cli.plain import PlainTranscript
from edgellm.cli.transcript import Transcript
from edgellm.errors import ConfigError
from edgellm.events import Notice, PrefillProgress, TurnFinished

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Sequence
    from pathlib import Path

    from edgellm.dialogue import Chat
    from edgellm.events import Event
    from edgellm.runtime import Runtime
    from edgellm.toolbox.toolset import Toolset
    from edgellm.usage import Usage

FIRST_BRANCH = "main"
_NAME_CHARS = 40
_NO_NAME = re.compile(r"[^\w.-]+")


def is_branch_name(text: str) -> bool:
    """Letters, digits, -, _ and ., at most 40."""
    return bool(text) and len(text) <= _NAME_CHARS and not _NO_NAME.search(text)


class Talk:
    """A chat and its branches, one of which is the current one."""

    def __init__(self, runtime: Runtime, toolset: Toolset, options: dict[str, Any], args: Namespace) -> None:
        # Any: fields of ChatOptions.
        self.runtime = runtime
        self.toolset = toolset
        self._approver = Approver(toolset, allowed=args.allow)
        self._options = {**options, "tools": toolset, "approve": self._approver.approve}
        self._tool_choice: str = args.tool_choice
        self._max_tokens: int | None = args.max_tokens
        piece = runtime.vocabulary.piece if args.logprobs else None
        self.is_plain: bool = getattr(args, "plain", False)
        self._transcript = PlainTranscript() if self.is_plain else Transcript(calls=sys.stdout, piece=piece)
        self.branches: dict[str, Chat] = {}
        self.branch = FIRST_BRANCH
        self.last_usage: Usage | None = None

    @property
    def chat(self) -> Chat:
        """The current branch."""
        return self.branches[self.branch]

    @property
    def title(self) -> str:
        """Model and tools, in a few words."""
        entry = self.runtime.entry
        name = entry.name if entry is not None else self.runtime.model.path.name
        tools = ", ".join(self.chat.tools) or "none"
        return f"{name}, context {self.runtime.engine.context.n_ctx:,} tokens, tools: {tools}"

    @property
    def label(self) -> str:
        """The prompt: the branch, where it is not the first, and `>` or, in plain words, `you:`."""
        branch = "" if self.branch == FIRST_BRANCH else f"{self.branch} "
        return f"{branch}you: " if self.is_plain else f"{branch}> "

    def open(self, saved: Path | None = None, *, system: str | None = None) -> None:
        """Begins anew, or goes on with a saved chat and its branches; those so far are closed. Raises EdgeError.

        What has become of a saved chat's memory is told at once.
        """
        options = dict(self._options)
        if saved is not None:
            options.pop("system", None)  # a saved chat keeps its own
        if system is not None:
            options["system"] = system
        chats = (
            (self.runtime.chat(**options),) if saved is None else self.runtime.open_chats(saved, **options)
        )
        self.close()
        self.branches = _named(chats)
        self.branch = next(iter(self.branches))
        if system is not None:
            self._options = options
        for told in dict.fromkeys(str(chat.resumed) for chat in chats if chat.resumed is not None):
            self._transcript.show(Notice(told))

    def send(self, message: str) -> str:
        """One turn, printed as it comes; gives its finish reason. Ctrl-C stops it. Raises EdgeError."""
        chat, reason = self.chat, ""
        try:
            with Interrupt(chat.cancel) as interrupt:
                self._approver.asking, self._approver.on_interrupt = interrupt.asking, interrupt.press
                for event in chat.send(message, tool_choice=self._tool_choice, max_tokens=self._max_tokens):
                    if interrupt.is_pressed:
                        chat.cancel()
                    if isinstance(event, Notice) and event.message == str(chat.resumed):
                        continue  # told when the chat was opened
                    self._transcript.show(event)
                    if isinstance(event, TurnFinished):
                        reason, self.last_usage = event.finish_reason, event.usage
        finally:
            self._transcript.end_turn()
        return reason

    def tell(self, events: Sequence[Event]) -> None:
        """Prints what was done between two turns."""
        for event in events:
            if not isinstance(event, PrefillProgress):
                self._transcript.show(event)

    def turns(self) -> list[int]:
        """Indices of the user's messages."""
        return [index for index, message in enumerate(self.chat.messages) if message.role == "user"]

    def pinned(self) -> list[int]:
        """Numbers of the turns that stay when the context fills, counted from 1."""
        pins = self.chat.pinned
        return [number for number, turn in enumerate(self._stretches(), 1) if set(turn) & set(pins)]

    def pin(self, number: int, *, is_pinned: bool = True) -> None:
        """Keeps the turn of that number when the context fills, or no longer. Raises ConfigError."""
        stretches = self._stretches()
        if number > len(stretches):
            raise ConfigError(
                f"There is no turn {number}: the chat has {len(stretches)}.", hint="/pin lists them."
            )
        if is_pinned:
            self.chat.pin(stretches[number - 1].start)
            return
        for message in set(stretches[number - 1]) & set(self.chat.pinned):
            self.chat.unpin(message)

    def _stretches(self) -> list[range]:
        """The messages of each turn."""
        starts = self.turns()
        return [range(start, end) for start, end in pairwise([*starts, len(self.chat.messages)])]

    def rewind(self, turns: int, *, redraw: bool = False) -> str:
        """Takes back the last turns; gives the first message of the user that went. Raises ConfigError.

        `redraw`: the same message may be answered otherwise.
        """
        starts = self.turns()
        if not starts:
            raise ConfigError("There is no turn to take back.", hint="Say something first.")
        if turns > len(starts):
            raise ConfigError(
                f"There are only {len(starts)} turns to take back.", hint="Give a smaller number."
            )
        start = starts[-turns]
        message = self.chat.messages[start].content
        self.chat.rewind(start, redraw=redraw)
        return message

    def fork(self, name: str) -> None:
        """Goes on in a new branch that begins here. Raises EdgeError."""
        self.branches[name] = self.chat.fork()
        self.branch = name

    def save(self, path: Path) -> None:
        """Writes all branches into a file, the current one first. Raises ConfigError."""
        for name, chat in self.branches.items():
            chat.name = name
        others = [chat for chat in self.branches.values() if chat is not self.chat]
        self.chat.save(path, branches=others)

    def close(self) -> None:
        """Closes all branches."""
        for chat in self.branches.values():
            chat.close()
        self.branches = {}


def _named(chats: Sequence[Chat]) -> dict[str, Chat]:
    """Chats by the names they were saved with, made to fit; a number tells those of one name apart."""
    named: dict[str, Chat] = {}
    for place, chat in enumerate(chats):
        first = "branch" if place else FIRST_BRANCH
        # A file may come from anywhere.
        wanted = name = _NO_NAME.sub("-", chat.name)[: _NAME_CHARS - 5].strip("-") or first
        number = 1
        while name in named:
            number += 1
            name = f"{wanted}-{number}"
        named[name] = chat
    return named
