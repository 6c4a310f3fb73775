"""A small finished run as `ddpo train` leaves it: six steps, four fixed prompts, three grids."""

import json
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

SIDE, COLUMNS = 24, 3
PROMPTS = ["a cat riding a bike", "a dog & a <b>bee</b>", 'an ant "playing" chess', "a fox"]
CONFIG = """name = "pets & <em>friends</em>"
steps = 6
lag = 0

[actors]
batch = 8

[rewards.size]
kind = "compressibility"
weight = 1.0

[learner]
images_per_step = 16
clip = 1e-4
"""


def metrics(step: int, mean: float, delta: float = 2e-7) -> dict[str, Any]:
    """One line of metrics.jsonl."""
    return {
        "step": step, "reward_queries": 16 * step, "reward_mean": mean, "reward_std": 0.4, "rewards": {"size": mean},
        "loss": -1e-5, "clip_fraction": 0.1 * step, "approx_kl": 1e-8, "ratio_min": 0.9998, "ratio_max": 1.0002,
        "mean_abs_log_prob_delta": 5e-5, "max_abs_log_prob_delta": 2e-4, "effective_sample_size": 1 - 0.05 * step,
        "grad_norm": 0.02, "lag": 0, "images": 16, "images_masked": 0,
        "log_prob_delta_by_timestep": {"951": delta, "1": 3 * delta},
        "seconds": {"sample": 6.0, "score": 2.0, "learn": 3.0, "wait": 4.5, "log": 0.5, "total": 8.0},
        "a_key_of_tomorrow": [1, {"two": 3}],
    }  # fmt: skip


def grid(step: int) -> Image.Image:
    """The images of one step; every tile and step differs."""
    image = Image.new("RGB", (COLUMNS * SIDE, 2 * SIDE), "white")
    pen = ImageDraw.Draw(image)
    for tile in range(len(PROMPTS)):
        x, y = tile % COLUMNS * SIDE, tile // COLUMNS * SIDE
        pen.rectangle((x, y, x + SIDE - 1, y + SIDE - 1), fill=(40 * tile + 20, 30 * step, 90))
        pen.ellipse((x + 4, y + 4, x + SIDE - 5, y + SIDE - 5), fill=(220, 40 * tile, 20 * step))
    return image


def write_json(path: Path, content: Any) -> None:
    """Replace a JSON file."""
    path.write_text(json.dumps(content))


def write_rows(run: Path, rows: list[dict[str, Any]], name: str = "metrics.jsonl") -> None:
    """Replace a file of lines."""
    (run / name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_layout(run: Path, side: int) -> None:
    """Replace images/grid.json."""
    layout = {"prompts": PROMPTS, "seeds": [0, 1, 2, 3], "columns": COLUMNS, "tile": [side, side]}
    write_json(run / "images/grid.json", layout)


def write_run(folder: Path) -> Path:
    """Write the run folder."""
    (folder / "images").mkdir(parents=True)
    (folder / "config.toml").write_text(CONFIG)
    write_rows(folder, [metrics(step, -4 + 0.25 * step) for step in range(1, 7)])
    for step in (0, 3, 6):
        grid(step).save(folder / f"images/{step:06d}.png")
    write_layout(folder, SIDE)
    scores = {f"{s:06d}": {"rewards": {"size": [-4 + s / 4, -3.5, None, -3.0]}} for s in (0, 3, 6)}
    write_json(folder / "images/scores.json", scores)
    write_json(folder / "run.json", {"command": "ddpo train pets", "torch": "2.13.0", "host": "2 cores"})
    write_json(folder / "result.json", {"steps": 6, "lora_digest": "c0ffee"})
    return folder
