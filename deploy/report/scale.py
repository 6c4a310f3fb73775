"""Numbers for people, and the scales that charts place them on. Consumes numbers, produces text and pixels."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


def number(value: float, digits: int = 3) -> str:
    """A number for people: some significant digits, thousands set off, powers of ten where it is tiny."""
    if value == 0:
        return "0"
    power = math.floor(math.log10(abs(value)))
    if -4 < power < 6:
        text = f"{value:,.{max(0, digits - 1 - power)}f}"
    else:
        text = f"{value / 10**power:.{digits - 1}f}".rstrip("0").rstrip(".") + f"×10{_raised(power)}"
    return text.replace("-", "−")


def _raised(power: int) -> str:
    return str(power).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def counted(count: int, noun: str) -> str:
    """`1 step`, `1,280 steps`."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def duration(seconds: float) -> str:
    """4.2 s, 5 min 12 s, 3 h 5 min."""
    if seconds < 60:
        return f"{number(seconds, 2)} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def size(count: float) -> str:
    """Bytes: 24.3 GB, 820 MB, 12 kB."""
    unit, factor = next((pair for pair in (("GB", 1e9), ("MB", 1e6)) if count >= pair[1]), ("kB", 1e3))
    return f"{count / factor:.3g} {unit}"


def thin(items: Sequence[T], most: int) -> list[T]:
    """At most `most` of the items: every k-th from the first on, and the last."""
    stride = max(1, math.ceil((len(items) - 1) / (most - 1)))
    return [*items[:-1:stride], *items[-1:]]


def padded(values: Sequence[float], share: float = 0.08) -> tuple[float, float]:
    """The range of the values with a margin on both sides, never empty."""
    low, high = min(values), max(values)
    margin = (high - low) * share or abs(high) * share or 1.0
    return low - margin, high + margin


@dataclass(frozen=True)
class Scale:
    """Maps low..high to pixels start..stop, linearly or by logarithm."""

    low: float
    high: float
    start: float
    stop: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, at = (math.log10(v) if self.log else v for v in (self.low, self.high, value))
        return round(self.start + (at - low) / (high - low) * (self.stop - self.start), 1)

    def ticks(self, about: int = 5) -> list[tuple[float, str]]:
        """Round values on the scale with their labels: multiples of 1, 2 or 5, or powers of ten."""
        return _decades(self.low, self.high, about) if self.log else _multiples(self.low, self.high, about)


def _multiples(low: float, high: float, about: int) -> list[tuple[float, str]]:
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.8)
    values = [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)]
    if max(abs(low), abs(high)) < 1e-3:
        return [(v, number(v, 2)) for v in values]
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    return [(v, f"{v:,.{decimals}f}".replace("-", "−")) for v in values]


def _decades(low: float, high: float, about: int) -> list[tuple[float, str]]:
    first, last = math.ceil(math.log10(low)), math.floor(math.log10(high))
    stride = max(1, math.ceil((last - first) / about))
    return [(10.0**power, f"10{_raised(power)}") for power in range(first, last + 1, stride)]
