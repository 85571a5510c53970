"""The machine as it is now: board, CPU, load, memory, disk, temperature, and a Raspberry Pi's power flags."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

import edgellm

SAMPLE_S = 0.2
_GIB = 1024**3
# Bits of the firmware's get_throttled; the same 16 higher mean "since it started".
_THROTTLING = {0: "under-voltage", 1: "frequency capped", 2: "throttled", 3: "soft temperature limit"}
_FIRMWARE_FLAGS = "sys/devices/platform/soc/soc:firmware/get_throttled"


def describe(root: Path = Path("/"), *, sample_s: float = SAMPLE_S) -> str:
    """One line a fact; what this machine does not tell is left out. `root` is where /proc and /sys are."""
    facts = {
        "Board": _text(root / "proc/device-tree/model").rstrip("\0"),
        "System": f"{platform.system()} {platform.release()} {platform.machine()}",
        "CPU": _cpu(root, sample_s),
        "Load": _load(),
        "Memory": _memory(root),
        "Disk": _disk(),
        "Temperature": _temperature(root),
        "Power": _power(root),
        "Uptime": _uptime(root),
    }
    return "\n".join(f"{name}: {fact}" for name, fact in facts.items() if fact)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _told(*command: str) -> str:
    """Output of a system program, "" where it is missing or fails."""
    path = shutil.which(command[0])
    if path is None:
        return ""
    try:
        done = subprocess.run(
            [path, *command[1:]], stdin=subprocess.DEVNULL, capture_output=True, timeout=2, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode("utf-8", "replace").strip() if done.returncode == 0 else ""


def _cpu(root: Path, sample_s: float) -> str:
    name = ""
    for line in _text(root / "proc/cpuinfo").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in {"model name", "Hardware"}:
            name = value.strip()
            break
    if not name and sys.platform == "darwin":
        name = _told("sysctl", "-n", "machdep.cpu.brand_string")
    parts = [f"{os.cpu_count() or 1} cores", name, _busy(root, sample_s)]
    kilohertz = _text(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq").strip()
    if kilohertz.isdigit():
        parts.append(f"{int(kilohertz) // 1000} MHz")
    return ", ".join(part for part in parts if part)


def _busy(root: Path, sample_s: float) -> str:
    before = _ticks(root)
    if before is None:
        return ""
    time.sleep(sample_s)
    after = _ticks(root)
    if after is None or after[1] <= before[1]:
        return ""
    return f"{100 * (after[0] - before[0]) / (after[1] - before[1]):.0f}% busy"


def _ticks(root: Path) -> tuple[int, int] | None:
    """Busy and all ticks since the start."""
    fields = _text(root / "proc/stat").partition("\n")[0].split()[1:9]
    if len(fields) < 5 or not all(field.isdigit() for field in fields):
        return None
    ticks = [int(field) for field in fields]
    return sum(ticks) - ticks[3] - ticks[4], sum(ticks)


def _load() -> str:
    try:
        return " ".join(f"{load:.2f}" for load in os.getloadavg()) + " (1, 5, 15 minutes)"
    except (OSError, AttributeError):
        return ""


def _memory(root: Path) -> str:
    sizes: dict[str, int] = {}
    for line in _text(root / "proc/meminfo").splitlines():
        key, _, value = line.partition(":")
        number = value.split()[:1]
        if number and number[0].isdigit():
            sizes[key] = int(number[0]) * 1024
    if "MemTotal" in sizes:
        free = sizes.get("MemAvailable", sizes.get("MemFree", 0))
        text = f"{free / _GIB:.2f} of {sizes['MemTotal'] / _GIB:.2f} GiB available"
        if swap := sizes.get("SwapTotal"):
            text += f", swap {(swap - sizes.get('SwapFree', 0)) / _GIB:.2f} of {swap / _GIB:.2f} GiB used"
        return text
    total = _told("sysctl", "-n", "hw.memsize")
    return f"{int(total) / _GIB:.2f} GiB" if total.isdigit() else ""


def _disk() -> str:
    try:
        usage = shutil.disk_usage(os.path.expanduser("~"))
    except OSError:
        return ""
    return f"{usage.free / _GIB:.1f} of {usage.total / _GIB:.1f} GiB free"


def _temperature(root: Path) -> str:
    readings: list[str] = []
    for zone in sorted((root / "sys/class/thermal").glob("thermal_zone*")):
        value = _text(zone / "temp").strip()
        # Millidegrees; a sensor that is off says 0 or something impossible.
        if value.lstrip("-").isdigit() and -60_000 < int(value) < 200_000 and int(value) != 0:
            readings.append(f"{int(value) / 1000:.1f} °C ({_text(zone / 'type').strip() or zone.name})")
    return ", ".join(readings[:4])


def _power(root: Path) -> str:
    said = _text(root / _FIRMWARE_FLAGS).strip()
    if not said and root == Path("/"):
        # "throttled=0x50005"
        said = _told("vcgencmd", "get_throttled").partition("=")[2]
    try:
        flags = int(said, 16)
    except ValueError:
        return ""
    now = [name for bit, name in _THROTTLING.items() if flags >> bit & 1]
    earlier = [
        f"{name} earlier" for bit, name in _THROTTLING.items() if flags >> (bit + 16) & 1 and name not in now
    ]
    return ", ".join(now + earlier) or "no throttling"


def _uptime(root: Path) -> str:
    seconds = _text(root / "proc/uptime").partition(".")[0]
    if not seconds.isdigit():
        return ""
    hours, minutes = divmod(int(seconds) // 60, 60)
    return f"{hours // 24} d {hours % 24} h {minutes} min"


@edgellm.tool(permission="auto", timeout_s=10)
def system_info() -> str:
    """Shows this computer's CPU load, memory, disk space and temperature."""
    return describe()
