"""A chat as a file for others to read: Markdown, JSON, or HTML coloured by probability."""

from __future__ import annotations

import dataclasses
import html
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import edgellm
from edgellm import ConfigError, SpanKind
from edgellm_tui.plain import visible
from edgellm_tui.token_text import MARKS_LEGEND, mark, probability, token_text
from edgellm_tui.trace_file import as_trace

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from edgellm import Message, Span, Step
    from edgellm_tui.transcript import Transcript

KINDS = {"md": "Markdown", "json": "JSON", "html": "HTML", "jsonl": "How its tokens were drawn"}
_TOP_ROWS = 5
_GONE = "no longer in the context"
_WRITTEN_BY_MODEL = (SpanKind.TEXT, SpanKind.REASONING, SpanKind.TOOL_CALL)
_CSS = """\
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 46rem; margin: 2rem auto; padding: 0 1rem; }
section { white-space: pre-wrap; overflow-wrap: anywhere; margin: 1rem 0; }
section::before { content: attr(data-kind); display: block; font-size: .75rem; opacity: .7; }
.user { font-weight: 600; }
.tool_call, .tool_result, .reasoning { font-family: ui-monospace, monospace; font-size: .9rem; opacity: .9; }
.gone { opacity: .7; }
.p1 { background: #ffd54f55; } .p2 { background: #ff8a6566; } .p3 { background: #e5393577; }
sup { font-size: .65em; opacity: .8; }
"""


def export_path(title: str, kind: str, given: str = "") -> Path:
    """Where an export goes: the file that was named, else a new one named after the chat, in the working folder."""
    if given:
        return Path(given).expanduser()
    stem = re.sub(r"[^A-Za-z0-9]+", "-", title).strip("-").lower()[:40] or "chat"
    names = (f"{stem}{'' if number == 1 else f'-{number}'}.{kind}" for number in range(1, 1000))
    return Path(next((name for name in names if not Path(name).exists()), f"{stem}.{kind}"))


def export_kind(words: str) -> tuple[str, str]:
    """("md", file) of what stands behind /export: a kind, a file, both or nothing. Raises ConfigError."""
    first, _, rest = words.partition(" ")
    first = {"markdown": "md", "htm": "html"}.get(first.lower(), first)
    if first in KINDS:
        return first, rest.strip()
    if not words:
        return "md", ""
    kind = {"markdown": "md", "htm": "html"}.get(
        Path(words).suffix[1:].lower(), Path(words).suffix[1:].lower()
    )
    if kind in KINDS:
        return kind, words
    raise ConfigError(
        f"/export {words[:60]}: that is no kind of file it knows.",
        hint="Write /export md, json, html or jsonl, with or without a file's name behind it.",
    )


def write_export(path: Path, text: str) -> Path:
    """Writes the file, beside first; gives it. Raises ConfigError."""
    beside = path.with_name(path.name + ".new")
    try:
        beside.write_text(text, encoding="utf-8")
        beside.replace(path)
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be written: {error.strerror}.", hint="Name another file behind /export."
        ) from None
    return path


def exported(
    kind: str, title: str, model: str, chat: Any, transcript: Transcript, steps: Mapping[int, Step]
) -> str:
    """The chat in one of KINDS, with what is no longer in its context marked as such.

    `steps` are the drawn tokens that are known, by tape position.
    """
    # Any: a Chat, or what plays one in tests.
    if kind == "json":
        return as_json(title, model, chat, transcript, steps)
    if kind == "jsonl":
        return as_trace(steps.values(), chat.runtime.vocabulary.piece)
    if kind == "html":
        return as_html(title, model, chat, transcript, steps)
    return as_markdown(title, model, transcript)


def as_markdown(title: str, model: str, transcript: Transcript) -> str:
    """The messages under headings; calls and results in fences."""
    parts = [f"# {title or 'A chat'}", f"{model}, edgellm {edgellm.__version__}"]
    for place, message in enumerate(transcript.messages):
        told = f" ({_GONE})" if place in transcript.gone else ""
        if message.role == "tool":
            parts.append(f"Result of {message.name}{told}:\n\n{_fenced(message.content)}")
            continue
        parts.append(f"## {message.role.capitalize()}{told}")
        if message.reasoning.strip():
            parts.append("> " + "\n> ".join(message.reasoning.strip().split("\n")))
        if message.content.strip():
            parts.append(message.content.strip())
        for call in message.tool_calls:
            arguments = json.dumps(call.arguments, ensure_ascii=False, indent=1)
            parts.append(f"Call of {call.name}:\n\n{_fenced(arguments, 'json')}")
    return "\n\n".join(parts) + "\n"


def _fenced(text: str, language: str = "") -> str:
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}{language}\n{text}\n{fence}"


def as_json(title: str, model: str, chat: Any, transcript: Transcript, steps: Mapping[int, Step]) -> str:
    """Messages, each with whether it is in the context, and every token of the tape with its owner.

    Drawn ones have their probability and the rows on top.
    """
    piece = chat.runtime.vocabulary.piece
    tokens: list[dict[str, Any]] = []
    for position, token, kind in _tape(chat):
        record: dict[str, Any] = {
            "position": position,
            "id": token,
            "text": piece(token).decode("utf-8", "backslashreplace"),
            "kind": kind.value,
        }
        step = steps.get(position)
        if step is not None and step.token == token:
            record |= {"p": _rounded(probability(step)), "is_forced": step.is_forced}
            record["top"] = [
                [other.decode("utf-8", "backslashreplace"), _rounded(p)] for other, p in _top(step, piece)
            ]
        tokens.append(record)
    whole = {
        "edgellm": edgellm.__version__,
        "title": title,
        "model": model,
        "sampler": str(chat.chain.spec),
        "messages": [
            dataclasses.asdict(message) | {"is_in_context": place not in transcript.gone}
            for place, message in enumerate(transcript.messages)
        ],
        "tokens": tokens,
    }
    return json.dumps(whole, ensure_ascii=False, indent=1) + "\n"


def as_html(title: str, model: str, chat: Any, transcript: Transcript, steps: Mapping[int, Step]) -> str:
    """A page: each token the model drew is shaded by its probability, with a mark behind it, and tells its rivals.

    What is no longer in the context stands first.
    """
    piece = chat.runtime.vocabulary.piece
    parts = [_gone_section(transcript.messages[place]) for place in sorted(transcript.gone)]
    for span in _spoken(chat, piece):
        tokens = [(at, chat.tape[at]) for at in range(span.start, span.end)]
        if span.kind in _WRITTEN_BY_MODEL:
            body = "".join(_spans(tokens, steps, piece))
        else:
            text = b"".join(piece(token) for _, token in tokens).decode("utf-8", "backslashreplace")
            body = html.escape(visible(text))
        kind = html.escape(span.kind.value)
        parts.append(f'<section class="{kind}" data-kind="{kind.replace("_", " ")}">{body}</section>')
    name = html.escape(visible(title or "A chat"))
    return (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{name}</title>\n<style>\n{_CSS}</style>\n'
        f"<h1>{name}</h1>\n<p>{html.escape(model)}, edgellm {edgellm.__version__}. Shades and marks: "
        f"{html.escape(MARKS_LEGEND)}; no mark: the model was sure, or nothing was drawn.</p>\n"
        + "\n".join(parts)
        + "\n</html>\n"
    )


def _gone_section(message: Message) -> str:
    calls = [f"{call.name} {json.dumps(call.arguments, ensure_ascii=False)}" for call in message.tool_calls]
    text = "\n\n".join(filter(None, [message.reasoning.strip(), message.content.strip(), *calls]))
    kind = {"assistant": "answer", "tool": "tool result"}.get(message.role, message.role)
    return f'<section class="gone" data-kind="{kind}, {_GONE}">{html.escape(visible(text))}</section>'


def _spans(tokens: Iterable[tuple[int, int]], steps: Mapping[int, Step], piece: Any) -> Iterator[str]:
    pending = b""
    for position, token in tokens:
        # A character may be spread over several tokens: it is shown with the last of them.
        pending += piece(token)
        try:
            text, pending = pending.decode("utf-8"), b""
        except UnicodeDecodeError:
            if len(pending) < 4:
                continue
            text, pending = pending.decode("utf-8", "backslashreplace"), b""
        step = steps.get(position)
        shown = html.escape(visible(text))
        p = probability(step) if step is not None and step.token == token else None
        doubt = mark(p)
        if step is None or p is None:
            yield shown
            continue
        rivals = ", ".join(f"'{token_text(other)}' {share:.3f}" for other, share in _top(step, piece))
        told = html.escape(visible(f"p {p:.3f}; {rivals}" if rivals else f"p {p:.3f}"), quote=True)
        shade = f' class="p{" -=*".index(doubt)}"' if doubt != " " else ""
        behind = f"<sup>{doubt}</sup>" if doubt != " " else ""
        yield f'<span{shade} title="{told}">{shown}{behind}</span>'
    if pending:
        yield html.escape(visible(pending.decode("utf-8", "backslashreplace")))


def _spoken(chat: Any, piece: Any) -> list[Span]:
    """The spans of the conversation: from the first thing that was said, behind any worked examples for the model."""
    spans = [span for span in chat.spans if span.kind != SpanKind.GLUE]
    first = next((message.content for message in chat.messages if message.role == "user"), "")
    for index, span in enumerate(spans):
        if span.kind == SpanKind.USER:
            text = b"".join(map(piece, chat.tape[span.start : span.end])).decode("utf-8", "replace")
            if text.strip() == first.strip():
                return spans[index:]
    return spans


def _tape(chat: Any) -> Iterator[tuple[int, int, SpanKind]]:
    tape = chat.tape
    for span in chat.spans:
        for position in range(span.start, span.end):
            yield position, tape[position], span.kind


def _top(step: Step, piece: Any) -> list[tuple[bytes, float]]:
    """The most probable rows before any stage."""
    if step.distribution is None:
        return []
    raw = step.distribution.raw
    rows = zip(raw.ids[:_TOP_ROWS], raw.probs[:_TOP_ROWS], strict=True)
    return [(piece(int(token)), float(p)) for token, p in rows]


def _rounded(p: float | None) -> float | None:
    return None if p is None else round(p, 6)
