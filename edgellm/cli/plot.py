"""Points in a plane: as plain text, and as a small SVG that needs nothing else."""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape

_COLUMNS, _ROWS = 56, 10  # of text
_WIDTH, _HEIGHT = 640, 400
_LEFT, _RIGHT, _TOP, _FLOOR = 70, 24, 48, 344  # margins left and right; the plane's top and bottom
_LARGEST, _SMALLEST = 14.0, 3.0  # radii
_LETTER, _LINE = 7.0, 15.0  # a label's room: per letter, and high
_TICKS = 4
_STYLE = """\
.paper{fill:#ffffff}.ink{fill:#1f2328}.faint{fill:#59636e}.grid{stroke:#d1d9e0}.axis{stroke:#59636e}
.dot{fill:#0969da;fill-opacity:.55;stroke:#0969da}.error{stroke:#0969da}
@media(prefers-color-scheme:dark){.paper{fill:#0d1117}.ink{fill:#f0f6fc}.faint{fill:#9198a1}.grid{stroke:#3d444d}
.axis{stroke:#9198a1}.dot{fill:#4493f8;stroke:#4493f8}.error{stroke:#4493f8}}
text{font-size:12px;font-family:system-ui,sans-serif}.title{font-size:15px;font-weight:600}"""

_Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Point:
    """One point. `mark` is its letter in text, `label` stands beside it in a picture; `weight` is what its dot's area
    tells, `error` how far `y` may be off; `note` is shown by a browser when it is pointed at."""

    mark: str
    x: float
    y: float
    label: str = ""
    weight: float = 1.0
    error: float = 0.0
    note: str = ""


@dataclass(frozen=True, slots=True)
class Plot:
    """Points, none below 0, with the names of both axes. `legend` says what the dots' area tells."""

    title: str
    x_name: str
    y_name: str
    points: tuple[Point, ...]
    legend: str = ""


def text_plot(plot: Plot) -> str:
    """The points as letters over the axes, 12 lines: y upwards, x to the right, both from 0."""
    top = max(point.y for point in plot.points) or 1.0
    right = max(point.x for point in plot.points) or 1.0
    grid = [[" "] * (_COLUMNS + 1) for _ in range(_ROWS + 1)]
    for point in plot.points:
        column = round(_COLUMNS * point.x / right)
        row = _ROWS - round(_ROWS * point.y / top)
        while grid[row][column] != " " and column:
            column -= 1
        grid[row][column] = point.mark
    lines = [f"{top:8.4f} |" + "".join(grid[0]).rstrip()]
    lines += [f"{plot.y_name:>8} |" + "".join(row).rstrip() for row in grid[1:2]]
    lines += [" " * 9 + "|" + "".join(row).rstrip() for row in grid[2:-1]]
    lines += [f"{0:8.4f} |" + "".join(grid[-1]).rstrip(), " " * 9 + "+" + "-" * _COLUMNS]
    return "\n".join([*lines, " " * 10 + "0" + f"{plot.x_name} {right:8.1f}".rjust(_COLUMNS - 1)])


def svg_plot(plot: Plot) -> str:
    """The points as an SVG document: no script, no font, nothing fetched; colours follow the reader's scheme."""
    scale = _Scale(
        _ticks(max(point.x for point in plot.points)),
        _ticks(max(point.y + point.error for point in plot.points)),
    )
    described = "; ".join(point.note or point.label for point in plot.points)
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" '
            f'height="{_HEIGHT}" role="img" aria-labelledby="title description">',
            f'<title id="title">{escape(plot.title)}</title>',
            f'<desc id="description">{escape(described)}</desc>',
            f"<style>{_STYLE}</style>",
            f'<rect class="paper" width="{_WIDTH}" height="{_HEIGHT}"/>',
            *_axes(plot, scale),
            *_dots(plot, scale),
            "</svg>\n",
        ]
    )


@dataclass(frozen=True, slots=True)
class _Scale:
    """From values to places; ticks begin at 0, and the last ones are the ends of the axes."""

    x_ticks: list[float]
    y_ticks: list[float]

    def x(self, value: float) -> float:
        return round(_LEFT + (_WIDTH - _LEFT - _RIGHT) * value / self.x_ticks[-1], 1)

    def y(self, value: float) -> float:
        return round(_FLOOR - (_FLOOR - _TOP) * value / self.y_ticks[-1], 1)


def _axes(plot: Plot, scale: _Scale) -> list[str]:
    right = _WIDTH - _RIGHT
    parts: list[str] = []
    for tick in scale.x_ticks:
        x = scale.x(tick)
        parts.append(_line("grid", x, _TOP, x, _FLOOR))
        parts.append(_text("faint", x, _FLOOR + 18, f"{tick:g}", anchor="middle"))
    for tick in scale.y_ticks:
        y = scale.y(tick)
        parts.append(_line("grid", _LEFT, y, right, y))
        parts.append(_text("faint", _LEFT - 8, y + 4, f"{tick:g}", anchor="end"))
    middle = (_TOP + _FLOOR) / 2
    turned = f' transform="rotate(-90 18 {middle:g})"'
    return [
        *parts,
        _line("axis", _LEFT, _FLOOR, right, _FLOOR),
        _line("axis", _LEFT, _TOP, _LEFT, _FLOOR),
        _text("ink title", 16, 24, plot.title),
        _text("faint", right, 24, plot.legend, anchor="end"),
        _text("ink", (_LEFT + right) / 2, _HEIGHT - 12, plot.x_name, anchor="middle"),
        _text("ink", 18, middle, plot.y_name, anchor="middle", more=turned),
    ]


def _dots(plot: Plot, scale: _Scale) -> list[str]:
    """Dots with their errors, and a label beside each."""
    heaviest = max(point.weight for point in plot.points) or 1.0
    parts: list[str] = []
    dots: list[tuple[float, float, float]] = []
    for point in plot.points:
        x, y = scale.x(point.x), scale.y(point.y)
        radius = max(_SMALLEST, _LARGEST * math.sqrt(point.weight / heaviest))
        dots.append((x, y, radius))
        if point.error:
            low = max(0.0, point.y - point.error)
            parts.append(_line("error", x, scale.y(point.y + point.error), x, scale.y(low)))
        note = f"<title>{escape(point.note or point.label)}</title>"
        parts.append(f'<circle class="dot" cx="{x}" cy="{y}" r="{radius:.1f}">{note}</circle>')
    taken: list[_Box] = [(x - r, y - r, x + r, y + r) for x, y, r in dots]
    for point, (x, y, radius) in zip(plot.points, dots, strict=True):
        box = _free_place(point.label, x, y, radius, taken)
        taken.append(box)
        is_left = box[2] < x
        anchor, at = ("end", box[2]) if is_left else ("start", box[0])
        parts.append(_text("ink", at, box[3] - 4, point.label, anchor=anchor))
    return parts


def _ticks(largest: float) -> list[float]:
    """Round numbers from 0 to the first that is not below `largest`."""
    if largest <= 0:
        return [0.0, 1.0]
    power = 10.0 ** math.floor(math.log10(largest / _TICKS))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor * _TICKS >= largest)
    count = math.ceil(round(largest / step, 9))
    return [round(index * step, 12) for index in range(count + 1)]


def _free_place(label: str, x: float, y: float, radius: float, taken: list[_Box]) -> _Box:
    """Where a label stands beside its dot: the first place that covers no other label or dot, else the last tried."""
    wide = _LETTER * len(label)
    gap = radius + 4
    box: _Box = (0.0, 0.0, 0.0, 0.0)
    for steps in range(12):
        for down in dict.fromkeys((steps * _LINE, -steps * _LINE)):
            for left in (x + gap, x - gap - wide):
                upper = y - _LINE / 2 + down
                box = (round(left, 1), round(upper, 1), round(left + wide, 1), round(upper + _LINE, 1))
                is_inside = box[0] >= _LEFT and box[2] <= _WIDTH and box[1] >= _TOP - _LINE
                is_inside = is_inside and box[3] <= _FLOOR + 4
                if is_inside and not any(_overlap(box, other) for other in taken):
                    return box
    return box


def _overlap(one: _Box, other: _Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _line(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{kind}" x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}"/>'


def _text(kind: str, x: float, y: float, text: str, *, anchor: str = "start", more: str = "") -> str:
    return f'<text class="{kind}" x="{x:g}" y="{y:g}" text-anchor="{anchor}"{more}>{escape(text)}</text>'
