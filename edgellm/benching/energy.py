"""Joules, where the machine has a meter: Intel's and AMD's RAPL counters, or a power sensor such as an INA."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from pathlib import Path

_ROOT = Path("/")
_SAMPLE_S = 0.05


def _read(file: Path) -> int | None:
    with suppress(OSError, ValueError):
        return int(file.read_text(encoding="ascii"))
    return None


class EnergyMeter:
    """Energy between `start` and `stop`; `is_there` false where nothing can be read (RAPL is often root's alone)."""

    def __init__(self, root: Path = _ROOT) -> None:
        packages = sorted((root / "sys/class/powercap").glob("*rapl:[0-9]"))
        self._counters = [zone for zone in packages if _read(zone / "energy_uj") is not None]
        self._sensors = [
            sensor
            for sensor in sorted((root / "sys/class/hwmon").glob("hwmon*/power1_input"))
            if _read(sensor) is not None
        ]
        self._before: list[int] = []
        self._joules = 0.0
        self._is_over = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def is_there(self) -> bool:
        """There is something to read."""
        return bool(self._counters or self._sensors)

    def start(self) -> None:
        """Begins to count."""
        self._before = [_read(zone / "energy_uj") or 0 for zone in self._counters]
        self._joules = 0.0
        if self._sensors and not self._counters:
            self._is_over.clear()
            self._thread = threading.Thread(target=self._sample, name="edgellm-energy", daemon=True)
            self._thread.start()

    def _sample(self) -> None:
        last = time.monotonic()
        while not self._is_over.wait(_SAMPLE_S):
            now = time.monotonic()
            # Sensors tell microwatts; the first is the board's input where there are several.
            self._joules += (_read(self._sensors[0]) or 0) / 1e6 * (now - last)
            last = now

    def stop(self) -> float:
        """Joules since `start`."""
        if self._thread is not None:
            self._is_over.set()
            self._thread.join()
            self._thread = None
        for zone, before in zip(self._counters, self._before, strict=True):
            used = (_read(zone / "energy_uj") or 0) - before
            if used < 0:  # the counter has gone round
                used += _read(zone / "max_energy_range_uj") or 0
            self._joules += used / 1e6
        return self._joules
