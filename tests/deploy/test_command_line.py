"""The commands as a user types them: help, recipes, --check, sample, and what is loaded for each."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import seeing
import tiny
from PIL import Image
from terminal import write_run

from deploy.__main__ import main

HEAVY = {"torch", "ray", "diffusers", "transformers", "wandb"}


def test_help_lists_and_mistakes_load_no_heavy_library(run_file):
    commands = [["--help"], ["train", "--help"], ["recipes"], ["train-aesthetic", "--help"], ["train", "demmo"],
                ["train", str(run_file), "lag=x"], ["train", str(run_file), "policy.base=/nowhere"]]
    code = (
        "import sys\nfrom deploy.__main__ import main\n"
        f"for command in {commands!r}:\n"
        "    try: print('code', main(command))\n"
        "    except SystemExit as end: print('code', end.code)\n"
        f"    print('heavy', sorted({HEAVY!r} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    lines = done.stdout.splitlines()
    assert [line for line in lines if line.startswith("code")] == ["code 0"] * 4 + ["code 2"] * 3
    assert {line for line in lines if line.startswith("heavy")} == {"heavy []"}
    assert "train" in done.stdout and "sample" in done.stdout and "recipes" in done.stdout


def test_python_m_deploy_is_the_same_program():
    done = subprocess.run([sys.executable, "-m", "deploy", "nonsense"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and done.stderr.startswith("usage: ddpo")
    assert "invalid choice: 'nonsense'" in done.stderr


def test_recipes_are_listed_with_what_they_do(ddpo):
    answer = ddpo("recipes")
    assert answer.code == 0
    lines = answer.out.splitlines()
    listed = {line.split()[0] for line in lines if not line.startswith(" ")}
    assert {"demo", "compressibility", "incompressibility", "trl-aesthetic"} <= listed
    assert sum(line.lstrip().startswith("needs: ") for line in lines) == len(listed)


def test_check_prints_the_run_and_its_arithmetic_and_starts_nothing(train, tmp_path, model):
    answer = train("--check", "lag=1")
    assert answer.code == 0 and answer.err == ""
    for text in ("[learner]", "images_per_step = 8", "lag = 1", 'kind = "compressibility"', f'base = "{model}"'):
        assert text in answer.out
    arithmetic = answer.out.partition("Arithmetic\n")[2]
    assert "8 a step in 2 chunks of 4; 16 reward queries in 2 steps" in arithmetic
    assert "2 a step, 4 in all, each over 4 images x 5 timesteps = 20 pairs in 5 micro-batches" in arithmetic
    assert "latent 4x8x8 (256 dimensions), predicts epsilon" in arithmetic
    assert "0.0001 in mean log-prob is 0.0256 nats of the joint log-prob over 256 dimensions, 0.016 times" in arithmetic
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(("clip", "times"), [("1e-4", "0.016"), ("0.02", "3.1")])
def test_a_run_says_what_its_clip_range_is_on_this_latent(train, clip, times):
    answer = train("steps=1", f"learner.clip={clip}")
    assert f"Note: learner.clip = {float(clip):g} in mean log-prob is" in answer.err
    assert f"nats of the joint log-prob over 256 dimensions, {times} times the paper's. " in answer.err
    assert "The paper's on this model would be 0.0064." in answer.err
    assert f"# clip: {float(clip):g} in mean log-prob is" in Path("runs/small/report.html").read_text()


@pytest.mark.parametrize("words", [("learner.clip=0.0064",), ("learner.algorithm=rwr",)])
def test_a_usual_clip_range_or_none_is_nothing_to_speak_of(train, words):
    assert "Note" not in train("steps=1", *words).err


@pytest.mark.parametrize(("words", "idle"), [
    (("learner.correction=truncate", "learner.clip=0.01"), {"clip": '0.01 is without effect: "truncate" does not'}),
    (("learner.algorithm=ddpo-sf", "learner.minibatch=8", "learner.clip=0.01"), {"clip": "0.01 is without effect: d"}),
    (("learner.algorithm=rwr", "learner.window=[0, -2]", "learner.timestep_fraction=0.5", "learner.clip=0.01"),
     {"window": "[0, -2] is without", "timestep_fraction": "0.5 is without", "clip": "0.01 is without effect: rwr"}),
    (("learner.algorithm=rwr",), {}),
    (("learner.correction=decoupled", "learner.clip=0.01", "learner.window=[0, -2]"), {}),
])
def test_values_without_effect_are_named_but_are_no_mistake(train, words, idle):
    answer = train("--check", *words)
    notes = [line for line in answer.out.splitlines() if line.startswith("Note: ")]
    assert answer.code == 0 and len(notes) == len(idle), answer.err
    for note, (key, said) in zip(notes, idle.items(), strict=True):
        assert note.startswith(f"Note: learner.{key} = {said}")


@pytest.mark.parametrize(
    "words",
    [("{}", "--check", "lag=1"), ("--check", "{}", "lag=1"), ("{}", "--resume", "lag=1", "--check"),
     ("--resume", "{}", "lag=1", "--check"), ("lag=1", "{}", "--check")],
)
def test_words_and_options_come_in_any_order(ddpo, run_file, words):
    answer = ddpo("train", *[word.format(run_file) for word in words])
    assert answer.code == 0 and "lag = 1" in answer.out, answer.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("train",), "needs a recipe or run file"),
        (("train", "lag=1"), "needs a recipe or run file"),
        (("train", "demo", "--chekc"), "unrecognized arguments: --chekc"),
        ((), "COMMAND"),
        (("sample", "runs/none", "a cat"), "neither a checkpoint nor a run folder"),
        (("sample", "runs/none"), "PROMPT"),
        (("sample", "runs/none", "a cat", "--count", "0"), "'0' is not a whole number of 1 or more"),
        (("sample", "runs/none", "a cat", "--steps", "-3"), "'-3' is not a whole number of 1 or more"),
        (("sample", "runs/none", "a cat", "--seed", "x"), "'x' is not a whole number of 0 or more"),
        (("simulate", "demo", "--call", "-1"), "'-1' is not a number of seconds, 0 or more"),
        (("plan", "demo", "--bandwidth", "0"), "'0' is not a number of bytes a second, more than 0"),
        (("simulate", "demo", "--time", "sample=nan"), "--time sample=nan: write STAGE=SECONDS, 0 or more, such as"),
        (("status", "demo", "--address", "http://127.0.0.1:99999"), "(ValueError: Port out of range 0-65535)"),
        (("check-reward", "http://127.0.0.1:99999"), "is no server; give its address"),
    ],
)
def test_a_wrong_command_is_told_what_is_missing(ddpo, words, said):
    answer = ddpo(*words)
    assert answer.code == 2 and said in answer.err


@pytest.fixture(scope="module")
def finished(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small finished run."""
    folder = tmp_path_factory.mktemp("finished")
    file = write_run(folder / "small.toml", tiny.run(model))
    assert main(["train", str(file), "--in-process", "--runs", str(folder / "runs")]) == 0
    return folder / "runs" / "small"


def test_a_run_says_where_it_is_and_leaves_what_others_rely_on(finished):
    present = {path.name for path in finished.iterdir()}
    files = {"config.toml", "run.json", "metrics.jsonl", "ledger.jsonl", "report.html", "result.json"}
    assert present == {"checkpoints", "images", "policies"} | files


def test_a_name_that_is_taken_gets_a_number_and_says_so(train, tmp_path):
    (tmp_path / "runs" / "small").mkdir(parents=True)
    answer = train("steps=1")
    assert answer.code == 0
    assert "Run folder: runs/small-2 (there is a run 'small' already; --resume would go on" in answer.err
    assert answer.out.strip() == "Report: runs/small-2/report.html"
    assert list((tmp_path / "runs" / "small").iterdir()) == []


def test_sample_draws_with_the_trained_weights(ddpo, finished, tmp_path):
    newest = ddpo("sample", finished, "a cat", "a dog", "--count", "2", "--steps", "2")
    assert newest.code == 0 and newest.err == ""
    assert newest.out.split() == [f"samples/a-{animal}-{seed}.png" for animal in ("cat", "dog") for seed in (0, 1)]
    first = ddpo("sample", finished / "checkpoints" / "000001", "a cat", "--steps", "2", "--out", "first")
    assert first.code == 0
    pictures = [Image.open(tmp_path / name).tobytes() for name in ("samples/a-cat-0.png", "first/a-cat-0.png")]
    assert pictures[0] != pictures[1]


def test_sample_refuses_before_it_draws(ddpo, finished, tmp_path):
    assert "this model reads 24" in ddpo("sample", finished, "a cat" * 20).err
    (tmp_path / "file").write_text("")
    unwritable = ddpo("sample", finished, "a cat", "--out", "file/under")
    assert unwritable.code == 2 and "--out: file/under cannot be made: Not a directory" in unwritable.err


def test_sample_refuses_a_damaged_checkpoint(ddpo, finished, tmp_path):
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", finished / "checkpoints" / "000002", copy], check=True)
    with (copy / "pytorch_lora_weights.safetensors").open("r+b") as file:
        file.seek(-4, 2)
        file.write(b"\xff\xff\xff\xff")
    answer = ddpo("sample", copy, "a cat")
    assert answer.code == 2 and "copy: it is damaged: pytorch_lora_weights.safetensors is not what was" in answer.err


def test_train_aesthetic_says_how_good_the_head_is_and_how_to_use_it(ddpo, tmp_path):
    clip, rng = seeing.clip(tmp_path / "clip"), np.random.default_rng(0)
    for number in range(40):
        Image.fromarray(rng.integers(0, 6 * number + 9, (32, 32, 3), dtype=np.uint8)).save(tmp_path / f"{number}.png")
    (tmp_path / "r.csv").write_text("image,rating\n" + "".join(f"{number}.png,{number}\n" for number in range(40)))
    answer = ddpo("train-aesthetic", "r.csv", "--images", ".", "--model", clip, "--out", "heads/mine", "--epochs", "20")
    assert answer.code == 0, answer.err
    assert "40 rated images; " in answer.out and "On 6 images that it was neither trained nor chosen on" in answer.out
    table = tomllib.loads(answer.out[answer.out.index("[rewards") :])
    assert table["rewards"]["aesthetic"] == {"kind": "aesthetic", "model": str(clip), "head": "heads/mine"}
    wrong = ddpo("train-aesthetic", "r.csv", "--images", "nowhere")
    assert wrong.code == 2 and "--images: there is no folder nowhere" in wrong.err
    assert ddpo("train-aesthetic", "none.csv", "--images", ".").code == 2


def test_a_reader_that_leaves_is_no_failure():
    gone = subprocess.run(
        f"{sys.executable} -m deploy recipes | true; exit ${{PIPESTATUS[0]}}", shell=True, executable="/bin/bash",
        capture_output=True, text=True, timeout=60, check=False,
    )
    assert (gone.returncode, gone.stderr) == (0, "")
