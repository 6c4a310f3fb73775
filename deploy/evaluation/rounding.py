"""A change and its interval as text, with as many decimals as the interval is worth. Consumes a reward's results."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from deploy.report.scale import number


def change(result: Mapping[str, Any]) -> str:
    """Its size, without a sign: `0.86`."""
    return _text(abs(result["change"]), result)


def signed(result: Mapping[str, Any]) -> str:
    """With its sign: `+0.86`."""
    text = change(result)
    return text if not text.strip("0.") else ("+" if result["change"] > 0 else "−") + text


def span(result: Mapping[str, Any]) -> str:
    """The interval: `0.68 to 1.05`; nothing where there is none."""
    return "" if result["low"] is None else f"{_text(result['low'], result)} to {_text(result['high'], result)}"


def _text(value: float, result: Mapping[str, Any]) -> str:
    """Two significant digits of the interval's width; three of the value where the interval has none."""
    width = 0.0 if result["low"] is None else result["high"] - result["low"]
    decimals = 1 - math.floor(math.log10(width)) if width > 0 else 99
    if decimals > 6:
        return number(value)
    text = f"{value:,.{max(0, decimals)}f}".replace("-", "−")
    return text.removeprefix("−") if float(text.replace("−", "-").replace(",", "")) == 0 else text
