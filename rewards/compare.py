"""Compare: BERTScore of an answer against what the image was meant to contain (Black et al. 2023, section 5.1).

Consumes answers and references, produces precision, recall and F1 in [-1, 1], not rescaled; waits for nothing but the
model's load. Computed by bert-score (Zhang et al. 2020).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch

from ddpo.device import place
from rewards.locate import locate
from rewards.models import loading

BATCH = 64  # bert-score's own


class Comparer:
    """bert-score with a model by folder or hub name. `layer` 0 takes the layer that bert-score tuned for the name,
    `batch` 0 as many texts together as bert-score does by itself."""

    def __init__(self, model: str, layer: int, device: str, batch: int = 0) -> None:
        with loading(model, "a BERTScore model (an encoder and its tokenizer; a folder needs a layer > 0)"):
            from bert_score import BERTScorer

            logging.getLogger("transformers.modeling_utils").setLevel(logging.ERROR)
            self.scorer: Any = BERTScorer(
                model_type=locate(model), num_layers=layer or None, device=str(place(device)), use_fast_tokenizer=True,
                batch_size=batch or BATCH,
            )
        self._limit()

    def _limit(self) -> None:
        """A tokenizer that knows no longest input says 1e30, which its own Rust code cannot hold: take the model's."""
        config, tokenizer = self.scorer._model.config, self.scorer._tokenizer
        positions = getattr(config, "max_position_embeddings", None) or 512
        special = getattr(config, "pad_token_id", 0) or 0 if "roberta" in config.model_type else -1
        tokenizer.model_max_length = min(tokenizer.model_max_length, positions - special - 1)

    @torch.no_grad()
    def compare(self, answers: Sequence[str], references: Sequence[str]) -> tuple[list[float], ...]:
        """(precision, recall, F1), a number per pair. No answer may be empty: bert-score cannot encode it."""
        if not answers:
            return [], [], []
        return tuple(column.tolist() for column in self.scorer.score(list(answers), list(references)))
