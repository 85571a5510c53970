"""The clock: zones by name, by city, and clear errors for the rest."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from edgellm_tools import clock as clock_module
from edgellm_tools.clock import describe, find_zone

from edgellm.errors import ToolError

MOMENT = datetime(2026, 11, 22, 21, 18, 48, tzinfo=UTC)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("UTC", "Sunday, 2026-11-22 21:18:48 UTC+00:00 (UTC), ISO week 47"),
        ("utc", "Sunday, 2026-11-22 21:18:48 UTC+00:00 (UTC), ISO week 47"),
        ("Europe/Berlin", "Sunday, 2026-11-22 22:18:48 UTC+01:00 (Europe/Berlin), ISO week 47"),
        ("europe/berlin", "Sunday, 2026-11-22 22:18:48 UTC+01:00 (Europe/Berlin), ISO week 47"),
        ("Tokyo", "Monday, 2026-11-23 06:18:48 UTC+09:00 (Asia/Tokyo), ISO week 48"),
        ("new york", "Sunday, 2026-11-22 16:18:48 UTC-05:00 (America/New_York), ISO week 47"),
        ("Asia/Kolkata", "Monday, 2026-11-23 02:48:48 UTC+05:30 (Asia/Kolkata), ISO week 48"),
    ],
)
def test_zones(name: str, text: str) -> None:
    assert describe(MOMENT.astimezone(find_zone(name))) == text


@pytest.mark.parametrize(
    "name", ["Mars/Base", "Europe", "../../etc/passwd", "/etc/localtime", "zone.tab", "\x00", "a" * 5000]
)
def test_unknown_zones_are_tool_errors(name: str) -> None:
    with pytest.raises(ToolError, match="No time zone is called"):
        find_zone(name)


def test_a_near_spelling_is_named() -> None:
    with pytest.raises(ToolError, match="Europe/Berlin"):
        find_zone("Europe/Berln")


def test_no_zone_data_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock_module.zoneinfo, "available_timezones", set)
    with pytest.raises(ToolError, match="tzdata"):
        find_zone("Mars/Base")
