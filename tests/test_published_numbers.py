"""The same numbers as the published code, all along the way, on its eight stored cases.

Grey scans are given as one channel and images as one slice, so the folding of the patch embedding is in each number.
"""

import json

import pytest
import torch
from safetensors.torch import load_file

from radfm.conversion_radfm import convert
from radfm.modeling_radfm import RadFMForConditionalGeneration

CASES = (
    "a_one_2d",
    "b_one_3d",
    "c_two_kinds",
    "d_text_only",
    "e_two_rows",
    "f_odd_sizes",
    "g_stops_at_1",
    "h_passes_2",
)
WORDS = 200


@pytest.fixture(scope="module")
def reference(published):
    return json.loads((published / "cases.json").read_text()), load_file(published / "cases.safetensors")


@pytest.fixture(scope="module")
def model(published, reference, tmp_path_factory):
    language = {k: v for k, v in reference[0]["config"]["language"].items() if not k.endswith("token_id")}
    out = tmp_path_factory.mktemp("converted")
    convert(published / "pytorch_model.bin", out, text_config={"model_type": "llama", **language})
    return RadFMForConditionalGeneration.from_pretrained(out)


class Case:
    """A stored case in this model's terms: placeholders for `<imageK>`, and scans in the order of the text."""

    def __init__(self, name: str, reference):
        meta, data = reference
        self.tolerance = meta["suggested_absolute_tolerance_float32"]
        self.about = meta["cases"][name]
        self.data = {key.split(".", 1)[1]: value for key, value in data.items() if key.startswith(f"{name}.")}
        self.ids = self.data["input_ids"].clamp(max=WORDS + 2)
        shape = self.about["vision_shape"]
        self.rows, self.named = [], []
        for row, ids in enumerate(self.data["input_ids"]):
            firsts = [int(i) - WORDS - 2 for i in ids if i >= WORDS + 2 and (i - WORDS - 2) % 32 == 0]
            named = [first // 32 for first in firsts]
            self.named += [(row, scan) for scan in named]
            self.rows.append([self._folded(self.data["vision_u8"][row, scan], shape) for scan in named])
        self.pixel_values = [scan for row in self.rows for scan in row]

    @staticmethod
    def _folded(stored: torch.Tensor, shape: list[int]) -> torch.Tensor:
        """As stored, once for each channel and slice that are equal; slices are repeated where the patch needs more."""
        scan = stored.float() / 255
        if scan.shape[-1] == 1 and shape[-1] > 4:
            scan = scan.expand(*scan.shape[:-1], shape[-1])
        return scan

    def of_named(self, name: str) -> torch.Tensor:
        """A stored per-scan tensor, only of the scans that the text names."""
        shape = self.about["vision_shape"]
        per_scan = self.data[name].view(shape[0], shape[1], *self.data[name].shape[-2:])
        return torch.stack([per_scan[row, scan] for row, scan in self.named])

    def close(self, got: torch.Tensor, wanted: torch.Tensor, name: str) -> None:
        error = (got - wanted).abs().max().item()
        assert error <= self.tolerance[name], f"{name} is off by {error:.2g}"


@pytest.fixture
def case(request, reference):
    return Case(request.param, reference)


def every(*names):
    return pytest.mark.parametrize("case", names or CASES, indirect=True)


WITH_SCANS = [name for name in CASES if name != "d_text_only"]


@every(*WITH_SCANS)
@torch.no_grad()
def test_vision_features(model, case):
    outputs = model.model.vision_tower(case.pixel_values)
    case.close(outputs.last_hidden_state, case.of_named("vit_features").flatten(0, 1), "vit_features")


@every(*WITH_SCANS)
@torch.no_grad()
def test_perceiver_and_image_tokens(model, case):
    scans, width = len(case.named), 12
    tokens = torch.stack(model.model.vision_tower(case.pixel_values).pooler_output)
    shape = case.about["vision_shape"]
    stored = case.data["perceiver"].view(shape[0], shape[1], 32, width)
    case.close(tokens, torch.stack([stored[row, scan] for row, scan in case.named]), "perceiver")
    image_tokens = torch.stack(model.get_image_features(case.pixel_values).pooler_output)
    stored = case.data["image_tokens"].view(shape[0], shape[1], 32, 64)
    case.close(image_tokens, torch.stack([stored[row, scan] for row, scan in case.named]), "image_tokens")
    assert len(image_tokens) == scans


@every()
@torch.no_grad()
def test_embeddings_of_text_and_scans(model, case):
    seen = {}
    hook = model.model.language_model.register_forward_pre_hook(lambda _, __, kw: seen.update(kw), with_kwargs=True)
    model(input_ids=case.ids, attention_mask=case.data["attention_mask"], pixel_values=case.pixel_values)
    hook.remove()
    case.close(seen["inputs_embeds"], case.data["inputs_embeds"], "inputs_embeds")


@every()
@torch.no_grad()
def test_logits_and_weighted_loss(model, case):
    text = {"input_ids": case.ids, "attention_mask": case.data["attention_mask"], "pixel_values": case.pixel_values}
    outputs = model(**text, labels=case.data["labels"], loss_weights=case.data["loss_reweight"])
    real = case.data["attention_mask"].bool()
    case.close(outputs.logits[..., :WORDS][real], case.data["logits"][real], "logits")
    case.close(outputs.loss, torch.tensor(case.about["loss_weighted"]), "losses")


@every()
@torch.no_grad()
def test_plain_mean_is_the_loss_that_the_published_forward_returned(model, case):
    text = {"input_ids": case.ids, "attention_mask": case.data["attention_mask"], "pixel_values": case.pixel_values}
    loss = model(**text, labels=case.data["labels"]).loss
    case.close(loss, torch.tensor(case.about["loss_returned"]), "losses")


@every("a_one_2d")
@torch.no_grad()
def test_weight_of_a_label_that_costs_nothing_still_divides(model, case):
    text = {"input_ids": case.ids, "attention_mask": case.data["attention_mask"], "pixel_values": case.pixel_values}
    loss = model(**text, labels=case.data["labels"], loss_weights=case.data["loss_reweight_alt"]).loss
    case.close(loss, torch.tensor(case.about["loss_weighted_alt"]), "losses")


@every()
@torch.no_grad()
def test_greedy_tokens(model, case):
    for row, length in enumerate(case.about["prompt_lengths"]):
        prompt = case.ids[row : row + 1, :length]
        said = model.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            pixel_values=case.rows[row] or None,
            max_new_tokens=12,
            do_sample=False,
            eos_token_id=1,
            pad_token_id=0,
        )
        assert said[0, length:].tolist() == case.about["new_tokens"][row]
