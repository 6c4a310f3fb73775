"""Pieces of the page. Consume and produce ready HTML: texts of others are escaped by whoever puts them in."""

import base64
import io
from collections.abc import Callable, Sequence
from typing import Any

from PIL import Image

WIDE, HALF, NARROW = 1100, 540, 380  # pixels of a chart over the whole page, over half of it, and on a phone


def section(heading: str, body: str) -> str:
    """A section that its heading names."""
    name = heading.lower().replace(" ", "-")
    return f'<section aria-labelledby="{name}">\n<h2 id="{name}">{heading}</h2>\n{body}\n</section>'


def figure(drawing: str, caption: str) -> str:
    """A drawing or table over its caption."""
    return f"<figure>\n{drawing}\n<figcaption>{caption}</figcaption>\n</figure>"


def twice(draw: Callable[[int], str], desk: int = WIDE) -> str:
    """A chart drawn for a desk and again for a phone, of which the page shows one."""
    return f'<div class="desk">{draw(desk)}</div>\n<div class="phone">{draw(NARROW)}</div>'


def table(head: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "") -> str:
    """A table that scrolls where it is too wide; the first cell of a row names it."""
    cells = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    body = "\n".join(_row(*row) for row in rows)
    content = f'<table class="{kind}"><thead><tr>{cells}</tr></thead><tbody>\n{body}\n</tbody></table>'
    return f'<div class="scroll" tabindex="0">{content}</div>'


def _row(name: str, *cells: str) -> str:
    rest = "".join(f"<td>{cell}</td>" for cell in cells)
    return f'<tr><th scope="row">{name}</th>{rest}</tr>'


def data_url(image: Image.Image, kind: str, **options: Any) -> str:
    """An image inside the page, as "png" or "webp"."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return f"data:image/{kind};base64," + base64.b64encode(file.getvalue()).decode()
