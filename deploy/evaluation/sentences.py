"""What an evaluation found, in plain sentences. Consumes summary.json's content, produces HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from deploy.evaluation.rounding import change, span
from deploy.report.scale import counted

Summary = Mapping[str, Any]
Result = Mapping[str, Any]
NONE = {"verdict": 0}
NBSP = "\N{NO-BREAK SPACE}"


def statement(summary: Summary) -> str:
    """The headline: what the trained rewards did suite by suite, and what there is to be wary of."""
    said = [text for name in trained(summary) for text in sentences(summary, name)]
    head, rest = (said[0], []) if len(said) == 1 else (overview(summary), said)
    rest += _variety(summary)
    lines = [f'<p class="statement">{escape(head)}</p>', *(f"<p>{escape(text)}</p>" for text in rest)]
    return "\n".join([*lines, *(f'<p class="state">{escape(text)}</p>' for text in warnings(summary))])


def trained(summary: Summary) -> list[str]:
    """The rewards that were optimised."""
    return [name for name, entry in summary["rewards"].items() if entry["weight"]]


def overview(summary: Summary) -> str:
    """How many suites each trained reward rose on: "jpeg rose on 2 of 2 suites as the run samples"."""
    return " ".join(_rises(summary, name) for name in trained(summary)) or "Nothing is evaluated yet."


def _rises(summary: Summary, name: str) -> str:
    found = {sampler: _results(summary, name, sampler) for sampler in ("training", "deployment")}
    if not found["training"]:
        return f"No pair has a score of {name}."
    as_trained, plain = (_counts(found[sampler]) for sampler in ("training", "deployment"))
    return f"{name} {as_trained} as the run samples; {_fewer(summary)} it {plain}."


def _counts(results: Mapping[str, Result]) -> str:
    """`rose on 2 and fell on 1 of 3 suites`."""
    rose, fell = (sum(result["verdict"] == sign for result in results.values()) for sign in (1, -1))
    return f"rose on {rose}{f' and fell on {fell}' if fell else ''} of {counted(len(results), 'suite')}"


def sentences(summary: Summary, name: str) -> list[str]:
    """One sentence a suite: what the reward did, and what it did under the deployment sampler."""
    titles = {trial["suite"]: trial["title"] for trial in summary["trials"]}
    plain = _results(summary, name, "deployment")
    unit = summary["rewards"][name]["unit"]
    return [
        f"On {titles[suite]}, {name} {_did(result, unit)}"
        + (f"; {_fewer(summary)} it {_did(plain[suite], unit)}." if suite in plain else ".")
        for suite, result in _results(summary, name, "training").items()
    ]


def _results(summary: Summary, name: str, sampler: str) -> dict[str, Result]:
    """{suite: what became of one reward}, where it was scored."""
    trials: Sequence[Summary] = [trial for trial in summary["trials"] if trial["sampler"] == sampler]
    return {trial["suite"]: trial["rewards"][name] for trial in trials if trial["rewards"].get(name)}


def _fewer(summary: Summary) -> str:
    steps = next((trial["steps"] for trial in summary["trials"] if trial["sampler"] == "deployment"), 0)
    return f"with {counted(steps, 'deterministic step')}"


def _did(result: Result, unit: str) -> str:
    size = f"{change(result)} {unit}".strip()
    if result["low"] is None:
        return f"{'rose' if result['change'] > 0 else 'fell'} by {size} in the one pair there is"
    ends = f"95{NBSP}% interval {span(result)}"
    if not result["verdict"]:
        return f"did not change measurably ({ends})"
    return f"{'rose' if result['verdict'] > 0 else 'fell'} by {size} ({ends})"


def _variety(summary: Summary) -> list[str]:
    """How far apart a prompt's images still are, against the base's; nothing where a prompt has one image alone."""
    spreads = {trial["suite"]: trial["diversity"] for trial in summary["trials"] if trial["sampler"] == "training"}
    shares = [
        f"{100 * spread['tuned'] / spread['base']:.0f}{NBSP}% on {suite}" for suite, spread in spreads.items()
        if spread["base"] and spread["tuned"] is not None
    ]
    return [f"Distance of two images of one prompt, as a share of the base's: {', '.join(shares)}."] if shares else []


def warnings(summary: Summary) -> list[str]:
    """Gains that users would not get, and watched rewards that paid for them."""
    found = []
    for name in summary["rewards"]:
        by_run, plain = (_results(summary, name, sampler) for sampler in ("training", "deployment"))
        lost = [suite for suite in by_run if by_run[suite]["verdict"] > 0 >= plain.get(suite, NONE)["verdict"]]
        if name in trained(summary) and lost:
            found.append(f"{name} rose with the training's sampler only on {', '.join(lost)}.")
        fallen = [suite for suite, result in by_run.items() if result["verdict"] < 0]
        if name not in trained(summary) and fallen:
            found.append(f"{name}, which was not trained on, fell on {', '.join(fallen)}.")
    return found
