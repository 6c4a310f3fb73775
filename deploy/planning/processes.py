"""How much memory each process of a run takes, and whether the GPUs that it may get have that much.

Consumes a `Run` and its model's description, produces `Process`es and what is wrong with them; waits for nothing. Of
samplers and learner all is counted (see memory.py), of rewards the weights alone: what they compute comes on top.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ddpo.config import Run
from ddpo.stages import Stage, stages
from deploy.placing import ACCELERATOR
from deploy.planning.room import NEARLY, Crew, Node
from deploy.report.scale import size
from rewards.size import weights

if TYPE_CHECKING:
    from deploy.planning.memory import Counted

CUDA = 1e9  # bytes that a process takes besides its tensors: the context and the libraries' code
# What a GPU keeps beside the activations that are counted, as a share of them: copies in another layout, workspaces of
# its libraries, graphs. Measured on an H200 at Stable Diffusion's size, batches of 8 and 16, a micro-batch of 8.
BESIDE = {"samplers": 1.2, "learner": 0.36}
FILLED = 0.9  # share of its memory up to which a GPU may be planned full: its allocator never has all of it in use
SIZES = (1, 2, 4, 8, 16, 32, 64)  # of batches, that are proposed
GPU_MEMORY = {  # GB by Ray's names of accelerators, the smaller where there are two
    "T4": 16, "V100": 16, "A10G": 24, "L4": 24, "L40S": 48, "A100": 40, "A100-40G": 40, "A100-80G": 80, "H100": 80,
    "H200": 141,
}


@dataclass(frozen=True)
class Process:
    """Bytes of one process of a crew, by what they are for; unknown: why there are none; published: its model is not
    here, and its weights are those of published sizes."""

    crew: str
    device: str
    parts: dict[str, float]
    unknown: str = ""
    published: bool = False

    @property
    def total(self) -> float:
        """At the peak."""
        return sum(self.parts.values())


def processes(run: Run, counted: Counted | None) -> list[Process]:
    """One of every crew; without what was counted on a base model, what can be known all the same."""
    rewards = [_reward(run, stage) for stage in stages(run.rewards)]
    if counted is None:
        unknown = "policy.base is not on this machine"
        return [Process("samplers", _device(run.actors), {}, unknown), *rewards,
                Process("learner", _device(run.learner), {}, unknown)]
    sampler = _process("samplers", run.actors, dataclasses.asdict(counted.sampler))
    return [sampler, *rewards, _process("learner", run.learner, dataclasses.asdict(counted.learner))]


def _reward(run: Run, stage: Stage) -> Process:
    found = weights(run.rewards[stage.reward], stage.verb, _device(stage.wants) == "GPU")
    if found is None:
        return Process(stage.pool, _device(stage.wants), {}, "its model is not on this machine")
    process = _process(stage.pool, stage.wants, {"weights": found.bytes} if found.bytes else {})
    return dataclasses.replace(process, published=found.published)


def _process(name: str, wants: Any, parts: Mapping[str, float]) -> Process:
    """With what CUDA and its libraries take, where there is something on a GPU."""
    device = _device(wants)
    if not parts or device == "CPU":
        return Process(name, device, dict(parts))
    beside = BESIDE.get(name, 0.0) * parts.get("activations", 0.0)
    return Process(name, device, {**parts, "beside": beside, "cuda": CUDA})


def _device(wants: Any) -> str:
    return "GPU" if wants.gpus and getattr(wants, "device", "auto") != "cpu" else "CPU"


def against_gpus(
    crews: Sequence[Crew], needed: Sequence[Process], nodes: Sequence[Node]
) -> tuple[list[str], list[str]]:
    """Crews whose process is larger than the largest GPU that they may get, and those larger than their share of it."""
    by_name, lacks, notes = {crew.name: crew for crew in crews}, list[str](), list[str]()
    for process in needed:
        crew = by_name[process.crew]
        kind, bytes_there = _largest(crew, nodes)
        takes = f"one of {crew.name} takes about {size(process.total)}"
        if process.device == "CPU" or not kind:
            continue
        if process.total > bytes_there:
            lacks.append(f"{takes}, more than {kind} has ({size(bytes_there)})")
        elif process.total > crew.gpus * bytes_there:
            share = size(crew.gpus * bytes_there)
            notes.append(f"{takes}, more than its share of {crew.gpus:g} {kind} ({share}): those that "
                         "share the GPU with it must leave it the rest")
    return lacks, notes


def proposals(run: Run, needed: Sequence[Process], crews: Sequence[Crew], nodes: Sequence[Node]) -> list[str]:
    """Batches that would use the share of the GPU that each crew has, where its kind is known: activations grow with
    the batch, all else stays. Larger ones keep a GPU busier; the numbers of a run depend on them."""
    now = {"samplers": ("actors.batch", run.actors.batch), "learner": ("learner.micro_batch", run.learner.micro_batch)}
    by_name, found = {crew.name: crew for crew in crews}, list[str]()
    for process in needed:
        if process.crew not in now or process.device == "CPU" or process.unknown:
            continue
        (key, batch), crew = now[process.crew], by_name[process.crew]
        kind, bytes_there = _largest(crew, nodes)
        room = FILLED * min(crew.gpus, 1.0) * bytes_there
        grows = process.parts["activations"] + process.parts["beside"]
        fitting = [
            other for other in SIZES if process.total + grows * (other / batch - 1) <= room
            and run.learner.images_per_step % other == 0
        ]
        if kind and fitting and fitting[-1] != batch:
            found.append(f"{key} = {fitting[-1]} would use what {crew.gpus:g} {kind} has ({size(room)}); it is {batch}")
    return found


def together(needed: Sequence[Process], crews: Sequence[Crew]) -> float:
    """Bytes on one GPU where all that computes on GPUs shares a single one; 0 where it does not."""
    there = {crew.name: crew for crew in crews}
    sharing = [process for process in needed if process.device == "GPU"]
    reserved = sum(there[process.crew].low * there[process.crew].gpus for process in sharing)
    if len(sharing) < 2 or reserved > 1 + NEARLY or any(process.unknown for process in sharing):
        return 0.0
    return sum(there[process.crew].low * process.total for process in sharing)


def gpus(crew: Crew, nodes: Sequence[Node]) -> set[str]:
    """Kinds of GPUs that a crew may get, as far as its own labels and those of nodes tell."""
    kinds = {node.labels.get(ACCELERATOR, "") for node in nodes if crew.labels.items() <= node.labels.items()}
    return (kinds | {crew.labels.get(ACCELERATOR, "")}) - {""}


def _largest(crew: Crew, nodes: Sequence[Node]) -> tuple[str, float]:
    """The GPU with most memory that a crew may get, and its bytes; an empty name where the labels do not tell."""
    known = [(GPU_MEMORY[kind], kind) for kind in gpus(crew, nodes) if kind in GPU_MEMORY]
    memory, kind = max(known, default=(0, ""))
    return kind, memory * 1e9
