"""Sets of adapters as people name them: FILE, or FILE:SCALE."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edgellm.errors import ConfigError
from edgellm.models.adapter_file import adapter_kind, read_adapter
from edgellm.types import AdapterSet, ControlVector, LoraAdapter

if TYPE_CHECKING:
    from collections.abc import Sequence


def adapter_set(*names: str) -> AdapterSet:
    """The adapters that `FILE` and `FILE:SCALE` name, of either kind: the headers of the files say which they are.

    Raises ConfigError where one is missing or something else. Whether they fit a model is found when they are used.
    """
    lora = [name for name in names if adapter_kind(_scaled(name)[0]) == "LoRA adapter"]
    return adapters_of_kinds(lora, [name for name in names if name not in lora])


def adapters_of_kinds(lora: Sequence[str], control: Sequence[str]) -> AdapterSet:
    """The same, for files whose kind is said. Raises ConfigError where it is another."""
    chosen = AdapterSet(
        tuple(LoraAdapter(*_scaled(name)) for name in lora),
        tuple(ControlVector(*_scaled(name)) for name in control),
    )
    for one in chosen.lora:
        read_adapter(one.path, "LoRA adapter")
    for one in chosen.control:
        read_adapter(one.path, "control vector")
    return chosen


def _scaled(name: str) -> tuple[str, float]:
    """`FILE:SCALE` as (file, scale); where there is a file of the whole name, or no colon, that and 1."""
    path, colon, number = name.rpartition(":")
    if not colon or not path or Path(name).expanduser().exists():
        return name, 1.0
    try:
        return path, float(number)
    except ValueError:
        if "/" in number or "\\" in number:  # the colon is one of the path's, behind a drive's letter, say
            return name, 1.0
        raise ConfigError(
            f"the scale {number!r} of {path} is no number.", hint="Write, for example, FILE:0.5."
        ) from None
