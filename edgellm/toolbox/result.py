"""What a tool returned, as text that a model reads: short, capped, and honest about what was cut.

A str stays as it is; None is "ok" (or what the tool printed); a Path, and bytes (which are written to a
file), become a reference to the file; everything else is compact JSON.
"""

from __future__ import annotations

import itertools
import json
import math
import mimetypes
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path, PurePath
from typing import Any, cast

import msgspec

from edgellm.types import ToolResult

Truncate = Callable[[str, int], tuple[str, int]]
"""(text, max_tokens) -> (the text cut to that many tokens, tokens of the whole text)."""

# No tokenizer packs ordinary text this densely; text beyond it is cut before anybody counts tokens.
_MOST_CHARACTERS_PER_TOKEN = 16
_NOTICE_TOKENS = 24
# As long as a notice gets that says how to read on; how many tokens that is depends on the vocabulary.
LONG_NOTICE = "\n[cut: first 9999 of about 99999 tokens shown; to read on, call read_more with " + (
    '{"result": "r99", "start": 999999}]'
)
_MOST_ITEMS = 10_000
_MAGIC = (
    (b"\x89PNG\r\n", ".png"),
    (b"\xff\xd8\xff", ".jpg"),
    (b"GIF8", ".gif"),
    (b"%PDF", ".pdf"),
    (b"PK\x03\x04", ".zip"),
    (b"RIFF", ".wav"),
)


@dataclass(frozen=True, slots=True)
class Rendered:
    """A result as text: `text` may be its beginning only, `total_characters` counts all of `whole`."""

    text: str
    total_characters: int
    is_ok: bool = True
    whole: str = ""


def render(value: Any, *, max_tokens: int, files_dir: Path | None = None, printed: str = "") -> Rendered:
    """The value's text, cut to what `max_tokens` can hold at most. `printed` stands in for None.

    bytes are written to a new file in `files_dir` (default: the system's temporary folder). Raises OSError.
    """
    is_ok = True
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, ToolResult):
        text, is_ok = value.text, value.is_ok
    elif isinstance(value, str):
        text = value
    elif value is None:
        text = printed.strip() or "ok"
    elif isinstance(value, (bytes, bytearray, memoryview)):
        text = _reference(_written(bytes(value), files_dir))
    elif isinstance(value, PurePath):
        text = _reference(Path(value))
    elif isinstance(value, float) and not math.isfinite(value):
        text = str(value)
    else:
        text = _encoded(value)
    kept = text[: max_tokens * _MOST_CHARACTERS_PER_TOKEN]
    return Rendered(kept.encode("utf-8", "replace").decode("utf-8"), len(text), is_ok, text)


def cap(
    rendered: Rendered,
    max_tokens: int,
    truncate: Truncate | None = None,
    more: Callable[[int], str] | None = None,
) -> tuple[str, bool]:
    """(text, is_truncated): at most `max_tokens` tokens with the notice, or 4 characters a token uncounted.

    `more` gets how many characters are shown, and gives words for the notice: how to read on.
    """
    text, total_characters = rendered.text, rendered.total_characters
    if truncate is None:
        most = max_tokens * 4
        if total_characters <= most:
            return text, False
        shown = text[:most]
        on = more(len(shown)) if more is not None else ""
        return f"{shown}\n[cut: first {len(shown)} of {total_characters} characters shown{on}]", True
    is_cut = len(text) < total_characters
    _, total = truncate(text, max_tokens)
    if total <= max_tokens and not is_cut:
        return text, False
    notice = _NOTICE_TOKENS if more is None else truncate(LONG_NOTICE, max_tokens)[1]
    room = max(1, max_tokens - min(notice, max_tokens // 2))
    shown, _ = truncate(text, room)
    about = ""
    if is_cut:
        about, total = "about ", round(total * total_characters / max(1, len(text)))
    on = more(len(shown)) if more is not None else ""
    return f"{shown}\n[cut: first {min(room, total)} of {about}{total} tokens shown{on}]", True


def _encoded(value: Any) -> str:
    if isinstance(value, Iterable) and not isinstance(value, (Mapping, list, tuple, set, frozenset)):
        value = _plain(value)
    try:
        text = msgspec.json.encode(value, enc_hook=_plain).decode("utf-8")
        # A date is a string in JSON; alone it needs no quotes.
        return str(msgspec.json.decode(text)) if text.startswith('"') else text
    except (TypeError, ValueError, OverflowError, RecursionError, NotImplementedError):
        pass
    # msgspec refuses integers over 64 bits, lone surrogates and odd keys.
    try:
        return json.dumps(value, ensure_ascii=True, separators=(",", ":"), default=_plain)
    except (TypeError, ValueError, OverflowError, RecursionError):
        return str(value)


def _plain(value: Any) -> Any:
    if isinstance(value, PurePath):
        return str(value)
    for method, options in (("model_dump", {"mode": "json"}), ("tolist", {}), ("_asdict", {})):
        convert = getattr(value, method, None)
        if callable(convert) and not isinstance(value, type):
            return convert(**options)
    try:
        return msgspec.to_builtins(value)
    except (TypeError, ValueError, OverflowError):
        pass
    if isinstance(value, Iterable):
        return list(itertools.islice(cast("Iterable[Any]", value), _MOST_ITEMS))
    return str(value)


def _written(content: bytes, files_dir: Path | None) -> Path:
    suffix = next((suffix for magic, suffix in _MAGIC if content.startswith(magic)), "")
    if not suffix:
        suffix = ".bin" if b"\0" in content[:4096] else ".txt"
    if files_dir is not None:
        files_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle, name = tempfile.mkstemp(prefix="edgellm-", suffix=suffix, dir=files_dir)
    with os.fdopen(handle, "wb") as file:
        file.write(content)
    return Path(name)


def _reference(path: Path) -> str:
    try:
        if path.is_dir():
            return f"[folder {path}]"
        size = path.stat().st_size
    except OSError:
        return f"[path {path}, which does not exist]"
    kind = mimetypes.guess_type(path.name)[0] or "unknown type"
    return f"[file {path}, {size} bytes, {kind}]"
