"""The system tool: a Raspberry Pi's files give a Raspberry Pi's facts; what is missing is left out."""

from __future__ import annotations

from pathlib import Path

import pytest
from edgellm_tools.system import describe, system_info


def board(root: Path, throttled: str = "0x50005\n") -> Path:
    files = {
        "proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0",
        "proc/cpuinfo": "processor\t: 0\nHardware\t: BCM2835\n",
        "proc/stat": "cpu  100 0 100 700 100 0 0 0 0 0\ncpu0 1 1 1 1 1\n",
        "proc/meminfo": "MemTotal:  8388608 kB\nMemAvailable: 4194304 kB\nSwapTotal: 1048576 kB\nSwapFree: 524288 kB\n",
        "proc/uptime": "93784.12 1.0\n",
        "sys/class/thermal/thermal_zone0/temp": "52616\n",
        "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
        "sys/class/thermal/thermal_zone1/temp": "0\n",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "2400000\n",
        "sys/devices/platform/soc/soc:firmware/get_throttled": throttled,
    }
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


def test_a_raspberry_pi(tmp_path: Path) -> None:
    facts = dict(line.split(": ", 1) for line in describe(board(tmp_path), sample_s=0).splitlines())
    assert facts["Board"] == "Raspberry Pi 5 Model B Rev 1.0"
    assert "BCM2835" in facts["CPU"] and "2400 MHz" in facts["CPU"]
    assert facts["Memory"] == "4.00 of 8.00 GiB available, swap 0.50 of 1.00 GiB used"
    assert facts["Temperature"] == "52.6 °C (cpu-thermal)"
    assert facts["Power"] == "under-voltage, throttled"
    assert facts["Uptime"] == "1 d 2 h 3 min"


@pytest.mark.parametrize(
    ("throttled", "text"),
    [
        ("0x0", "no throttling"),
        ("50000", "under-voltage earlier, throttled earlier"),
        ("0x80008", "soft temperature limit"),
        ("0x2", "frequency capped"),
        ("nonsense", None),
        ("", None),
    ],
)
def test_power_flags(tmp_path: Path, throttled: str, text: str | None) -> None:
    facts = dict(
        line.split(": ", 1) for line in describe(board(tmp_path, throttled), sample_s=0).splitlines()
    )
    assert facts.get("Power") == text


def test_a_machine_that_tells_nothing(tmp_path: Path) -> None:
    text = describe(tmp_path, sample_s=0)
    assert "System: " in text and "Disk: " in text
    assert "Temperature" not in text and "Power" not in text and "Board" not in text


def test_this_machine() -> None:
    assert "cores" in system_info()
    assert system_info.spec.permission == "auto"
