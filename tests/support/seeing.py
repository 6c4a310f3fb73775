"""Tiny random models of the classes that rewards load: LLaVA, CLIP, BERT, DeBERTa, each with its real processor."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
    DebertaConfig,
    DebertaModel,
    PreTrainedTokenizerFast,
)

from menagerie import tokenizer as menagerie_tokenizer
from menagerie.describer import network, processor

WORDS = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "the", "image", "contains", "a", "cat", "dog", "riding", "bike", "bee"]


def llava(folder: Path, silent: bool = False) -> Path:
    """A LLaVA that says random words, or nothing at all."""
    torch.manual_seed(3)
    proc = processor()
    model = network(proc.tokenizer)
    if silent:
        for weight in model.parameters():
            weight.data.zero_()  # all words are equally likely; the first one is padding
    model.save_pretrained(folder)
    proc.save_pretrained(folder)
    return folder


def clip(folder: Path, activation: str = "quick_gelu", seed: int = 4, width: int = 16) -> Path:
    """A CLIP of 32 pixels and `width` features."""
    torch.manual_seed(seed)
    words = menagerie_tokenizer.build()
    part = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
            "hidden_act": activation}
    text = part | {
        "vocab_size": len(words), "max_position_embeddings": 24, "bos_token_id": words.bos_token_id,
        "eos_token_id": words.eos_token_id, "pad_token_id": words.pad_token_id,
    }
    vision = part | {"image_size": 32, "patch_size": 8}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=width)
    CLIPModel(config).save_pretrained(folder)
    pictures = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CLIPProcessor(image_processor=pictures, tokenizer=words).save_pretrained(folder)
    return folder


def bert(folder: Path) -> Path:
    """A BERT of two layers and 32 positions, whose tokenizer knows its longest input."""
    torch.manual_seed(5)
    BertModel(BertConfig(**_encoder(), max_position_embeddings=32)).save_pretrained(folder)
    words(model_max_length=32).save_pretrained(folder)
    return folder


def deberta(folder: Path) -> Path:
    """A DeBERTa, as in the paper; its tokenizer says nothing of a longest input."""
    torch.manual_seed(6)
    config = DebertaConfig(
        **_encoder(), max_position_embeddings=32, relative_attention=True, pos_att_type=["c2p", "p2c"],
        type_vocab_size=0,
    )
    DebertaModel(config).save_pretrained(folder)
    words().save_pretrained(folder)
    return folder


def _encoder() -> dict[str, int]:
    return {"vocab_size": len(WORDS), "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
            "num_attention_heads": 2}


def words(**options: int) -> PreTrainedTokenizerFast:
    """BERT's tokenizer with the vocabulary WORDS."""
    from tokenizers.processors import TemplateProcessing

    split = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    split.pre_tokenizer = pre_tokenizers.Whitespace()
    split.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=split, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]", **options
    )
