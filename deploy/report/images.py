"""The sections of images: before and after, and all through training. Consume a run, produce HTML."""

from collections.abc import Sequence
from html import escape

from PIL import Image

from deploy.report.markup import data_url, figure, table
from deploy.report.read import Run
from deploy.report.scale import counted, number

PAIRS, FILM_ROWS = 24, 6  # most prompts that are shown
NONE = "<p>No images are logged.</p>"


def before_after(run: Run) -> str:
    """Pairs of the same prompt and noise, from the first and the last grid."""
    if not run.grids:
        return NONE
    steps = sorted({min(run.grids), max(run.grids)})
    rewards = zip(*(run.tile_rewards(step) for step in steps), strict=True)
    said = zip(*(run.tile_captions(step) for step in steps), strict=True)
    cards = [
        card(prompt, images, " → ".join(_rewards(known) for known in ends if known), run.unit, captions)
        for (prompt, images), ends, captions in zip(_tiles(run, steps, PAIRS), rewards, said, strict=False)
    ]
    pairs = f'<div class="pairs" {_sizes(run)}>\n' + "\n".join(cards) + "\n</div>"
    return figure(pairs, _pairs_caption(run, steps))


def film(run: Run) -> str:
    """One row a prompt, one column a logged step."""
    if not run.grids:
        return NONE
    steps = sorted(run.grids)
    head = ["prompt", *("before" if step == 0 else f"step {step:,}" for step in steps)]
    rows = [[escape(prompt), *images] for prompt, images in _tiles(run, steps, FILM_ROWS)]
    some = ": some of the logged steps, first and last included." if len(run.scores) > len(steps) else "."
    caption = "The same prompts and noise after more and more updates" + some
    return figure(f"<div {_sizes(run)}>{table(head, rows, 'film')}</div>", caption)


def _tiles(run: Run, steps: Sequence[int], most: int) -> list[tuple[str, list[str]]]:
    """The first prompts, each with its images at these steps."""
    grids = [(step, run.tiles(step)) for step in steps]
    return [
        (prompt, [tile(tiles[i], f"{prompt}, {_when(step)}") for step, tiles in grids])
        for i, prompt in enumerate(run.prompts[:most])
    ]


def tile(image: Image.Image, alt: str) -> str:
    """Small drawings without loss, larger ones shrunk to 288 pixels a side."""
    size, small = f'width="{image.width}" height="{image.height}"', max(image.size) <= 128
    image.thumbnail((288, 288), Image.Resampling.LANCZOS)
    source = data_url(image, "webp", lossless=small, quality=80 if small else 88, method=4)
    return f'<img src="{source}" alt="{escape(alt)}" {size}>'


def _when(step: int) -> str:
    return "before training" if step == 0 else f"after {counted(step, 'step')}"


def _sizes(run: Run) -> str:
    return sizes(run.layout["tile"][1], len(run.grids))


def sizes(width: int, columns: int) -> str:
    """Widths of a tile on a desk, a phone and in the film: small drawings enlarged, large images shrunk."""
    desk, small = (max(2 * width, 96), 80) if width <= 96 else (min(width, 256), min(width, 160))
    across = min(desk, 160, 960 // columns - 4)
    edges = "pixelated" if width <= 32 else "auto"
    return f'style="--tile: {desk}px; --small: {small}px; --film: {across}px; --edges: {edges}"'


def _rewards(known: dict[str, float]) -> str:
    """The rewards of one image; the name only where there are several."""
    if len(known) == 1:
        return number(next(iter(known.values())))
    return ", ".join(f"{escape(name)} {number(value)}" for name, value in known.items())


def card(prompt: str, images: Sequence[str], rewards: str, unit: str, captions: Sequence[Sequence[str]]) -> str:
    """The images of one prompt and noise side by side, over the prompt, their rewards and what was said of each."""
    value = f'<br><span class="value">{rewards} {unit}</span>' if rewards else ""
    texts = [" / ".join(escape(text) for text in said) or "no caption" for said in captions]
    told = f'<br><span class="caption">{" → ".join(f"“{text}”" for text in texts)}</span>' if any(captions) else ""
    return f'<div class="pair"><div>{"".join(images)}</div><p>{escape(prompt)}{value}{told}</p></div>'


def _pairs_caption(run: Run, steps: Sequence[int]) -> str:
    shown = f"The first {PAIRS} of {len(run.prompts)} fixed prompts. " if len(run.prompts) > PAIRS else ""
    if len(steps) == 1:
        return f"{shown}Images {_when(steps[0])}; no later ones are logged yet."
    return (
        f"{shown}Left: {_when(steps[0])}. Right: {_when(steps[1])}. Both images of a pair start from the same noise "
        "and get the same prompt, so all that differs is the policy. None is chosen by hand"
        + ("; the numbers are the rewards of these very images." if run.scores else ".")
    )
