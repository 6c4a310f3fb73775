"""The drawings: emoji of four open collections, rendered once as RGBA sprites.

Consumes: the npm packages `@iconify-json/*`, pinned, fetched with `npm install` or found in a folder that holds them.
Produces: `Art`, uint8 sprites of shape (SIZE, SIZE, 4) for every animal and for the props of the scenes.
"""

import io
import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from menagerie import ANIMALS

SIZE = 128

PACKAGES = {"noto": "1.2.9", "noto-v1": "1.2.5", "fluent-emoji-flat": "1.2.6", "twemoji": "1.2.5"}

# Icons of an animal where they are not called `animal` and `animal-face`.
ICONS = {
    "horse": ("horse",),
    "sheep": ("ewe", "ram"),
    "squirrel": ("chipmunk",),
    "bee": ("honeybee",),
    "chicken": ("chicken", "rooster"),
    "beetle": ("beetle", "lady-beetle"),
    "bird": ("bird", "black-bird"),
    "fish": ("fish", "tropical-fish"),
    "whale": ("whale", "spouting-whale"),
}

# Drawings that look another way than their fellows, that are cut off, or that a stranger would misname at 64 pixels:
# a small denoiser that is shown a left and a right profile draws birds with two heads.
DROPPED = {
    "noto": "black-bird cow deer raccoon gorilla beetle lady-beetle butterfly fly whale spouting-whale chicken "
    "tropical-fish mouse",
    "noto-v1": "fish shark dolphin ant lady-beetle butterfly spouting-whale tropical-fish bat ewe mouse rat rooster "
    "dog monkey camel chipmunk",
    "fluent-emoji-flat": "bird goose duck turkey turtle gorilla deer tropical-fish whale bat llama ewe ram goat "
    "chicken honeybee rabbit",
    "twemoji": "black-bird turkey zebra cow lizard snake chicken whale rat goat ewe ram ant honeybee hedgehog camel",
}

PROPS = {
    "bicycle": ("noto-v1:bicycle", "fluent-emoji-flat:bicycle", "twemoji:bicycle"),
    "pawn": ("noto:chess-pawn", "fluent-emoji-flat:chess-pawn", "twemoji:chess-pawn"),
    "bubbles": ("noto:bubbles", "twemoji:bubbles"),
}


@dataclass(frozen=True)
class Art:
    """Lists of uint8 (SIZE, SIZE, 4): all drawings of an animal, those fit for a scene, and the props."""

    animals: dict[str, list[np.ndarray]]
    bodies: dict[str, list[np.ndarray]]
    props: dict[str, list[np.ndarray]]


def fetch(cache: Path) -> Path:
    """Install the pinned packages below `cache` with npm; return the folder that holds them."""
    cache.mkdir(parents=True, exist_ok=True)
    wanted = [f"@iconify-json/{name}@{version}" for name, version in PACKAGES.items()]
    subprocess.run(["npm", "install", "--no-audit", "--no-fund", "--prefix", str(cache), *wanted], check=True)
    return cache / "node_modules" / "@iconify-json"


def load(folder: Path) -> Art:
    """Render all drawings of the packages in `folder` (the one named @iconify-json)."""
    sets = {name: json.loads((folder / name / "icons.json").read_text()) for name in PACKAGES}
    names = {animal: icons(animal, sets) for animal in ANIMALS}
    return Art(
        animals={animal: [render(name, sets) for name in heads(names[animal])] for animal in ANIMALS},
        bodies={animal: [render(name, sets) for name in bodies(names[animal])] for animal in ANIMALS},
        props={prop: [render(name, sets) for name in names] for prop, names in PROPS.items()},
    )


def icons(animal: str, sets: dict[str, dict]) -> list[str]:
    """List the drawings of an animal as "package:icon"; aliases are doubles and left out."""
    wanted = ICONS.get(animal, (animal, f"{animal}-face"))
    found = [f"{package}:{icon}" for icon in wanted for package in sets if icon in sets[package]["icons"]]
    return [name for name in found if name.split(":")[1] not in DROPPED[name.split(":")[0]].split()]


def heads(names: list[str]) -> list[str]:
    """Keep heads alone where an animal has them, for a mixture of heads and bodies is drawn as a mixture."""
    return [name for name in names if name.endswith("-face")] or names


def bodies(names: list[str]) -> list[str]:
    """Keep whole bodies where an animal has them, for a head rides no bicycle."""
    return [name for name in names if not name.endswith("-face")] or names


def render(name: str, sets: dict[str, dict]) -> np.ndarray:
    """Draw one icon, cropped to its ink and centred; uint8 (SIZE, SIZE, 4)."""
    import resvg_py

    package, icon = name.split(":")
    entry, defaults = sets[package]["icons"][icon], sets[package]
    width, height = entry.get("width", defaults["width"]), entry.get("height", defaults["height"])
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="0 0 {width} {height}" width="{2 * SIZE}" height="{2 * SIZE}">{entry["body"]}</svg>'
    )
    drawn = Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg)))).convert("RGBA")
    return np.asarray(centred(drawn))


def centred(drawn: Image.Image) -> Image.Image:
    """Crop a drawing to its ink and fit it into the middle of a SIZE square."""
    visible = Image.fromarray(np.asarray(drawn.getchannel("A")) > 16)
    ink = drawn.crop(visible.getbbox())
    scale = SIZE / max(ink.size)
    ink = ink.resize((round(ink.width * scale), round(ink.height * scale)), Image.Resampling.LANCZOS)
    sprite = Image.new("RGBA", (SIZE, SIZE))
    sprite.paste(ink, ((SIZE - ink.width) // 2, (SIZE - ink.height) // 2))
    return sprite
