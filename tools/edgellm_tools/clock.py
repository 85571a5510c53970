"""What day and time it is, here or in a time zone."""

from __future__ import annotations

import difflib
import zoneinfo
from datetime import UTC, datetime, tzinfo

import edgellm


def find_zone(name: str) -> tzinfo:
    """The IANA time zone of that name, or the one zone whose city it is ("tokyo" is Asia/Tokyo).

    Raises ToolError, naming near spellings.
    """
    wanted = name.strip().replace(" ", "_")
    if wanted.upper() in {"UTC", "GMT", "Z"}:
        return UTC
    try:
        return zoneinfo.ZoneInfo(wanted)
    # A key may also be a folder of the database, a file that is no zone, or try to leave it: all "unknown".
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        pass
    known = sorted(zoneinfo.available_timezones())
    if not known:
        raise edgellm.ToolError(
            "This machine has no time zone data.",
            hint="Install the tzdata package, or ask for the local time.",
        )
    folded = wanted.casefold()
    found = [zone for zone in known if zone.casefold() == folded]
    found = found or [zone for zone in known if zone.casefold().rpartition("/")[2] == folded]
    if len(found) == 1:
        return zoneinfo.ZoneInfo(found[0])
    near = found or difflib.get_close_matches(wanted, known, n=3, cutoff=0.5)
    raise edgellm.ToolError(
        f"No time zone is called {name[:60]!r}.",
        hint="Did you mean " + " or ".join(near) + "?" if near else "Use a name such as Europe/Berlin.",
    )


def describe(moment: datetime) -> str:
    """`Sunday, 2026-11-22 21:18:48 UTC+01:00 (CET), ISO week 47`. `moment` knows its zone."""
    offset = moment.strftime("%z")
    zone = getattr(moment.tzinfo, "key", "") or moment.tzname() or ""
    # Not %A: the weekday must not depend on the process locale.
    days = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
    return (
        f"{days[moment.weekday()]}, {moment:%Y-%m-%d %H:%M:%S} UTC{offset[:3]}:{offset[3:5]} ({zone}), "
        f"ISO week {moment.isocalendar().week}"
    )


@edgellm.tool(
    permission="auto",
    timeout_s=5,
    examples=[("What time is it in Tokyo?", {"timezone": "Asia/Tokyo"}), ("What day is today?", {})],
)
def clock(timezone: str = "") -> str:
    """Gives the current date, weekday and time.

    Args:
        timezone: IANA name; empty for local time.
    """
    moment = datetime.now(find_zone(timezone)) if timezone.strip() else datetime.now().astimezone()
    return describe(moment)
