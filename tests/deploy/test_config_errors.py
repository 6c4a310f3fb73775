"""A wrong run file: every mistake at once, with what to write instead, exit code 2, nothing started."""

from __future__ import annotations

import pytest


@pytest.mark.parametrize(
    ("change", "answers"),
    [
        ("learner.minibach=4", ['learner.minibach  unknown key; did you mean "minibatch"?']),
        ("learner.zzz=4", ["learner.zzz  unknown key; known here: algorithm, images_per_step"]),
        ("polcy.steps=4", ['polcy  unknown key; did you mean "policy"?']),
        ("rewards.jpeg.wieght=2", ['rewards.jpeg.wieght  unknown key; did you mean "weight"?']),
        ("rewards.jpeg.kind=compresibility", ["none of compressibility,", 'did you mean "compressibility"?']),
        ("rewards.jpeg={kind='hpsv2', dtype='4bit'}", ['rewards.jpeg.dtype  "4bit" is for language models']),
        ("steps=many", ["steps  'many' is a text in quotes, expected a whole number"]),
        ("steps=2.5", ["steps  2.5 is a number, expected a whole number"]),
        ("steps=true", ["steps  True is true or false, expected a whole number"]),
        ("learner.lr=[1]", ["learner.lr  [1] is a list, expected a number"]),
        ("policy.lora_targets=to_q", ["expected a list of texts"]),
        ("policy.lora_targets=[1]", ["expected a list of texts"]),
        ("prompts=animals", ["prompts  'animals' should be a table: write [prompts]"]),
        ("rewards=jpeg", ["should be a table"]),
        ("rewards.learner.kind=diversity", ["rewards.learner  'learner' is the name of a pool or stage of every run"]),
        ("rewards={jpeg='x'}", ["write a table per entry, for example [rewards.jpeg]"]),
        ("steps=0", ["steps  0 is too small; write 1 or more"]),
        ("learner.lr=0", ["learner.lr  0 is too small; write more than 0"]),
        ("learner.lr=inf", ["learner.lr  inf is not a finite number"]),
        ("learner.clip=nan", ["learner.clip  nan is not a finite number"]),
        ("learner.timestep_fraction=1.5", ["1.5 is too large; write 1 or less"]),
        ("policy.eta=0", ["policy.eta  0 is too small; write more than 0"]),
        ("seed=-1", ["seed  -1 is too small"]),
        ("learner.minibatch=3", ["3 does not divide learner.images_per_step = 8; write 2 or 4"]),
        ("actors.batch=5", ["5 does not divide learner.images_per_step = 8; write 4 or 8"]),
        ("actors.batch=16", ["16 does not divide learner.images_per_step = 8; write 8"]),
        ("learner.images_per_step=100000000000", ["too large; write 1048576 or less"]),
        ("learner.timestep_fraction=0.1", ["is less than one timestep; write 0.2 or more"]),
        ("learner.window=[4, 2]", ["learner.window  [4, 2] holds none of 5 steps; write two numbers"]),
        ("learner.window=[1]", ["learner.window  [1] holds none"]),
        ("learner.window=3", ["expected a list of whole numbers"]),
        ("rewards.jpeg.question=x", ['kind = "compressibility" has no question; it has: accelerator, cpus']),
        ("rewards.jpeg={workers=3, max_workers=2}", ["rewards.jpeg.max_workers  2 is less than the 3 to begin with"]),
        ("rewards={a={kind='alignment', stages={describe={}}}}", ["rewards.a.stages  compare has no table", "as well"]),
        ("rewards={a={kind='alignment', stages={describe={}, compair={}}}}",
         ['rewards.a.stages.compair  unknown stage; did you mean "compare"?']),
        ("rewards={a={kind='alignment', stages={describe={}, compare={worker=2}}}}",
         ['rewards.a.stages.compare.worker  unknown key; did you mean "workers"?']),
        ("rewards={a={kind='alignment', stages={describe={}, compare={workers=3, max_workers=2}}}}",
         ["rewards.a.stages.compare.max_workers  2 is less than the 3 to begin with"]),
        ("rewards={a={kind='alignment', gpus=1, stages={describe={}, compare={}}}}",
         ["rewards.a.gpus  would be without effect beside stages", "write it in [rewards.a.stages.describe] or"]),
        ("rewards={a={kind='alignment', stages={describe=1}}}", ["for example [rewards.a.stages.describe]"]),
        ("rewards.jpeg.stages={describe={}}", ['kind = "compressibility" has no stages; it has: accelerator']),
        ("rewards.jpeg.model=x", ['kind = "compressibility" has no model']),
        ("prompts.kind=animals", ["none of simple_animals,"]),
        ("prompts={kind='nouns_activities', activities=[' ']}", ["prompts.activities", "at least one"]),
        ("prompts={kind='counting', low=5, high=3}", ["prompts.low  5 is above prompts.high = 3"]),
        ("prompts.repeat=3", ["3 does not divide learner.images_per_step = 8; write 2 or 4"]),
        ("advantage.over=group", ['a "group" of one image has no spread; write prompts.repeat = 2 or more']),
        ("learner.algorithm=ddpo-sf", ["write learner.minibatch = 8 and learner.inner_epochs = 1"]),
        ("learner.truncation=0.5", ["learner.truncation  0.5 is too small; write 1 or more"]),
        ("learner.truncation=3", ['learner.truncation  3 would be without effect: "clip" has no importance weights']),
        ("learner.proximal=loglinear", ['learner.proximal  "loglinear" would be without effect: "clip" has no']),
        ("learner={correction='truncate', proximal='loglinear', images_per_step=8, minibatch=4}",
         ['"loglinear" would be without effect: "truncate" has no proximal policy; write learner.correction']),
        ("advantage.min_count=40", ["40 rewards never fit into advantage.buffer = 32"]),
        ("lag=2", ["lag  2 batches ahead of only 2 steps; write 1 or less"]),
        ("name=a/b", ["'a/b' cannot be a folder's name"]),
        ("name=", ["'' cannot be a folder's name"]),
        ("rewards.jpeg.weight=0", ["all weights are 0"]),
        ("rewards={}", ["there is nothing to optimise"]),
        ("rewards.jpeg.kind=function", ["rewards.jpeg.path", "needs the Python file"]),
        ("prompts.items=[]", ["prompts.items", "needs at least one prompt"]),
        ("prompts.items=['', ' ']", ["prompts.items", "needs at least one prompt"]),
        ("prompts.kind=from_file", ["prompts.path", "needs the text file"]),
        ("=3", ["unknown key"]),
    ],
)
def test_a_wrong_value_is_named_with_what_to_write(train, tmp_path, change, answers):
    answer = train(change)
    assert answer.code == 2 and answer.out == ""
    assert "1 problem" in answer.err
    assert [text for text in answers if text not in answer.err] == [], answer.err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("other", ["policy.train=full", "learner.algorithm=rwr"])
def test_kl_needs_a_base_to_compare_with(train, other):
    answer = train("learner.kl=0.1", other)
    assert answer.code == 2 and "learner.kl  needs LoRA" in answer.err


@pytest.mark.parametrize("algorithm", ["rwr", "rwr-sparse", "ddpo-sf"])
def test_a_correction_needs_ratios_to_correct(train, algorithm):
    answer = train("learner.correction=truncate", f"learner.algorithm={algorithm}", "learner.minibatch=8")
    assert answer.code == 2 and f"{algorithm} has none; write learner.correction" in answer.err


def test_all_mistakes_are_reported_at_once_in_the_files_order(train):
    answer = train("learner.lr=-1", "steps=many", "colour=red", "actors.count=0", "lag")
    assert answer.code == 2 and "5 problems" in answer.err
    places = [answer.err.index(f"\n  {key} ") for key in ("lag", "colour", "steps", "actors.count", "learner.lr")]
    assert places == sorted(places)
    assert "an override is written table.key=value" in answer.err


def test_sizes_that_do_not_divide_are_all_reported(train):
    answer = train("learner.images_per_step=12", "learner.minibatch=8", "actors.batch=5")
    assert answer.code == 2 and "2 problems" in answer.err
    assert "write 6 or 12" in answer.err and "write 4 or 6" in answer.err


def test_an_override_changes_the_run(train):
    answer = train("learner.lr=2e-4", "rewards.plain.kind=incompressibility", "policy.lora_targets=['to_q']", "--check")
    assert answer.code == 0, answer.err
    for line in ("lr = 0.0002", "[rewards.plain]", 'lora_targets = ["to_q"]'):
        assert line in answer.out


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"steps = \n", "is not valid TOML: Invalid value (at line 1, column 9)"),
        (b"[learner\nlr = 1", "is not valid TOML"),
        (b'name = "\xff"', "is not valid TOML"),
        (b"steps = 1\nsteps = 2", "is not valid TOML"),
    ],
)
def test_broken_toml_is_refused_with_its_line(ddpo, tmp_path, content, said):
    (tmp_path / "broken.toml").write_bytes(content)
    answer = ddpo("train", "broken.toml")
    assert answer.code == 2 and "broken.toml" in answer.err and said in answer.err
    assert "Nothing was started" in answer.err


@pytest.mark.parametrize("name", ["demmo", "demmo.toml"])
def test_an_unknown_recipe_is_refused_with_a_suggestion(ddpo, name):
    answer = ddpo("train", name)
    assert answer.code == 2
    assert f"there is no recipe and no file {name!r}" in answer.err and 'Did you mean "demo"?' in answer.err


def test_an_unknown_recipe_like_none_gets_the_list(ddpo, tmp_path):
    assert "Recipes: " in ddpo("train", "zzz").err
    assert ddpo("train", tmp_path).code == 2  # a folder is no run file
