"""A run folder as the report sees it.

Consumes: config.toml, run.json, metrics.jsonl, images/, ledger.jsonl, result.json, as far as the run has written them.
Produces: `Run`. Waits for nothing.
"""

import json
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from deploy.ledger import MASKED
from deploy.report.scale import thin

GRIDS = 8  # most that are read of a long run

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Run:
    """What a run folder held when it was read.

    rows:          the lines of metrics.jsonl
    masked:        {reason: {step: images masked}}, of ledger.jsonl
    grids:         images of the fixed prompts, by step
    prompts:       the fixed prompts, one a tile
    layout:        images/grid.json: the tile size and columns of a grid; empty before the first grid
    scores:        {step: {"rewards": {name: one value or None a tile}, "captions": {name: one text or None a tile}}}
    result:        result.json, empty before the run has ended
    cut_short:     lines that a crash left incomplete
    """

    config_text: str
    config: dict[str, Any]
    facts: dict[str, Any]
    rows: list[Row]
    masked: Mapping[str, Mapping[int, int]]
    grids: dict[int, Image.Image]
    prompts: list[str]
    layout: dict[str, Any]
    scores: dict[int, dict[str, Any]]
    result: dict[str, Any]
    cut_short: list[str]

    @property
    def clip(self) -> float:
        """The clip range of the importance ratio."""
        return self.config["learner"]["clip"]

    @property
    def unit(self) -> str:
        """`kB` where images are rewarded for their JPEG size and nothing else; else a bare number."""
        return "kB" if self._one_reward.endswith("compressibility") else ""

    @property
    def _one_reward(self) -> str:
        """Its kind, where the reward is one alone and unweighted."""
        kinds = [table["kind"] for table in self.config["rewards"].values() if table["weight"] == 1]
        return kinds[0] if len(kinds) == len(self.config["rewards"]) == 1 else ""

    @property
    def ends(self) -> tuple[float, float]:
        """Mean reward of the first and of the last step."""
        return self.rows[0]["reward_mean"], self.rows[-1]["reward_mean"]

    @property
    def wall_seconds(self) -> float:
        """Wall time of all steps."""
        return sum(row["seconds"]["total"] for row in self.rows)

    def tiles(self, step: int) -> list[Image.Image]:
        """Cut the grid of one step into its tiles, in the order of the prompts."""
        height, width = self.layout["tile"]
        corners = [divmod(i, self.layout["columns"]) for i in range(len(self.prompts))]
        boxes = [(c * width, r * height, (c + 1) * width, (r + 1) * height) for r, c in corners]
        return [self.grids[step].crop(box) for box in boxes]

    def tile_rewards(self, step: int) -> list[dict[str, float]]:
        """Per tile, the rewards known for it at one step: {name: value}."""
        rewards = self.scores[step]["rewards"] if step in self.scores else {}
        return [
            {name: values[i] for name, values in rewards.items() if values[i] is not None}
            for i in range(len(self.prompts))
        ]

    def tile_captions(self, step: int) -> list[list[str]]:
        """Per tile, what rewards said they saw in it at one step."""
        captions = self.scores.get(step, {}).get("captions", {}).values()
        return [[texts[i] for texts in captions if texts[i]] for i in range(len(self.prompts))]

    @property
    def images_masked(self) -> int:
        """How many images no update used."""
        return sum(sum(steps.values()) for steps in self.masked.values())

    @property
    def fixed_means(self) -> list[tuple[int, float]]:
        """(queries, mean reward of the fixed images) at each logged step, where it compares with the rows' means."""
        queries = {0: 0, **{row["step"]: row["reward_queries"] for row in self.rows}}
        steps = [step for step in sorted(self.scores) if step in queries and self._one_reward]
        known = {step: [v for tile in self.tile_rewards(step) for v in tile.values()] for step in steps}
        return [(queries[step], sum(values) / len(values)) for step, values in known.items() if values]


def read_run(folder: Path) -> Run:
    """Read a run folder as it stands; raises FileNotFoundError where it is none."""
    if not (folder / "run.json").exists():
        raise FileNotFoundError(
            f"{folder} is not a run folder: it has no run.json. A report is made from a folder that a run wrote; pass "
            "that one."
        )
    text = (folder / "config.toml").read_text(encoding="utf-8")
    layout, cut_short = _object(folder / "images/grid.json"), []
    return Run(
        config_text=text,
        config=tomllib.loads(text),
        facts=_object(folder / "run.json"),
        rows=list(_lines(folder / "metrics.jsonl", cut_short)),
        masked=_masked(_lines(folder / "ledger.jsonl", cut_short, f'"{MASKED}"')),
        grids=_grids(folder / "images") if layout else {},
        prompts=layout.get("prompts", []),
        layout=layout,
        scores={int(step): entry for step, entry in _object(folder / "images/scores.json").items()},
        result=_object(folder / "result.json"),
        cut_short=cut_short,
    )


def _object(path: Path) -> dict[str, Any]:
    """The object in a file, which is whole or not there yet."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _lines(path: Path, cut_short: list[str], word: str = "") -> Iterator[Row]:
    """The objects of a file that grows by lines, one at a time; of long files only those with a word in them."""
    if not path.exists():
        return
    with path.open(encoding="utf-8", errors="replace") as lines:
        for position, line in enumerate(lines, 1):
            if word in line or not line.endswith("}\n"):
                try:
                    yield json.loads(line)
                except json.JSONDecodeError:
                    cut_short.append(f"{path.name} line {position}")


def _masked(lines: Iterator[Row]) -> dict[str, Counter[int]]:
    """How many images each reason masked in each step."""
    found: dict[str, Counter[int]] = {}
    for line in lines:
        if line.get("fate") == MASKED:
            found.setdefault(line["reason"], Counter())[line["step"]] += 1
    return found


def _grids(folder: Path) -> dict[int, Image.Image]:
    """The grids by step: those of the first and the last step, and some between."""
    found = sorted((int(path.stem), path) for path in folder.glob("[0-9]*.png"))
    grids = {}
    for step, path in thin(found, GRIDS):
        with Image.open(path) as image:
            grids[step] = image.convert("RGB")
    return grids
