"""The card's picture: the fixed prompts before and after training, side by side.

Consumes a run folder as the report reads it, produces a PIL image; waits for nothing.
"""

from __future__ import annotations

import textwrap

from PIL import Image, ImageDraw, ImageFont

from deploy.report.read import Run

SIDE, GAP, LABEL, COLUMNS, MOST = 192, 24, 34, 2, 8  # pixels: a tile, between pairs, for the prompt; pairs


def steps(run: Run, step: int) -> tuple[int, int] | None:
    """The first grid and the last one up to a step; None where there are not two."""
    drawn = sorted(number for number in run.grids if number <= step)
    return (drawn[0], drawn[-1]) if len(drawn) > 1 else None


def picture(run: Run, shown: tuple[int, int]) -> Image.Image:
    """Pairs of the first prompts, row by row, each over its prompt."""
    pairs = list(zip(run.prompts, run.tiles(shown[0]), run.tiles(shown[1]), strict=True))[:MOST]
    columns, rows = min(COLUMNS, len(pairs)), -(-len(pairs) // COLUMNS)
    width, height = 2 * SIDE + GAP, SIDE + LABEL
    sheet = Image.new("RGB", (columns * width + GAP, rows * height + GAP), "white")
    for number, pair in enumerate(pairs):
        row, column = divmod(number, COLUMNS)
        _paste(sheet, *pair, GAP + column * width, GAP + row * height)
    return sheet


def _paste(sheet: Image.Image, prompt: str, before: Image.Image, after: Image.Image, x: int, y: int) -> None:
    for tile, left in ((before, x), (after, x + SIDE)):
        sheet.paste(tile.resize((SIDE, SIDE), Image.Resampling.LANCZOS), (left, y))
    words = textwrap.shorten(prompt, 46, placeholder=" …")
    ImageDraw.Draw(sheet).text((x, y + SIDE + 5), words, "#333333", ImageFont.load_default(16))
