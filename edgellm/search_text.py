"""Text as the index of chats searches it: scripts that are written without spaces are cut into characters.

FTS5's `unicode61` takes what stands between separators as a word, which a search finds by its beginning. A Chinese,
Japanese or Thai sentence would be one word; each of its characters is one here, and a searched text a phrase of them.
"""

from __future__ import annotations

import re

# A format character: unicode61 takes it as a separator, and it shows nowhere.
_CUT = "\u200b"
# Thai to Tibetan, Myanmar, Khmer, kana and its neighbours, Han with its extensions, halfwidth katakana.
_UNSPACED = re.compile(
    "([\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u312f\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff])"
)


def storable(text: str) -> str:
    """The text with `?` in the place of lone surrogates, which are no characters and which SQLite refuses."""
    return text.encode("utf-8", "replace").decode("utf-8")


def searchable(text: str) -> str:
    """The storable text with a cut on both sides of each such character."""
    return _UNSPACED.sub(f"{_CUT}\\1{_CUT}", storable(text).replace(_CUT, ""))


def readable(text: str) -> str:
    """A searchable text as it was, but for cuts that it had itself."""
    return text.replace(_CUT, "")


def terms(words: str) -> list[str]:
    """Each word as FTS5 takes it: in quotation marks, so that nothing in it is an operator, and by its beginning."""
    # For FTS5 a query ends at a NUL.
    words = words.replace("\0", " ")
    return [f'"{searchable(word).replace(chr(34), chr(34) * 2)}"*' for word in words.split()]
