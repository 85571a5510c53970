"""What the user does to what was said: edit and resend, retry, go on, take back. The old branch always stays."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgellm import ConfigError
from edgellm_tui.blocks import UserBlock

if TYPE_CHECKING:
    from edgellm_tui.app import EdgeApp
    from edgellm_tui.blocks import Block
    from edgellm_tui.strand import Strand


def _idle_strand(app: EdgeApp) -> Strand:
    """The current branch. Raises ConfigError while an answer is being written, or before a model is there."""
    if not app.talk.is_ready:
        raise ConfigError("There is no chat yet.", hint="Wait for the model, or choose one with F5.")
    if app.worker.is_busy:
        raise ConfigError("An answer is being written.", hint="Esc stops it.")
    return app.talk.current


def _user_block(strand: Strand, block: Block | None) -> UserBlock:
    """The user's message that a block belongs to: itself, or the one it answers; without a block the newest."""
    blocks = strand.blocks
    end = blocks.index(block) + 1 if block in blocks else len(blocks)
    found = next((each for each in reversed(blocks[:end]) if isinstance(each, UserBlock)), None)
    if found is not None and found.is_gone:
        raise ConfigError(
            "That message is no longer in the context.", hint="Choose a later one, or begin a new chat."
        )
    if found is None or found.message is None:
        raise ConfigError("There is no message of yours to go back to.", hint="Say something first.")
    return found


def edit(app: EdgeApp, block: Block | None = None) -> None:
    """Puts a message of the user into the prompt; what is sent then is a branch beside it. Raises ConfigError."""
    strand = _idle_strand(app)
    found = _user_block(strand, block)
    assert found.message is not None
    app.outbox.editing = strand, found.message
    app.prompt.text = found.text
    app.prompt.move_cursor(app.prompt.document.end)
    app.prompt.focus()
    app.hint("editing: enter sends it as a new branch, esc leaves all as it is")


def resend(app: EdgeApp, index: int, text: str) -> None:
    """Says something else in place of message `index`, in a new branch. Raises ConfigError."""
    _idle_strand(app)
    _send_instead(app, index, text, why="edit")


def retry(app: EdgeApp, block: Block | None = None) -> None:
    """Answers a message of the user again, otherwise, in a new branch. Raises ConfigError."""
    found = _user_block(_idle_strand(app), block)
    assert found.message is not None
    _send_instead(app, found.message, found.text, why="retry")


def _send_instead(app: EdgeApp, index: int, text: str, *, why: str) -> None:
    def then(strand: Strand) -> None:
        app.talk.show(strand)
        app.talk.send(text, strand)

    app.talk.fork(then, keep=index, why=why, redraw=True)


def resume(app: EdgeApp) -> None:
    """Lets a stopped answer go on. Raises ConfigError."""
    strand = _idle_strand(app)
    if not strand.chat.is_answer_open:
        raise ConfigError("The last answer is complete.", hint="/retry draws another one.")
    app.talk.send(None)


def rewind(app: EdgeApp, turns: int) -> None:
    """Goes back to before the last turns, in a new branch. Raises ConfigError."""
    strand = _idle_strand(app)
    users = [block for block in strand.blocks if isinstance(block, UserBlock) and block.message is not None]
    if not 0 < turns <= len(users):
        raise ConfigError(
            f"There are {len(users)} turns to take back.", hint="Write, for example, /rewind 1."
        )
    app.talk.fork(app.talk.show, keep=users[-turns].message, why="rewind")


def pin(app: EdgeApp, block: Block | None = None) -> None:
    """The turn of a message stays when the context fills; once more: no longer. Raises ConfigError."""
    strand = _idle_strand(app)
    app.care.pin(strand, _user_block(strand, block))


def act(app: EdgeApp, action: str, block: Block | None) -> None:
    """What a key asks for about a block: copy, edit, retry, resume or pin. Raises ConfigError."""
    if action == "copy":
        app.copy(block.plain() if block is not None else app.talk.current.last_answer)
    elif action == "edit":
        edit(app, block)
    elif action == "retry":
        retry(app, block)
    elif action == "resume":
        resume(app)
    elif action == "pin":
        pin(app, block)
