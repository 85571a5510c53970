"""Does the tape say what the template would have said? The tape against a full render of the conversation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from edgellm.types import SpanKind

_AROUND = 24
_WORDS = {
    SpanKind.SYSTEM: "the system turn",
    SpanKind.USER: "a user turn",
    SpanKind.TEXT: "the model's text",
    SpanKind.REASONING: "the model's reasoning",
    SpanKind.TOOL_CALL: "a call as the model wrote it",
    SpanKind.TOOL_RESULT: "a tool's result",
    SpanKind.GLUE: "the template's own text",
    SpanKind.PROMPT: "the prompt",
}


@dataclass(frozen=True, slots=True)
class Exactness:
    """How a tape compares with a full render.

    "exact": the same tokens. "equivalent": the same text but for white space (other tokens, other spacing of JSON).
    "diverges": they differ from token `position` on, and `reason` says in what.
    """

    verdict: Literal["exact", "equivalent", "diverges"]
    position: int | None = None
    reason: str = ""

    def __str__(self) -> str:
        if self.verdict == "diverges":
            return f"diverges at token {self.position} because {self.reason}"
        return self.verdict + (f" ({self.reason})" if self.reason else "")


def compare(
    tape: Sequence[int],
    kinds: Sequence[SpanKind],
    rendered: Sequence[int],
    text_of: Callable[[Sequence[int]], bytes],
) -> Exactness:
    """tape: the tokens that were decoded, with the owner of each in `kinds`; rendered: those of a full render.

    `text_of` gives the bytes of tokens, those of special tokens spelled.
    """
    if list(tape) == list(rendered):
        return Exactness("exact")
    place = next(
        (at for at, (ours, theirs) in enumerate(zip(tape, rendered, strict=False)) if ours != theirs),
        min(len(tape), len(rendered)),
    )
    ours, theirs = text_of(tape), text_of(rendered)
    if ours == theirs:
        return Exactness("equivalent", place, "the same text in other tokens")
    if b"".join(ours.split()) == b"".join(theirs.split()):
        return Exactness("equivalent", place, "the same but for white space")
    owner = _WORDS[kinds[place]] if place < len(kinds) else "the tape's end"
    here, there = (
        _shown(text_of(tape[place : place + _AROUND])),
        _shown(text_of(rendered[place : place + _AROUND])),
    )
    if place < len(kinds) and kinds[place] == SpanKind.REASONING:
        return Exactness("diverges", place, f"the template drops or moves earlier reasoning ({here})")
    return Exactness("diverges", place, f"in {owner} the tape has {here} and the template {there}")


def compare_texts(tape: str, rendered: str) -> Exactness:
    """The same for texts: `position` counts characters."""
    if tape == rendered:
        return Exactness("exact")
    place = next(
        (at for at, (ours, theirs) in enumerate(zip(tape, rendered, strict=False)) if ours != theirs),
        min(len(tape), len(rendered)),
    )
    if "".join(tape.split()) == "".join(rendered.split()):
        return Exactness("equivalent", place, "the same but for white space")
    here, there = _shown(tape[place : place + 40].encode()), _shown(rendered[place : place + 40].encode())
    return Exactness("diverges", place, f"the tape has {here} and the template {there}")


def _shown(text: bytes) -> str:
    words = text.decode("utf-8", "replace")
    return repr(words[:40] + ("…" if len(words) > 40 else ""))
