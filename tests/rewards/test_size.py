"""Sizes of rewards' models, by the files that published ones have; those that are not here by what is known of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import published
import pytest
import seeing
import torch
from safetensors.torch import load_file
from transformers import (
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    DebertaConfig,
    DebertaModel,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from ddpo.config import RewardConfig
from rewards.size import PUBLISHED, parameters, weights


def numbers(tensors: dict[str, torch.Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors.values() if tensor.is_floating_point())


def test_pickled_weights_are_counted_too(tmp_path):
    folder = seeing.deberta(tmp_path / "deberta")
    held = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    assert parameters(str(folder)) is None
    torch.save(held, folder / "pytorch_model.bin")
    assert parameters(str(folder)) == numbers(held)
    half = list(held)[: len(held) // 2]
    (folder / "pytorch_model.bin").unlink()
    for number, names in enumerate((half, held.keys() - half), 1):
        torch.save({name: held[name] for name in names}, folder / f"pytorch_model-0000{number}-of-00002.bin")
    assert parameters(str(folder)) == numbers(held)


def test_the_files_of_hpsv2_and_imagereward_are_found(tmp_path):
    assert parameters(str(published.hpsv2(tmp_path / "hps"))) == numbers(published.open_clip_weights())
    folder = published.imagereward(tmp_path / "ir")
    assert parameters(str(folder)) == parameters(str(folder / "ImageReward.pt")) == numbers(
        published.imagereward_weights())


def test_copies_in_other_formats_do_not_count(tmp_path):
    folder = seeing.clip(tmp_path / "clip")
    alone = parameters(str(folder))
    for name in ("model.fp16.safetensors", "pytorch_model.bin", "tf_model.h5"):
        (folder / name).write_bytes((folder / "model.safetensors").read_bytes())
    assert parameters(str(folder)) == alone


def tower(width: int, layers: int) -> dict[str, int]:
    return {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers,
            "num_attention_heads": 16}


def clip(words: dict[str, int], pictures: dict[str, int], width: int) -> CLIPModel:
    return CLIPModel(CLIPConfig(text_config=words, vision_config=pictures | {"patch_size": 14}, projection_dim=width))


def llava(hidden: int, inner: int, layers: int) -> LlavaForConditionalGeneration:
    text = LlamaConfig(hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers,
                       num_attention_heads=hidden // 128, vocab_size=32064)
    vision = CLIPVisionConfig(**tower(1024, 24), patch_size=14, image_size=336)
    return LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=text))


def deberta() -> DebertaModel:
    return DebertaModel(DebertaConfig(
        vocab_size=50265, hidden_size=1024, intermediate_size=4096, num_hidden_layers=48, num_attention_heads=16,
        relative_attention=True, position_biased_input=False, pos_att_type=["c2p", "p2c"], type_vocab_size=0,
    ))


def minilm() -> BertModel:
    return BertModel(BertConfig(hidden_size=384, intermediate_size=1536, num_hidden_layers=6, num_attention_heads=12))


NETWORKS: dict[str, Callable[[], torch.nn.Module]] = {
    "openai/clip-vit-large-patch14": lambda: clip(tower(768, 12), tower(1024, 24), 768),
    "laion/CLIP-ViT-H-14-laion2B-s32B-b79K": lambda: clip(tower(1024, 24), tower(1280, 32), 1024),
    "llava-hf/llava-1.5-13b-hf": lambda: llava(5120, 13824, 40),
    "llava-hf/llava-1.5-7b-hf": lambda: llava(4096, 11008, 32),
    "microsoft/deberta-xlarge-mnli": deberta,
    "minilm": minilm,
}


@pytest.mark.parametrize("name", NETWORKS)
def test_published_sizes_are_those_of_networks_of_their_configurations(name):
    with torch.device("meta"):
        assert sum(weight.numel() for weight in NETWORKS[name]().parameters()) == PUBLISHED[name]


def test_a_model_that_is_not_here_is_as_large_as_it_was_published(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    alignment = RewardConfig("alignment", dtype="float16")
    assert weights(alignment, "describe", gpu=True) == (2 * PUBLISHED["llava-hf/llava-1.5-13b-hf"], True)
    assert weights(alignment, "compare", gpu=True) == (4 * PUBLISHED["microsoft/deberta-xlarge-mnli"], True)
    assert weights(RewardConfig("clipscore", model="nobody/knows"), "score", gpu=True) is None
    assert Path(tmp_path / "cache").exists() is False
