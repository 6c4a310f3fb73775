"""Charts and the README picture: right, readable at any length, well formed."""

import json
import re
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image
from report_run import grid, metrics, write_json, write_rows, write_run

from deploy.report import charts, picture, poster, scale, svg, write_report
from deploy.report.read import read_run

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run of six steps with four fixed prompts and three grids."""
    return write_run(tmp_path / "pets")


def points(shape: ElementTree.Element) -> list[list[float]]:
    return [[float(v) for v in point.split(",")] for point in shape.attrib["points"].split()]


def test_every_chart_is_well_formed_and_labelled(run: Path) -> None:
    found = re.findall(r"<svg .*?</svg>", write_report(run).read_text(encoding="utf-8"), re.DOTALL)
    assert len(found) == 2 * (1 + 6 + 1 + 1)
    for chart in map(ElementTree.fromstring, found):
        width, height = (float(v) for v in chart.attrib["viewBox"].split()[2:])
        assert chart.attrib["role"] == "img" and len(chart.attrib["aria-label"]) > 20
        assert all(
            0 <= x <= width and 0 <= y <= height for line in chart.iter(f"{SVG}polyline") for x, y in points(line)
        )


def test_the_curve_rises_with_the_reward(run: Path) -> None:
    chart = ElementTree.fromstring(charts.reward_chart(read_run(run), 1100))
    (line,) = chart.iter(f"{SVG}polyline")
    heights = [y for _, y in points(line)]
    assert len(heights) == 6 and heights == sorted(heights, reverse=True)
    (band,) = chart.iter(f"{SVG}polygon")
    edges = [y for _, y in points(band)]
    middles = [(up + down) / 2 for up, down in zip(edges[:6], edges[:5:-1], strict=True)]
    assert middles == pytest.approx(heights, abs=0.11) and svg.TOP < min(edges) < max(edges) < 290
    titles = [title.text for title in chart.iter(f"{SVG}title")]
    assert titles[0] == "step 1 · 16 queries · −3.75 ± 0.400 kB" and len(titles) == 6
    assert len(list(chart.iter(f"{SVG}path"))) == 3 + 1


def test_zero_noise_lies_on_its_lane_below_the_clip_range() -> None:
    chart = ElementTree.fromstring(charts.noise_chart([metrics(1, 0.0, 0.0)], 1e-4, 1100))
    (clip,) = (line for line in chart.iter(f"{SVG}line") if line.attrib["class"] == "mark")
    dots = [float(dot.attrib["cy"]) for dot in chart.iter(f"{SVG}circle")]
    assert len(set(dots)) == 1 and dots[0] > float(clip.attrib["y1"])


@pytest.mark.parametrize(
    ("sample", "score", "expected"), [(6, 2, [3.375, 1.125, 3, 0, 0.5]), (2, 1, [2, 1, 3, 1.5, 0.5])]
)
def test_phases_add_up_to_wall_time(sample: float, score: float, expected: list[float]) -> None:
    row = metrics(1, 0.0)
    wall = charts.wall_seconds({"seconds": row["seconds"] | {"sample": sample, "score": score}})
    assert list(wall) == ["sample", "score", "learn", "wait", "log"]
    assert list(wall.values()) == pytest.approx(expected) and sum(wall.values()) == pytest.approx(8)


@pytest.mark.parametrize("steps", [2, 37, 400, 5000])
def test_long_runs_stay_readable(run: Path, steps: int) -> None:
    write_rows(run, [metrics(step, -4 + step / steps) for step in range(1, steps + 1)])
    assert write_report(run).stat().st_size < 800_000
    chart = ElementTree.fromstring(charts.reward_chart(read_run(run), 1100))
    labels = [node.text for node in chart.iter(f"{SVG}text")]
    assert f"{steps:,}" in labels or steps == 37
    assert len(labels) < 45


def test_thin_keeps_the_ends() -> None:
    assert scale.thin([], 5) == []
    assert scale.thin([1], 5) == [1]
    assert scale.thin(range(11), 8) == [0, 2, 4, 6, 8, 10]
    for length in range(2, 60):
        kept = scale.thin(range(length), 8)
        assert len(kept) <= 8 and kept[0] == 0 and kept[-1] == length - 1


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"), (-3.9, "−3.90"), (1280, "1,280"), (0.0123, "0.0123"), (4.2e-7, "4.2×10⁻⁷"), (-1e-12, "−1×10⁻¹²"),
    ],
)  # fmt: skip
def test_numbers_for_people(value: float, text: str) -> None:
    assert scale.number(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(4.2, "4.2 s"), (59.9, "60 s"), (312, "5 min 12 s"), (11100, "3 h 5 min")]
)
def test_durations_for_people(seconds: float, text: str) -> None:
    assert scale.duration(seconds) == text


def test_the_picture_is_a_card_for_light_and_dark_pages(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("resvg_py")
    path = picture(run, tmp_path / "demo.png")
    with Image.open(path) as image:
        assert image.format == "PNG" and image.mode == "RGBA" and image.width == 1600
        assert 300 < image.height < 1000
        opacity = image.getchannel("A")
        assert opacity.getpixel((0, 0)) == 0 and opacity.getpixel((800, 12)) == 255
        corner = poster.MARGIN + 2, poster.MARGIN + poster.HEADING + 2
        assert image.convert("RGB").getpixel(corner) == grid(0).getpixel((0, 0))
    assert sorted(tmp_path.iterdir()) == [path, run]


def test_the_picture_shows_what_was_said_of_both_images(run: Path) -> None:
    plain = poster.poster(read_run(run), 4)
    scores = json.loads((run / "images/scores.json").read_text())
    for step, word in (("000000", "dog"), ("000006", "cat")):
        scores[step]["captions"] = {"seen": [f"a {word} & more", "b", None, "d"]}
    write_json(run / "images/scores.json", scores)
    told = poster.poster(read_run(run), 4)
    assert told.index("“a dog &amp; more”") < told.index("“a cat &amp; more”")
    assert told.count('class="said"') == 6 and 'class="said"' not in plain


def test_the_picture_needs_two_grids(run: Path, tmp_path: Path) -> None:
    for step in (3, 6):
        (run / f"images/{step:06d}.png").unlink()
    with pytest.raises(ValueError, match="holds 1 image grids and 6 steps"):
        picture(run, tmp_path / "demo.png")


def test_the_picture_says_what_it_needs(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    with pytest.raises(ImportError, match="pip install resvg-py"):
        picture(run, tmp_path / "demo.png")
    assert not (tmp_path / "demo.png").exists()
