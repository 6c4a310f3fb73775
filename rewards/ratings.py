"""People's ratings of images: what `ddpo train-aesthetic` learns from.

Consumes a CSV file (columns image and rating) or AVA.txt, and a folder of images; produces the mean rating of every
image file, and pixels. Waits for nothing.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from ddpo.errors import InputError

SHOWN = 5  # of many bad lines or files, a message names the first ones
AVA_COLUMNS = 15  # index, image id, how many rated it 1, 2, ... 10, two tags, challenge


def read_ratings(path: Path) -> dict[str, float]:
    """The mean rating of each image, by its file name as the file has it; raises InputError with all bad lines."""
    lines = _text(path).splitlines()
    read = _csv if path.suffix.lower() == ".csv" else _ava
    found: dict[str, list[float]] = {}
    bad: list[str] = []
    for number, name, rating in read(lines, path):
        if name and rating is not None and math.isfinite(rating):
            found.setdefault(name, []).append(rating)
        else:
            bad.append(f"line {number}")
    if bad:
        raise InputError(f"{path}: {listed(bad, 'line')} without an image or a rating that is a number. Mend or remove "
                         "them.")
    return {name: float(np.mean(ratings)) for name, ratings in found.items()}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the ratings {path}: {error}.") from None


def _csv(lines: Sequence[str], path: Path) -> Iterator[tuple[int, str, float | None]]:
    rows = csv.DictReader(lines)
    header = rows.fieldnames or []
    if not {"image", "rating"} <= set(header):
        raise InputError(f"{path} begins with {', '.join(header) or 'nothing'}; its first line must name the columns "
                         "image,rating. (AVA's own format has the ending .txt.)")
    for row in rows:
        yield rows.line_num, (row["image"] or "").strip(), _number(row["rating"] or "")


def _ava(lines: Sequence[str], path: Path) -> Iterator[tuple[int, str, float | None]]:
    """AVA (Murray et al. 2012): the mean of votes 1 to 10, of the image <id>.jpg."""
    for number, line in enumerate(lines, 1):
        words = line.split()
        if words and (len(words) != AVA_COLUMNS or not all(word.isdigit() for word in words)):
            raise InputError(f"{path}, line {number} is not {AVA_COLUMNS} whole numbers, as AVA.txt has them. Ratings "
                             "in columns image,rating go into a file that ends in .csv.")
        votes = np.array(words[2:12], float)
        if words:
            yield number, f"{words[1]}.jpg", float(votes @ np.arange(1, 11) / votes.sum()) if votes.any() else None


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def listed(names: Sequence[str], what: str) -> str:
    """ "3 lines (line 2, line 5, line 9)", the first ones only of many."""
    more = ", ..." if len(names) > SHOWN else ""
    return f"{len(names)} {what}{'s' * (len(names) != 1)} ({', '.join(names[:SHOWN])}{more})"


def pixels(path: Path) -> NDArray[np.uint8]:
    """An image of any size and mode as uint8 (height, width, 3): upright, on white where it is transparent.

    Raises an exception of Pillow's, one of many kinds, where the file is no image.
    """
    with Image.open(path) as file:
        image = ImageOps.exif_transpose(file)
        if image.mode.startswith(("I", "F")):  # 16 bits and more, which convert() would cut at 255
            image = Image.fromarray(_eight_bits(np.asarray(image, float)))
        if image.has_transparency_data:
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
        return np.asarray(image.convert("RGB"))


def _eight_bits(values: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Grey values of unknown depth: 0 to 1, to 255 or to 65535, whichever holds them."""
    top = next((top for top in (1.0, 255.0, 65535.0) if values.max(initial=0) <= top), values.max())
    return (255 * values / top).clip(0, 255).round().astype(np.uint8)
