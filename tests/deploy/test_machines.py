"""On what a run computes: in run.json, in the ledger, in its report, and where it is worth a word."""

from __future__ import annotations

import json
from dataclasses import replace

import torch
from learning import local_pools

from actors.prompts import Draw, source
from deploy import ledger
from deploy.ledger import Ledger
from deploy.machines import Machines
from deploy.report.account import reproduce
from deploy.report.read import read_run

A100 = {"device": "NVIDIA A100-SXM4-80GB", "capability": "8.0", "driver": "580.65.06", "cuda": "13.0"}
H100 = A100 | {"device": "NVIDIA H100 80GB HBM3", "capability": "9.0"}
CPU = {"device": "cpu", "capability": "AVX2", "torch": "2.13.0"}


def test_samplers_of_several_kinds_are_told_of(make_run, capsys):
    machines = Machines(make_run("actors.gpus=1", "learner.gpus=1"))
    for crew, found in (("samplers", A100), ("learner", H100), ("samplers", A100), ("jpeg", CPU), ("jpeg", {})):
        machines.note(crew, found)
    assert capsys.readouterr().err == ""
    machines.note("samplers", H100)
    machines.note("samplers", H100)
    said = capsys.readouterr().err
    assert said.startswith("Note: the samplers compute on 2 kinds of hardware: NVIDIA A100-SXM4-80GB (capability 8.0, ")
    assert said.count("Note") == 1 and "driver 580.65.06" in said and "actors.accelerator" in said
    assert machines.table() == {"jpeg": [CPU, {}], "learner": [H100], "samplers": [A100, H100]}


def test_a_gpu_that_a_function_has_reserved_and_cannot_use_is_told_of(make_run, capsys):
    machines = Machines(make_run("rewards.jpeg.gpus=0.5"))
    machines.note("jpeg", CPU)
    assert "a worker of jpeg has reserved 0.5 GPU, and torch sees none in its process" in capsys.readouterr().err


def test_a_run_says_what_it_computed_on(train, tmp_path):
    assert train("steps=1").code == 0
    folder = tmp_path / "runs" / "small"
    here = {"device": "cpu", "capability": torch.backends.cpu.get_cpu_capability(), "torch": torch.__version__}
    workers = json.loads((folder / "run.json").read_text())["workers"]
    assert workers == {"jpeg": [here], "learner": [here], "samplers": [here]}
    books = ledger.read(folder / "ledger.jsonl")
    assert books.damaged == [] and all(books.hardware(line) == here for line in books.images[1])
    assert f"# samplers: cpu (capability {here['capability']}, torch " in reproduce(read_run(folder))


def test_the_ledger_says_what_drew_each_image(make_run):
    samplers, rewards, learner = local_pools(run := make_run("actors.batch=2"))
    scored = rewards.score(samplers.sample(Draw(run, source(run.prompts))(0), learner.policy())).wait()
    receipts = [replace(scored.receipts[row], hardware=kind) for row, kind in enumerate((A100, A100, H100, A100))]
    lines = list(ledger.machines(replace(scored, receipts=receipts), 1))
    assert [(line["from"], line["hardware"]) for line in lines] == [(0, A100), (4, H100), (6, A100)]
    books = Ledger(machines={1: lines})
    drawn = [books.hardware({"step": 1, "image": image}) for image in range(8)]
    assert drawn == [A100] * 4 + [H100] * 2 + [A100] * 2 and books.hardware({"step": 2, "image": 9}) == {}
