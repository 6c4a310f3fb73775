"""Figures of runs under fire, by what struck them.

Consumes lines of results.jsonl, produces a table; waits for nothing.
"""

from __future__ import annotations

import json
import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from schedule import ALONE, FAULTS

NOTHING = "nothing to strike"
NOTE = (
    "drawn: strikes of the schedules. struck: those that found a victim. empty: those that found none, or no run any "
    "more.\nSeconds from a strike to the next step learned, whatever else struck meanwhile; where it ended the driver, "
    "from its next start on."
)
Line = dict[str, Any]


def read(files: Sequence[Path]) -> list[Line]:
    """All lines of some results.jsonl."""
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def summary(lines: Sequence[Line]) -> str:
    """Schedules, those that failed, and a row for each kind of strike."""
    drawn = Counter(kind for line in lines for kind in re.findall(r"(\w+) \((?:step|at the start)", line["schedule"]))
    struck = [strike for line in lines for strike in line["struck"] if strike["victim"] != NOTHING]
    failed = [f"failed: {line['schedule']}  {line['error']}" for line in lines if line["error"]]
    on_ray = sum("Ray" in line["schedule"] for line in lines)
    head = f"{len(lines)} schedules, {on_ray} of them on Ray, {len(failed)} failed; {drawn.total()} strikes drawn, "
    return "\n".join([f"{head}{len(struck)} struck", *failed, *table(drawn, struck), NOTE, *_unknown(struck)])


def table(drawn: Counter[str], struck: Sequence[Line]) -> list[str]:
    """Counts and seconds by kind."""
    counts, seconds = Counter(strike["kind"] for strike in struck), defaultdict(list)
    for strike in filter(_recovered, struck):
        seconds[strike["kind"]].append(strike["seconds"])
    rows = [f"{'':<12} {'drawn':>6} {'struck':>6} {'empty':>6} {'recovered':>10} {'median s':>9} {'longest s':>9}"]
    for kind in [kind for kind in FAULTS if drawn[kind]]:
        found = seconds[kind]
        figures = f"{statistics.median(found):>9.1f} {max(found):>9.1f}" if found else f"{'-':>9} {'-':>9}"
        empty = drawn[kind] - counts[kind]
        rows.append(f"{kind:<12} {drawn[kind]:>6} {counts[kind]:>6} {empty:>6} {len(found):>10} {figures}")
    return rows


def _recovered(strike: Line) -> bool:
    """Whether its seconds are known; those of an ended driver only where the moment of its end is ("left")."""
    return "seconds" in strike and (strike["kind"] not in ALONE or "left" in strike)


def _unknown(struck: Sequence[Line]) -> list[str]:
    """What is said where drivers were struck without a trace of their end."""
    count = sum("seconds" in strike and not _recovered(strike) for strike in struck)
    return [f"{count} strikes at a driver are not in the seconds: nobody noted that they ended it (another one did, or "
            "the file is older than such notes)."] if count else []
