"""Patterns of JSON Schemas as llguidance should be given them: what it writes then fits every reader's regex."""

from __future__ import annotations

# Rust's \d, \w and \s as llguidance reads them are ASCII's, or nearly; Python's, which check the result, are Unicode's.
# Inside [^...] the wider reading is the safe one; it also leaves out control characters, because of which llguidance
# 1.9 keeps a quote or backslash out that it would else let through in its escaped form.
_WIDE = {"d": r"\d\p{Nd}", "w": r"\w\p{L}\p{N}", "s": r"\s\x00-\x1f\x85"}
_CONTROL = r"\x00"


def portable_pattern(pattern: str) -> str:
    """A pattern whose matches also match the original, be it read as JSON Schema's ECMA-262 or as Python's."""
    out: list[str] = []
    at = 0
    while at < len(pattern):
        char = pattern[at]
        if char == "\\":
            out.append(_escape(pattern[at : at + 2]))
            at += 2
        elif char == "[":
            text, at = _class(pattern, at)
            out.append(text)
        else:
            out.append(char)
            at += 1
    return "".join(out)


def _escape(text: str) -> str:
    """\\D, \\W and \\S as classes; other text as it is."""
    wide = _WIDE.get(text[1:].lower()) if text in ("\\D", "\\W", "\\S") else None
    return f"[^{wide}{_CONTROL}]" if wide else text


def _class(pattern: str, start: int) -> tuple[str, int]:
    """The class that begins at `start`, rewritten, and the place after it."""
    at = start + 1
    is_negated = pattern[at : at + 1] == "^"
    at += is_negated
    members: list[str] = []
    is_changed = False
    if pattern[at : at + 1] in ("]", "-"):  # a first one stands for itself
        members.append("\\" + pattern[at])
        at += 1
    while at < len(pattern) and pattern[at] != "]":
        text = pattern[at : at + 2] if pattern[at] == "\\" else pattern[at]
        at += len(text)
        if is_negated:
            is_changed = is_changed or text in ('"', '\\"', "\\\\", "\\d", "\\w", "\\s")
            members.append(_WIDE.get(text[1:], text) if text[0] == "\\" else text)
        else:
            members.append(_escape(text))
            is_changed = is_changed or members[-1] != text
    end = at + 1
    if not is_changed or at >= len(pattern):  # one without an end: whoever reads it says so
        return pattern[start:end], end
    return f"[{'^' + _CONTROL if is_negated else ''}{''.join(members)}]", end
