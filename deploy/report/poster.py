"""The README picture: a light card with pairs before and after training, and the reward curve beside them.

Consumes: a run folder with two grids. Produces: one PNG, 1600 pixels wide. Waits for nothing.
"""

import math
import re
import textwrap
from pathlib import Path

from PIL import Image

from deploy.folder import write
from deploy.report.charts import reward_chart
from deploy.report.markup import data_url
from deploy.report.read import Run, read_run
from deploy.report.scale import counted, number
from deploy.report.style import CHART, FONTS, LIGHT
from deploy.report.svg import drawing, text

SIDE, MARGIN, HEADING, COLUMN = 142, 44, 46, 320  # pixels: a tile, the rim, the title, a column of pairs
LINE = 22  # pixels from one line of a caption to the next
CHART_SCALE = 1.7  # the chart is drawn small and set large: its text is read on a picture half as wide
STYLE = f"""
.chart text {{ font-family: {FONTS}; }}
.chart .card {{ fill: var(--paper); stroke: var(--rule); stroke-width: 2; }}
.chart .title {{ font-size: 25px; font-weight: 600; fill: var(--ink); }}
.chart .dot {{ opacity: 0; }}
.chart .prompt {{ font-size: 21px; fill: var(--ink); }}
.chart .said {{ font-size: 16px; font-style: italic; }}
"""


def picture(run: Path, path: Path, count: int = 8) -> Path:
    """Write the picture with the first `count` fixed prompts; raises ValueError where the run has no second grid."""
    write(path, _rasterise(poster(read_run(run), count)))
    return path


def _rasterise(svg: str) -> bytes:
    """SVG to PNG with resvg, which nothing else needs."""
    try:
        import resvg_py
    except ImportError as error:
        raise ImportError(
            "The README picture is drawn with resvg-py, which is not installed; the report itself does not need it. "
            "Install it with `pip install resvg-py` and call again."
        ) from error
    return bytes(resvg_py.svg_to_bytes(svg_string=svg))


def poster(run: Run, count: int) -> str:
    """The card as SVG, with round corners on nothing, so that it sits well on a light and on a dark page."""
    if len(run.grids) < 2 or not run.rows:
        raise ValueError(
            f"The run {run.config['name']!r} holds {len(run.grids)} image grids and {len(run.rows)} steps. The picture "
            "shows images before and after training; make it when the run has logged a second grid."
        )
    cards, height = _cards(run, count)
    style = re.sub(r"var\(--(\w+)\)", lambda name: LIGHT[name[1]], CHART + STYLE)
    ends = " → ".join(number(mean) for mean in run.ends)
    right, top, last = MARGIN + 2 * COLUMN + 34, MARGIN + HEADING, max(run.grids)
    parts = [
        f"<style>{style}</style>",
        f'<rect class="card" x="1" y="1" width="1598" height="{height - 2}" rx="22"/>',
        text(MARGIN, MARGIN + 20, f"Before and after {counted(last, 'step')}, same noise", "start", "title"),
        text(right, MARGIN + 20, f"Mean reward {ends} {run.unit}".strip(), "start", "title"),
        *cards,
        _curve(run, right, top, 1600 - MARGIN / 2 - right, height - MARGIN - top),
    ]
    return drawing(1600, height, "Before and after training", parts)


def _cards(run: Run, count: int) -> tuple[list[str], int]:
    """The pairs in two columns, read downwards, and the height of a poster that holds them."""
    ends = min(run.grids), max(run.grids)
    before, after = map(run.tiles, ends)
    pairs = list(zip(run.prompts, before, after, _said(run, ends), strict=True))[:count]
    lines = max(len(said) for *_, said in pairs)
    rows, pitch = math.ceil(len(pairs) / 2), SIDE + 52 + LINE * lines
    corners = [(MARGIN + i // rows * COLUMN, MARGIN + HEADING + i % rows * pitch) for i in range(len(pairs))]
    cards = [_pair(*pair, x, y) for pair, (x, y) in zip(pairs, corners, strict=True)]
    return cards, 2 * MARGIN + HEADING + rows * pitch - 14


def _said(run: Run, ends: tuple[int, int]) -> list[list[str]]:
    """What a reward said of each pair: a line for the left and one for the right, where it said anything."""
    texts = zip(*map(run.tile_captions, ends), strict=True)
    return [[f"“{said[0]}”" for said in both] if all(both) else [] for both in texts]


def _pair(prompt: str, before: Image.Image, after: Image.Image, said: list[str], x: int, y: int) -> str:
    """Two tiles side by side over their prompt and what a reward said of them."""
    words = text(x, y + SIDE + 26, textwrap.shorten(prompt, 30, placeholder=" …"), "start", "prompt")
    lines = [
        text(x, y + SIDE + 26 + LINE * (i + 1), textwrap.shorten(line, 42, placeholder=" …”"), "start", "said")
        for i, line in enumerate(said)
    ]
    return _tile(before, x, y) + _tile(after, x + SIDE + 6, y) + words + "".join(lines)


def _tile(image: Image.Image, x: int, y: int) -> str:
    source = data_url(image.resize((SIDE, SIDE), Image.Resampling.LANCZOS), "png")
    return f'<image x="{x}" y="{y}" width="{SIDE}" height="{SIDE}" href="{source}"/>'


def _curve(run: Run, x: float, y: float, width: float, height: float) -> str:
    chart = reward_chart(run, round(width / CHART_SCALE), round(height / CHART_SCALE))
    return f'<g transform="translate({x} {y}) scale({CHART_SCALE})">{chart}</g>'
