"""RadFM with its kernels and without: the same features, the same losses all along a training, and a way back."""

import os
from pathlib import Path

import pytest
import torch
from helpers import IMAGE, small_model
from testing import DEVICE

from radfm import attention_radfm

ROOT = Path(__file__).parent.parent.parent

SCANS = ((1, 32, 48, 1), (1, 32, 32, 8), (3, 16, 48, 12), (1, 32, 48, 1))


@pytest.fixture
def with_kernels(monkeypatch):
    """Kernels asked for by name: on a CPU Triton's interpreter runs them."""
    monkeypatch.setenv("RADFM_KERNELS", str(ROOT / "kernels" / "torch-ext"))
    attention_radfm.kernels.cache_clear()
    yield
    attention_radfm.kernels.cache_clear()


def model(attention):
    made = small_model().to(DEVICE)
    made.set_attn_implementation({"vision_config": attention})
    return made


def scans():
    return [torch.rand(shape, generator=torch.Generator().manual_seed(i)).to(DEVICE) for i, shape in enumerate(SCANS)]


@torch.no_grad()
def test_features_agree(with_kernels, monkeypatch):
    got = model("radfm").model.vision_tower(scans())
    monkeypatch.setenv("RADFM_KERNELS", "0")
    attention_radfm.kernels.cache_clear()
    wanted = model("sdpa").model.vision_tower(scans())
    torch.testing.assert_close(got.last_hidden_state, wanted.last_hidden_state, rtol=0, atol=1e-4)
    torch.testing.assert_close(torch.stack(got.pooler_output), torch.stack(wanted.pooler_output), rtol=0, atol=1e-4)


def losses(attention):
    """A model's losses over some steps on one batch, with the paper's weights."""
    learner = model(attention).train()
    optimiser = torch.optim.AdamW(learner.parameters(), lr=3e-3)
    text = torch.tensor([[*IMAGE, 5, 6, 7, 8, 2], [*IMAGE, 9, 8, 3, 2, 0]], device=DEVICE)
    weights = torch.tensor([[0.0] * 7 + [1, 1, 3, 1], [0.0] * 7 + [3, 1, 1, 0]], device=DEVICE)
    found = []
    for _ in range(6):
        loss = learner(input_ids=text, pixel_values=scans()[:2], labels=text, loss_weights=weights).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        found.append(loss.item())
    return found


def test_a_training_has_the_same_losses(with_kernels, monkeypatch):
    got = losses("radfm")
    monkeypatch.setenv("RADFM_KERNELS", "0")
    attention_radfm.kernels.cache_clear()
    wanted = losses("sdpa")
    assert got[-1] < got[0]
    torch.testing.assert_close(torch.tensor(got), torch.tensor(wanted), rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_without_kernels_one_line_says_so_and_the_numbers_agree(monkeypatch):
    monkeypatch.setenv("RADFM_KERNELS", "0")
    attention_radfm.kernels.cache_clear()
    said = []
    monkeypatch.setattr(attention_radfm.logger, "warning_once", lambda line: said.append(line))
    got = model("radfm").model.vision_tower(scans()).last_hidden_state
    torch.testing.assert_close(got, model("sdpa").model.vision_tower(scans()).last_hidden_state, rtol=0, atol=1e-6)
    assert set(said) == {f"RadFM's kernels do not run on {DEVICE}: PyTorch's attention takes their place."}
    attention_radfm.kernels.cache_clear()


@torch.no_grad()
def test_a_decoder_s_padding_free_batch_is_no_pack_of_scans(with_kernels):
    two_texts = torch.tensor([[5, 6, 7, 9, 8]], device=DEVICE)
    starts = torch.tensor([0, 3, 5], dtype=torch.int32, device=DEVICE)
    packed = {"cu_seq_lens_q": starts, "cu_seq_lens_k": starts, "max_length_q": 3, "max_length_k": 3}
    positions = torch.tensor([[0, 1, 2, 0, 1]], device=DEVICE)
    decoder = small_model().to(DEVICE)
    found = []
    for attention in ("radfm", "sdpa"):
        decoder.set_attn_implementation({"text_config": attention})
        found.append(decoder(input_ids=two_texts, position_ids=positions, use_cache=False, **packed).logits)
    torch.testing.assert_close(*found, rtol=0, atol=1e-5)
    alone = decoder(input_ids=two_texts[:, 3:], use_cache=False).logits
    torch.testing.assert_close(found[0][:, 3:], alone, rtol=0, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card")
def test_a_card_gets_them_without_asking(tmp_path):
    os.environ.pop("RADFM_KERNELS", None)
    attention_radfm.kernels.cache_clear()
    small_model().save_pretrained(tmp_path)
    from radfm.modeling_radfm import RadFMForConditionalGeneration

    assert RadFMForConditionalGeneration.from_pretrained(tmp_path).model.vision_tower.config._attn_implementation == "radfm"
    asked = RadFMForConditionalGeneration.from_pretrained(tmp_path, attn_implementation="sdpa")
    assert asked.model.vision_tower.config._attn_implementation == "sdpa"
