"""What this machine has to spare just now: memory, other programs' work, heat. Read from the system, never kept.

Linux tells most of it; elsewhere a figure is 0 or None, and nobody acts on it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_ROOT = Path("/")
_UNLIMITED = 1 << 60  # cgroup v1 writes "no limit" as a number near 2**63
_THROTTLED_NOW = (
    0b1111  # Raspberry Pi firmware: under-voltage, frequency capped, throttled, soft temperature limit
)
_TOOL_TIMEOUT_S = 2.0
IDLE_CORES = 0.35
"""Of a core: what a desktop does when nobody works on it."""


@dataclass(frozen=True, slots=True)
class MemoryInfo:
    """Bytes; 0 where the system does not say. `limit_bytes` is the cgroup's, where it is below the total.

    `room_bytes` is what this process can still take: what is available, within what its cgroups leave. 0 says that
    nothing is left, None that nobody knows.
    """

    total_bytes: int = 0
    available_bytes: int = 0
    limit_bytes: int = 0
    room_bytes: int | None = None


def usable_cores() -> int:
    """Cores this process may use (affinity mask where the system has one)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory(root: Path = _ROOT) -> MemoryInfo:
    """Memory of this machine as it is now. `root` stands in for / in tests."""
    total = available = 0
    try:
        for line in (root / "proc/meminfo").read_text(encoding="ascii").splitlines():
            name, _, rest = line.partition(":")
            if name == "MemTotal":
                total = int(rest.split()[0]) * 1024
            elif name == "MemAvailable":
                available = int(rest.split()[0]) * 1024
    except (OSError, ValueError, IndexError):
        sysconf: Callable[[str], int] | None = getattr(os, "sysconf", None)
        if sysconf is not None:
            total = sysconf("SC_PAGE_SIZE") * sysconf("SC_PHYS_PAGES")
    limit, rooms = 0, [available] if available else []
    for ceiling, left in _cgroups(root):
        if ceiling < (total or _UNLIMITED):
            limit = min(limit or ceiling, ceiling)
            rooms.append(left)
    if root == _ROOT and (left := _address_space_left()) is not None:
        rooms.append(left)
    return MemoryInfo(total, available, limit, min(rooms, default=None))


def _address_space_left() -> int | None:
    """What `ulimit -v` leaves this process; None where it is unlimited."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    ceiling, _ = resource.getrlimit(resource.RLIMIT_AS)
    fields = _text(_ROOT / "proc/self/statm").split()
    if ceiling == resource.RLIM_INFINITY or not fields:
        return None
    return max(0, ceiling - int(fields[0]) * os.sysconf("SC_PAGE_SIZE"))


def _cgroups(root: Path) -> list[tuple[int, int]]:
    """(limit, what is left of it) of every memory cgroup above this process."""
    found: list[tuple[int, int]] = []
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if controllers == "":
            base, limit_name, used_name = root / "sys/fs/cgroup", "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            base = root / "sys/fs/cgroup/memory"
            limit_name, used_name = "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        folder = base / path.strip("/")
        # Inside a container the path is often the host's, which is not there: the mount's root then is its own.
        for place in dict.fromkeys((folder, *folder.parents, base)):
            if place != base and base not in place.parents:
                continue
            limit = _number(place / limit_name)
            if 0 < limit < _UNLIMITED:
                # Pages of files that were read of late as well: the kernel gives them up before it ends a process.
                cached = [_stat(place / "memory.stat", key) for key in ("inactive_file", "active_file")]
                used = max(0, _number(place / used_name) - sum(cached))
                found.append((limit, max(0, limit - used)))
    return found


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _number(file: Path) -> int:
    try:
        return int(_text(file))
    except ValueError:  # there is none, or it says "max"
        return 0


def _stat(file: Path, key: str) -> int:
    for line in _text(file).splitlines():
        name, _, value = line.partition(" ")
        if name == key and value.isdigit():
            return int(value)
    return 0


def resident_bytes(root: Path = _ROOT) -> int:
    """Memory of this process that is in RAM, mapped weights included; 0 where the system does not say."""
    fields = _text(root / "proc/self/statm").split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE") if len(fields) > 1 else 0


def load_average() -> float:
    """Programs that ran or waited for a core, over the last minute; 0 where the system does not say."""
    try:
        return os.getloadavg()[0]
    except (OSError, AttributeError):
        return 0.0


def cpu_pressure(root: Path = _ROOT) -> float | None:
    """Share of the last ten seconds in which something waited for a core, in percent; None without PSI."""
    for line in _text(root / "proc/pressure/cpu").splitlines():
        if line.startswith("some"):
            for word in line.split():
                name, _, value = word.partition("=")
                if name == "avg10":
                    return float(value)
    return None


def all_cores() -> int:
    """Cores of the machine, those that this process may not use among them: what `cpu_times` counts."""
    return os.cpu_count() or 1


@dataclass(frozen=True, slots=True)
class CpuTimes:
    """Seconds of all cores since the start: `busy_s` by everybody, `own_s` by this process."""

    busy_s: float
    own_s: float


def cpu_times(root: Path = _ROOT) -> CpuTimes | None:
    """Work done so far, or None where the system does not say."""
    first = _text(root / "proc/stat").partition("\n")[0].split()
    if len(first) < 9 or first[0] != "cpu":
        return None
    ticks = [int(word) for word in first[1:9]]
    user, nice, system, _idle, _io_wait, irq, soft_irq, steal = ticks
    busy = user + nice + system + irq + soft_irq + steal
    own = os.times()
    return CpuTimes(busy / os.sysconf("SC_CLK_TCK"), own.user + own.system)


class Neighbours:
    """What other programs do of the processor, from the making of this on."""

    def __init__(self) -> None:
        self._since, self._before = time.perf_counter(), cpu_times()

    def cores(self) -> float:
        """Cores that they used on average; 0 where the system does not say."""
        now, elapsed_s = cpu_times(), time.perf_counter() - self._since
        if self._before is None or now is None or elapsed_s <= 0:
            return 0.0
        own_s = now.own_s - self._before.own_s
        return max(0.0, (now.busy_s - self._before.busy_s - own_s) / elapsed_s)


def others_running(root: Path = _ROOT) -> int | None:
    """Threads of others that run or wait for a core just now, or None where the system does not say."""
    for line in _text(root / "proc/stat").splitlines():
        name, _, count = line.partition(" ")
        if name == "procs_running" and count.strip().isdigit():
            # The one that asks is running.
            return max(0, int(count) - 1)
    return None


def temperature_c(root: Path = _ROOT) -> float | None:
    """The hottest thermal zone, in degrees Celsius; None where there is none."""
    values = [_number(zone / "temp") for zone in (root / "sys/class/thermal").glob("thermal_zone*")]
    hottest = max(values, default=0)
    return hottest / 1000 if hottest > 0 else None


def is_throttled(root: Path = _ROOT) -> bool:
    """The clock is held down just now, for heat or for want of power."""
    firmware = root / "sys/devices/platform/soc/soc:firmware/get_throttled"
    if firmware.is_file():
        try:
            return bool(int(_text(firmware), 16) & _THROTTLED_NOW)
        except ValueError:
            return False
    for device in (root / "sys/class/thermal").glob("cooling_device*"):
        kind = _text(device / "type").strip().lower()
        if ("cpufreq" in kind or kind == "processor") and _number(device / "cur_state") > 0:
            return True
    return root == _ROOT and _vcgencmd_says_throttled()


def _vcgencmd_says_throttled() -> bool:
    tool = shutil.which("vcgencmd")
    if tool is None:
        return False
    try:
        done = subprocess.run(
            [tool, "get_throttled"], capture_output=True, text=True, timeout=_TOOL_TIMEOUT_S, check=False
        )
        return bool(int(done.stdout.strip().partition("=")[2], 16) & _THROTTLED_NOW)
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return False
