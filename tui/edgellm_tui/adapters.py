"""The LoRA adapters and control vectors of the current branch, and those that could be put on it again."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgellm import AdapterSet, ConfigError, ControlVector, LoraAdapter, adapter_set

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from edgellm_tui.strand import Strand
    from edgellm_tui.talk import Talk

_SCALE_DIGITS = 3


@dataclass(frozen=True, slots=True)
class Entry:
    """An adapter with its scale, and whether the current branch decodes with it."""

    adapter: LoraAdapter | ControlVector
    is_used: bool

    @property
    def kind(self) -> str:
        """In words."""
        return "LoRA adapter" if isinstance(self.adapter, LoraAdapter) else "control vector"

    @property
    def name(self) -> str:
        """The file's name."""
        return Path(self.adapter.path).name


class Adapters:
    """What was loaded for this model since the app began, and what the current branch uses of it.

    Files stay loaded when they are taken off: putting one on again does not read it. Methods that change something
    raise ConfigError where there is no chat or an answer is being written; `failed` gets what the engine finds wrong.
    """

    def __init__(self, talk: Talk) -> None:
        self._talk = talk
        # By file and layers, whatever the scale.
        self._known: dict[LoraAdapter | ControlVector, LoraAdapter | ControlVector] = {}
        # Any: a Runtime, or what plays one in tests; those that are known were loaded for it.
        self._runtime: weakref.ref[Any] | None = None
        # What branches have been asked to use, until the engine has done it: keys may come quicker.
        self._wanted: dict[int, AdapterSet] = {}

    def entries(self) -> list[Entry]:
        """All of them, in the order in which they came."""
        talk, strand = self._talk, self._talk.current
        if self._runtime is None or self._runtime() is not talk.runtime:
            self._known.clear()
            self._runtime = weakref.ref(talk.runtime) if talk.runtime is not None else None
        wanted = self._wanted.get(strand.key)
        used = {_which(one): one for one in _listed(wanted if wanted is not None else self._set_of(strand))}
        if wanted is None:
            self._known.update(used)
        return [Entry(one, which in used) for which, one in {**self._known, **used}.items()]

    def used(self) -> list[Entry]:
        """Those that the current branch decodes with."""
        return [entry for entry in self.entries() if entry.is_used]

    @staticmethod
    def _set_of(strand: Strand) -> AdapterSet:
        return strand.chat.adapters if strand.chat is not None else AdapterSet()

    # -- changing -----------------------------------------------------------------------------------------

    def add(
        self, names: Sequence[str], then: Callable[[str], None], failed: Callable[[Exception], None]
    ) -> None:
        """Puts files on, each `FILE` or `FILE:SCALE`; one that is on already gets that scale."""
        added = _listed(adapter_set(*names))
        files = {_file(one) for one in added}
        stay = [entry.adapter for entry in self.used() if _file(entry.adapter) not in files]
        self._use([*stay, *added], then, failed)

    def set_scale(
        self, entry: Entry, scale: float, then: Callable[[str], None], failed: Callable[[Exception], None]
    ) -> None:
        """Goes on with another scale; 0 takes it off."""
        changed = replace(entry.adapter, scale=round(scale, _SCALE_DIGITS))
        which = _which(changed)
        chosen = {_which(one.adapter): one.adapter for one in self.entries() if one.is_used}
        chosen.pop(which, None) if not changed.scale else chosen.update({which: changed})
        self._use(list(chosen.values()), then, failed)

    def only(
        self, names: Sequence[str], then: Callable[[str], None], failed: Callable[[Exception], None]
    ) -> None:
        """Goes on with these files alone, none where there are none."""
        self._use(_listed(adapter_set(*names)), then, failed)

    def forget(self, entry: Entry) -> None:
        """Leaves one that is not in use out of the list."""
        self._known.pop(_which(entry.adapter), None)

    def _use(
        self,
        chosen: Sequence[LoraAdapter | ControlVector],
        then: Callable[[str], None],
        failed: Callable[[Exception], None],
    ) -> None:
        talk, strand = self._talk, self._talk.current
        if strand.chat is None:
            raise ConfigError("There is no chat yet.", hint="Wait for the model.")
        if talk.worker.is_busy:
            raise ConfigError("An answer is being written.", hint="Esc stops it.")
        wanted = AdapterSet(
            tuple(one for one in chosen if isinstance(one, LoraAdapter)),
            tuple(one for one in chosen if isinstance(one, ControlVector)),
        )
        # They are remembered before they are gone from the branch.
        self.entries()
        self._wanted[strand.key] = wanted

        def over() -> None:
            if self._wanted.get(strand.key) is wanted:
                del self._wanted[strand.key]

        def job() -> tuple[int, float | None]:
            lost = strand.chat.set_adapters(wanted)
            return lost, strand.chat.ledger().prefill_tok_s

        def done(found: tuple[int, float | None]) -> None:
            over()
            strand.is_written = False
            talk.kept.is_unsaved = True
            then(price_words(*found))

        def not_done(error: Exception) -> None:
            over()
            failed(error)

        talk.worker.submit(job, done, not_done)


def price_words(tokens: int, prefill_tok_s: float | None) -> str:
    """What a change costs: the memory was computed with the old set."""
    if not tokens:
        return "Nothing has to be computed again."
    price = f" (about {tokens / prefill_tok_s:.1f} s)" if prefill_tok_s else ""
    words = "1 token" if tokens == 1 else f"{tokens:,} tokens"
    return f"The next message computes {words} of this chat again{price}."


def entry_words(entry: Entry) -> str:
    """An adapter in a line: what it is, its scale, its file."""
    return f"{entry.kind} {entry.name}, scale {entry.adapter.scale:g}"


def _listed(chosen: AdapterSet) -> list[LoraAdapter | ControlVector]:
    return [*chosen.lora, *chosen.control]


def _which(one: LoraAdapter | ControlVector) -> LoraAdapter | ControlVector:
    return replace(one, scale=1.0)


def _file(one: LoraAdapter | ControlVector) -> Path:
    return Path(one.path).expanduser().absolute()
