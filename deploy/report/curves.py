"""The sections of curves: the reward, the policy updates and the noise floor. Consume a run, produce HTML."""

from collections.abc import Mapping, Sequence
from html import escape

from deploy.report import charts
from deploy.report.markup import HALF, figure, table, twice
from deploy.report.read import Row, Run
from deploy.report.scale import counted, number, thin

TABLE_ROWS = 200
COLUMNS = {  # of the table, with their significant digits
    "reward_mean": 3, "reward_std": 3, "clip_fraction": 3, "approx_kl": 3,
    "ratio_min": 6, "ratio_max": 6, "grad_norm": 3, "loss": 3,
}  # fmt: skip


def reward(run: Run) -> str:
    """The reward curve, the curves of its parts where there are several, and all steps as a table."""
    if not run.rows:
        return "<p>No step has a reward yet.</p>"
    curve = figure(twice(lambda width: charts.reward_chart(run, width)), _reward_caption(run))
    return curve + _reward_parts(run) + _steps_table(run.rows)


def _reward_caption(run: Run) -> str:
    sign = "minus " if all(row["reward_mean"] <= 0 for row in run.rows) else ""
    meaning = f"The reward is {sign}the size of the image as a JPEG, in kB. " if run.unit else ""
    fixed = "Diamonds: mean reward of the fixed images above. " if run.fixed_means else ""
    return (
        f"{meaning}Line: mean reward of the images that each step trained on; band: ± one standard deviation over "
        f"those images; dotted: the first step's mean. {fixed}One reward query is one image scored."
    )


def _reward_parts(run: Run) -> str:
    """One small curve for each reward where there are several, trained on or watched."""
    names, tables = list(run.rows[-1]["rewards"]), run.config["rewards"]
    if len(names) == 1:
        return ""
    drawn = [_reward_part(run.rows, name, tables.get(name, {}).get("weight", 1.0)) for name in names]
    return f'<div class="small">{"".join(drawn)}</div>'


def _reward_part(rows: Sequence[Row], name: str, weight: float) -> str:
    known = [row for row in rows if row["rewards"].get(name) is not None]
    if not known:
        return ""
    caption = f"{escape(name)}, {f'weight {number(weight)}' if weight else 'watched, not trained on'}"
    return small(known, {name: [row["rewards"][name] for row in known]}, "mean", caption)


def _steps_table(rows: Sequence[Row]) -> str:
    """Every step's numbers, for those who read tables rather than curves."""
    shown = thin(rows, TABLE_ROWS)
    head = ["step", "queries", *(key.replace("_", " ") for key in COLUMNS)]
    body = [
        [f"{row['step']:,}", f"{row['reward_queries']:,}", *(number(row[k], d) for k, d in COLUMNS.items())]
        for row in shown
    ]
    which = "Every step" if len(shown) == len(rows) else f"{len(shown)} of {len(rows):,} steps"
    return f"<details><summary>{which} as a table</summary>{table(head, body)}</details>"


def small(
    rows: Sequence[Row], series: Mapping[str, Sequence[float]], name: str, caption: str,
    marks: Mapping[str, float] | None = None,
) -> str:  # fmt: skip
    """A chart of half the page's width over its caption."""
    return figure(twice(lambda width: charts.lines_chart(rows, series, name, marks or {}, width), HALF), caption)


def updates(run: Run) -> str:
    """Small charts of what the updates did: clipping, divergence, ratios, gradient."""
    if not run.rows:
        return "<p>No update is logged yet.</p>"
    if _regresses(run):
        return f'<p>{REGRESSION}</p><div class="small">{_regression(run)}</div>'
    drawn = [
        small(run.rows, {"clip_fraction": _column(run, "clip_fraction")}, "clip fraction", CLIP_FRACTION),
        small(run.rows, {"approx_kl": _column(run, "approx_kl")}, "approximate KL", APPROX_KL),
        _ratios(run),
        small(run.rows, {"grad_norm": _column(run, "grad_norm")}, "gradient norm", GRAD_NORM),
        *_staleness(run),
    ]
    return f'<div class="small">{"".join(drawn)}</div>'


def _ratios(run: Run) -> str:
    """Extremes of the ratio to the policy that drew the images; the clip range too, where it is around that one."""
    ratios = {"largest": _column(run, "ratio_max"), "smallest": _column(run, "ratio_min")}
    if run.config["learner"].get("correction", "clip") != "clip":
        return small(run.rows, ratios, "ratio p / p_old", f"{RATIO}.")
    marks = {"1 + clip": 1 + run.clip, "1 − clip": 1 - run.clip}
    caption = f"{RATIO}; dotted: the clip range 1 ± {number(run.clip, 2)}."
    return small(run.rows, ratios, "ratio p / p_old", caption, marks)


def _staleness(run: Run) -> list[str]:
    """How far the images' own policy is left behind; a folder from before these were logged has none."""
    rows = [row for row in run.rows if "effective_sample_size" in row]
    if not rows:
        return []
    size, mean, most = (
        [row[key] for row in rows]
        for key in ("effective_sample_size", "mean_abs_log_prob_delta", "max_abs_log_prob_delta")
    )
    lag = f"The lag is {counted(rows[-1]['lag'], 'step')}."
    return [
        small(rows, {"effective sample size": size}, "effective sample size", f"{SAMPLE_SIZE} {lag}"),
        small(rows, {"largest": most, "mean": mean}, "|Δ log-prob|", ABS_DELTA),
    ]


def _regression(run: Run) -> str:
    loss = small(run.rows, {"loss": _column(run, "loss")}, "loss", "Mean weighted denoising loss of each step.")
    return loss + small(run.rows, {"grad_norm": _column(run, "grad_norm")}, "gradient norm", GRAD_NORM)


def _regresses(run: Run) -> bool:
    return run.config["learner"].get("algorithm", "").startswith("rwr")


def _column(run: Run, key: str) -> list[float]:
    return [row[key] for row in run.rows]


REGRESSION = "Reward-weighted regression has no log-probs, hence no ratios and no noise floor."
CLIP_FRACTION = "Clip fraction: share of (image, timestep) pairs whose ratio left its bounds."
APPROX_KL = "Approximate KL divergence between the policy that sampled and the updated one."
RATIO = "Largest and smallest importance ratio p / p<sub>old</sub> of each step"
SAMPLE_SIZE = (
    "Effective sample size: what the pairs of a step are worth, as a share of them, weighed by how likely the policy "
    "as it is now would have drawn them."
)
ABS_DELTA = "Largest and mean |Δ log-prob|, per latent dimension, since the images were drawn."
GRAD_NORM = "Norm of the gradient before it is scaled down, mean over the updates of a step."


def noise(run: Run) -> str:
    """How far the learner's log-probs are from the samplers' before any update, timestep by timestep."""
    deltas = charts.delta_by_timestep(run.rows)
    if not deltas:
        return f"<p>{REGRESSION if _regresses(run) else 'No log-prob differences are logged.'}</p>"
    worst = max(max(values) for values in deltas.values())
    share = f"The largest is {number(worst, 2)}, {number(100 * worst / run.clip, 2)} % of the clip range."
    found = share if worst else "It is exactly zero everywhere."
    meaning = LAGGED if run.config["lag"] else NOISE
    caption = f"{meaning} Each bar runs from the smallest to the largest of the steps. {found}"
    return figure(twice(lambda width: charts.noise_chart(run.rows, run.clip, width)), caption)


DELTA = (
    "Mean |Δ log-prob| between learner and samplers in the first minibatch of a step, at each timestep; denoising runs "
    "from left to right."
)
NOISE = f"{DELTA} The weights are still those that sampled, so whatever differs is numerical noise."
LAGGED = (
    f"{DELTA} Images are as many updates old as the lag says, so this is the policy's own change on top of numerical "
    "noise."
)
