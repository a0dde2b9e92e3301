"""The fused loss multiplies with the weight of the head; a head that is more than its weight takes the other way."""

from pathlib import Path

import pytest
import torch
from helpers import IMAGE, VISION, small_model
from peft import LoraConfig, get_peft_model
from testing import DEVICE

from radfm import attention_radfm

TORCH_EXT = Path(__file__).parent.parent / "torch-ext"

NO_DROPOUT = {**VISION, "hidden_dropout": 0.0, "attention_dropout": 0.0}


@pytest.fixture(autouse=True)
def kernels(monkeypatch):
    """Without a card Triton's interpreter runs the kernels, if they are named."""
    monkeypatch.setenv("RADFM_KERNELS", str(TORCH_EXT))
    attention_radfm.kernels.cache_clear()
    yield
    attention_radfm.kernels.cache_clear()


def batch():
    text = torch.tensor([[1, *IMAGE, 5, 6, 7, 8, 2]], device=DEVICE)
    weights = torch.tensor([[0.0] * 7 + [1, 1, 3, 1, 1]], device=DEVICE)
    scan = torch.rand(1, 32, 32, 1, device=DEVICE)
    return {"input_ids": text, "labels": text, "loss_weights": weights, "pixel_values": [scan]}


def test_an_adapter_of_the_head_learns():
    lora = LoraConfig(r=2, target_modules=["lm_head"], init_lora_weights=False)
    model = get_peft_model(small_model(vision_config=NO_DROPOUT).to(DEVICE), lora).train()
    inputs = batch()
    outputs = model(**inputs)
    assert outputs.logits is not None, "not the fused loss"
    outputs.loss.backward()
    assert all(p.grad is not None for name, p in model.named_parameters() if "lora" in name)
    torch.testing.assert_close(outputs.loss, model.eval()(**inputs).loss, rtol=0, atol=1e-4)


@pytest.mark.parametrize("extra", [{}, {"num_items_in_batch": 7}, {"loss_weight_sum": 11.0}])
def test_the_fused_loss_is_that_of_the_logits(extra):
    model, inputs = small_model(vision_config=NO_DROPOUT).to(DEVICE), batch()
    wanted = model(**inputs, **extra).loss
    outputs = model.train()(**inputs, **extra)
    assert outputs.logits is None, "the fused loss"
    torch.testing.assert_close(outputs.loss, wanted, rtol=0, atol=1e-4)


def test_a_decoder_that_scales_its_logits_takes_the_other_way():
    text = {"model_type": "granite", "vocab_size": 103, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1,
            "num_attention_heads": 4, "num_key_value_heads": 2, "logits_scaling": 4.0}  # fmt: skip
    model, inputs = small_model(vision_config=NO_DROPOUT, text_config=text).to(DEVICE), batch()
    wanted = model(**inputs).loss
    torch.testing.assert_close(model.train()(**inputs).loss, wanted, rtol=0, atol=1e-4)
