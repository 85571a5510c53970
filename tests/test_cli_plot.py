"""Plots: the text of the terminal, and an SVG that stands for itself."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest
import tiny_models
from cli_harness import cli

from edgellm.cli.compare import size_plot
from edgellm.cli.plot import Plot, Point, svg_plot, text_plot
from edgellm.weights.compare import Comparison, Measured

NAMESPACE = "{http://www.w3.org/2000/svg}"
Box = tuple[float, float, float, float]


def measured(name: str, size: float, kl: float, speed: float, error: float = 0.0) -> Measured:
    return Measured(Path(name), int(size), speed * 5, speed, 12.34, kl, error, kl * 5, 0.9)


def comparison() -> Comparison:
    files = (
        measured("smollm2-135m-q8_0.gguf", 145e6, 0.0, 23.1),
        measured("smollm2-135m-q4_0.gguf", 92e6, 0.29, 28.1, 0.01),
        measured("smollm2-135m-iq4_nl.gguf", 92e6, 0.18, 49.1, 0.01),
        measured("smollm2-135m-q4_1 <&> \x1b.gguf", 98e6, 0.2, 20.5, 0.01),
    )
    return Comparison(files, files[0], 500, 3, 2)


def labels(root: ElementTree.Element) -> list[ElementTree.Element]:
    return [one for one in root.iter(f"{NAMESPACE}text") if "tokens/s" in (one.text or "")][1:]


def test_text_puts_each_letter_where_it_belongs() -> None:
    plot = Plot("", "size, MB", "KL", (Point("a", 100, 0), Point("b", 50, 0.5), Point("c", 0, 1.0)))
    lines = text_plot(plot).splitlines()
    assert len(lines) == 13
    assert lines[0] == "  1.0000 |c"
    assert lines[5] == " " * 9 + "|" + " " * 28 + "b"
    assert lines[10] == "  0.0000 |" + " " * 56 + "a"
    assert lines[-1].endswith("size, MB    100.0")


def test_an_svg_has_a_dot_for_each_file_in_its_place() -> None:
    root = ElementTree.fromstring(svg_plot(size_plot(comparison())))
    dots = list(root.iter(f"{NAMESPACE}circle"))
    assert len(dots) == 4
    at = [(float(dot.attrib["cx"]), float(dot.attrib["cy"]), float(dot.attrib["r"])) for dot in dots]
    assert at[0][0] > at[3][0] > at[1][0] == at[2][0]  # larger is to the right
    assert at[0][1] > at[2][1] > at[3][1] > at[1][1]  # a loss stands higher
    assert at[0][1] == 400 - 56  # none: on the axis
    # Area is speed.
    assert (at[1][2] / at[2][2]) ** 2 == pytest.approx(28.1 / 49.1, rel=0.02)
    titles = [dot.findtext(f"{NAMESPACE}title") or "" for dot in dots]
    assert titles[1] == "smollm2-135m-q4_0.gguf: 92 MB, KL 0.2900 ± 0.0100, perplexity 12.34, 28.1 tokens/s"
    assert "<&>" in titles[3] and "\\x1b" in titles[3]
    assert sum(line.attrib["class"] == "error" for line in root.iter(f"{NAMESPACE}line")) == 3


def test_an_svg_needs_nothing_else_and_follows_the_readers_colours() -> None:
    drawn = svg_plot(size_plot(comparison()))
    assert len(drawn) < 8000
    root = ElementTree.fromstring(drawn)
    assert not {"script", "image", "use", "foreignObject"} & {
        one.tag.removeprefix(NAMESPACE) for one in root.iter()
    }
    assert "http" not in drawn.replace("http://www.w3.org/2000/svg", "") and "url(" not in drawn
    style = root.findtext(f"{NAMESPACE}style") or ""
    light, _, dark = style.partition("@media(prefers-color-scheme:dark)")
    for colours in (light, dark):
        paper = _brightness(colours, "paper", "fill")
        for kind, what in (("ink", "fill"), ("faint", "fill"), ("axis", "stroke"), ("dot", "stroke")):
            assert _contrast(paper, _brightness(colours, kind, what)) >= 4.5, kind
    drawn_with = {word for one in root.iter() for word in one.attrib.get("class", "").split()}
    assert drawn_with <= set(re.findall(r"\.(\w+)\{", style))


def _brightness(style: str, kind: str, what: str) -> float:
    """Relative luminance (WCAG) of a class's colour."""
    found = re.search(rf"\.{kind}\{{[^}}]*?{what}:#(\w{{6}})", style)
    assert found is not None, kind
    channels = [int(found[1][i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(one: float, other: float) -> float:
    return (max(one, other) + 0.05) / (min(one, other) + 0.05)


def test_labels_do_not_cover_each_other() -> None:
    files = tuple(measured(f"model-q{n}_0.gguf", 92e6 + n * 1e5, 0.2 + n / 1000, 20.0 + n) for n in range(8))
    root = ElementTree.fromstring(svg_plot(size_plot(Comparison(files, files[0], 500, 3, 2))))
    boxes: list[Box] = []
    for label in labels(root):
        x, y = float(label.attrib["x"]), float(label.attrib["y"])
        wide = 7 * len(label.text or "")
        left = x - wide if label.attrib["text-anchor"] == "end" else x
        boxes.append((left, y - 11, left + wide, y + 4))
    assert len(boxes) == 8
    for one, other in itertools.combinations(boxes, 2):
        assert not (one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3])
    assert all(box[0] >= 0 and box[2] <= 640 and box[1] >= 0 and box[3] <= 400 for box in boxes)


def test_files_without_any_loss_can_be_drawn() -> None:
    files = tuple(measured(f"{n}.gguf", 92e6, 0.0, 20.0) for n in range(2))
    found = size_plot(Comparison(files, files[0], 500, 3, 2))
    assert len(list(ElementTree.fromstring(svg_plot(found)).iter(f"{NAMESPACE}circle"))) == 2
    assert text_plot(found).count("\n") == 12


def test_the_command_writes_it_beside_the_table(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    source = tiny_model("llama")
    text = tmp_path / "text.txt"
    text.write_text("The kettle is on the stove, and the rain is at the window. " * 30)
    other = tiny_models.build(tmp_path / "other.gguf", "llama", seed=9)
    file = tmp_path / "sizes.svg"
    words = ("compare", source, other, "--text", text, "--windows", 1, "--rounds", 1)
    outcome = cli(*words, "--plot", file)
    assert outcome.code == 0, outcome.err
    assert "size, MB" in outcome.out and "seconds a turn" in outcome.out
    assert outcome.out.splitlines()[-1] == f"Written: {file}"
    assert "other" in (ElementTree.parse(file).getroot().findtext(f"{NAMESPACE}desc") or "")
    file.unlink()
    assert len(json.loads(cli(*words, "--plot", file, "--json").out)["files"]) == 2
    assert file.is_file()


@pytest.mark.parametrize("name", ["plot.png", "none/plot.svg"])
def test_a_file_that_cannot_be_written_is_refused_before_anything_is_measured(
    tmp_path: Path, name: str
) -> None:
    outcome = cli("compare", "./none.gguf", "./other.gguf", "--plot", tmp_path / name)
    assert outcome.code == 1
    assert "plot" in outcome.err and "none.gguf" not in outcome.err
