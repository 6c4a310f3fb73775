"""The real thing: whole runs by the command line, in process and on Ray with the GPU shared by fractions.

Consumes menagerie and the random model, produces results; waits for the runs, within the part's time.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from typing import Any

from bench.gpu.measure import Bench

SHARED = ("actors.gpus=0.3", "learner.gpus=0.4")


def start(bench: Bench, recipe: str, name: str, *words: str, alone: bool = False) -> subprocess.Popen[str]:
    """`ddpo train` in a process (alone: and a process group) of its own; what it says goes to a file."""
    command = [sys.executable, "-m", "deploy", "train", recipe, f"--runs={bench.folder / 'runs'}", f"name={name}",
               "images.every=1000", "images.count=1", *words]
    log = (bench.folder / f"{name}.log").open("a")
    return subprocess.Popen(command, stdout=log, stderr=log, text=True, start_new_session=alone)


def ended(bench: Bench, name: str, process: subprocess.Popen[str]) -> bool:
    """Wait for it; tells where it failed."""
    if process.wait() == 0:
        return True
    tail = (bench.folder / f"{name}.log").read_text()[-600:]
    bench.say(f"{name}: exit code", process.returncode, "", "0")
    bench.say(f"{name}: its last words", tail)
    return False


def rows(bench: Bench, name: str) -> list[dict[str, Any]]:
    """metrics.jsonl of a run."""
    path = bench.folder / "runs" / name / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def learns(bench: Bench) -> None:
    """The demo in process in every precision, side by side: the reward rises alike, the gradient is alike."""
    steps, dtypes = 2 if bench.dry else 10, ("float32",) if bench.dry else ("float32", "float16", "bfloat16")
    few = ["learner.images_per_step=16", "learner.minibatch=16"] if bench.dry else []
    started = {dtype: start(bench, "demo", f"learns-{dtype}", "--in-process", f"steps={steps}", "lag=0",
                            f"policy.dtype={dtype}", *few) for dtype in dtypes}
    for dtype, process in started.items():
        if ended(bench, f"learns-{dtype}", process):
            found = rows(bench, f"learns-{dtype}")
            rewards = [row["reward_mean"] for row in found]
            bench.say(f"{dtype}: reward, mean of the last three steps less that of the first",
                      sum(rewards[-3:]) / len(rewards[-3:]) - rewards[0], "kB", "alike in all precisions, above 0")
            bench.say(f"{dtype}: gradient's norm, first step", found[0]["grad_norm"])
            bench.say(f"{dtype}: share of pairs clipped, first step", found[0]["clip_fraction"])


def on_ray(bench: Bench) -> None:
    """The demo on Ray, two samplers and the learner on one GPU, at lag 0 and 1; the second is killed and resumed."""
    gpus = () if bench.dry else SHARED
    few = ("steps=2", "learner.images_per_step=16", "learner.minibatch=16") if bench.dry else ("steps=6",)
    words = (*gpus, *few, "checkpoints.every=1", f"policy.dtype={'float32' if bench.dry else 'float16'}")
    lags = (0,) if bench.dry else (0, 1)
    whole = {lag: start(bench, "demo", f"ray-lag{lag}", f"lag={lag}", *words) for lag in lags}
    digests: dict[int, str] = {}
    for lag, process in whole.items():
        if ended(bench, f"ray-lag{lag}", process):
            result = json.loads((bench.folder / "runs" / f"ray-lag{lag}" / "result.json").read_text())
            digests[lag] = result["lora_digest"]
            bench.say(f"lag {lag}: on Ray", "ran to its end")
    if bench.dry:
        return
    killed = start(bench, "demo", "ray-killed", "lag=1", *words, alone=True)
    _kill_at(bench, "ray-killed", killed, step=3)
    if ended(bench, "ray-killed", start(bench, "demo", "ray-killed", "lag=1", "--resume", *words)):
        result = json.loads((bench.folder / "runs" / "ray-killed" / "result.json").read_text())
        same = result["lora_digest"] == digests.get(1)
        bench.say("lag 1, killed after step 3 and resumed: weights against the undisturbed run's",
                  "equal" if same else "differ", "", "equal with deterministic kernels")


def _kill_at(bench: Bench, name: str, process: subprocess.Popen[str], step: int) -> None:
    """kill -9 of the driver and all it started, once a step is in metrics.jsonl."""
    while len(rows(bench, name)) < step and process.poll() is None:
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def full_size(bench: Bench) -> None:
    """Stable Diffusion's size on Ray: sampler and learner share the GPU; seconds a step at lag 0 and 1."""
    few = ("policy.steps=10", "learner.images_per_step=32", "learner.minibatch=16", "actors.batch=16", "steps=4",
           "learner.micro_batch=16", "actors.gpus=0.4", "learner.gpus=0.6")
    if bench.dry:
        few = ("policy.steps=2", "learner.images_per_step=4", "learner.minibatch=4", "actors.batch=2", "steps=2",
               "policy.dtype=float32", "actors.gpus=0", "learner.gpus=0", "--in-process")
    for lag in (0,) if bench.dry else (0, 1):
        name = f"size-lag{lag}"
        words = (f"policy.base={bench.model()}", "prompts.kind=simple_animals", f"lag={lag}", *few)
        if ended(bench, name, start(bench, "compressibility", name, *words)):
            found = rows(bench, name)
            for stage in found[-1]["seconds"]:
                seconds = [row["seconds"][stage] for row in found[1:]]
                bench.say(f"lag {lag}: seconds of a step, {stage}", sum(seconds) / len(seconds), "s")
            bench.say(f"lag {lag}: gradient's norm", found[-1]["grad_norm"], "", "above 0")
            bench.say(f"lag {lag}: |d log p|, mean", found[0]["mean_abs_log_prob_delta"])


