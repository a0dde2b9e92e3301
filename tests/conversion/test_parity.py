"""The same numbers as the published code, all along the way, on its eight stored cases."""

import json

import pytest
import torch

from radfm.conversion.convert import convert
from radfm.conversion.parity import compare_greedy_tokens, compare_stages, read_cases
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


@pytest.fixture(scope="module")
def meta(published):
    return json.loads((published / "cases.json").read_text())


@pytest.fixture(scope="module")
def stored_cases(published):
    return {case.name: case for case in read_cases(published)}


@pytest.fixture(scope="module")
def model(published, meta, tmp_path_factory):
    language = {k: v for k, v in meta["config"]["language"].items() if not k.endswith("token_id")}
    out = tmp_path_factory.mktemp("converted")
    convert(published / "pytorch_model.bin", out, text_config={"model_type": "llama", **language})
    return RadFMForConditionalGeneration.from_pretrained(out)


@pytest.mark.parametrize("name", CASES)
def test_every_stage_from_scan_to_loss(name, model, meta, stored_cases):
    tolerance, seen = meta["suggested_absolute_tolerance_float32"], set()
    for stage, got, wanted in compare_stages(model, stored_cases[name]):
        assert got.shape == wanted.shape, stage
        error = (got - wanted).abs().max().item()
        assert error <= tolerance[stage], f"{stage} is off by {error:.2g}"
        seen.add(stage)
    vision = {"vit_features", "perceiver", "image_tokens"} if name != "d_text_only" else set()
    assert seen == vision | {"inputs_embeds", "logits", "losses"}


@pytest.mark.parametrize("name", CASES)
def test_greedy_tokens(name, model, stored_cases):
    for generated, stored in compare_greedy_tokens(model, stored_cases[name]):
        assert generated == stored


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_plain_mean_is_the_loss_that_the_published_forward_returned(name, model, stored_cases):
    case = stored_cases[name]
    loss = model(**case.inputs, labels=case.data["labels"]).loss
    assert loss.item() == pytest.approx(case.about["loss_returned"], abs=1e-4)


@torch.no_grad()
def test_weight_of_a_label_that_costs_nothing_still_divides(model, stored_cases):
    case = stored_cases["a_one_2d"]
    loss = model(**case.inputs, labels=case.data["labels"], loss_weights=case.data["loss_reweight_alt"]).loss
    assert loss.item() == pytest.approx(case.about["loss_weighted_alt"], abs=1e-4)
