"""What the system says of itself, read from files laid out like /proc and /sys."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgellm.machine import cpu_pressure, cpu_times, is_throttled, memory, resident_bytes, temperature_c


def put(root: Path, name: str, text: str) -> None:
    file = root / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="ascii")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    put(tmp_path, "proc/meminfo", "MemTotal:  4000 kB\nMemFree: 1 kB\nMemAvailable:  3000 kB\n")
    return tmp_path


def test_available_memory_is_the_room_there_is(root: Path) -> None:
    found = memory(root)
    assert (found.total_bytes, found.available_bytes) == (4000 * 1024, 3000 * 1024)
    assert (found.limit_bytes, found.room_bytes) == (0, 3000 * 1024)


def test_the_tightest_cgroup_above_counts(root: Path) -> None:
    put(root, "proc/self/cgroup", "0::/user/app\n")
    put(root, "sys/fs/cgroup/user/app/memory.max", "max\n")
    put(root, "sys/fs/cgroup/user/memory.max", "2000000\n")
    put(root, "sys/fs/cgroup/user/memory.current", "900000\n")
    put(root, "sys/fs/cgroup/user/memory.stat", "anon 1\ninactive_file 400000\n")
    found = memory(root)
    # Cached file pages are given back when they are needed.
    assert (found.limit_bytes, found.room_bytes) == (2_000_000, 1_500_000)


def test_a_full_cgroup_leaves_nothing_whatever_its_parent_has(root: Path) -> None:
    put(root, "proc/self/cgroup", "0::/user/app\n")
    for name, limit, used in (("user/app", 1_000_000, 1_000_000), ("user", 2_000_000, 1_000_000)):
        put(root, f"sys/fs/cgroup/{name}/memory.max", f"{limit}\n")
        put(root, f"sys/fs/cgroup/{name}/memory.current", f"{used}\n")
    assert memory(root).room_bytes == 0
    # The cache of files that are read often is given back as well.
    put(root, "sys/fs/cgroup/user/app/memory.stat", "anon 200000\nactive_file 800000\n")
    assert memory(root).room_bytes == 800_000


def test_where_nobody_says_the_room_is_not_known(tmp_path: Path) -> None:
    assert memory(tmp_path).room_bytes is None


def test_inside_a_container_the_mount_is_the_own_cgroup(root: Path) -> None:
    put(root, "proc/self/cgroup", "0::/docker/abc\n")
    put(root, "sys/fs/cgroup/memory.max", "1000000\n")
    put(root, "sys/fs/cgroup/memory.current", "250000\n")
    assert memory(root).room_bytes == 750_000


def test_version_one_of_cgroups_and_its_no_limit(root: Path) -> None:
    put(root, "proc/self/cgroup", "5:memory:/a\n4:cpu,cpuacct:/a\n")
    put(root, "sys/fs/cgroup/memory/a/memory.limit_in_bytes", "9223372036854771712\n")
    assert memory(root).limit_bytes == 0
    put(root, "sys/fs/cgroup/memory/a/memory.limit_in_bytes", "2000000\n")
    put(root, "sys/fs/cgroup/memory/a/memory.usage_in_bytes", "2500000\n")
    assert (memory(root).limit_bytes, memory(root).room_bytes) == (2_000_000, 0)


def test_pressure_times_and_temperature(root: Path) -> None:
    assert cpu_pressure(root) is None
    put(root, "proc/pressure/cpu", "some avg10=12.50 avg60=4.30 total=1\nfull avg10=0.00 total=0\n")
    assert cpu_pressure(root) == 12.5
    assert cpu_times(root) is None
    put(root, "proc/stat", "cpu  100 0 100 800 50 0 0 0 0 0\ncpu0 1 1 1 1\n")
    times = cpu_times(root)
    assert times is not None and times.busy_s == pytest.approx(2.0)
    assert temperature_c(root) is None
    put(root, "sys/class/thermal/thermal_zone0/temp", "61500\n")
    assert temperature_c(root) == 61.5
    assert resident_bytes() >= 0


def test_a_clock_held_down_is_seen(root: Path) -> None:
    assert not is_throttled(root)
    put(root, "sys/class/thermal/cooling_device0/type", "cpufreq-cpu0\n")
    put(root, "sys/class/thermal/cooling_device0/cur_state", "0\n")
    assert not is_throttled(root)
    put(root, "sys/class/thermal/cooling_device0/cur_state", "3\n")
    assert is_throttled(root)
    # Firmware knows better: 0x50000 was in the past, bit 2 is now.
    firmware = "sys/devices/platform/soc/soc:firmware/get_throttled"
    put(root, firmware, "50000\n")
    assert not is_throttled(root)
    put(root, firmware, "50004\n")
    assert is_throttled(root)
