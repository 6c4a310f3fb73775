"""The section on over-optimisation: the trained reward against the watched ones, and how far the policy has gone.

Consumes a run, produces HTML.
"""

from collections.abc import Sequence
from html import escape

from ddpo.config import GuardConfig
from deploy.guard import Guard
from deploy.report.curves import small
from deploy.report.read import Row, Run

NOTHING = (
    "<p>Nothing is watched in this run. A reward of weight 0 is scored and not trained on; where it falls while the "
    'trained one rises, the run has begun to exploit its reward. The cheapest is <code>kind = "diversity"</code>.</p>'
)
DISTANCES = {  # of images/scores.json: what the axis says, and the caption
    "kl": ("KL to the base", "KL divergence of the policy's steps from the base model's, mean over steps and latent "
           "dimensions, on the fixed images."),
    "shift": ("distance", "Distance of the fixed images from the base model's of the same noise (root mean square at "
              "32 × 32 pixels, 0 to 1)."),
}


def section(run: Run) -> str:
    """What the guard saw, a chart for each watched reward, and one for each distance from the base."""
    watched = [name for name, table in run.config["rewards"].items() if table.get("weight", 1.0) == 0]
    guard = Guard(GuardConfig(**run.config.get("guard", {})), watched, [])
    known = [row for row in run.rows if "rewards_std" in row]
    falls = [fall for row in known if (fall := guard.see(row))]
    told = [f'<p class="state">At step {fall.step}: {escape(str(fall))}.</p>' for fall in falls]
    drawn = [chart for name in watched if (chart := _against(known, name))] + _distances(run)
    charts = f'<div class="small">{"".join(drawn)}</div>' if drawn else ""
    return "".join(told) + ("" if watched else NOTHING) + charts


def _against(rows: Sequence[Row], name: str) -> str:
    """The trained reward and a watched one, each in standard deviations of its images at the start."""
    both = [row for row in rows if row["rewards"].get(name) is not None]
    ends = [both[0], both[-1]] if both else []
    spreads = [max((row["reward_std"] for row in ends), default=0), max((_std(row, name) for row in ends), default=0)]
    if len(both) < 2 or not all(spreads):
        return ""
    first = both[0]
    series = {
        "trained": [(row["reward_mean"] - first["reward_mean"]) / spreads[0] for row in both],
        name: [(row["rewards"][name] - first["rewards"][name]) / spreads[1] for row in both],
    }
    caption = (
        f"Blue: the trained reward; orange: {escape(name)}, watched. Both as their change from the first step, in "
        "standard deviations over the images of a step, the larger of the first's and the last's."
    )
    return small(both, series, "change", caption)


def _std(row: Row, name: str) -> float:
    return row["rewards_std"][name]


def _distances(run: Run) -> list[str]:
    drawn = []
    for key, (axis, caption) in DISTANCES.items():
        found = {step: entry.get("distances", {}).get(key) for step, entry in run.scores.items()}
        known = {step: value for step, value in found.items() if value is not None}
        if len(known) > 1:
            steps = sorted(known)
            rows = [{"step": step} for step in steps]
            drawn.append(small(rows, {axis: [known[step] for step in steps]}, axis, caption))
    return drawn
