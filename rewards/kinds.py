"""The kinds of rewards: which code computes [rewards.NAME] kind = "...". Models are imported where they are used."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ddpo.config import RewardConfig
from ddpo.stages import WHOLE
from rewards import diversity, function, jpeg


def _alignment(config: RewardConfig) -> Any:
    from rewards.alignment import Alignment

    return Alignment(config)


def _describe(config: RewardConfig) -> Any:
    from rewards.alignment import Describe

    return Describe(config)


def _compare(config: RewardConfig) -> Any:
    from rewards.alignment import Compare

    return Compare(config)


def _satisfaction(config: RewardConfig) -> Any:
    from rewards.satisfaction import Satisfaction

    return Satisfaction(config)


def _aesthetic(config: RewardConfig) -> Any:
    from rewards.aesthetic import Aesthetic

    return Aesthetic(config)


def _cosine(config: RewardConfig) -> Any:
    from rewards.clip import Cosine

    return Cosine(config)


def _imagereward(config: RewardConfig) -> Any:
    from rewards.imagereward import ImageReward

    return ImageReward(config)


KINDS: dict[str, Callable[[RewardConfig], function.RewardFunction]] = {
    "compressibility": lambda config: jpeg.compressibility,
    "incompressibility": lambda config: jpeg.incompressibility,
    "diversity": lambda config: diversity.diversity,
    "alignment": _alignment,
    "satisfaction": _satisfaction,
    "aesthetic": _aesthetic,
    "clipscore": _cosine,
    "pickscore": _cosine,
    "hpsv2": _cosine,
    "imagereward": _imagereward,
}


PARTS: dict[tuple[str, str], Callable[[RewardConfig], function.RewardFunction]] = {
    ("alignment", "describe"): _describe,
    ("alignment", "compare"): _compare,
}


def make(config: RewardConfig, source: str, verb: str = WHOLE) -> function.RewardFunction:
    """The reward of one entry, or the stage of it that does `verb`; `source` is what rewards.pool.sources read for it.
    Raises RewardError."""
    if config.kind == "function":
        return function.load(source, config.path, config.function)
    if config.kind == "http":
        from rewards.remote import Remote

        return Remote(config, source)
    return (KINDS[config.kind] if verb == WHOLE else PARTS[config.kind, verb])(config)
