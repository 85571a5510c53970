"""SQL functions that end: replacements for those of SQLite that one step can keep busy for minutes.

SQLite asks its progress handler between steps only. Its own LIKE and GLOB take exponential time on patterns such
as %a%a%a%a, `instr`, `replace` and `trim` take length times length, and printf('%.*c', 2000000000, 'x') just counts.
"""

from __future__ import annotations

import fnmatch
import functools
import re
import sqlite3

MAX_LENGTH = 1024 * 1024

Value = str | bytes | int | float | None

_CONVERSION = re.compile(r"%(?:%|[-+ 0#,]{0,3}\d{0,3}(?:\.\d{0,3})?[diufeEgGxXosc])")


def install(connection: sqlite3.Connection) -> None:
    """Puts the replacements into a connection."""
    for name, arguments, function in (
        ("like", 2, like),
        ("like", 3, like),
        ("glob", 2, glob),
        ("instr", 2, instr),
        ("replace", 3, replace),
        ("printf", -1, printf),
        ("format", -1, printf),
        *(
            (name, count, functools.partial(trim, name))
            for name in ("trim", "ltrim", "rtrim")
            for count in (1, 2)
        ),
    ):
        connection.create_function(name, arguments, function, deterministic=True)


def like(pattern: Value, value: Value, escape: Value = "") -> bool | None:
    """SQL LIKE, ignoring case, of all letters instead of ASCII's only."""
    if pattern is None or value is None or escape is None:
        return None
    return _like_pattern(_text(pattern), _text(escape)).match(_text(value)) is not None


def glob(pattern: Value, value: Value) -> bool | None:
    """SQLite's GLOB."""
    if pattern is None or value is None:
        return None
    return _glob_pattern(_text(pattern)).match(_text(value)) is not None


# fnmatch's translation never goes back over a wildcard once what follows it has been found.
@functools.lru_cache(maxsize=64)
def _like_pattern(pattern: str, escape: str) -> re.Pattern[str]:
    parts: list[str] = []
    characters = iter(pattern)
    for character in characters:
        if character == escape:
            character = next(characters, "")
            parts.append(f"[{character}]" if character in {"*", "?", "["} else character)
        else:
            parts.append({"%": "*", "_": "?", "*": "[*]", "?": "[?]", "[": "[[]"}.get(character, character))
    return re.compile(fnmatch.translate("".join(parts)), re.IGNORECASE)


@functools.lru_cache(maxsize=64)
def _glob_pattern(pattern: str) -> re.Pattern[str]:
    # In SQLite a set is negated by ^; a leading ! is a plain character.
    return re.compile(fnmatch.translate(pattern.replace("[!", "[\\!").replace("[^", "[!")))


def instr(value: Value, part: Value) -> int | None:
    """Place of `part` in `value`, from 1; 0 where it is not."""
    if value is None or part is None:
        return None
    if isinstance(value, bytes) and isinstance(part, bytes):
        return value.find(part) + 1
    return _text(value).find(_text(part)) + 1


def replace(value: Value, old: Value, new: Value) -> str | None:
    """`value` with each `old` replaced. Raises ValueError past SQLite's own limit of length."""
    if value is None or old is None or new is None:
        return None
    text, before, after = _text(value), _text(old), _text(new)
    if not before:
        return text
    if len(text) + text.count(before) * (len(after) - len(before)) > MAX_LENGTH:
        raise ValueError("too long")
    return text.replace(before, after)


def trim(name: str, value: Value, characters: Value = " ") -> str | None:
    """trim, ltrim or rtrim."""
    if value is None or characters is None:
        return None
    text, unwanted = _text(value), "".join(dict.fromkeys(_text(characters)))
    if name == "ltrim":
        return text.lstrip(unwanted) if unwanted else text
    if name == "rtrim":
        return text.rstrip(unwanted) if unwanted else text
    return text.strip(unwanted) if unwanted else text


def printf(*values: Value) -> str | None:
    """SQLite's printf for d i u f e g x o s c, widths and precisions of three digits. Raises ValueError."""
    if not values or values[0] is None:
        return None
    template, rest = _text(values[0]), iter(values[1:])
    if "%" in _CONVERSION.sub("", template):
        raise ValueError("unknown conversion")

    def convert(found: re.Match[str]) -> str:
        conversion = found[0]
        if conversion == "%%":
            return "%"
        kind, flags = conversion[-1], conversion[:-1]
        value = next(rest, None)
        if kind in "sc":
            text = "" if value is None else _text(value)
            # In SQL %c is the first character of a text.
            return f"{flags.replace(',', '')}s" % (text[:1] if kind == "c" else text)
        number = _number(value)
        if kind in "feEgG":
            return f"{flags.replace(',', '')}{kind}" % float(number)
        text = f"{flags.replace(',', '')}{'d' if kind == 'u' else kind}" % int(number)
        return f"{int(number):,}" if "," in flags else text

    return _CONVERSION.sub(convert, template)


def _number(value: Value) -> int | float:
    if isinstance(value, int | float):
        return value
    try:
        return float(_text(value)) if value is not None else 0
    except ValueError:
        return 0


def _text(value: Value) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return f"{value:.15g}" if isinstance(value, float) else str(value)
