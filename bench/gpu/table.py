"""The results as Markdown, in docs/benchmarks.md: what was measured, on which card, driver and commit.

    python -m bench.gpu.table FOLDER/gpu.json

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
    facts = {row["what"]: row["value"] for row in results if row["part"] == "names"}
    card = facts.get("card and driver", "a CPU (dry run)")
    lines = [f"{card}; torch {facts.get('torch')}, CUDA {facts.get('CUDA')}, cuDNN {facts.get('cuDNN')}; "
             f"commit {found['commit']}.", ""]
    for part in dict.fromkeys(row["part"] for row in results):
        lines += [f"| {part} | measured | expected |", "|---|---|---|"]
        lines += [f"| {row['what']} | {_shown(row)} | {row['expected']} |" for row in results if row["part"] == part]
        lines.append("")
    lines += [f"Not done: {failed}" for failed in found["failed"]]
    return "\n".join(lines).rstrip()


def _shown(row: dict[str, Any]) -> str:
    value = row["value"]
    text = f"{value:.4g}" if isinstance(value, float) else str(value).replace("|", "/").replace("\n", " ")
    return f"{text} {row['unit']}".strip()


def main() -> int:
    """Replace the table in docs/benchmarks.md; a dry run is printed alone."""
    found = json.loads(Path(sys.argv[1]).read_text())
    table = render(found)
    print(table)
    if not found["dry"]:
        text = TARGET.read_text(encoding="utf-8")
        head, _, rest = text.partition(START)
        TARGET.write_text(f"{head}{START}\n{table}\n{END}{rest.partition(END)[2]}", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
