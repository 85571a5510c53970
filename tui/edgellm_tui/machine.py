"""What the system says of this process and board: memory, load, clock, heat. Reads /proc and /sys; no commands run."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

_THROTTLE_FILES = (
    "sys/devices/platform/soc/soc:firmware/get_throttled",
    "sys/class/hwmon/hwmon0/device/get_throttled",
)
# Bits of the Raspberry Pi's firmware word (raspberrypi.com, os documentation, get_throttled).
_THROTTLE_BITS = {0: "under-voltage", 1: "clock capped", 2: "throttled", 3: "near the heat limit"}


@dataclass(frozen=True, slots=True)
class Machine:
    """Bytes, hertz, degrees Celsius; None where the system does not say. `throttled`: what holds it back, in words."""

    rss_bytes: int | None = None
    available_bytes: int | None = None
    swap_used_bytes: int | None = None
    cores: int = 1
    load: float | None = None
    clock_hz: int | None = None
    clock_most_hz: int | None = None
    heat_c: float | None = None
    throttled: tuple[str, ...] = ()


def read_machine(root: Path = Path("/"), *, cores: int | None = None, load: float | None = None) -> Machine:
    """How it is now. `root` is where proc/ and sys/ are; `cores` and `load` stand in for the system's own."""
    status = _table(root / "proc/self/status")
    memory = _table(root / "proc/meminfo")
    swap = memory.get("SwapTotal"), memory.get("SwapFree")
    clocks = [
        _number(path) for path in sorted(root.glob("sys/devices/system/cpu/cpu*/cpufreq/scaling_cur_freq"))
    ]
    most = [
        _number(path) for path in sorted(root.glob("sys/devices/system/cpu/cpu*/cpufreq/cpuinfo_max_freq"))
    ]
    heats = [_number(path) for path in sorted(root.glob("sys/class/thermal/thermal_zone*/temp"))]
    known = [heat for heat in heats if heat is not None]
    return Machine(
        rss_bytes=status.get("VmRSS"),
        available_bytes=memory.get("MemAvailable"),
        swap_used_bytes=swap[0] - swap[1] if swap[0] is not None and swap[1] is not None else None,
        cores=cores or _cores(),
        load=load if load is not None else _load(),
        clock_hz=_kilo(clocks),
        clock_most_hz=_kilo(most),
        heat_c=max(known) / 1000 if known else None,
        throttled=_throttled(root),
    )


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _load() -> float | None:
    try:
        return os.getloadavg()[0]
    except (OSError, AttributeError):
        return None


def _kilo(values: list[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return 1000 * max(known) if known else None


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="ascii", errors="replace").strip(), 0)
    except (OSError, ValueError):
        return None


def _table(path: Path) -> dict[str, int]:
    """Lines such as `VmRSS:   1234 kB`, in bytes."""
    found: dict[str, int] = {}
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return found
    for line in lines:
        name, _, rest = line.partition(":")
        words = rest.split()
        if len(words) == 2 and words[1] == "kB" and words[0].isdigit():
            found[name] = 1024 * int(words[0])
    return found


def _throttled(root: Path) -> tuple[str, ...]:
    for name in _THROTTLE_FILES:
        try:
            word = int((root / name).read_text(encoding="ascii", errors="replace").strip(), 16)
        except (OSError, ValueError):
            continue
        return tuple(text for bit, text in _THROTTLE_BITS.items() if word >> bit & 1)
    return ()
