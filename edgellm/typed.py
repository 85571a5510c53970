"""What is typed behind a slash command, read as a shell would: words, a file, a place to save."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from edgellm.errors import ConfigError

_SHOWN = 72


def typed_words(command: str, text: str) -> list[str]:
    """The words; one with spaces stands in quotation marks. Raises ConfigError for a quotation that does not end."""
    try:
        return shlex.split(text)
    except ValueError as error:
        raise ConfigError(f"/{command} cannot be read: {error}.", hint="Close the quotation.") from None


def typed_file(command: str, text: str) -> Path:
    """The one file that a command is given. Raises ConfigError."""
    words = typed_words(command, text)
    if not any(words):
        raise ConfigError(f"/{command} needs a file.", hint=f"Write /{command} FILE.")
    if len(words) > 1:
        shown = " ".join("".join(each if each.isprintable() else " " for each in text).split())[:_SHOWN]
        raise ConfigError(
            f"/{command} takes one file, and these are {len(words)}.",
            hint=f'Put a name with spaces in quotation marks: /{command} "{shown}".',
        )
    # Path.expanduser raises where there is no such user; this leaves the name as it is.
    return Path(os.path.expanduser(words[0]))


def typed_place(command: str, text: str) -> Path:
    """The file that a chat is to be saved in: no folder is made for what may be a slip. Raises ConfigError."""
    path = typed_file(command, text)
    try:
        path.parent.stat()
    except FileNotFoundError:
        raise ConfigError(
            f"cannot save the chat to {path}: there is no folder {path.parent}.",
            hint="Make it first, or choose a folder you can write to.",
        ) from None
    except (OSError, ValueError):
        pass  # whoever writes there says what it is
    return path
