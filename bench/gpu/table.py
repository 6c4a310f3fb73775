"""The results as Markdown, in docs/benchmarks.md: what was measured, on which card, driver and commit.

    python -m bench.gpu.table FOLDER/gpu.json ...

Consumes the JSON of a run of the check, produces the table between its marks; waits for nothing.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from ddpo.source import ROOT

TARGET = ROOT / "docs" / "benchmarks.md"
START, END = "<!-- gpu: written by `python -m bench.gpu.table` -->", "<!-- /gpu -->"


def render(found: dict[str, Any]) -> str:
    """A heading line with card, versions and commit, then a table a part, then what failed."""
    results: list[dict[str, Any]] = found["results"]
    lines = [f"**{found['card']}**; torch {found['torch']}; commit {found['commit']}.", ""]
    for part in dict.fromkeys(row["part"] for row in results):
        lines += [f"| {part} | measured | expected |", "|---|---|---|"]
        lines += [f"| {row['what']} | {_shown(row)} | {row['expected']} |" for row in results if row["part"] == part]
        lines.append("")
    lines += [f"- Not done: {failed}" for failed in found["failed"]]
    return "\n".join(lines).rstrip()


def _shown(row: dict[str, Any]) -> str:
    value = row["value"]
    text = f"{value:.4g}" if isinstance(value, float) else str(value).replace("|", "/").replace("\n", " ")
    return f"{text} {row['unit']}".strip()


def main() -> int:
    """Replace the tables in docs/benchmarks.md by those of these files, one below the other; print dry runs alone."""
    found = [json.loads(Path(name).read_text()) for name in sys.argv[1:]]
    tables = "\n\n".join(render(one) for one in found)
    print(tables)
    if not any(one["dry"] for one in found):
        text = TARGET.read_text(encoding="utf-8")
        head, _, rest = text.partition(START)
        TARGET.write_text(f"{head}{START}\n\n{tables}\n\n{END}{rest.partition(END)[2]}", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
