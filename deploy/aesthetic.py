"""`ddpo train-aesthetic`: train a head from ratings, and say how good it is and how to use it.

Consumes the command's options, produces the head's folder and the account that is printed.
"""

from __future__ import annotations

import argparse
import sys

from ddpo.errors import InputError
from rewards.train_aesthetic import Recipe, Result, train_head


def train(options: argparse.Namespace) -> str:
    """Train and save a head; returns its account. Raises InputError where files or folders cannot be used."""
    if not options.images.is_dir():
        raise InputError(f"--images: there is no folder {options.images}. Give the one that the rated images are in.")
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out: {options.out} cannot be made: {error.strerror}. Give another folder.") from None
    recipe = Recipe(hidden=options.hidden, epochs=options.epochs, seed=options.seed)
    result = train_head(
        options.ratings, options.images, options.model, options.out, recipe, options.device, options.skip,
        lambda text: print(text, file=sys.stderr, flush=True),
    )
    return _account(result, options.model)


def _account(result: Result, model: str) -> str:
    held = result.held_out
    return "\n".join([
        f"{result.images} rated images; the head is that of epoch {result.epoch}.",
        f"On {held.images} images that it was neither trained nor chosen on:",
        f"  Pearson  {held.pearson:6.3f}",
        f"  Spearman {held.spearman:6.3f}",
        f"  mean squared error {held.mse:.4g}; always saying the mean rating gives {held.constant_mse:.4g}",
        "",
        "[rewards.aesthetic]",
        'kind = "aesthetic"',
        f'model = "{model}"',
        f'head = "{result.folder}"',
    ])
