"""Menagerie: a Stable Diffusion in miniature, and the recipe that trained it.

Consumes: openly licensed emoji drawings (see `art`).
Produces: `FOLDER`, a model folder that `StableDiffusionPipeline.from_pretrained` loads; the names it was taught.
Importing this package costs nothing: torch is imported only by the modules that train, judge or draw.
"""

from pathlib import Path

FOLDER = Path(__file__).parent / "model"

ANIMALS: tuple[str, ...] = (
    "cat", "dog", "horse", "monkey", "rabbit", "zebra", "spider", "bird", "sheep", "deer", "cow", "goat",
    "lion", "tiger", "bear", "raccoon", "fox", "wolf", "lizard", "beetle", "ant", "butterfly", "fish", "shark",
    "whale", "dolphin", "squirrel", "mouse", "rat", "snake", "turtle", "frog", "chicken", "duck", "goose", "bee",
    "pig", "turkey", "fly", "llama", "camel", "bat", "gorilla", "hedgehog", "kangaroo",
)  # fmt: skip

ACTIVITIES: tuple[str, ...] = ("washing dishes", "playing chess", "riding a bike")

# Two of every three animals were seen washing, playing and riding; the other fifteen are left for a reward to teach.
SCENES_TAUGHT: tuple[str, ...] = tuple(animal for place, animal in enumerate(ANIMALS) if place % 3 != 2)


def article(noun: str) -> str:
    """Put the indefinite article before a noun: "an ant"."""
    return f"{'an' if noun[0].lower() in 'aeiou' else 'a'} {noun}"


def scene(animal: str, activity: str) -> str:
    """Write the paper's prompt of a scene: "an ant riding a bike"."""
    return f"{article(animal)} {activity}"
