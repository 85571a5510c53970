"""Wire formats, one small file a family, and the choice among them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from edgellm.chat.formats import (
    channels,
    code_families,
    json_families,
    named_families,
    nested_tags,
    tagged_families,
)
from edgellm.chat.formats.differential import Render, derive_format
from edgellm.chat.formats.generic import Generic
from edgellm.chat.formats.hermes import Hermes
from edgellm.chat.formats.json_families import MISTRAL_ARRAY
from edgellm.chat.formats.llama import LLAMA3_BUILTIN, LLAMA3_JSON
from edgellm.chat.formats.wire import Mark, Marks, WireFormat
from edgellm.errors import ConfigError

__all__ = ["FORMATS", "Mark", "Marks", "WireFormat", "choose_format"]

# In the order in which their signs are looked for: the first hit wins.
_ALL: tuple[WireFormat, ...] = (
    *channels.ALL,
    *nested_tags.ALL,
    *named_families.ALL[:-1],
    *tagged_families.ALL,
    named_families.FUNCTIONARY_31,
    *code_families.ALL,
    *json_families.ALL,
    LLAMA3_JSON,
    LLAMA3_BUILTIN,
    MISTRAL_ARRAY,
    Hermes(),
    Generic(),
)

FORMATS: Mapping[str, WireFormat] = {wire_format.id: wire_format for wire_format in _ALL}

# Other names that formats go by.
_ALIASES = {"muse": "muse-glimmer", "hammer": "xlam", "ling-3": "glm-4.5"}


def choose_format(
    template_source: str,
    special_tokens: Collection[str] = (),
    override: str | None = None,
    render: Render | None = None,
) -> WireFormat:
    """The wire format for a model, by its template's own words; `.reason` says why.

    `special_tokens` are the spellings of the vocabulary's special tokens. `override` is a format's id, or
    "auto". Where nothing in the template's text tells, `render` (the template's text for messages and tools) is asked:
    see `differential`. Raises ConfigError for an unknown id.
    """
    if override and override != "auto":
        override = _ALIASES.get(override, override)
        if override not in FORMATS:
            known = ", ".join(sorted(FORMATS))
            raise ConfigError(
                f"chat format {override!r} is unknown.", hint=f"Known formats: {known}; or auto."
            )
        return _fitted(FORMATS[override], template_source, "it was asked for by name")
    for wire_format in (*tagged_families.VARIANTS, *_ALL):
        for signs in wire_format.signs:
            if _has(template_source, signs):
                return _fitted(wire_format, template_source, f"its template has {_words(signs)}")
    for wire_format in _ALL:
        if wire_format.vocabulary_sign and wire_format.vocabulary_sign in special_tokens:
            reason = f"its template names no call, but its vocabulary has {wire_format.vocabulary_sign}"
            return _fitted(wire_format, template_source, reason)
    if render is not None and "tools" in template_source and (derived := derive_format(render)) is not None:
        opening = derived.marks.call_open[0] if derived.marks.call_open else "no mark"
        reason = f"rendering its template with and without calls shows them behind {opening!r}"
        return replace(derived, is_thinking=bool(derived.marks.reasoning_open), reason=reason)
    knows = (
        "takes tools, in a way that is not known" if "tools" in template_source else "knows nothing of tools"
    )
    return _fitted(FORMATS[Generic().id], template_source, f"its template {knows}")


def _fitted(wire_format: WireFormat, template_source: str, reason: str) -> WireFormat:
    opens = wire_format.marks.reasoning_open
    is_thinking = wire_format.is_thinking or (bool(opens) and opens in template_source)
    return replace(wire_format, is_thinking=is_thinking, reason=reason)


def _has(source: str, signs: tuple[str, ...]) -> bool:
    return all(sign[1:] not in source if sign.startswith("!") else sign in source for sign in signs)


def _words(signs: tuple[str, ...]) -> str:
    return " and ".join(repr(sign) for sign in signs if not sign.startswith("!"))
