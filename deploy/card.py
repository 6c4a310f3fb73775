"""The model card: what was trained on what, how to load it, what to beware of.

Consumes `Facts` of a checkpoint, produces Markdown with the hub's YAML; waits for nothing. No torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomlkit

from actors.prompts import source
from ddpo.base import BUILT_IN, SDXL, BaseModel
from ddpo.config import RewardConfig, Run, plain
from ddpo.errors import InputError
from deploy.report.scale import counted, number

LICENCE = ("license", "license_name", "license_link")
SECRET_TABLES = ("ray", "wandb")  # where it ran and was logged, which changes no number
PAPER = "[DDPO](https://arxiv.org/abs/2305.13301)"


@dataclass(frozen=True)
class Facts:
    """What the card tells of.

    place:    hub name or folder that the code in the card loads the weights from
    rows:     lines of metrics.jsonl up to the checkpoint's step; facts: run.json; both empty without the run folder
    shown:    steps of the two grids in the picture; None where there is no picture
    """

    run: Run
    base: BaseModel
    step: int
    digest: str
    place: str
    rows: Sequence[Mapping[str, Any]]
    facts: Mapping[str, Any]
    shown: tuple[int, int] | None
    picture: str


def text(about: Facts) -> str:
    """The whole README.md."""
    parts = [
        _front(about), f"# {about.run.name}", _lead(about), _pictures(about), "## Use", _use(about), "## Training",
        _training(about), "## Beware", BEWARE, "## Licence", _licence_note(about), "## Repeat it", _repeat(about),
    ]
    return _private("\n\n".join(part for part in parts if part)) + "\n"


BEWARE = (
    "These weights were pushed towards what the reward measures; what it does not measure, such as variety, likeness "
    "to the prompt or looks, may have been paid for it. Compare with the base model on prompts of your own before you "
    "use them. What the base model must not be used for holds here too."
)


def hub_name(base: BaseModel) -> str:
    """The base's name on the hub; empty where it was given as a folder or ships with the program."""
    return "" if base.name in BUILT_IN or Path(base.name).expanduser().is_dir() else base.name


def _front(about: Facts) -> str:
    """The hub's metadata. It refuses a base_model that it does not know, so a folder's name is left out."""
    from huggingface_hub import ModelCardData

    lora = about.run.policy.train == "lora"
    family = "stable-diffusion-xl" if about.base.pipeline == SDXL else "stable-diffusion"
    base: dict[str, Any] = {}
    if hub_name(about.base):
        base = {"base_model": hub_name(about.base), "base_model_relation": "adapter" if lora else "finetune"}
    data = ModelCardData(
        library_name="diffusers", pipeline_tag="text-to-image", **base, **_licence(about.base),
        tags=["ddpo", "reinforcement-learning", "text-to-image", family, *(["lora"] if lora else [])],
    )
    return f"---\n{data.to_yaml()}\n---"


def _licence(base: BaseModel) -> dict[str, Any]:
    """The base's licence, as its own card says."""
    from huggingface_hub import ModelCard

    path = base.folder / "README.md"
    if not path.is_file():
        return {}
    said = ModelCard(path.read_text(encoding="utf-8"), ignore_metadata_errors=True).data.to_dict()
    return {key: said[key] for key in LICENCE if said.get(key)}


def _licence_note(about: Facts) -> str:
    said = _licence(about.base)
    name = said.get("license_name") or said.get("license")
    known = f"Its card gives it as `{name}`." if name else "It is not told in the base's folder; look it up there."
    return f"These weights are made from {_base(about.base)}, so its licence holds for them too. {known}"


def _base(base: BaseModel) -> str:
    if hub_name(base):
        return f"[{base.name}](https://huggingface.co/{base.name})"
    return f"`{Path(base.name).name}`" + (" (it ships with ddpo)" if base.name in BUILT_IN else "")


def _lead(about: Facts) -> str:
    policy = about.run.policy
    what = f"LoRA weights (rank {policy.lora_rank})" if policy.train == "lora" else "A UNet, trained whole,"
    return (
        f"{what} for {_base(about.base)}, after {counted(about.step, 'step')} of reinforcement learning with "
        f"{PAPER}: the model draws, a reward scores, and what scored well becomes more likely."
    )


def _pictures(about: Facts) -> str:
    if about.shown is None:
        return ""
    first, last = (f"after {counted(step, 'step')}" if step else "before training" for step in about.shown)
    return (
        f"![{first} and {last}]({about.picture})\n\n"
        f"*Of each pair, left: {first}; right: {last}. The same prompt and noise; none is chosen by hand.*"
    )


def _use(about: Facts) -> str:
    policy, pipeline = about.run.policy, about.base.pipeline
    full = policy.train == "full"
    load = f', unet=UNet2DConditionModel.from_pretrained("{about.place}", subfolder="unet")' if full else ""
    lines = [
        f"from diffusers import DDIMScheduler, {pipeline}" + (", UNet2DConditionModel" if full else ""),
        "",
        f'pipe = {pipeline}.from_pretrained("{_location(about.base)}"{load})',
        *([] if full else [f'pipe.load_lora_weights("{about.place}")']),
        "pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)",
        f"image = pipe({_example(about.run)}, num_inference_steps={policy.steps}, "
        f"guidance_scale={policy.guidance:g}, eta={policy.eta:g}).images[0]",
    ]
    code = "```python\n" + "\n".join(lines) + "\n```"
    return code + "\n\nThese are the settings that it was trained with." + _where(about.base)


def _location(base: BaseModel) -> str:
    """What from_pretrained is given; of a folder only its name, since paths are private."""
    if base.name in BUILT_IN:
        return "menagerie/model"
    return hub_name(base) or base.folder.name


def _where(base: BaseModel) -> str:
    if base.name in BUILT_IN:
        return " The base is not on the hub: `menagerie/model` is a folder of ddpo's source, so run this in a checkout."
    return "" if hub_name(base) else f" The base was given as the folder `{base.folder.name}`, which you need too."


def _example(run: Run) -> str:
    """A prompt as Python writes it."""
    return json.dumps((_prompts(run) or ["a cat"])[0], ensure_ascii=False)


def _prompts(run: Run) -> list[str]:
    """All prompts; none where their file is gone."""
    try:
        return [prompt.text for prompt in source(run.prompts)]
    except InputError:
        return []


def _training(about: Facts) -> str:
    run, policy = about.run, about.run.policy
    texts = _prompts(run)
    some = "; ".join(texts[:6]) + ("; …" if len(texts) > 6 else "")
    lines = [
        *_rewards(about),
        ("steps", f"{about.step}, of {run.learner.images_per_step} images each: "
                  f"{about.step * run.learner.images_per_step:,} reward queries"),
        ("prompts", f"{len(texts):,}: {some}" if texts else f"of kind `{run.prompts.kind}`"),
        ("sampling", f"{policy.steps} DDIM steps, eta {policy.eta:g}, guidance {policy.guidance:g}"),
        ("learning", f"`{run.learner.algorithm}`, learning rate {run.learner.lr:g}, clip {run.learner.clip:g}"),
        ("digest of the weights", f"`{about.digest}`" + _averaged(run)),
    ]
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {_cell(value)} |" for name, value in lines)])


def _averaged(run: Run) -> str:
    """What others load is then not what the digest and the pictures are of."""
    decay = run.learner.ema
    return f" (of the last step's; given here is their moving average, decay {decay:g})" if decay else ""


def _cell(value: str) -> str:
    return value.replace("|", "\\|").replace("\n", " ")


def _rewards(about: Facts) -> list[tuple[str, str]]:
    """One line a reward, with its mean in the first and last logged step; and their sum, where there are several."""
    rewards = about.run.rewards
    lines = [(f"reward `{name}`", _reward(reward) + _ends(about, name)) for name, reward in rewards.items()]
    return lines if len(rewards) == 1 else [*lines, ("sum of rewards", _ends(about, "").removeprefix(": "))]


def _reward(reward: RewardConfig) -> str:
    model = f" (`{reward.model}`)" if reward.model else ""
    return f"`{reward.kind}`{model}, " + (f"weight {reward.weight:g}" if reward.weight else "watched, not trained on")


def _ends(about: Facts, name: str) -> str:
    """What its mean did; of the weighted sum where `name` is empty."""
    means = [row["rewards"].get(name) if name else row["reward_mean"] for row in about.rows]
    known = [(row["step"], mean) for row, mean in zip(about.rows, means, strict=True) if mean is not None]
    if not known:
        return ": not logged here"
    (first, start), (last, end) = known[0], known[-1]
    return f": mean {number(start)} in step {first}, {number(end)} in step {last}"


def _repeat(about: Facts) -> str:
    names = {"ddpo": "ddpo_version", "commit": "git_commit", "torch": "torch", "diffusers": "diffusers", "peft": "peft"}
    versions = ", ".join(f"{name} {about.facts[key]}" for name, key in names.items() if key in about.facts)
    table = {key: value for key, value in plain(about.run).items() if key not in SECRET_TABLES}
    config = f"<details><summary>The run file</summary>\n\n```toml\n{tomlkit.dumps(table)}```\n\n</details>"
    made = f"Made with {versions}. " if versions else ""
    return f"{made}The same run file gives the same weights on the same hardware and library versions.\n\n{config}"


def _private(card: str) -> str:
    """Without the path of the user's home, which names people."""
    home = str(Path.home())
    return card.replace(home, "~") if len(home) > 1 else card
