"""`ddpo eval` on a tiny model, from the command line to its files: paired, repeatable, and adding up."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import seeing
import tiny
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import save_file
from terminal import write_run

from deploy.__main__ import main
from deploy.evaluation.forest import forest
from deploy.evaluation.rounding import signed, span
from deploy.evaluation.sentences import statement
from deploy.evaluation.suites import choose
from deploy.evaluation.trial import noise
from learner.lora import LORA_FILE


def trained(model: Path, folder: Path, *words: str) -> Path:
    """The folder of a small finished run."""
    file = write_run(folder / "small.toml", tiny.run(model))
    assert main(["train", str(file), "--in-process", "--runs", str(folder / "runs"), *words]) == 0
    return folder / "runs" / "small"


@pytest.fixture(scope="module")
def finished(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(model, tmp_path_factory.mktemp("finished"))


@pytest.fixture(scope="module")
def evaluated(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What an evaluation with two suites, three images a prompt and two rewards leaves."""
    folder = tmp_path_factory.mktemp("evaluated")
    (folder / "mine.txt").write_text("a bee\nan ant\na <b>cow</b>\n")
    words = [str(folder / "mine.txt"), "--images", "3", "--out", str(folder / "out"), "--rewards", "incompressibility"]
    assert main(["eval", str(finished), "--suite", f"training,{words[0]}", *words[1:], "--seed", "5"]) == 0
    return folder / "out"


def table(out: Path) -> list[dict[str, str]]:
    with (out / "eval.csv").open() as file:
        return list(csv.DictReader(file))


def summary(out: Path) -> dict[str, Any]:
    return json.loads((out / "summary.json").read_text())


def test_every_image_has_its_line_and_both_policies_the_same_noise(evaluated):
    rows = table(evaluated)
    assert len(rows) == (2 + 3) * 3 * 2 * 2  # prompts, images, policies, samplers
    assert {(row["sampler"], row["steps"], row["eta"]) for row in rows} == {
        ("training", "5", "1.0"), ("deployment", "2", "0.0"),
    }
    seeds: dict[tuple[str, str, str], set[str]] = {}
    for row in rows:
        seeds.setdefault((row["suite"], row["prompt"], row["image"]), set()).add(row["seed"])
    assert len(seeds) == 15 and all(len(found) == 1 for found in seeds.values())
    assert len(set.union(*seeds.values())) == 9  # a prompt's noise hangs on its place in the suite


def test_the_table_adds_up_to_the_summary(evaluated):
    rows = table(evaluated)
    for trial in summary(evaluated)["trials"]:
        ours = [row for row in rows if (row["suite"], row["sampler"]) == (trial["suite"], trial["sampler"])]
        base, tuned = ([row for row in ours if row["policy"] == policy] for policy in ("base", "tuned"))
        assert len(base) == len(tuned) == trial["images"]
        shifts = [float(row["distance_to_base"]) for row in tuned]
        assert trial["distance_to_base"] == pytest.approx(np.mean(shifts)) and min(shifts) > 0
        for name in ("jpeg", "incompressibility"):
            before, after = (np.array([float(row[name]) for row in part]) for part in (base, tuned))
            result = trial["rewards"][name]
            assert (result["base"], result["tuned"]) == pytest.approx((before.mean(), after.mean()))
            assert result["change"] == pytest.approx((after - before).mean())
            assert result["low"] <= result["change"] <= result["high"]
            assert result["improved"] == pytest.approx((after > before).mean())
        jpeg, opposite = trial["rewards"]["jpeg"], trial["rewards"]["incompressibility"]
        assert jpeg["change"] == pytest.approx(-opposite["change"])


def test_pictures_are_laid_out_in_pairs(evaluated):
    for sampler in ("training", "deployment"):
        with Image.open(evaluated / f"mine-{sampler}.png") as grid:
            assert grid.size == (6 * 16, 16)  # three pairs of 16 pixels


class Page(HTMLParser):
    """Tags that need something from outside, and those left open."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.outside: list[str] = []
        self.images = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        known = dict(attrs)
        self.images += tag == "img"
        source = known.get("src") or ""
        if tag in ("script", "link", "iframe") or (source and not source.startswith("data:")):
            self.outside.append(tag)
        if tag not in ("img", "meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Of SVG: closed where it is opened."""

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, tag


def test_the_page_is_whole_and_needs_nothing_from_outside(evaluated):
    text = (evaluated / "eval.html").read_text()
    page = Page()
    page.feed(text)
    assert page.open == [] and page.outside == [] and page.images == (2 + 3) * 2 * 2
    assert "On 2 training prompts, jpeg" in text and "On 3 prompts of mine.txt, jpeg" in text
    assert "with 2 deterministic steps" in text and "incompressibility (watched, not trained on)" in text
    assert "<b>cow</b>" not in text and summary(evaluated)["digest"] in text


def test_the_same_seed_gives_the_same_numbers_and_another_seed_others(ddpo, finished, evaluated):
    again = ddpo("eval", finished, "--images", "3", "--seed", "5", "--rewards", "incompressibility", "--out", "again")
    assert again.code == 0 and again.out.endswith("\n\nEvaluation: again/eval.html\n")
    assert "2 training prompts, jpeg" in again.out and "24 images to draw: 12 with 5 steps, eta 1" in again.err
    assert table(Path("again")) == [row for row in table(evaluated) if row["suite"] == "training"]
    assert summary(Path("again"))["trials"] == summary(evaluated)["trials"][:2]
    other = ddpo("eval", finished, "--images", "3", "--seed", "6", "--out", "other")
    assert other.code == 0 and table(Path("other"))[0]["jpeg"] != table(Path("again"))[0]["jpeg"]


def test_the_first_images_stay_when_more_are_asked_for(make_run):
    suite = choose("training", make_run())[0][0]
    few, many = noise(suite, 1, seed=3), noise(suite, 4, seed=3)
    assert few.seeds == (many.seeds[0], many.seeds[4]) and len(set(many.seeds)) == 8
    assert min(many.seeds) >= 0 and noise(suite, 1, seed=4).seeds[0] != few.seeds[0]


def test_a_lora_of_zero_changes_nothing_at_all(ddpo, finished, tmp_path):
    copy = tmp_path / "zero"
    shutil.copytree(finished / "checkpoints" / "000002", copy)
    with safe_open(copy / LORA_FILE, "numpy") as file:
        metadata = file.metadata()
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file({name: array * ("lora_B" not in name) for name, array in weights.items()}, copy / LORA_FILE, metadata)
    sums = json.loads((copy / "manifest.json").read_text())
    sums[LORA_FILE] = hashlib.sha256((copy / LORA_FILE).read_bytes()).hexdigest()
    (copy / "manifest.json").write_text(json.dumps(sums))
    answer = ddpo("eval", copy, "--images", "1")
    assert answer.code == 0 and "jpeg did not change measurably (95\N{NO-BREAK SPACE}% interval 0 to 0)" in answer.out
    for trial in summary(Path("evals/zero"))["trials"]:
        result = trial["rewards"]["jpeg"]
        assert (result["change"], result["low"], result["high"], result["improved"]) == (0, 0, 0, 0)
        assert trial["distance_to_base"] == 0 and trial["diversity"] == {"base": None, "tuned": None}


def test_a_fully_trained_model_is_compared_with_the_same_base(ddpo, finished, model, tmp_path):
    full = trained(model, tmp_path, "policy.train=full", "learner.lr=1e-2", "steps=1")
    assert ddpo("eval", full, "--images", "1").code == 0
    assert ddpo("eval", finished, "--images", "1", "--out", "lora").code == 0
    ours, theirs = table(full / "eval" / "000001"), table(Path("lora"))
    for policy, same in (("base", True), ("tuned", False)):
        scores = [[row["jpeg"] for row in rows if row["policy"] == policy] for rows in (ours, theirs)]
        assert (scores[0] == scores[1]) is same


def test_a_run_folder_keeps_its_evaluations_apart(ddpo, finished):
    for name in ("000002", "000002-2"):
        answer = ddpo("eval", finished, "--images", "1", "--deploy-steps", "1")
        assert answer.out.endswith(f"Evaluation: {finished}/eval/{name}/eval.html\n")


def test_images_without_a_score_are_left_out_in_pairs_and_counted(ddpo, finished, tmp_path):
    (tmp_path / "odd.py").write_text(
        "def reward(images, prompts, metadata):\n"
        "    return [None if 'cat' in prompt else float(image.mean()) for image, prompt in zip(images, prompts)], {}\n"
    )
    answer = ddpo("eval", finished, "rewards.odd.kind=function", "rewards.odd.path=odd.py", "--out", "odd")
    assert answer.code == 0, answer.err
    trial = summary(Path("odd"))["trials"][0]
    assert (trial["rewards"]["odd"]["pairs"], trial["rewards"]["odd"]["left_out"]) == (2, 2)
    assert trial["rewards"]["jpeg"]["left_out"] == 0
    assert "gave None, that is no score" in (Path("odd") / "eval.html").read_text()
    cats = [row["odd"] for row in table(Path("odd")) if row["prompt"] == "a cat"]
    assert set(cats) == {""}


def test_satisfaction_is_asked_where_the_prompts_have_questions(ddpo, finished, tmp_path):
    seeing.llava(tmp_path / "llava")
    asked = {"prompt": "two cats", "metadata": {"questions": ["How many?"], "answers": ["two"]}}
    (tmp_path / "asked.jsonl").write_text(json.dumps(asked))
    answer = ddpo(
        "eval", finished, "--suite", "training,asked.jsonl", "--images", "1",
        "--rewards", "satisfaction,compressibility", "--out", "asked",
        "rewards.satisfaction.model=llava", "rewards.satisfaction.max_tokens=2",
    )
    assert answer.code == 0, answer.err
    rewards = {trial["suite"]: set(trial["rewards"]) for trial in summary(Path("asked"))["trials"]}
    assert rewards == {"training": {"jpeg"}, "asked": {"jpeg", "satisfaction"}}
    assert all((row["satisfaction.caption"] != "") is (row["suite"] == "asked") for row in table(Path("asked")))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--suite", "trainnig"), 'Did you mean "training"?'),
        (("--suite", "counting"), "no reward here counts"),
        (("--rewards", "jpg"), '"jpg" is none of'),
        (("learner.lr=1",), "learner.lr=1: a checkpoint is evaluated as it was trained"),
        (("policy.base=/nowhere",), "there is no folder '/nowhere'"),
        (("--out", "file/under"), "--out: file/under cannot be written (Not a directory)"),
        (("--suite", "long.txt"), "this model reads 24"),
        (("rewards.odd.kind=function", "rewards.odd.path=none.py"), "cannot read none.py"),
        (("--images", "0"), "'0' is not a whole number of 1 or more"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_before_anything_is_drawn(ddpo, finished, tmp_path, words, said):
    (tmp_path / "file").write_text("")
    (tmp_path / "long.txt").write_text("a cat" * 20)
    answer = ddpo("eval", finished, *words)
    assert answer.code == 2 and said in answer.err and "images to draw" not in answer.err


def test_a_folder_that_is_no_checkpoint_is_refused(ddpo, tmp_path):
    (tmp_path / LORA_FILE).write_bytes(b"")
    assert "neither a checkpoint nor a run folder" in ddpo("eval", tmp_path).err


def entry(suite: str, sampler: str, reward: str, low: float, high: float) -> dict[str, Any]:
    verdict = (low > 0) - (high < 0)
    result = {"base": 1.0, "tuned": 2.0, "change": (low + high) / 2, "low": low, "high": high, "verdict": verdict}
    return {"suite": suite, "title": f"9 {suite}", "sampler": sampler, "steps": 20, "rewards": {reward: result},
            "diversity": {"base": 0.4, "tuned": 0.1}}


def test_the_headline_tells_a_gain_from_none():
    rewards = {"looks": {"weight": 1.0, "unit": "", "kind": "aesthetic"}}
    trials = [entry("cats", "training", "looks", 0.22, 0.4), entry("cats", "deployment", "looks", -0.1, 0.3)]
    one = statement({"rewards": rewards, "trials": trials})
    assert "On 9 cats, looks rose by 0.31 (95\N{NO-BREAK SPACE}% interval 0.22 to 0.40); with 20 deterministic" in one
    assert "it did not change measurably (95\N{NO-BREAK SPACE}% interval −0.10 to 0.30)." in one
    assert "as a share of the base&#x27;s: 25\N{NO-BREAK SPACE}% on cats." in one
    assert "looks rose with the training&#x27;s sampler only on cats." in one
    more = [*trials, entry("dogs", "training", "looks", -2, -1), entry("dogs", "deployment", "looks", 1, 2)]
    assert "looks rose on 1 and fell on 1 of 2 suites" in statement({"rewards": rewards, "trials": more})


def test_a_watched_reward_that_falls_is_told():
    rewards = {"looks": {"weight": 0.0, "unit": "", "kind": "aesthetic"}}
    trials = [entry("cats", sampler, "looks", -2, -1) for sampler in ("training", "deployment")]
    assert "looks, which was not trained on, fell on cats." in statement({"rewards": rewards, "trials": trials})


def test_numbers_have_the_decimals_that_their_interval_is_worth():
    def both(change: float, low: float | None, high: float | None) -> tuple[str, str]:
        result = {"change": change, "low": low, "high": high}
        return signed(result), span(result)

    assert both(0.8634, 0.682, 1.05) == ("+0.86", "0.68 to 1.05")
    assert both(-0.00094, -0.0209, 0.0315) == ("−0.001", "−0.021 to 0.032")
    assert both(-12345.6, -13000, -12000) == ("−12,346", "−13,000 to −12,000")
    assert both(1e-9, -1e-9, 3e-9) == ("+1×10⁻⁹", "−1×10⁻⁹ to 3×10⁻⁹")
    assert both(0.0, 0.0, 0.0) == ("0", "0 to 0") and both(0.25, None, None) == ("+0.250", "")
    assert both(-0.001, -0.2, 0.1) == ("0.00", "−0.20 to 0.10")


def test_the_chart_has_every_interval_in_its_place():
    trials = [entry("cats", "training", "looks", 1.0, 3.0), entry("cats", "deployment", "looks", 0.0, 2.0)]
    for width in (1100, 540, 380):
        lines = [line for line in forest(trials, "looks", "", width).splitlines() if 'class="line' in line]
        ends = [[float(line.partition(f'{key}="')[2].partition('"')[0]) for key in ("x1", "x2")] for line in lines]
        assert ends[0][0] > ends[1][0] and ends[0][1] - ends[0][0] == pytest.approx(ends[1][1] - ends[1][0], abs=0.2)
        assert all(0 <= end <= width for pair in ends for end in pair)
