"""`ddpo compare`: variants over seeds, done once, drawn against reward queries."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ddpo.errors import ConfigError, InputError
from deploy.compare import curve, merged, names, read, summary
from deploy.compare_page import COLOURS, Curve, draw, spread

VARIANTS = """# Two ways
recipe = "{recipe}"
seeds = [0, 1]
[common.learner]
lr = 2e-3
[variants.is]
[variants.rwr]
steps = 1
learner = {{ algorithm = "rwr", inner_epochs = 2, images_per_step = 16 }}
"""


@pytest.fixture
def comparison(run_file: Path, tmp_path: Path) -> Path:
    path = tmp_path / "two.toml"
    path.write_text(VARIANTS.format(recipe=run_file))
    return path


def rewards(folder: Path) -> list[float]:
    return [json.loads(line)["reward_mean"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_every_run_is_done_once_and_drawn(ddpo, comparison, tmp_path):
    out = tmp_path / "out"
    first = ddpo("compare", comparison, "--out", out, "--in-process")
    assert first.code == 0 and "compare.html" in first.out
    done = {path: path.stat().st_mtime_ns for path in out.glob("*/metrics.jsonl")}
    assert {path.parent.name for path in done} == {"is-0", "is-1", "rwr-0", "rwr-1"}
    again = ddpo("compare", comparison, "seeds=[0,1,2]", "--out", out, "--in-process")
    assert again.code == 0 and "is-0 is finished" in again.err
    assert all(path.stat().st_mtime_ns == then for path, then in done.items())
    figures = json.loads((out / "compare.json").read_text())
    assert figures["last_queries"] == 16
    ends = [float(np.mean(rewards(out / f"is-{seed}"))) for seed in range(3)]
    shown = figures["variants"]["is"]
    np.testing.assert_allclose(shown["seeds"], ends)
    assert shown["mean"] == pytest.approx(np.mean(ends))
    assert shown["standard_error"] == pytest.approx(np.std(ends, ddof=1) / 3**0.5)
    page, alone = (out / "compare.html").read_text(), (out / "compare.svg").read_text()
    assert page.count("<polyline") == 2 * 2 and "Two ways" in page  # rwr has one step: a dot; by queries and by time
    assert "var(--" not in alone and "rwr" in alone


def test_variants_change_the_recipe_and_words_change_all(comparison):
    runs = read(str(comparison), ["learner.minibatch=8", "seeds=[5]"]).runs
    assert [run.name for variant in runs.values() for run in variant] == ["is-5", "rwr-5"]
    (sampling,), (regression,) = runs["is"], runs["rwr"]
    assert sampling.learner.algorithm == "ddpo-is" and regression.learner.algorithm == "rwr"
    assert sampling.learner.lr == regression.learner.lr == 2e-3
    assert sampling.learner.minibatch == 8 and sampling.seed == 5 and sampling.steps == 2


@pytest.mark.parametrize("name", names())
def test_every_comparison_that_ships_is_whole(name):
    found = read(name, [])
    assert found.name == name and found.about and len(found.runs) > 1


def test_the_algorithms_are_compared_at_equal_reward_queries():
    assert "algorithms" in names()
    runs = read("algorithms", ["rewards.jpeg.kind=incompressibility"]).runs
    assert list(runs) == ["ddpo-is", "ddpo-sf", "rwr", "rwr-sparse", "rwr-uniform"]
    assert {len(some) for some in runs.values()} == {3}
    assert len({run.steps * run.learner.images_per_step for some in runs.values() for run in some}) == 1


def test_lag_by_correction_is_compared_at_equal_queries_and_clip_alone_at_lag_0():
    runs = {name: some[0] for name, some in read("staleness", []).runs.items()}
    pairs = {(run.lag, run.learner.correction, run.learner.proximal) for run in runs.values()}
    usual = {(lag, correction, "recompute") for lag in (1, 2, 4, 8) for correction in ("clip", "truncate", "decoupled")}
    assert pairs == usual | {(0, "clip", "recompute"), (8, "decoupled", "loglinear")} and len(runs) == len(pairs)
    assert len({run.steps * run.learner.images_per_step for run in runs.values()}) == 1


def test_wall_time_adds_up_over_steps_and_is_the_mean_of_the_seeds(tmp_path):
    for name, totals in {"one": [1.0, 2.0, 9.0], "other": [3.0, 4.0]}.items():
        (tmp_path / name).mkdir()
        rows = [
            {"reward_queries": 8 * step, "reward_mean": 0.0, "seconds": {"total": total}}
            for step, total in enumerate(totals, 1)
        ]
        (tmp_path / name / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert curve("a", [tmp_path / "one", tmp_path / "other"]).seconds == [2.0, 5.0]


def test_labels_keep_apart_and_on_the_chart():
    assert spread([10, 100, 101, 102], 350) == [10, 100, 117, 134]
    assert spread([340, 341, 342], 350) == [316, 333, 350]


def test_more_variants_than_colours_have_a_panel_each(tmp_path):
    def drawn(count: int) -> str:
        curves = [Curve(f"variant-{i}", [8, 16], [[0.0, i], [1.0, i]], [1.0, 2.0]) for i in range(count)]
        page = draw("many", "about", curves, tmp_path).read_text()
        assert ("grey: the other variants" in page) == (count > len(COLOURS))
        return (tmp_path / "compare.svg").read_text()

    few, many = drawn(len(COLOURS)), drawn(14)
    assert few.count("<polyline") == len(COLOURS)  # one plane, a colour each
    assert many.count("<polyline") == 14 * 14  # each of 14 panels has its own line and 13 in grey
    assert many.count("<polygon") == 14 and many.count('class="strong"') == 14


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("recipe = 'demo'", "variants is missing"),
        ("recipe = 'demo'\nseed = [1]\n[variants.a]", "unknown here: seed"),
        ("recipe = 'demo'\nseeds = 3\n[variants.a]", "list of whole numbers"),
        ("recipe = 'dmo'\n[variants.a]", 'Did you mean "demo"'),
        ("recipe = ", "not valid TOML"),
    ],
)
def test_a_bad_comparison_is_refused(tmp_path, text, message):
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read(str(path), [])


def test_all_variants_are_checked_before_the_first_run(tmp_path):
    path = tmp_path / "bad.toml"
    path.write_text("recipe = 'demo'\n[variants.a]\n[variants.b.learner]\nminibatch = 7")
    with pytest.raises(ConfigError, match=r"variant b.*\n.*minibatch"):
        read(str(path), [])
    with pytest.raises(InputError, match='Did you mean "algorithms"'):
        read("algoritms", [])


def test_endings_are_over_the_same_queries():
    fine = Curve("a", [10, 20, 30, 40], [[1.0, 2.0, 3.0, 5.0]], [1.0, 2.0, 3.0, 4.0])
    coarse = Curve("b", [20, 40], [[1.0, 7.0]], [3.0, 6.0])
    figures = summary([fine, coarse])["variants"]
    assert figures["a"]["mean"] == 4.0 and figures["b"]["mean"] == 7.0
    assert figures["a"]["standard_error"] is None


def test_inner_tables_are_merged_key_by_key():
    assert merged({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"c": 4}, "e": {"f": 5}}) == {
        "a": {"b": 1, "c": 4}, "d": 3, "e": {"f": 5},
    }
