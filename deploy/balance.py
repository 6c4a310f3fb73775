"""What of a ledger does not add up: an image lost or counted twice, one drawn by another policy than `lag` gives it to,
books that disagree.

Consumes a run's config, its ledger, metrics and result; produces problems, each a line for a person. Waits for nothing.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ddpo.config import Run
from deploy.ledger import MASKED, TRAINED, Ledger, Line

Problems = Iterator[str]
Named = dict[int, dict[str, str]]  # version -> digest -> who first named it


def step_problems(run: Run, row: Line, ledger: Ledger) -> Problems:
    """Of one step that has been learned; `row` is its line of metrics.jsonl."""
    step = row["step"]
    ids, version = _due(run, step)
    lines = ledger.images.get(step, [])
    yield from _batch_problems(run, step, ledger)
    times = Counter(line["image"] for line in lines)
    if missing := [image for image in ids if not times[image]]:
        yield f"step {step}: {_were(missing)} drawn, but neither trained nor masked"
    if repeated := sorted(image for image, count in times.items() if count > 1):
        yield f"step {step}: {_were(repeated)} entered more than once, as if trained or masked twice"
    if foreign := sorted(times.keys() - set(ids)):
        yield f"step {step}: {_were(foreign)} entered, which the batch does not have"
    for wrong in sorted({line["version"] for line in lines} - {version}):
        images = _were([line["image"] for line in lines if line["version"] == wrong])
        yield f"step {step}: {images} drawn by policy {wrong}; lag = {run.lag} gives this batch to policy {version}"
    yield from _sum_problems(row, lines)


def _due(run: Run, step: int) -> tuple[range, int]:
    """The images of a step and the version that draws them: both follow from the config alone."""
    size = run.learner.images_per_step
    return range((step - 1) * size, step * size), max(0, step - 1 - run.lag)


def _batch_problems(run: Run, step: int, ledger: Ledger) -> Problems:
    """Of the line that a batch has of its own."""
    ids, version = _due(run, step)
    lines = ledger.batches.get(step, [])
    if len(lines) != 1:
        yield f"step {step}: its batch is entered as drawn {len(lines)} times, not once"
    for line in lines:
        if (line["drawn"], line["version"]) != ([ids[0], ids[-1]], version):
            first, last = line["drawn"]
            yield (f"step {step}: its batch is entered as images {first}..{last} by policy {line['version']}; the "
                   f"config with lag = {run.lag} makes it images {ids[0]}..{ids[-1]} by policy {version}")


def _sum_problems(row: Line, lines: Sequence[Line]) -> Problems:
    """What metrics.jsonl and the ledger both know."""
    rewards = [line["reward"] for line in lines if line["fate"] == TRAINED and line["reward"] is not None]
    ours = {
        "images": len(rewards),
        "images_masked": sum(line["fate"] == MASKED and bool(line.get("reason")) for line in lines),
        "reward_mean": float(np.mean(rewards)) if rewards else math.nan,
    }
    for key, value in ours.items():
        if not math.isclose(row[key], value, rel_tol=1e-9):
            yield f"step {row['step']}: {key} is {row[key]} in metrics.jsonl and {value} by the ledger"


def flight_problems(run: Run, steps: int, ledger: Ledger, result: Mapping[str, Any]) -> Problems:
    """Of batches that are drawn and not learned: at most lag + 1, and none where the run came to its end."""
    flying = sorted(step for step in ledger.batches if step > steps)
    for step in flying:
        yield from _batch_problems(run, step, ledger)
    if len(flying) > run.lag + 1:
        yield f"after step {steps} the batches of steps {flying} are in flight; with lag = {run.lag} that is too many"
    if flying and result and "stopped" not in result:
        yield f"the run has ended, but the batches of steps {flying} were neither trained nor masked"
    if stray := sorted(step for step in ledger.images if not 0 < step <= steps + 1):
        yield f"the ledger has images of steps {stray}, but metrics.jsonl ends with step {steps}"


def book_problems(rows: Sequence[Line], ledger: Ledger, checkpoint: int, result: Mapping[str, Any]) -> Problems:
    """Of the files as wholes; `checkpoint` is the newest one's step, 0 where there is none."""
    for number in ledger.damaged:
        yield f"line {number} of ledger.jsonl is damaged: it is none that this program writes"
    if [row["step"] for row in rows] != list(range(1, len(rows) + 1)):
        yield f"metrics.jsonl does not count its steps from 1 to {len(rows)}, each once"
    if checkpoint > len(rows):
        yield f"there is a checkpoint of step {checkpoint}, but metrics.jsonl has {len(rows)} steps: lines were lost"
    counted = [line for row in rows for line in ledger.images.get(row["step"], [])]
    for fate in (TRAINED, MASKED) if result else ():
        value, key = sum(line["fate"] == fate for line in counted), f"images_{fate}"
        if result[key] != value:
            yield f"{key} is {result[key]} in result.json and {value} by the ledger"


def digests(ledger: Ledger, stored: Iterable[tuple[str, int, str]], result: Mapping[str, Any]) -> Named:
    """Who names which digest of a policy: the ledger, the policies on disk (place, version, digest), the result."""
    named: Named = {}
    for lines in (*ledger.batches.values(), *ledger.images.values()):
        for line in lines:
            named.setdefault(line["version"], {}).setdefault(line["digest"], f"ledger.jsonl, step {line['step']}")
    for place, version, digest in stored:
        named.setdefault(version, {}).setdefault(digest, place)
    if result:
        named.setdefault(result["steps"], {}).setdefault(result["lora_digest"], "result.json")
    return named


def digest_problems(named: Named) -> Problems:
    """A version has one digest, whoever names it."""
    for version, found in sorted(named.items()):
        if len(found) > 1:
            places = ", ".join(f"{digest[:12]} ({place})" for digest, place in found.items())
            yield f"policy {version} has {len(found)} digests, so weights were mixed up or a file is foreign: {places}"


def _were(images: Sequence[int]) -> str:
    """ "image 4 was", "images 4, 5 were", "images 4, 5, 6, 7, 8 and 12 more were"."""
    more = f" and {len(images) - 5} more" if len(images) > 5 else ""
    return f"image {images[0]} was" if len(images) == 1 else f"images {', '.join(map(str, images[:5]))}{more} were"
