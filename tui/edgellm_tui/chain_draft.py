"""A sampler chain while it is being changed: stages on and off, in order, with their arguments."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from edgellm import ChainSpec, SamplerError, StageSpec

if TYPE_CHECKING:
    from edgellm import Param, StageInfo

_MOST_UNDO = 100
_WIDEST = 1000.0


@dataclass(frozen=True, slots=True)
class Slot:
    """A stage of the draft. One that is off stays in the list and is left out of the chain."""

    spec: StageSpec
    is_on: bool = True


class ChainDraft:
    """Stages to change; `spec` is the chain they make. The stage that chooses the token is always the last one.

    Changes raise SamplerError and then leave the draft as it was; `undo` takes the last one back.
    """

    def __init__(self, spec: ChainSpec) -> None:
        self.slots: tuple[Slot, ...] = tuple(Slot(stage) for stage in spec.stages)
        self._before: list[tuple[Slot, ...]] = []

    @property
    def spec(self) -> ChainSpec:
        """The chain of the stages that are on."""
        return ChainSpec(tuple(slot.spec for slot in self.slots if slot.is_on))

    @property
    def text(self) -> str:
        """The chain as one line."""
        return str(self.spec)

    def _take(self, slots: tuple[Slot, ...]) -> None:
        if slots != self.slots:
            self._before = [*self._before, self.slots][-_MOST_UNDO:]
            self.slots = slots

    def undo(self) -> bool:
        """Takes the last change back; False: there was none."""
        if not self._before:
            return False
        self.slots = self._before.pop()
        return True

    def load(self, spec: ChainSpec) -> None:
        """Begins with another chain."""
        self._take(tuple(Slot(stage) for stage in spec.stages))

    def add(self, info: StageInfo, at: int) -> int:
        """Puts a stage at a place; gives where it stands. One that chooses takes the place of the last."""
        spec = _stage(info)
        slots = list(self.slots)
        if info.chooses:
            slots[-1] = Slot(spec)
            self._take(tuple(slots))
            return len(slots) - 1
        at = max(0, min(at, len(slots) - 1))
        slots.insert(at, Slot(spec))
        self._take(tuple(slots))
        return at

    def remove(self, at: int) -> None:
        """Takes a stage out. What chooses the token stays."""
        if self.slots[at].spec.info.chooses:
            raise SamplerError(
                "something has to choose the token.",
                hint="Add another stage that chooses: it takes this place.",
            )
        self._take(self.slots[:at] + self.slots[at + 1 :])

    def move(self, at: int, by: int) -> int:
        """Moves a stage; gives where it stands then."""
        to = at + by
        if not 0 <= to < len(self.slots) - 1 or self.slots[at].spec.info.chooses:
            return at
        slots = list(self.slots)
        slots.insert(to, slots.pop(at))
        self._take(tuple(slots))
        return to

    def toggle(self, at: int) -> None:
        """Leaves a stage out, or takes it in again."""
        slot = self.slots[at]
        if slot.spec.info.chooses:
            raise SamplerError("something has to choose the token.", hint="Add another stage that chooses.")
        self._put(at, replace(slot, is_on=not slot.is_on))

    def _put(self, at: int, slot: Slot) -> None:
        self._take((*self.slots[:at], slot, *self.slots[at + 1 :]))

    def set(self, at: int, name: str, value: Any) -> None:
        """Gives an argument another value."""
        # Any: an argument of any type; the stage's table checks it.
        slot = self.slots[at]
        self._put(at, replace(slot, spec=slot.spec.with_arg(name, value)))

    def type(self, at: int, name: str, text: str) -> None:
        """Gives an argument the value that a text spells, as a chain's line would."""
        spec = self.slots[at].spec
        param = spec.info.param(name)
        text = text.strip()
        if param is not None and param.kind == "str" and text[:1] not in ("'", '"'):
            text = repr(text)
        self.set(at, name, _read(spec, name, text))

    def nudge(self, at: int, name: str, by: int) -> None:
        """Moves a number by steps, within its range; turns a truth value around."""
        spec = self.slots[at].spec
        param = spec.info.param(name)
        if param is None:
            return
        value = spec.complete_args[name]
        if param.kind == "bool":
            self.set(at, name, not value)
        elif param.kind in ("int", "float"):
            self.set(at, name, stepped(param, value, by))


def _stage(info: StageInfo) -> StageSpec:
    needed = {
        "bias": {},
        "strings": (),
        "floats": (),
        "ints": (),
        "str": "",
        "int": 0,
        "float": 0.0,
        "bool": False,
    }
    args = tuple((param.name, needed.get(param.kind)) for param in info.params if param.is_required)
    return StageSpec(info.name, args, info)


def _read(spec: StageSpec, name: str, text: str) -> Any:
    """The value that a text spells as this argument. Raises SamplerError."""
    # Any: a literal of the chain syntax.
    others = tuple((key, value) for key, value in spec.args if key != name)
    written = str(StageSpec(spec.name, others, spec.info)).removesuffix(")")
    line = f"{written}{', ' if others else '('}{name}={text})"
    return dict(ChainSpec.parse(line).stages[0].args)[name]


def stepped(param: Param, value: Any, by: int) -> Any:
    """A number `by` steps further: fine where the range is narrow, a twentieth of the value where it is wide."""
    # Any: int, float or None.
    low, high = param.low, param.high
    if param.kind == "int":
        now = int(value if value is not None else max(0, low if low != -math.inf else 0))
        step = max(1, abs(now) // 20)
        return int(max(low, min(high, now + by * step)))
    now = float(value if value is not None else 0.0)
    step = 0.01 if high - low <= 1 else 0.05
    moved = round(now + by * step, 4)
    low = low + step if param.is_low_open else low
    high = high - step if param.is_high_open else high
    return float(max(low, min(high, moved)))


def share(param: Param, value: Any) -> float | None:
    """Where a number stands in its range, 0 to 1; open or very wide ranges are shown up to twice the default."""
    # Any: an argument of any type.
    if param.kind not in ("int", "float") or value is None:
        return None
    low = param.low if param.low > -_WIDEST else 0.0
    high = (
        param.high if param.high - low <= 2 else max(2.0 * float(param.default or 1), low + 1, float(value))
    )
    return max(0.0, min(1.0, (float(value) - low) / (high - low)))
