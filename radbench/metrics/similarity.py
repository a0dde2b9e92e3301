"""BERTScore and cosine similarity with a language model in a local folder.

Both see what a text is about and not what it says of it: "No pleural effusion." and "Pleural effusion." get 0.8 and more
(`blind_spots` measures it). No model is downloaded: a score is worth something if its weights are named.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..statistics import Array, Measurement, mean_of
from .errors import MetricError

BATCH = 64


class _States(NamedTuple):
    """Of one text: normalised token states (tokens, width), which of them are no special tokens, the normalised mean."""

    tokens: Array
    weighs: NDArray[np.bool_]
    mean: Array


def _greedy_f1(answer: _States, reference: _States) -> float:
    """F1 of the mean best match of the tokens of each text; 1 for two texts without tokens, 0 where one has none."""
    if not answer.weighs.any() or not reference.weighs.any():
        return float(answer.weighs.any() == reference.weighs.any())
    similarity = answer.tokens @ reference.tokens.T
    precision = similarity.max(axis=1)[answer.weighs].mean()
    recall = similarity.max(axis=0)[reference.weighs].mean()
    return float(2 * precision * recall / (precision + recall))


class TextModel:
    """An encoder in a local folder, for cosine similarity and BERTScore.

    Args:
        folder: config.json, weights and tokenizer of a model that `AutoModel` loads.
        layer: whose output BERTScore compares, counted from 1; the last by default.

    Raises:
        MetricError: the folder holds no such model.
    """

    def __init__(self, folder: Path, layer: int | None = None):
        if not (folder / "config.json").is_file():
            raise MetricError(f"{folder}: holds no language model (no config.json); BERTScore needs a local folder.")
        from transformers import AutoModel, AutoTokenizer

        try:
            self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            self._model: Any = AutoModel.from_pretrained(folder, local_files_only=True).eval()
        except (OSError, ValueError) as error:
            raise MetricError(f"{folder}: the language model cannot be loaded ({error}).") from error
        layers = self._model.config.num_hidden_layers
        self.layer = layer or layers
        if not 1 <= self.layer <= layers:
            raise MetricError(f"{folder}: has {layers} layers, and BERTScore was to read layer {self.layer}.")
        weights = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
        digest = hashlib.sha256(b"".join(file.read_bytes() for file in weights)).hexdigest()[:12]
        self.name = f"{self._model.config.model_type}, weights sha256 {digest}"
        self._states: dict[str, _States] = {}

    def measure(self, answers: Sequence[str], references: Sequence[str]) -> list[Measurement]:
        """BERTScore F1 and cosine similarity, as means over answers."""
        return [self.bert_score(answers, references), self.cosine(answers, references)]

    def bert_score(self, answers: Sequence[str], references: Sequence[str]) -> Measurement:
        """BERTScore F1 (Zhang et al., ICLR 2020): each token is matched with the closest token of the other text.

        As in the package `bert_score` by default: all tokens weigh the same (no idf), scores are not rescaled, and special
        tokens ([CLS], [SEP]) are there to be matched and weigh nothing.
        """
        self._encode([*answers, *references])
        scores = [_greedy_f1(self._states[a], self._states[r]) for a, r in zip(answers, references, strict=True)]
        return mean_of("BERTScore", scores, f"F1|{self.name}|layer {self.layer}|no idf|not rescaled|mean of answers")

    def cosine(self, answers: Sequence[str], references: Sequence[str]) -> Measurement:
        """Cosine of the mean token states (last layer) of answer and reference."""
        self._encode([*answers, *references])
        scores = [float(self._states[a].mean @ self._states[r].mean) for a, r in zip(answers, references, strict=True)]
        return mean_of("cosine", scores, f"mean of tokens, last layer|{self.name}|mean of answers")

    def _encode(self, texts: Sequence[str]) -> None:
        """Keep normalised token states of `layer` and the normalised mean of the last layer for each text that is new."""
        import torch

        new = sorted({text for text in texts if text not in self._states}, key=len)
        for start in range(0, len(new), BATCH):
            batch = new[start : start + BATCH]
            inputs = self._tokenizer(
                batch, padding=True, truncation=True, return_special_tokens_mask=True, return_tensors="pt"
            )
            special = inputs.pop("special_tokens_mask").bool()
            with torch.inference_mode():
                states = self._model(**inputs, output_hidden_states=True).hidden_states
            for i, text in enumerate(batch):
                kept = inputs["attention_mask"][i].bool()
                tokens = torch.nn.functional.normalize(states[self.layer][i][kept].float(), dim=-1)
                mean = torch.nn.functional.normalize(states[-1][i][kept].float().mean(dim=0), dim=-1)
                self._states[text] = _States(tokens.double().numpy(), ~special[i][kept].numpy(), mean.double().numpy())
