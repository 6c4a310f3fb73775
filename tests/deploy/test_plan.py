"""`ddpo plan`: memory against what the CPU really allocates, seats worked out by hand, the command."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from ddpo.base import find
from ddpo.denoiser import Denoiser
from deploy import recipes
from deploy.planning import memory, nodes
from deploy.planning.plan import Plan, plan
from deploy.planning.processes import Process, against_gpus, proposals, together
from deploy.planning.room import Node, crews, seat
from deploy.recipes import stated_memory
from rewards import size

ROOT = Path(__file__).resolve().parents[2]
SD_15 = {"_class_name": "UNet2DConditionModel", "sample_size": 64, "in_channels": 4, "cross_attention_dim": 768}


@pytest.fixture(scope="module")
def wide(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model for pictures so large that a matrix of all pairs of tokens would show."""
    folder = shutil.copytree(model, tmp_path_factory.mktemp("wide") / "model")
    config = json.loads((folder / "unet" / "config.json").read_text())
    (folder / "unet" / "config.json").write_text(json.dumps(config | {"sample_size": 32}))
    return folder


def allocated(work: Callable[[], object], folder: Path) -> int:
    """Bytes at the peak that the work allocates on this CPU, as torch's profiler saw its allocator."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        work()
    seen.export_chrome_trace(str(folder / "trace.json"))
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    totals = [event["args"]["Total Allocated"] for event in events if event["name"] == "[memory]"]
    first = next(event["args"] for event in events if event["name"] == "[memory]")
    return max(totals) - (first["Total Allocated"] - first["Bytes"])


def on_cpu(given: tuple[Tensor, Tensor, Tensor, Tensor]) -> Callable[..., tuple[object, ...]]:
    return lambda base, denoiser, count: given


WAYS = [[], ["learner.gradient_checkpointing=true"], ["learner.kl=0.1"], ["policy.guidance=1"]]


@pytest.mark.parametrize("words", WAYS)
def test_the_learners_activations_are_those_that_the_cpu_allocates(make_run, wide, tmp_path, monkeypatch, words):
    run = make_run(f"policy.base={wide}", *words)
    base = find(str(wide))
    expected = memory.learner(run, base, memory.skeleton(run, base))[0].activations
    real = Denoiser(base, run.policy, run.seed)
    if run.learner.gradient_checkpointing:
        real.unet.enable_gradient_checkpointing()
        real.unet.train()
    x, index, c, null = memory.rows(base, real, run.learner.micro_batch)
    given = torch.zeros(x.shape), torch.zeros(index.shape, dtype=torch.int64), *(
        type(c)(*(torch.zeros(part.shape) for part in side)) for side in (c, null))
    for weight in real.trainable.values():
        weight.grad = torch.zeros_like(weight)
    monkeypatch.setattr(memory, "rows", on_cpu(given))
    found = allocated(lambda: memory._loss(run, base, real).backward(), tmp_path)
    assert found == pytest.approx(expected, rel=0.1)


def test_stable_diffusion_15_has_the_published_sizes(model, tmp_path, make_run):
    folder = shutil.copytree(model, tmp_path / "model")
    (folder / "unet" / "config.json").write_text(json.dumps(SD_15))
    run = make_run(f"policy.base={folder}", "policy.dtype=float16")
    denoiser = memory.skeleton(run, find(str(folder)))
    lora = sum(weight.numel() for weight in denoiser.trainable.values())
    assert sum(weight.numel() for weight in denoiser.unet.parameters()) - lora == 859_520_964
    assert lora == 797_184  # of rank 4 on all attention


def test_a_sampler_holds_all_three_networks_and_the_chain(make_run, model):
    run, base = make_run(), find(str(model))
    found = memory.count(run, base)
    files = [model / part / name for part, name in (
        ("unet", "diffusion_pytorch_model"), ("vae", "diffusion_pytorch_model"), ("text_encoder", "model"))]
    numbers = sum(size._numbers(file.with_suffix(".safetensors")) for file in files)
    assert found.sampler.weights == pytest.approx(4 * numbers + found.policy, rel=0.01)
    longer = memory.count(replace(run, policy=replace(run.policy, steps=25)), base).sampler.activations
    assert longer - found.sampler.activations == 20 * 2 * run.actors.batch * base.latent_size * 4


def test_weights_that_all_learn_take_four_times_their_room(make_run, model):
    found = memory.count(make_run("policy.train=full"), find(str(model))).learner
    assert found.learning == 3 * found.weights


def test_a_rewards_model_is_measured_by_the_heads_of_its_files(make_run):
    run = make_run("rewards.clip.kind=clipscore", "rewards.clip.model=menagerie-clip")
    whole = size.weights(run.rewards["clip"], "score", gpu=False).bytes
    file = ROOT / "menagerie" / "clip" / "model.safetensors"
    assert whole and whole == pytest.approx(2 * file.stat().st_size, rel=0.05)  # kept in half precision, loaded in fp32
    assert size.weights(run.rewards["clip"], "score", gpu=True) == (whole / 2, False)
    assert size.weights(run.rewards["jpeg"], "score", gpu=False) == (0, False)


def a_node(kind: str, cpus: float, gpus: float = 0, **labels: str) -> Node:
    return Node(kind, cpus, gpus, labels)


HALVES = ["actors.count=3", "actors.gpus=0.6", "learner.gpus=0.5"]


def test_a_worker_has_parts_of_one_gpu_only(make_run):
    run = make_run(*HALVES)  # 2.3 GPUs in all, and yet three do not do: no two of 0.6 share one, and none with 0.5
    found = seat(run, [a_node("a", 8, 3)])
    assert found.lacks == ["1 of 1 learner (0.5 GPU + 1 CPU each): the node is full"]
    assert not seat(run, [a_node("a", 8, 4)]).lacks


def test_workers_go_to_nodes_of_their_role_and_the_others_are_named(make_run):
    there = [a_node("head", 0, role="head"), a_node("a", 4, 1, role="sampler"), a_node("b", 4, role="reward-cpu")]
    found = seat(make_run("actors.gpus=1", "learner.gpus=1", "actors.count=2"), there)
    assert found.lacks == [
        "1 of 2 samplers (1 GPU + 1 CPU each): the node with role=sampler is full",
        "1 of 1 learner (1 GPU + 1 CPU each): no node has role=learner",
    ]
    assert found.nodes == {"a": 1, "b": 1}


def test_a_pool_may_grow_as_far_as_there_is_room(make_run):
    found = seat(make_run("rewards.jpeg.max_workers=9"), [a_node("gpu", 2, 1), a_node("cpu", 6)])
    assert found.rooms == {"samplers": 1, "jpeg": 6, "learner": 1} and not found.lacks
    assert found.nodes == {"cpu": 1}  # those without GPUs stay away from it as long as they can
    assert found.most == {"gpu": 1, "cpu": 1}


def test_a_worker_larger_than_any_node_is_told_so(make_run):
    found = seat(make_run("learner.gpus=4"), [a_node("a", 8, 2)])
    assert found.lacks == ["1 of 1 learner (4 GPU + 1 CPU each): the largest node has 2 GPU + 8 CPU"]


@pytest.mark.parametrize("file", ["ray_cluster.yaml", "deploy/ray_cluster.gcp.yaml", "deploy/kuberay/rayjob.yaml"])
def test_cluster_files_say_what_they_may_start(file, make_run):
    found = nodes.promised(ROOT / file)
    roles = [node.labels["role"] for node in found]
    assert set(roles) == {"head", "sampler", "learner", "reward-gpu", "reward-cpu"}
    assert roles.count("head") == 1 and roles.count("sampler") > 1
    assert not seat(make_run("actors.gpus=1", "learner.gpus=1"), found).lacks


def planned(*words: str, **options: object) -> Plan:
    given = {"words": list(words), "time": [], "like": None, "address": "", "cluster": None, "call": 0.0,
             "bandwidth": 1e9}
    return plan(argparse.Namespace(**given | options))


TIMES = ["sample=5", "jpeg=1", "learn=10"]


def test_time_and_bytes_are_the_simulators(run_file):
    from deploy.prepare import prepare
    from deploy.recipes import find as load
    from deploy.simulate import given, simulate

    found = planned(str(run_file), "steps=20", time=TIMES)
    assert found.time and found.time.seconds_per_step == pytest.approx(2 * 5 + 1 + 10, rel=0.01)  # two chunks
    assert found.time.advice.startswith("the stages wait for one another")
    assert found.time.seconds == pytest.approx(20 * found.time.seconds_per_step)
    prepared = prepare(load(str(run_file), ["steps=20"]))
    times = given(prepared.run, prepared.base, TIMES, 0.0, 1e9, found.network["policies"])
    there = simulate(prepared.run, prepared.base, prepared.prompts, times)
    assert there.bytes_per_step == sum(found.network.values())


def test_pools_that_may_grow_are_grown_before_the_advice(run_file):
    found = planned(str(run_file), "steps=40", "lag=1", "actors.max_count=2", time=["sample=60", "jpeg=1", "learn=100"])
    assert found.time and found.time.workers == {"samplers": 2, "jpeg": 1}
    assert found.time.advice.startswith("the learner limits you")


def test_times_of_another_run_are_scaled_to_this_ones_images(run_file, tmp_path):
    seconds = {"sample": 8.0, "score jpeg": 1.6, "learn": 4.0}
    rows = [{"seconds": dict.fromkeys(seconds, 100.0)}, {"seconds": seconds}, {"seconds": seconds}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "config.toml").write_text("[learner]\nimages_per_step = 16\n[policy]\nsteps = 5\n")
    found = planned(str(run_file), like=tmp_path)  # 8 images in chunks of 4
    assert found.time and found.time.seconds_per_step == pytest.approx(2 * 2.0 + 0.4 + 2.0, rel=0.01)
    assert "policy.base is None there" in found.notes[0] and "policy.steps" not in found.notes[0]


def test_a_cluster_that_lacks_something_ends_with_3(ddpo, run_file, tmp_path):
    config = yaml.safe_load((ROOT / "ray_cluster.yaml").read_text())
    del config["available_node_types"]["learner"]
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(config))
    answer = ddpo("plan", run_file, "learner.gpus=1", "--cluster", tmp_path / "mine.yaml")
    assert answer.code == 3 and "lacks: 1 of 1 learner (1 GPU + 1 CPU each): no node has role=learner" in answer.out
    whole = ddpo("plan", run_file, "learner.gpus=1", "--cluster", ROOT / "ray_cluster.yaml", "--json")
    assert whole.code == 0 and json.loads(whole.out)["seats"]["nodes"]["learner"] == 1


def test_a_cluster_with_an_autoscaler_lacks_nothing_that_it_may_start(ddpo, run_file, monkeypatch):
    head = a_node("10.0.0.1", 0, role="head")
    for labels, code in (({}, 3), ({nodes.GROUP: "head"}, 0)):
        found = [replace(head, labels=head.labels | labels)]
        monkeypatch.setattr(nodes, "there", lambda address, found=found: found)
        answer = ddpo("plan", run_file, "--address", "http://head:8265")
        assert answer.code == code and "1 of 1 samplers (1 CPU each): no node has role=sampler" in answer.out
        assert ("the autoscaler may start more, which --cluster FILE counts" in answer.out) == (code == 0)
    assert not nodes.grow([]) and "the run fits" not in answer.out


def test_a_model_larger_than_the_gpu_is_a_lack(make_run):
    staff = crews(make_run("learner.gpus=0.5", "learner.accelerator=T4"))
    parts = [Process("learner", "GPU", {"weights": 9e9})]
    lacks, (note,) = against_gpus(staff, parts, [])
    assert not lacks and note.startswith("one of learner takes about 9 GB, more than its share of 0.5 T4 (8 GB)")
    (lack,), _ = against_gpus(staff, [replace(parts[0], parts={"weights": 20e9})], [])
    assert lack == "one of learner takes about 20 GB, more than T4 has (16 GB)"


def test_a_model_that_is_not_here_is_unknown_and_not_guessed():
    found = planned("compressibility", "policy.base=nobody/has-this-model")
    assert "nobody/has-this-model" in found.notes[0] and found.stated == stated_memory("compressibility")
    assert all(part.unknown for part in found.memory if part.crew in ("samplers", "learner")) and not found.store


def test_nodes_are_asked_of_a_dashboard_that_answers(ddpo, run_file):
    answer = ddpo("plan", run_file, "--address", "http://127.0.0.1:9")
    assert answer.code == 2 and "no Ray dashboard answers at http://127.0.0.1:9" in answer.err


def test_batches_are_proposed_that_a_known_card_has_room_for():
    run = recipes.find("compressibility", ["actors.accelerator=A100", "learner.accelerator=A100"])
    needed = [
        Process("samplers", "GPU", {"weights": 2e9, "activations": 1e9, "beside": 1e9, "cuda": 1e9}),
        Process("learner", "GPU", {"weights": 2e9, "activations": 6e9, "beside": 2e9, "cuda": 1e9}),
    ]
    # 0.9 x 0.4 x 40 GB = 14.4 hold 3 + 0.25 a picture; 0.9 x 0.6 x 40 = 21.6 hold 3 + 2 a pair
    found = proposals(run, needed, crews(run), [])
    assert [note.partition(" would")[0] for note in found] == ["actors.batch = 32", "learner.micro_batch = 8"]
    unknown = recipes.find("compressibility", [])
    assert not proposals(unknown, needed, crews(unknown), [])  # no card is named


def test_what_shares_a_gpu_is_added_up_and_what_does_not_is_not():
    run = recipes.find("compressibility", [])
    needed = [Process("samplers", "GPU", {"weights": 2e9}), Process("jpeg", "CPU", {}),
              Process("learner", "GPU", {"weights": 3e9})]
    assert together(needed, crews(run)) == 5e9
    apart = recipes.find("compressibility", ["learner.gpus=1"])
    assert together(needed, crews(apart)) == 0

