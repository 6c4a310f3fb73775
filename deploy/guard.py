"""The guard against over-optimisation, and the choice of the best checkpoint: both follow from metrics.jsonl alone.

Consumes the steps' metrics, produces a `Fall` where a watched measure falls while the trained reward rises (Gao et al.
2023, "Scaling laws for reward model overoptimization"); waits for nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddpo.config import GuardConfig
from learner.checkpoint import BEST, MANIFEST

Row = Mapping[str, Any]
TRAINED = "reward"
READ = ("step", "reward_mean", "rewards", "rewards_std")  # of a row; the rest of a long run's need not stay in memory


@dataclass(frozen=True)
class Fall:
    """`measure` has fallen by `spreads` standard deviations between step `since` and step `step`."""

    measure: str
    spreads: float
    since: int
    step: int

    def __str__(self) -> str:
        return (
            f"over-optimisation: {self.measure} has fallen by {self.spreads:.2f} standard deviations since step "
            f"{self.since}, while the trained reward rose"
        )


class Guard:
    """Looks at every step; remembers what it has said, so that a fall is told once."""

    def __init__(self, config: GuardConfig, watched: Sequence[str], rows: Iterable[Row]) -> None:
        self.config, self.rows = config, [_read(row) for row in rows]
        self.measures = [] if config.action == "off" else config.measures or list(watched)
        self.told: set[str] = set()

    def see(self, row: Row) -> Fall | None:
        """Take the newest step; returns a fall that has not been told yet."""
        self.rows.append(_read(row))
        for measure in self.measures:
            found = fall(self.rows, measure, self.config)
            if found and measure not in self.told:
                self.told.add(measure)
                return found
        return None


def _read(row: Row) -> Row:
    return {key: row[key] for key in READ if key in row}


def fall(rows: Sequence[Row], measure: str, config: GuardConfig) -> Fall | None:
    """How the measure has fallen since its best window, if that is too much and the trained reward rose meanwhile."""
    known = [row for row in rows if value(row, measure) is not None]
    size = config.window
    if len(known) < 2 * size:
        return None
    means = [mean(known[end - size : end], measure) for end in range(size, len(known) + 1)]
    best = max(range(len(means)), key=means.__getitem__)
    spread = max(sum(row["rewards_std"][measure] for row in some) / size for some in (known[:size], known[-size:]))
    rose = mean(known[-size:], TRAINED) > mean(known[best : best + size], TRAINED)
    if not rose or spread == 0 or means[best] - means[-1] <= config.fall * spread:
        return None
    return Fall(measure, (means[best] - means[-1]) / spread, known[best + size - 1]["step"], known[-1]["step"])


def value(row: Row, measure: str) -> float | None:
    """A step's mean of a measure: the trained reward, or one part."""
    return row["reward_mean"] if measure == TRAINED else row["rewards"][measure]


def mean(rows: Sequence[Row], measure: str) -> float:
    """Mean over steps, of those that have it."""
    known = [known for row in rows if (known := value(row, measure)) is not None]
    return sum(known) / len(known) if known else -float("inf")


def mark_best(folder: Path, step: int, rows: Sequence[Row], measure: str, window: int) -> None:
    """Let `folder/best` point to the checkpoint of `step` where the measure's mean over the steps up to it is higher
    than at the one it points to now."""
    link = folder / BEST
    before = link.readlink().name if link.is_symlink() else ""
    if not (folder / before / MANIFEST).is_file() or _up_to(rows, step, measure, window) > _up_to(
        rows, int(before), measure, window
    ):
        partial = folder / f".partial-{BEST}"
        partial.unlink(missing_ok=True)
        partial.symlink_to(f"{step:06d}")
        partial.replace(link)


def _up_to(rows: Sequence[Row], step: int, measure: str, window: int) -> float:
    return mean([row for row in rows if step - window < row["step"] <= step], measure)
