"""The table of real templates in docs/tool-call-formats.md: which format each has, and what is exact with it.

    python -m edgellm.chat.reference FOLDER

reads a folder of `*.jinja` files and writes the table anew; a test compares it where the folder is there.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from edgellm.chat.exactness import Exactness
from edgellm.chat.formats import choose_format
from edgellm.chat.roundtrip import next_turn, round_trip
from edgellm.chat.template import ChatTemplate

PAGE = Path("docs/tool-call-formats.md")
BEGIN, END = "<!-- templates: begin -->\n", "<!-- templates: end -->\n"
_HEAD = (
    "| template | format | found by | call and result | reasoning at the next turn |\n|---|---|---|---|---|\n"
)


@dataclass(frozen=True, slots=True)
class Row:
    """What one template was found to be. `call` compares the tape behind a tool's result with a full render."""

    name: str
    format: str
    found_by: str
    call: str
    policy: str

    def __str__(self) -> str:
        cells = (self.name, f"`{self.format}`", self.found_by, self.call, self.policy)
        return f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |\n"


def row(path: Path) -> Row:
    """The row of one template file."""
    source = path.read_text("utf-8")
    template = ChatTemplate(source, bos_text="<s>", eos_text="</s>", is_guarded=False)
    wire_format = choose_format(source, (), None, template.text)
    trip, turn = round_trip(template, wire_format), next_turn(template, wire_format)
    found_by = (
        "its own words"
        if wire_format.signs and "its template has" in wire_format.reason
        else "rendering it with differences"
        if wire_format.reason.startswith("rendering")
        else "nothing in it: the generic way"
    )
    policy = "refused by the template" if turn.fault else f"`{turn.exact}`"
    if not turn.fault and turn.excise is None:
        policy = f"{policy} (it does not think)"
    return Row(path.stem, wire_format.id, found_by, _call(trip.fault, trip.is_read, trip.exactness), policy)


def _call(fault: str, is_read: bool, exactness: Exactness | None) -> str:
    if fault:
        return "refused by the template"
    if not is_read or exactness is None:
        return "not read"
    if exactness.verdict == "diverges":
        return f"diverges: {exactness.reason}"
    return exactness.verdict


def table(folder: Path) -> str:
    """Markdown: a row for each template in the folder and in those below it."""
    return _HEAD + "".join(str(row(path)) for path in sorted(folder.rglob("*.jinja")))


def written() -> str:
    """The table as it stands in the page."""
    return PAGE.read_text("utf-8").split(BEGIN)[1].split(END)[0]


def main() -> None:
    """Writes the table into the page of the checkout the current directory is in."""
    before, rest = PAGE.read_text("utf-8").split(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}{table(Path(sys.argv[1]))}{END}{rest.split(END)[1]}", "utf-8")


if __name__ == "__main__":
    main()
