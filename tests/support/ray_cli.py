"""What Ray's own command line takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click


def known(words: Sequence[str]) -> None:
    """Raise click's error where `ray WORDS` has a command or an option that Ray has not; runs nothing."""
    from ray.scripts.scripts import cli

    group: Any = cli
    while isinstance(group, click.Group) and words[0] in group.commands:
        group, words = group.commands[words[0]], words[1:]
    assert group is not cli, f"ray has no command {words[0]}"
    group.make_context("ray", list(words))
