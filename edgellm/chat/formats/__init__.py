"""Wire formats, one small file a family, and the choice among them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from edgellm.chat.formats.generic import Generic
from edgellm.chat.formats.hermes import Hermes
from edgellm.chat.formats.wire import Marks, WireFormat
from edgellm.errors import ConfigError

__all__ = ["FORMATS", "Marks", "WireFormat", "choose_format"]

FORMATS: Mapping[str, type[WireFormat]] = {format_.id: format_ for format_ in (Hermes, Generic)}

# Inside the same marks these families write something else than a JSON object.
_OTHER_SYNTAX = (
    "<function=",
    "<function name=",
    "<arg_key>",
    "<invoke name=",
    f"{Hermes.marks.call_open[0]}[",
)


def choose_format(
    template_source: str, special_tokens: Collection[str] = (), override: str | None = None
) -> WireFormat:
    """The wire format for a model, by its template's own words; `.reason` says why.

    `special_tokens` are the spellings of the vocabulary's special tokens. `override` is a format's id, or
    "auto". Raises ConfigError for an unknown id.
    """
    is_thinking = Hermes.marks.reasoning_open in template_source
    if override and override != "auto":
        if override not in FORMATS:
            known = ", ".join(sorted(FORMATS))
            raise ConfigError(
                f"chat format {override!r} is unknown.", hint=f"Known formats: {known}; or auto."
            )
        return replace(FORMATS[override](), is_thinking=is_thinking, reason="it was asked for by name")
    mark = Hermes.marks.call_open[0]
    if mark in template_source and "tools" in template_source:
        other = next((text for text in _OTHER_SYNTAX if text in template_source), None)
        if other is None:
            return Hermes(is_thinking=is_thinking, reason=f"its template writes calls as JSON after {mark}")
        reason = f"its template writes calls in a syntax of its own ({other!r}) that has no format here yet"
    elif "tools" in template_source:
        reason = f"its template takes tools, but writes calls without {mark}"
    elif mark in special_tokens:
        reason = f"its template knows nothing of tools, though the vocabulary has {mark}"
    else:
        reason = "its template knows nothing of tools"
    return Generic(is_thinking=is_thinking, reason=reason)
