"""Where edgellm keeps what is neither model nor setting: chats, history, errors; and what it can work out anew."""

from __future__ import annotations

import os
from pathlib import Path


def state_dir() -> Path:
    """EDGELLM_STATE_DIR, else EDGELLM_HOME/state, else the user's state folder. It may not exist."""
    if chosen := os.environ.get("EDGELLM_STATE_DIR"):
        return Path(chosen).expanduser()
    if home := os.environ.get("EDGELLM_HOME"):
        return Path(home).expanduser() / "state"
    import platformdirs

    return Path(platformdirs.user_state_dir("edgellm", appauthor=False))


def cache_dir() -> Path:
    """EDGELLM_HOME/cache, else the user's cache folder for edgellm. It may not exist, and may be emptied any time."""
    if home := os.environ.get("EDGELLM_HOME"):
        return Path(home).expanduser() / "cache"
    import platformdirs

    return Path(platformdirs.user_cache_dir("edgellm", appauthor=False))


def private_dir(folder: Path) -> Path:
    """The folder, made if need be, for the user alone. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder
