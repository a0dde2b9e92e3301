"""RadFM with its kernels and without: equal features, equal losses over a training, and PyTorch where no kernel runs."""

from pathlib import Path

import pytest
import torch
from helpers import IMAGE, small_model
from testing import DEVICE, cu_seqlens_of

from radfm import attention_radfm

TORCH_EXT = Path(__file__).parent.parent / "torch-ext"
SCAN_SHAPES = ((1, 32, 48, 1), (1, 32, 32, 8), (3, 16, 48, 12), (1, 32, 48, 1))


@pytest.fixture
def choose_kernels(monkeypatch):
    """Sets `RADFM_KERNELS`, which the model reads once; None removes it. Packs of few batches go to the kernel as well."""
    monkeypatch.setattr(attention_radfm, "MAX_SDPA_BATCHES", 0)

    def choose(value):
        if value is None:
            monkeypatch.delenv("RADFM_KERNELS", raising=False)
        else:
            monkeypatch.setenv("RADFM_KERNELS", str(value))
        attention_radfm.kernels.cache_clear()

    yield choose
    attention_radfm.kernels.cache_clear()


def load_model(attention):
    model = small_model().to(DEVICE)
    model.set_attn_implementation({"vision_config": attention})
    return model


def random_scans():
    return [torch.rand(shape, generator=torch.Generator().manual_seed(i)).to(DEVICE) for i, shape in enumerate(SCAN_SHAPES)]


@torch.no_grad()
def test_features_agree(choose_kernels):
    choose_kernels(TORCH_EXT)
    fused = load_model("radfm").model.vision_tower(random_scans())
    choose_kernels(0)
    plain = load_model("sdpa").model.vision_tower(random_scans())
    torch.testing.assert_close(fused.last_hidden_state, plain.last_hidden_state, rtol=0, atol=1e-4)
    torch.testing.assert_close(torch.stack(fused.pooler_output), torch.stack(plain.pooler_output), rtol=0, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize(("slices", "calls"), [((4, 8), 0), ((4, 8, 12, 16, 20), 2)], ids=["two lengths", "five lengths"])
def test_a_pack_of_few_lengths_is_left_to_pytorch(slices, calls, choose_kernels, monkeypatch):
    choose_kernels(TORCH_EXT)
    monkeypatch.setattr(attention_radfm, "MAX_SDPA_BATCHES", 4)
    kernels = attention_radfm.kernels()
    packed, got = kernels.packed_attention, []
    monkeypatch.setattr(kernels, "packed_attention", lambda *arguments: got.append(1) or packed(*arguments))
    scans = [torch.rand(1, 32, 32, depth, device=DEVICE) for depth in slices]
    tower = load_model("radfm").model.vision_tower
    fused = tower(scans).last_hidden_state
    assert len(got) == calls == (len(tower.layers) if calls else 0)
    tower.set_attn_implementation("sdpa")
    torch.testing.assert_close(fused, tower(scans).last_hidden_state, rtol=0, atol=1e-4)


def train(attention, mixed_precision):
    """Losses of six steps on one batch, with the paper's weights; mixed precision is that of Trainer's `bf16`."""
    model = load_model(attention).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    input_ids = torch.tensor([[*IMAGE, 5, 6, 7, 8, 2], [*IMAGE, 9, 8, 3, 2, 0]], device=DEVICE)
    weights = torch.tensor([[0.0] * 7 + [1, 1, 3, 1], [0.0] * 7 + [3, 1, 1, 0]], device=DEVICE)
    losses = []
    for _ in range(6):
        with torch.autocast(torch.device(DEVICE).type, torch.bfloat16, enabled=mixed_precision):
            loss = model(input_ids=input_ids, pixel_values=random_scans()[:2], labels=input_ids, loss_weights=weights).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize(("mixed_precision", "tolerance"), [(False, 1e-3), (True, 5e-2)], ids=["float32", "mixed"])
def test_a_training_has_the_same_losses(mixed_precision, tolerance, choose_kernels):
    choose_kernels(TORCH_EXT)
    fused = train("radfm", mixed_precision)
    choose_kernels(0)
    plain = train("sdpa", mixed_precision)
    assert fused[-1] < fused[0]
    torch.testing.assert_close(torch.tensor(fused), torch.tensor(plain), rtol=tolerance, atol=tolerance)


@torch.no_grad()
def test_without_kernels_one_line_says_so_and_the_features_agree(choose_kernels, monkeypatch):
    choose_kernels(0)
    warnings = []
    monkeypatch.setattr(attention_radfm.logger, "warning_once", warnings.append)
    fallback = load_model("radfm").model.vision_tower(random_scans()).last_hidden_state
    plain = load_model("sdpa").model.vision_tower(random_scans()).last_hidden_state
    torch.testing.assert_close(fallback, plain, rtol=0, atol=1e-6)
    assert set(warnings) == {f"RadFM's kernels do not run on {DEVICE}: PyTorch's attention takes their place."}


@torch.no_grad()
def test_a_padding_free_batch_of_the_decoder_is_no_pack_of_scans(choose_kernels):
    """The decoder gets `cu_seq_lens_q` too, but its attention is causal: the kernels must leave it alone."""
    choose_kernels(TORCH_EXT)
    two_texts = torch.tensor([[5, 6, 7, 9, 8]], device=DEVICE)
    cu_seqlens = cu_seqlens_of(3, 2)
    lengths = {"cu_seq_lens_q": cu_seqlens, "cu_seq_lens_k": cu_seqlens, "max_length_q": 3, "max_length_k": 3}
    positions = torch.tensor([[0, 1, 2, 0, 1]], device=DEVICE)
    model = small_model().to(DEVICE)
    logits = {}
    for attention in ("radfm", "sdpa"):
        model.set_attn_implementation({"text_config": attention})
        logits[attention] = model(input_ids=two_texts, position_ids=positions, use_cache=False, **lengths).logits
    torch.testing.assert_close(logits["radfm"], logits["sdpa"], rtol=0, atol=1e-5)
    second_text = model(input_ids=two_texts[:, 3:], use_cache=False).logits
    torch.testing.assert_close(logits["radfm"][:, 3:], second_text, rtol=0, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card")
def test_a_card_gets_them_by_default(choose_kernels, tmp_path):
    choose_kernels(None)
    small_model().save_pretrained(tmp_path)
    from radfm.modeling_radfm import RadFMForConditionalGeneration

    model = RadFMForConditionalGeneration.from_pretrained(tmp_path)
    assert model.model.vision_tower.config._attn_implementation == "radfm"
    model = RadFMForConditionalGeneration.from_pretrained(tmp_path, attn_implementation="sdpa")
    assert model.model.vision_tower.config._attn_implementation == "sdpa"
