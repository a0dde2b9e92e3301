"""What models of transformers share: greedy answers and log-probabilities of options, both in batches."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from radfm.medmd.schema import Message
from radfm.medmd.shards import file_sha256
from radfm.scan_radfm import Scan

from ..conditions import Request, ScanKey
from ..items import BenchError
from ..predictions import DECIMALS, Likelihood
from .base import Answer

# Texts that are scored at once have at most so many tokens in all, padding included: their logits have to fit.
MAX_SCORED_TOKENS = 16_384
# What decides the answers of a model in a folder.
MODEL_FILES = ("*config.json", "tokenizer.json", "*.jinja", "*.safetensors", "*.bin", "*.model")


@dataclass(frozen=True)
class Row:
    """One text with its scans, as the model gets it."""

    text: str
    scans: tuple[ScanKey, ...]


@dataclass(frozen=True)
class Prepared:
    """A batch in main memory: requests, the prompt of each, and each scan once, as the processor makes it."""

    requests: Sequence[Request]
    prompts: list[str]
    pixels: dict[ScanKey, Any]


class LocalModel(ABC):
    """A model that transformers runs on this machine. Subclasses say how scans become inputs.

    Args:
        name: folder or Hub id.
        processor: its processor.
        model: its weights, in evaluation mode, on its device.
        max_new_tokens: the longest answer.
    """

    scores_options = True

    def __init__(self, name: str, processor: Any, model: Any, max_new_tokens: int) -> None:
        self.name, self.processor, self.model, self.max_new_tokens = name, processor, model, max_new_tokens
        self.warnings: list[str] = []
        if getattr(processor, "chat_template", None) is None:
            raise BenchError(f"{name}: its processor has no chat template, so nobody can tell how it wants to be asked.")
        tokenizer = processor.tokenizer
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token

    def describe(self) -> dict[str, Any]:
        return {
            **_identify(self.name, self.model),
            "class": type(self.model).__name__,
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "generation": {"do_sample": False, "max_new_tokens": self.max_new_tokens},
        }

    @abstractmethod
    def scan_cost(self, shape: Sequence[int]) -> int:
        """What a scan of a shape costs in a batch."""

    def prompt_cost(self, request: Request) -> int:
        text = "".join(part.text or "" for message in request.messages for part in message.content)
        return len(self.processor.tokenizer(text)["input_ids"]) + len(request.scans) * self._tokens_of_scan()

    def prepare(self, requests: Sequence[Request], scans: Mapping[ScanKey, Scan]) -> Prepared:
        pixels = {key: self._prepare_scan(scan) for key, scan in scans.items()}
        return Prepared(requests, [self._prompt(request, pixels) for request in requests], pixels)

    @torch.inference_mode()
    def answer(self, prepared: Prepared) -> list[Answer]:
        encoded = self._encode(prepared.pixels)
        rows = [Row(prompt, request.scans) for prompt, request in zip(prepared.prompts, prepared.requests, strict=True)]
        generated_indices = [index for index, request in enumerate(prepared.requests) if request.generates]
        generated = self._generate([rows[index] for index in generated_indices], encoded)
        texts = dict(zip(generated_indices, generated, strict=True))
        likelihoods = self._score(prepared, rows, encoded)
        return [
            Answer(texts.get(index, ""), likelihoods.get(index), self._shown_prompt(prompt))
            for index, prompt in enumerate(prepared.prompts)
        ]

    # How scans become inputs ------------------------------------------------------------------------------------------

    @abstractmethod
    def _prepare_scan(self, scan: Scan) -> Any:
        """The scan as the processor makes it, in main memory."""

    @abstractmethod
    def _conversation(self, messages: Sequence[Message], scans: Sequence[ScanKey], pixels: Mapping[ScanKey, Any]) -> Any:
        """Messages as the processor's chat template takes them."""

    @abstractmethod
    def _encode(self, pixels: Mapping[ScanKey, Any]) -> dict[ScanKey, Any]:
        """Each scan as `_inputs` takes it."""

    @abstractmethod
    def _inputs(self, rows: Sequence[Row], encoded: Mapping[ScanKey, Any], padding_side: str) -> dict[str, Any]:
        """The model's inputs for rows that are asked together."""

    @abstractmethod
    def _tokens_of_scan(self) -> int:
        """The tokens that a scan becomes in a prompt; about right."""

    def _batches(self, rows: Sequence[Row], encoded: Mapping[ScanKey, Any]) -> list[list[int]]:
        """Which rows can be asked together; all of them, unless a subclass knows better."""
        return [list(range(len(rows)))] if rows else []

    # Answers ----------------------------------------------------------------------------------------------------------

    def _prompt(self, request: Request, pixels: Mapping[ScanKey, Any]) -> str:
        conversation = self._conversation(request.messages, request.scans, pixels)
        text: str = self.processor.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
        return text

    def _shown_prompt(self, prompt: str) -> str:
        """The prompt as `predictions.jsonl` has it."""
        return prompt

    def _generate(self, rows: Sequence[Row], encoded: Mapping[ScanKey, Any]) -> list[str]:
        texts = [""] * len(rows)
        for indices in self._batches(rows, encoded):
            inputs = self._inputs([rows[index] for index in indices], encoded, "left")
            length = inputs["input_ids"].shape[1]
            ids = self.model.generate(
                **inputs,
                max_new_tokens=self.max_new_tokens,
                do_sample=False,
                num_beams=1,
                temperature=None,
                top_p=None,
                top_k=None,
                pad_token_id=self.processor.tokenizer.pad_token_id,
            )
            answers = self.processor.tokenizer.batch_decode(ids[:, length:], skip_special_tokens=True)
            for index, answer in zip(indices, answers, strict=True):
                texts[index] = answer.strip()
        return texts

    # Log-probabilities ------------------------------------------------------------------------------------------------

    def _score(
        self, prepared: Prepared, rows: Sequence[Row], encoded: Mapping[ScanKey, Any]
    ) -> dict[int, dict[str, Likelihood]]:
        """For each request with options, by its index, the log-probability of each option."""
        answered, lengths, owners = [], [], []
        for index, (request, row) in enumerate(zip(prepared.requests, rows, strict=True)):
            prompt_ids = self._ids(row.text) if request.options else []
            for option in request.options:
                text = self._answered(request, row.text, option, prepared.pixels)
                answered.append(Row(text, row.scans))
                lengths.append(_length_behind(self._ids(text), prompt_ids))
                owners.append((index, option))
        scores: dict[int, dict[str, Likelihood]] = {}
        for group in self._scored_together(answered, encoded):
            inputs = self._inputs([answered[number] for number in group], encoded, "right")
            found = self._log_probabilities(inputs, [lengths[number] for number in group])
            for number, likelihood in zip(group, found, strict=True):
                index, option = owners[number]
                scores.setdefault(index, {})[option] = likelihood
        return scores

    def _ids(self, text: str) -> list[int]:
        """The ids of a text; those of image marks do not matter, because they stand in the prompt."""
        ids: list[int] = self.processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def _answered(self, request: Request, prompt: str, option: str, pixels: Mapping[ScanKey, Any]) -> str:
        """The prompt followed by an option as the assistant's answer, up to the end of its turn."""
        answer = {"role": "assistant", "content": [{"type": "text", "text": option}]}
        conversation = [*self._conversation(request.messages, request.scans, pixels), answer]
        text: str = self.processor.apply_chat_template(conversation, tokenize=False)
        if text.startswith(prompt):
            return text.rstrip()  # some templates end a turn with a line break
        # The template opens the assistant's turn in another way than it closes it.
        return f"{prompt}{option}{self.processor.tokenizer.eos_token}"

    def _scored_together(self, rows: Sequence[Row], encoded: Mapping[ScanKey, Any]) -> list[list[int]]:
        groups: list[list[int]] = []
        for indices in self._batches(rows, encoded):
            longest = max(len(rows[index].text) + len(rows[index].scans) * self._tokens_of_scan() for index in indices)
            step = max(MAX_SCORED_TOKENS // longest, 1)
            groups += [indices[start : start + step] for start in range(0, len(indices), step)]
        return groups

    def _log_probabilities(self, inputs: dict[str, Any], lengths: Sequence[int]) -> list[Likelihood]:
        """Log-probabilities of the last `lengths` tokens of each row; rows are padded on the right."""
        ids, mask = inputs["input_ids"], inputs["attention_mask"]  # (B, T)
        ends = mask.sum(1, keepdim=True)
        starts = ends - torch.tensor(lengths, device=ids.device)[:, None]
        positions = torch.arange(ids.shape[1], device=ids.device)
        scored = (positions >= starts) & (positions < ends)  # (B, T)
        # Token t is predicted by the logits at t - 1; all rows need those positions that any of them needs.
        needed = scored.any(0).nonzero()[:, 0]
        logits = self.model(**inputs, logits_to_keep=needed - 1).logits  # (B, needed, vocabulary)
        nll = F.cross_entropy(logits.float().transpose(1, 2), ids[:, needed], reduction="none")
        sums = -(nll * scored[:, needed]).sum(1)
        return [Likelihood(round(total, DECIMALS), length) for total, length in zip(sums.tolist(), lengths, strict=True)]


def _identify(name: str, model: Any) -> dict[str, Any]:
    """Name, and the commit of a model from the Hub or the SHA-256 of the files of a folder."""
    folder = Path(name)
    if not folder.is_dir():
        return {"name": name, "commit": getattr(model.config, "_commit_hash", None)}
    files = sorted({file for pattern in MODEL_FILES for file in folder.glob(pattern)})
    return {"name": name, "files": {file.name: file_sha256(file) for file in files}}


def _length_behind(ids: Sequence[int], prompt_ids: Sequence[int]) -> int:
    """How many ids there are behind those that a text shares with its prompt.

    The last token of a prompt may merge with the first letters of the answer; then scoring begins with the merged token.
    """
    shared = next(
        (place for place, (one, other) in enumerate(zip(ids, prompt_ids, strict=False)) if one != other),
        min(len(ids), len(prompt_ids)),
    )
    return len(ids) - shared
