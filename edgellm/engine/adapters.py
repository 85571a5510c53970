"""The adapters of a model: each file is read once and kept, and sets of them are made ready for the context."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from edgellm.models.adapter_file import check_use, read_adapter, read_directions
from edgellm.native.overlay import PLAIN, AdapterPart, Overlay, key_of, load_lora, set_of
from edgellm.types import AdapterSet, ControlVector, LoraAdapter

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from edgellm.models.adapter_file import AdapterFile
    from edgellm.native.model import Model


class Adapters:
    """Makes overlays for one model. `default` is the set of sessions that name none.

    Raises ConfigError for files that are missing or do not fit the model.
    """

    def __init__(self, model: Model, default: AdapterSet) -> None:
        self._model = model
        # By path, time and size: a file that was written anew is read anew.
        self._digests: dict[tuple[Path, int, int], str] = {}
        self._values: dict[str, Any] = {}  # Any: a LoRA's opaque pointer, or a control vector's rows
        # A slider over scales makes many sets: those that no session uses any more are forgotten.
        self._overlays: WeakValueDictionary[str, Overlay] = WeakValueDictionary()
        self.default = self.overlay(default)

    def overlay(self, chosen: AdapterSet | None) -> Overlay:
        """The set, ready for the context: equal sets give the same object. None is the default.

        The same file twice counts with the sum of its scales; what has scale 0 is left out. Not while the model
        decodes: a LoRA that is new is loaded beside its weights. Raises ConfigError.
        """
        if chosen is None:
            return self.default
        parts: dict[Any, AdapterPart] = {}
        for one in (*chosen.lora, *chosen.control):
            check_use(one, self._model.n_layer)
            part = self._lora(one) if isinstance(one, LoraAdapter) else self._control(one)
            known = parts.get(part.what)
            parts[part.what] = replace(part, scale=part.scale + known.scale) if known else part
        # In an order that does not depend on how they were listed: sums are the same to the last bit.
        in_order = tuple(sorted((p for p in parts.values() if p.scale), key=lambda part: part.what))
        if not in_order:
            return PLAIN
        key = key_of(in_order)
        overlay = self._overlays.get(key)
        if overlay is None:
            lora = [(self._values[p.digest], p.scale) for p in in_order if p.kind == "LoRA adapter"]
            overlay = Overlay(in_order, set_of(in_order), tuple(lora), self._directions(in_order))
            self._overlays[key] = overlay
        return overlay

    def _lora(self, one: LoraAdapter) -> AdapterPart:
        file = read_adapter(one.path, "LoRA adapter")
        file.check_architecture(self._architecture)
        digest = self._digest(file)
        if digest not in self._values:
            self._values[digest] = load_lora(self._model, file.path)
        return AdapterPart("LoRA adapter", str(file.path), digest, one.scale)

    def _control(self, one: ControlVector) -> AdapterPart:
        file = read_adapter(one.path, "control vector")
        file.check_architecture(self._architecture)
        digest = self._digest(file)
        if digest not in self._values:
            self._values[digest] = read_directions(file, self._model.n_layer, self._model.n_embd)
        return AdapterPart(
            "control vector",
            str(file.path),
            digest,
            one.scale,
            one.first_layer,
            one.last_layer or self._model.n_layer - 1,
        )

    def _directions(self, parts: tuple[AdapterPart, ...]) -> NDArray[np.float32] | None:
        """The sum of the control vectors, float32 (n_layer, n_embd); None where there is none."""
        total: NDArray[np.float32] | None = None
        for part in parts:
            if part.kind == "control vector":
                rows: NDArray[np.float32] = self._values[part.digest] * part.scale
                rows[: part.first_layer] = 0
                rows[part.last_layer + 1 :] = 0
                total = rows if total is None else total + rows
        return total

    def _digest(self, file: AdapterFile) -> str:
        status = file.path.stat()
        place = (file.path, status.st_mtime_ns, status.st_size)
        if place not in self._digests:
            self._digests[place] = file.digest()
        return self._digests[place]

    @property
    def _architecture(self) -> str:
        return self._model.metadata.get("general.architecture", "")
