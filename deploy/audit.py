"""`ddpo audit`: adds the ledger up. Every image that was drawn was trained on once, masked with a reason, or is in
flight; each was drawn by the policy that `lag` gives it to; ledger, metrics, policies on disk and result agree.

Consumes a run folder, whether its run goes on, was killed or has ended; produces an `Audit`. Waits for nothing. No
torch.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddpo.config import Run
from ddpo.errors import InputError, LedgerError
from ddpo.runfile import load
from deploy import balance
from deploy.folder import RunFolder
from deploy.ledger import MASKED, TRAINED, Ledger, Line, read
from deploy.policies import kept
from learner import checkpoint

SHOWN = 10  # problems that are told one by one
TRIES = 100


@dataclass(frozen=True)
class Audit:
    """What the books say, in images where nothing else is said.

    steps, of:          steps learned, and asked for
    ended:              whether the run came to its end
    masked:             by reason
    lags:               by the number of updates between the policy that drew them and their training
    policies, kept:     versions that drew images, and how many of these are on disk
    problems:           all that does not add up
    """

    run: str
    steps: int
    of: int
    ended: bool
    drawn: int
    trained: int
    masked: Mapping[str, int]
    in_flight: int
    lags: Mapping[int, int]
    policies: int
    kept: int
    problems: Sequence[str]

    def check(self) -> None:
        """Raise LedgerError where anything does not add up."""
        if self.problems:
            more = [f"... and {len(self.problems) - SHOWN} more"] if len(self.problems) > SHOWN else []
            lines = [f"the ledger of {self.run} does not add up:", *self.problems[:SHOWN], *more]
            raise LedgerError("\n  ".join(lines))


def audit(path: Path) -> Audit:
    """Audit a run folder; raises InputError where it is none."""
    folder, run = opened(path)
    newest, rows, ledger, result = _snapshot(folder)
    stored, damaged = _stored(folder)
    counted = [line for row in rows for line in ledger.images.get(row["step"], [])]
    batches = [(step, _size(lines[0])) for step, lines in ledger.batches.items()]
    versions = {line["version"] for lines in ledger.batches.values() for line in lines}
    return Audit(
        run=str(path), steps=len(rows), of=run.steps, ended=bool(result), drawn=sum(size for _, size in batches),
        trained=sum(line["fate"] == TRAINED for line in counted),
        masked=dict(Counter(str(line.get("reason", "no reason")) for line in counted if line["fate"] == MASKED)),
        in_flight=sum(size for step, size in batches if step > len(rows)),
        lags=dict(Counter(line["step"] - 1 - line["version"] for line in counted)),
        policies=len(versions), kept=len(versions & {version for _, version, _ in stored}),
        problems=[*_problems(newest, run, rows, ledger, result, stored), *damaged],
    )


def opened(path: Path) -> tuple[RunFolder, Run]:
    """A run folder that has a ledger, and its run; raises InputError."""
    folder = RunFolder(path)
    if not folder.config_file.is_file():
        raise InputError(f"{path} is no run folder: it has no config.toml. Give one that a run wrote: runs/NAME.")
    if not folder.ledger_file.is_file():
        raise InputError(f"{path} has no ledger.jsonl: nothing has been drawn in it yet, or a version of this program "
                         "that kept none made it. There is nothing to audit, and nothing to replay.")
    return folder, load(folder.config_file)


def _snapshot(folder: RunFolder) -> tuple[int, list[Line], Ledger, dict[str, Any]]:
    """Newest checkpoint's step (0 where there is none), metrics.jsonl, ledger and result of one moment, though the run
    may be going on: it writes a step's lines before its checkpoint, so that is looked for before they are read."""
    for _ in range(TRIES):
        newest = max((int(path.name) for path in checkpoint.steps(folder.checkpoints)), default=0)
        rows, ledger, result = folder.metrics(), read(folder.ledger_file), _result(folder)
        if len(folder.metrics()) == len(rows):
            return newest, rows, ledger, result
    raise LedgerError(f"the run in {folder.path} writes faster than its ledger is read; audit it when it has ended.")


def _result(folder: RunFolder) -> dict[str, Any]:
    """result.json; empty before the end, and where a resumed run takes it away."""
    try:
        return json.loads(folder.result_file.read_text())
    except FileNotFoundError:
        return {}


def _stored(folder: RunFolder) -> tuple[list[tuple[str, int, str]], list[str]]:
    """Policies on disk as (place, version, digest), and what is wrong with those that are damaged."""
    stored, damaged = [], []
    for path, policy in kept(folder):
        if policy is None:
            damaged.append(f"{path.relative_to(folder.path)} is not what was written; it can draw nothing again")
        else:
            stored.append((str(path.relative_to(folder.path)), policy.version, policy.digest))
    return stored, damaged


def _problems(
    newest: int, run: Run, rows: Sequence[Line], ledger: Ledger, result: Mapping[str, Any],
    stored: Sequence[tuple[str, int, str]],
) -> list[str]:
    return [
        *balance.book_problems(rows, ledger, newest, result),
        *(text for row in rows for text in balance.step_problems(run, row, ledger)),
        *balance.flight_problems(run, len(rows), ledger, result),
        *balance.digest_problems(balance.digests(ledger, stored, result)),
    ]


def _size(batch: Line) -> int:
    first, last = batch["drawn"]
    return last - first + 1


def render(found: Audit) -> str:
    """The audit as a short table."""
    state = "ended" if found.ended else "not ended: it goes on, or --resume draws again what is in flight"
    masked = sum(found.masked.values())
    late = ", ".join(f"{count:,} by {lag}" for lag, count in sorted(found.lags.items()))
    rows = [
        ("drawn", f"{found.drawn:,}"), ("trained", f"{found.trained:,}"), ("masked", f"{masked:,}"),
        *(("", f"{count:,}  {reason}") for reason, count in Counter(found.masked).most_common()),
        ("in flight", f"{found.in_flight:,}"), ("updates late", late or "none is trained yet"),
        ("policies", f"{found.policies} drew these images; {found.kept} are kept, for `ddpo replay`"),
    ]
    parts = f"{found.trained:,} trained + {masked:,} masked + {found.in_flight:,} in flight"
    end = "does not add up" if found.problems else f"adds up: {found.drawn:,} drawn = {parts}"
    table = [f"  {name:<14}{text}" for name, text in rows]
    return "\n".join([f"{found.run}: {found.steps} of {found.of} steps, {state}", *table, f"The ledger {end}."])
