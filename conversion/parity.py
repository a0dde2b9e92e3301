"""Parity with the published code: the largest error of a converted model at each stage from scan to token.

A reference is a folder with `cases.json` (sizes, shapes, greedy ids) and `cases.safetensors` (tensors `CASE.NAME`), both
written by the published code. The published vocabulary has one id for each placeholder (`<image0>` to `<image3199>`, 32 a
scan) in the order of the scans in storage; RadFM has one placeholder, and takes scans in the order of the text.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from radfm.modeling_radfm import RadFMForConditionalGeneration

from .names import ConversionError
from .tensors import LEARNED_MARKS

TOKENS_PER_SCAN = 32
PUBLISHED_EOS, PUBLISHED_PAD, MAX_NEW_TOKENS = 1, 0, 12
PATCH_DEPTH = 4


class Case:
    """A stored case as RadFM's inputs.

    Grey scans are one channel and images one slice, so that the folded patch embedding takes part in each number.

    Args:
        name: the case's name.
        about: its entry in `cases.json`.
        data: all tensors of `cases.safetensors`.
        vocab_size: the size of the published vocabulary without the image tokens.
    """

    def __init__(self, name: str, about: dict[str, Any], data: dict[str, torch.Tensor], vocab_size: int):
        self.name, self.about, self.vocab_size = name, about, vocab_size
        self.data = {key.split(".", 1)[1]: value for key, value in data.items() if key.startswith(f"{name}.")}
        first_placeholder = vocab_size + LEARNED_MARKS
        self.input_ids = self.data["input_ids"].clamp(max=first_placeholder)
        # For each row its scans, and for each scan of the text (row, number in storage).
        self.scans: list[list[torch.Tensor]] = []
        self.storage_index: list[tuple[int, int]] = []
        for row, ids in enumerate(self.data["input_ids"]):
            placeholders = [int(i) - first_placeholder for i in ids if i >= first_placeholder]
            numbers = [number // TOKENS_PER_SCAN for number in placeholders if number % TOKENS_PER_SCAN == 0]
            self.storage_index += [(row, number) for number in numbers]
            self.scans.append([self._unrepeated_scan(row, number) for number in numbers])
        self.pixel_values = [scan for of_row in self.scans for scan in of_row]
        self.inputs: dict[str, Any] = {"input_ids": self.input_ids, "attention_mask": self.data["attention_mask"]}
        if self.pixel_values:
            self.inputs["pixel_values"] = self.pixel_values

    def _unrepeated_scan(self, row: int, number: int) -> torch.Tensor:
        """(C, H, W, D) from storage, which has equal channels and slices once; a volume gets its slices back."""
        scan = self.data["vision_u8"][row, number].float() / 255
        depth = self.about["vision_shape"][-1]
        return scan.expand(*scan.shape[:-1], depth) if scan.shape[-1] == 1 and depth > PATCH_DEPTH else scan

    def stored_per_scan(self, name: str) -> torch.Tensor:
        """A stored tensor (N, tokens, width) of the N scans in the order of the text."""
        rows, scans = self.about["vision_shape"][:2]
        stored = self.data[name].reshape(rows, scans, -1, self.data[name].shape[-1])
        return torch.stack([stored[row, number] for row, number in self.storage_index])


def read_cases(folder: Path) -> Iterator[Case]:
    """The cases of a reference. Raises `ConversionError` where the folder holds none."""
    try:
        meta, data = json.loads((folder / "cases.json").read_text()), load_file(folder / "cases.safetensors")
    except OSError as error:
        raise ConversionError(f"{folder}: is no reference (cases.json and cases.safetensors): {error}.") from error
    vocab_size = meta["config"]["language"]["vocab_size"]
    for name, about in meta["cases"].items():
        yield Case(name, about, data, vocab_size)


@torch.no_grad()
def compare_stages(model: RadFMForConditionalGeneration, case: Case) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
    """(stage, the model's tensor, the stored tensor), from the patches of a scan to the loss."""
    if case.pixel_values:
        vision = model.model.vision_tower(case.pixel_values)
        yield "vit_features", vision.last_hidden_state, case.stored_per_scan("vit_features").flatten(0, 1)
        yield "perceiver", torch.stack(vision.pooler_output), case.stored_per_scan("perceiver")
        image_tokens = torch.stack(list(model.get_image_features(case.pixel_values).pooler_output or ()))
        yield "image_tokens", image_tokens, case.stored_per_scan("image_tokens")
    decoder_inputs: dict[str, torch.Tensor] = {}
    hook = model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: decoder_inputs.update(kwargs), with_kwargs=True
    )
    outputs = model(**case.inputs, labels=case.data["labels"], loss_weights=case.data["loss_reweight"])
    hook.remove()
    yield "inputs_embeds", decoder_inputs["inputs_embeds"], case.data["inputs_embeds"]
    not_padding = case.data["attention_mask"].bool()
    yield "logits", outputs.logits[..., : case.vocab_size][not_padding], case.data["logits"][not_padding]
    yield "losses", outputs.loss, torch.tensor(case.about["loss_weighted"])


@torch.no_grad()
def compare_greedy_tokens(model: RadFMForConditionalGeneration, case: Case) -> Iterator[tuple[list[int], list[int]]]:
    """(ids that the model generates, stored ids) for each row of a case, with the published stopping rule."""
    for row, length in enumerate(case.about["prompt_lengths"]):
        prompt = case.input_ids[row : row + 1, :length]
        output_ids = model.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            pixel_values=case.scans[row] or None,
            max_new_tokens=MAX_NEW_TOKENS,
            do_sample=False,
            eos_token_id=PUBLISHED_EOS,
            pad_token_id=PUBLISHED_PAD,
        )
        yield output_ids[0, length:].tolist(), case.about["new_tokens"][row]


def largest_errors(model: RadFMForConditionalGeneration, folder: Path) -> dict[str, float]:
    """The largest absolute error of each stage over all cases, and the share of greedy tokens that are equal."""
    largest: dict[str, float] = {}
    equal = total = 0
    for case in read_cases(folder):
        for stage, got, stored in compare_stages(model, case):
            largest[stage] = max(largest.get(stage, 0.0), (got.float() - stored).abs().max().item())
        for generated_ids, stored_ids in compare_greedy_tokens(model, case):
            equal += sum(a == b for a, b in zip(generated_ids, stored_ids, strict=False))
            total += len(stored_ids)
    return {**largest, "equal_greedy_tokens": equal / total}
