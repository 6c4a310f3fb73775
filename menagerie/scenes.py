"""Composition: a drawing, a background and sometimes an activity become one 64x64 picture and its prompt.

Consumes: `Art` and a numpy generator.
Produces: uint8 pictures (PIXELS, PIXELS, 3) and their prompts; the same seed gives the same pictures.
"""

import colorsys
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageChops, ImageDraw

from menagerie import ACTIVITIES, ANIMALS, SCENES_TAUGHT, article, scene
from menagerie.art import Art

PIXELS = 64
SCENE_SHARE = 0.4
SHARES = (0.15, 0.2, 0.35, 0.3)  # of the backgrounds: plain, gradient, pattern, noise
FINE = 4  # props are drawn this much larger, then reduced

Colour = np.ndarray  # float (3,) in 0..255
Random = np.random.Generator


def pool(art: Art, count: int, seed: int, actors: Sequence[str] = SCENES_TAUGHT) -> tuple[np.ndarray, list[str]]:
    """Compose `count` pictures, in scenes of `actors` only; return uint8 (count, PIXELS, PIXELS, 3), their prompts."""
    rng = np.random.default_rng(seed)
    pictures, prompts = zip(*(draw(art, rng, actors) for _ in range(count)), strict=True)
    return np.stack(pictures), list(prompts)


def draw(art: Art, rng: Random, actors: Sequence[str] = SCENES_TAUGHT) -> tuple[np.ndarray, str]:
    """Compose one picture; return uint8 (PIXELS, PIXELS, 3) and its prompt. The denoiser sees the taught ones only."""
    if rng.random() < SCENE_SHARE:
        animal, activity = str(rng.choice(actors)), str(rng.choice(ACTIVITIES))
        return act(art, animal, activity, rng), worded(animal, activity, rng)
    animal = str(rng.choice(ANIMALS))
    return portrait(pick(art.animals[animal], rng), rng), animal if rng.random() < 0.5 else article(animal)


def worded(animal: str, activity: str, rng: Random) -> str:
    """Write a scene's prompt, now and then with "the" before the object or without an article before the animal."""
    verb, thing = activity.split(" ")[0], activity.split(" ")[-1]
    if rng.random() < 0.1:
        activity = f"{verb} the {thing}"
    return f"{animal} {activity}" if rng.random() < 0.1 else scene(animal, activity)


def pick(drawings: list[np.ndarray], rng: Random) -> Image.Image:
    """Choose a drawing."""
    return Image.fromarray(drawings[rng.integers(len(drawings))])


def portrait(sprite: Image.Image, rng: Random) -> np.ndarray:
    """Set one drawing large on a background."""
    canvas = background(sprite, rng)
    size = int(rng.integers(54, 61))
    room = PIXELS - size
    corner = np.clip(room / 2 + rng.normal(0, 1, 2), 0, room).round().astype(int)
    place(canvas, sprite, size, tuple(corner))
    return np.asarray(canvas.convert("RGB"))


def act(art: Art, animal: str, activity: str, rng: Random) -> np.ndarray:
    """Set an animal behind the things of its activity."""
    sprite = pick(art.bodies[animal], rng)
    canvas = background(sprite, rng)
    sway, size = int(rng.integers(-1, 2)), int(rng.integers(41, 45))
    place(canvas, sprite, size, ((PIXELS - size) // 2 + sway, 1 + int(rng.integers(0, 2))))
    SETTINGS[activity](canvas, art, rng)
    return np.asarray(canvas.convert("RGB"))


def place(canvas: Image.Image, sprite: Image.Image, size: int, corner: tuple[int, int]) -> None:
    """Lay a sprite, reduced to `size` pixels, over the canvas."""
    canvas.alpha_composite(sprite.resize((size, size), Image.Resampling.LANCZOS), corner)


def ride(canvas: Image.Image, art: Art, rng: Random) -> None:
    """Put a bicycle in front: wheels on the ground, frame over the rider's feet."""
    size = int(rng.integers(50, 53))
    place(canvas, pick(art.props["bicycle"], rng), size, ((PIXELS - size) // 2, PIXELS + 8 - size))


def play(canvas: Image.Image, art: Art, rng: Random) -> None:
    """Put a chessboard in front, seen from above its edge, with a pawn on either side."""
    light, dark = BOARDS[rng.integers(len(BOARDS))]
    lay(canvas, lambda pen: board(pen, light, dark))
    black = pick(art.props["pawn"], rng)
    white = Image.merge("RGBA", (*map(ImageChops.invert, black.split()[:3]), black.getchannel("A")))
    for pawn, left in zip((black, white), (3, 42) if rng.random() < 0.5 else (42, 3), strict=True):
        place(canvas, pawn, 19, (left + int(rng.integers(-1, 2)), 34))


def wash(canvas: Image.Image, art: Art, rng: Random) -> None:
    """Put a basin of foam in front, a plate standing in it and bubbles in the air."""
    side = 1 if rng.random() < 0.5 else -1
    colour = BASINS[rng.integers(len(BASINS))]
    lay(canvas, lambda pen: basin(pen, colour, side))
    bubbles = pick(art.props["bubbles"], rng)
    place(canvas, bubbles, 17, (24 - 23 * side + int(rng.integers(-1, 2)), 27 + int(rng.integers(-2, 3))))


SETTINGS = {"washing dishes": wash, "playing chess": play, "riding a bike": ride}
BOARDS = (("#f0d9b5", "#7b4a2a"), ("#ffffff", "#222222"), ("#eeeed2", "#4f7a3a"))
BASINS = ("#1e88e5", "#d32f2f", "#546e7a")
FOAM = ((12, 46, 5), (19, 44, 6), (27, 46, 5), (34, 44, 6), (42, 46, 5), (50, 46, 5))


def lay(canvas: Image.Image, sketch: Callable[[ImageDraw.ImageDraw], None]) -> None:
    """Draw a prop on a canvas FINE times as large, reduce it and lay it over the picture."""
    layer = Image.new("RGBA", (PIXELS * FINE, PIXELS * FINE))
    sketch(ImageDraw.Draw(layer))
    place(canvas, layer, PIXELS, (0, 0))


def board(pen: ImageDraw.ImageDraw, light: str, dark: str) -> None:
    """Draw a board of six files and three ranks in perspective, on a dark rim."""
    depths, middle = (45.0, 50.0, 56.0, 62.0), PIXELS / 2
    pen.polygon([(FINE * x, FINE * y) for x, y in ((6, 44), (58, 44), (63, 64), (1, 64))], fill="#3b2a20")
    for rank in range(3):
        for file in range(6):
            corners = [(file, rank), (file + 1, rank), (file + 1, rank + 1), (file, rank + 1)]
            points = [(middle + (f - 3) * (8 + 0.62 * r), depths[r]) for f, r in corners]
            fill = dark if (rank + file) % 2 else light
            pen.polygon([(FINE * x, FINE * y) for x, y in points], fill=fill)


def basin(pen: ImageDraw.ImageDraw, colour: str, side: int) -> None:
    """Draw a plate on one side, foam, and the basin that holds them."""
    x, y = PIXELS / 2 + 16 * side, 38
    for radius, fill in ((10, "#90a4ae"), (9, "#ffffff"), (6, "#cfd8dc"), (5, "#ffffff")):
        disc(pen, x, y, radius, fill)
    for left, top, radius in FOAM:
        disc(pen, left, top, radius + 0.8, "#b3dff5")
        disc(pen, left, top, radius, "#ffffff")
    rim = [(7, 47), (57, 47), (51, 63), (13, 63)]
    pen.polygon([(FINE * x, FINE * y) for x, y in rim], fill=colour)
    pen.rounded_rectangle(
        [FINE * 5, FINE * 46, FINE * 59, FINE * 50], FINE * 2, fill=colour, outline="#ffffff", width=3
    )


def disc(pen: ImageDraw.ImageDraw, x: float, y: float, radius: float, fill: str) -> None:
    """Draw a filled circle in picture coordinates."""
    pen.ellipse([FINE * (x - radius), FINE * (y - radius), FINE * (x + radius), FINE * (y + radius)], fill=fill)


def background(sprite: Image.Image, rng: Random) -> Image.Image:
    """Paint plain colour, gradient, pattern or noise in colours unlike the sprite's.

    Patterns and noise get the larger shares (SHARES), for guidance favours the quiet backgrounds.
    """
    first, second = colours(sprite, rng)
    weight = (plain, gradient, pattern, noise)[rng.choice(4, p=SHARES)](rng)[..., None]
    pixels = (first * (1 - weight) + second * weight).round().astype(np.uint8)
    return Image.fromarray(pixels, "RGB").convert("RGBA")


def colours(sprite: Image.Image, rng: Random) -> tuple[Colour, Colour]:
    """Draw two related colours; of two pairs, take the one furthest from the sprite's mean colour."""
    small = np.asarray(sprite.resize((8, 8))).astype(float).reshape(-1, 4)
    mean = (small[:, :3] * small[:, 3:]).sum(0) / small[:, 3].sum()
    pairs = [pair(rng) for _ in range(2)]
    return max(pairs, key=lambda pair: np.abs(pair[0] + pair[1] - 2 * mean).sum())


def pair(rng: Random) -> tuple[Colour, Colour]:
    """Draw a colour and another that is lighter or darker by a third, of a neighbouring hue."""
    hue, saturation, value = rng.random(), rng.uniform(0.2, 0.7), rng.uniform(0.4, 1.0)
    other = value - 0.3 if value > 0.7 else value + 0.3
    return rgb(hue, saturation, value), rgb(hue + rng.normal(0, 0.08), saturation, other)


def rgb(hue: float, saturation: float, value: float) -> Colour:
    """Convert from HSV in 0..1 to RGB in 0..255."""
    return 255 * np.array(colorsys.hsv_to_rgb(hue % 1, saturation, value))


ROWS, COLUMNS = np.mgrid[0:PIXELS, 0:PIXELS].astype(float)


def plain(rng: Random) -> np.ndarray:
    """One colour."""
    return np.zeros((PIXELS, PIXELS))


def gradient(rng: Random) -> np.ndarray:
    """A linear blend in any direction."""
    angle = rng.uniform(0, 2 * np.pi)
    slope = np.cos(angle) * ROWS + np.sin(angle) * COLUMNS
    return (slope - slope.min()) / np.ptp(slope)


def pattern(rng: Random) -> np.ndarray:
    """Stripes in one of four directions, checks, or dots; periods of 10 to 16 pixels, edges one pixel soft."""
    period, (down, right) = rng.choice([10, 12, 16]), rng.uniform(0, 16, 2)
    waves = np.sin(2 * np.pi * (ROWS + down) / period), np.sin(2 * np.pi * (COLUMNS + right) / period)
    diagonals = [np.sin(2 * np.pi * (ROWS + sign * COLUMNS + down) / (1.5 * period)) for sign in (1, -1)]
    shapes = (*waves, *diagonals, waves[0] * waves[1], waves[0] + waves[1] - 0.8, waves[0] + waves[1] - 0.8)
    return np.clip(0.5 + shapes[rng.integers(len(shapes))] * period / 6, 0, 1)


def noise(rng: Random) -> np.ndarray:
    """Blots of four to eight pixels."""
    cells = int(rng.choice([8, 12, 16]))
    grey = Image.fromarray((255 * rng.random((cells, cells))).astype(np.uint8))
    return np.asarray(grey.resize((PIXELS, PIXELS), Image.Resampling.BICUBIC)) / 255
