"""A converted model held against the published code's own numbers: the largest error at each stage from scan to word.

A reference is a folder with `cases.json` (sizes, shapes, greedy ids) and `cases.safetensors` (tensors `CASE.NAME`).
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from .names import ConversionError

MARKS, IMAGE_TOKENS = 2, 32


class Case:
    """A stored case in this model's terms: placeholders for `<imageK>`, and scans in the order of the text.

    Grey scans are given as one channel and images as one slice, so the folding of the patch embedding is in each number.
    """

    def __init__(self, name: str, about: dict[str, Any], data: dict[str, torch.Tensor], words: int):
        self.name, self.about, self.words = name, about, words
        self.data = {key.split(".", 1)[1]: value for key, value in data.items() if key.startswith(f"{name}.")}
        placeholder = words + MARKS
        self.ids = self.data["input_ids"].clamp(max=placeholder)
        self.rows: list[list[torch.Tensor]] = []
        self.named: list[tuple[int, int]] = []
        for row, ids in enumerate(self.data["input_ids"]):
            places = [int(i) - placeholder for i in ids if i >= placeholder]
            scans = [place // IMAGE_TOKENS for place in places if place % IMAGE_TOKENS == 0]
            self.named += [(row, scan) for scan in scans]
            self.rows.append([self._folded(row, scan) for scan in scans])
        self.pixel_values = [scan for row in self.rows for scan in row]
        self.text: dict[str, Any] = {"input_ids": self.ids, "attention_mask": self.data["attention_mask"]}
        if self.pixel_values:
            self.text["pixel_values"] = self.pixel_values

    def _folded(self, row: int, number: int) -> torch.Tensor:
        """As stored, once for each channel and slice that are equal; slices are repeated where the patch needs more."""
        scan = self.data["vision_u8"][row, number].float() / 255
        depth = self.about["vision_shape"][-1]
        return scan.expand(*scan.shape[:-1], depth) if scan.shape[-1] == 1 and depth > 4 else scan

    def of_named(self, name: str) -> torch.Tensor:
        """A stored tensor of each scan (scans, tokens, width), only of the scans that the text names."""
        rows, scans = self.about["vision_shape"][:2]
        stored = self.data[name].reshape(rows, scans, -1, self.data[name].shape[-1])
        return torch.stack([stored[row, scan] for row, scan in self.named])


def cases(folder: Path) -> Iterator[Case]:
    """The cases of a reference. Raises `ConversionError`."""
    try:
        meta, data = json.loads((folder / "cases.json").read_text()), load_file(folder / "cases.safetensors")
    except OSError as error:
        raise ConversionError(f"{folder}: is no reference (cases.json and cases.safetensors): {error}.") from error
    words = meta["config"]["language"]["vocab_size"]
    for name, about in meta["cases"].items():
        yield Case(name, about, data, words)


@torch.no_grad()
def stages(model: Any, case: Case) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
    """Name, what the model gives and what is stored, from the patches of a scan to the loss."""
    if case.pixel_values:
        seen = model.model.vision_tower(case.pixel_values)
        yield "vit_features", seen.last_hidden_state, case.of_named("vit_features").flatten(0, 1)
        yield "perceiver", torch.stack(list(seen.pooler_output)), case.of_named("perceiver")
        image_tokens = torch.stack(list(model.get_image_features(case.pixel_values).pooler_output))
        yield "image_tokens", image_tokens, case.of_named("image_tokens")
    given: dict[str, torch.Tensor] = {}
    hook = model.model.language_model.register_forward_pre_hook(lambda _, __, kw: given.update(kw), with_kwargs=True)
    outputs = model(**case.text, labels=case.data["labels"], loss_weights=case.data["loss_reweight"])
    hook.remove()
    yield "inputs_embeds", given["inputs_embeds"], case.data["inputs_embeds"]
    real = case.data["attention_mask"].bool()
    yield "logits", outputs.logits[..., : case.words][real], case.data["logits"][real]
    yield "losses", outputs.loss, torch.tensor(case.about["loss_weighted"])


@torch.no_grad()
def greedy_tokens(model: Any, case: Case) -> Iterator[tuple[list[int], list[int]]]:
    """What the model says and what is stored, for each row of a case; the published rule stops at id 1."""
    for row, length in enumerate(case.about["prompt_lengths"]):
        prompt, wanted = case.ids[row : row + 1, :length], case.about["new_tokens"][row]
        said = model.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            pixel_values=case.rows[row] or None,
            max_new_tokens=12,
            do_sample=False,
            eos_token_id=1,
            pad_token_id=0,
        )
        yield said[0, length:].tolist(), wanted


def largest_errors(model: Any, folder: Path) -> dict[str, float]:
    """The largest absolute error of each stage over all cases, and the share of greedy tokens that are the same."""
    largest: dict[str, float] = {}
    same = total = 0
    for case in cases(folder):
        for name, got, wanted in stages(model, case):
            largest[name] = max(largest.get(name, 0.0), (got.float() - wanted).abs().max().item())
        for said, wanted_ids in greedy_tokens(model, case):
            same += sum(a == b for a, b in zip(said, wanted_ids, strict=False))
            total += len(wanted_ids)
    return {**largest, "equal_greedy_tokens": same / total}
