"""Weights that are edited, adapted, quantised, offloaded or of another dtype: each forward uses what is there."""

import copy

import pytest
import torch
from accelerate import cpu_offload
from helpers import IMAGE, VISION, small_model
from peft import LoraConfig, get_peft_model

from radfm.modeling_radfm import RadFMForConditionalGeneration

SHAPES = {
    "grey": (1, 32, 32, 1),
    "grey volume": (1, 32, 48, 8),
    "colour": (3, 32, 32, 1),
    "colour volume": (3, 16, 32, 4),
}
SCANS = [torch.rand(shape, generator=torch.Generator().manual_seed(i)) for i, shape in enumerate(SHAPES.values())]
PROJECTION = r".*patch_embedding\.projection"
TEXT_IDS = torch.tensor([[1, *IMAGE, 5, 6]])


def features(model):
    """Patches of all scans, as the tower of `model` encodes them."""
    return model.get_image_features(SCANS).last_hidden_state


def randomise(model):
    """The norm of a fresh patch embedding is the identity; a trained one is not."""
    norm = model.model.vision_tower.patch_embedding.patch_norm
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    return model


@torch.no_grad()
def test_an_edit_through_data_is_seen_by_the_next_forward(model):
    before = features(model)
    model.model.vision_tower.patch_embedding.projection.weight.data.mul_(-3)
    fresh = small_model()
    fresh.load_state_dict(model.state_dict())
    assert (features(model) - before).abs().max() > 0.1
    assert torch.equal(features(model), features(fresh))


@pytest.mark.parametrize("scan", range(len(SHAPES)), ids=SHAPES)
@torch.no_grad()
def test_summed_weights_and_the_modules_themselves_agree(scan, model):
    embedding = randomise(model).model.vision_tower.patch_embedding
    summed = embedding(SCANS[scan][None])
    calls = []
    embedding.projection.register_forward_hook(lambda *_: calls.append(1))
    torch.testing.assert_close(embedding(SCANS[scan][None]), summed, rtol=0, atol=1e-5)
    assert calls, "a hook runs"


@pytest.mark.parametrize("kind", [{}, {"use_dora": True}, {"init_lora_weights": "pissa"}], ids=["lora", "dora", "pissa"])
def test_an_adapter_of_the_patch_projection_works(kind):
    model = randomise(small_model())
    with torch.no_grad():
        before = features(model)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=PROJECTION, **kind)).eval()
    with torch.no_grad():
        torch.testing.assert_close(features(adapted), before, rtol=0, atol=1e-4)  # an adapter begins as the identity
    features(adapted).square().sum().backward()
    trained = {name: p for name, p in adapted.named_parameters() if p.requires_grad}
    assert trained and all(p.grad is not None for p in trained.values())
    with torch.no_grad():
        for p in trained.values():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(0)) * 0.1)
        changed = features(adapted)
        assert (changed - before).abs().max() > 0.01
        torch.testing.assert_close(features(adapted.merge_and_unload()), changed, rtol=0, atol=1e-3)


@torch.no_grad()
def test_a_quantised_patch_projection_is_used(model):
    import bitsandbytes

    wanted = features(randomise(model))
    embedding = model.model.vision_tower.patch_embedding
    old = embedding.projection
    embedding.projection = bitsandbytes.nn.Linear8bitLt(old.in_features, old.out_features, has_fp16_weights=False)
    embedding.projection.load_state_dict(old.state_dict())
    embedding.projection.to("cpu")
    got = features(model)
    assert not torch.equal(got, wanted)
    assert (got - wanted).abs().mean() < 0.05 * wanted.abs().mean()


@torch.no_grad()
def test_an_offloaded_model_gives_the_same(model, tmp_path):
    inputs = {"input_ids": TEXT_IDS, "pixel_values": SCANS[1:2]}
    wanted, attention = model(**inputs).logits, model.image_attention(SCANS)
    model.save_pretrained(tmp_path)
    on_disk = RadFMForConditionalGeneration.from_pretrained(
        tmp_path, device_map={"model": "disk", "lm_head": "disk"}, offload_folder=tmp_path / "offload"
    )
    in_memory = cpu_offload(copy.deepcopy(model))
    for offloaded in (on_disk, in_memory):
        assert offloaded.model.vision_tower.device.type == "meta"
        torch.testing.assert_close(offloaded(**inputs).logits, wanted)
        torch.testing.assert_close(offloaded.image_attention(SCANS), attention)


@torch.no_grad()
def test_a_tower_in_float32_serves_a_decoder_in_bfloat16(model):
    inputs = {"input_ids": TEXT_IDS, "pixel_values": SCANS[1:2]}
    wanted = model(**inputs).logits[..., :100]
    model.bfloat16()
    model.model.vision_tower.float()
    got = model(**inputs).logits[..., :100]
    assert got.dtype == torch.bfloat16
    assert (got.float() - wanted).abs().max() < 0.1


def test_adapters_of_the_tower_learn_under_re_entrant_checkpointing():
    model = small_model(vision_config={**VISION, "hidden_dropout": 0.0, "attention_dropout": 0.0})
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["qkv", "key_value", "q_proj"]))
    adapted.enable_input_require_grads()
    adapted.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    adapted.train()
    adapted(input_ids=TEXT_IDS, labels=TEXT_IDS, pixel_values=SCANS[1:2], use_cache=False).loss.backward()
    assert [name for name, p in adapted.named_parameters() if p.requires_grad and p.grad is None] == []
