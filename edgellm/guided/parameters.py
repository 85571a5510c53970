"""Parameters that can be looked at one by one: what a schema says elsewhere is brought to each of them."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from edgellm.toolbox.arguments import resolve

if TYPE_CHECKING:
    from edgellm.types import ToolSpec

_DEFINITIONS = ("$defs", "definitions")


def standing_alone(spec: ToolSpec) -> ToolSpec:
    """The tool with the schema of each parameter made whole: its reference followed, the definitions it uses beside it.

    `true` becomes {}. The same object where there is nothing to do.
    """
    root = spec.parameters
    properties: dict[str, Any] = root.get("properties", {})
    made = {name: _alone(schema, root) for name, schema in properties.items()}
    if all(made[name] is properties[name] for name in properties):
        return spec
    return replace(spec, parameters={**root, "properties": made})


def _alone(schema: Any, root: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(schema, dict):
        return {} if schema else {"not": {}}
    known = cast("dict[str, Any]", schema)
    if '"$ref"' not in json.dumps(known):
        return known
    definitions = {key: root[key] for key in _DEFINITIONS if key in root}
    beside = {key: value for key, value in known.items() if key != "$ref"}
    return {**resolve(known, root), **beside, **definitions}
