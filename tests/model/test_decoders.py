"""Any causal decoder of transformers: what it says about a scan, and that its logits are those of its own head."""

import pytest
import torch
import transformers
from helpers import IMAGE, TEXT, small_config, small_model
from packaging.version import Version
from transformers import AutoConfig, AutoModelForCausalLM

from radfm.modeling_radfm import RadFMForConditionalGeneration

SIZES = {**TEXT, "head_dim": 16}
GPT2 = {
    "model_type": "gpt2",
    "vocab_size": 103,
    "n_embd": 64,
    "n_layer": 2,
    "n_head": 4,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MAMBA = {"vocab_size": 103, "hidden_size": 64, "num_hidden_layers": 2, "state_size": 8, "eos_token_id": 2, "pad_token_id": 0}
MAMBA2 = {**MAMBA, "num_heads": 8, "head_dim": 16, "n_groups": 1}
WITHOUT_ATTENTION = pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.24"),
    reason="before 5.24 transformers' generate asks a cache without attention for its length, an error",
)
# Decoders that scale or cap their logits, with a scale that a small model notices.
SCALED = {
    "cohere": {"logit_scale": 0.25},
    "cohere2": {"logit_scale": 0.25},
    "granite": {"logits_scaling": 4.0},
    "granitemoe": {"logits_scaling": 4.0, "num_local_experts": 2, "num_experts_per_tok": 1},
    "hyperclovax": {"logits_scaling": 0.25},
    "minicpm3": {"dim_model_base": 16, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8},
    "gemma2": {"final_logit_softcapping": 0.5},
    "recurrent_gemma": {"logits_soft_cap": 0.5, "lru_width": 64, "num_hidden_layers": 3},
    "nanochat": {"final_logit_softcapping": 0.5},
}


@pytest.mark.parametrize(
    "model_type",
    ["qwen3", "gemma2", "gemma3_text", "gpt2", "mistral"]
    + [pytest.param(name, marks=WITHOUT_ATTENTION) for name in ("mamba", "mamba2", "falcon_mamba")],
)
@torch.no_grad()
def test_any_causal_decoder_answers(model_type, tmp_path):
    text = {**SIZES, "model_type": model_type}
    if model_type == "gpt2":
        text = GPT2
    if "mamba" in model_type:
        text = {**(MAMBA2 if model_type == "mamba2" else MAMBA), "model_type": model_type}
    model = small_model(text_config=text)
    ids, scans = torch.tensor([[1, *IMAGE, 5, 6]]), [torch.rand(1, 32, 48, 8)]
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    output_ids = model.generate(input_ids=ids, pixel_values=scans, **options)
    model.save_pretrained(tmp_path)
    again = RadFMForConditionalGeneration.from_pretrained(tmp_path)
    assert torch.equal(output_ids, again.generate(input_ids=ids, pixel_values=scans, **options))
    assert torch.equal(output_ids, model.generate(input_ids=ids, pixel_values=scans, use_cache=False, **options))


@pytest.mark.parametrize("model_type", SCALED)
@torch.no_grad()
def test_logits_are_those_of_the_decoder_itself(model_type):
    text = {**SIZES, "tie_word_embeddings": False, **SCALED[model_type], "model_type": model_type}
    model = small_model(text_config=text)
    torch.nn.init.normal_(model.lm_head.weight)
    decoder = AutoModelForCausalLM.from_config(AutoConfig.for_model(**text)).eval()
    decoder.base_model.load_state_dict(model.model.language_model.state_dict())
    decoder.get_output_embeddings().weight = model.lm_head.weight
    ids = torch.tensor([[1, 5, 6, 7]])
    wanted = decoder(input_ids=ids).logits[..., :100]
    unscaled = model.lm_head(model.model(input_ids=ids).last_hidden_state)[..., :100]
    assert (unscaled - wanted).abs().max() > 0.1, "the decoder does scale its logits"
    torch.testing.assert_close(model(input_ids=ids).logits[..., :100], wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("model_type", "reason"), [("rwkv", "takes `state`"), ("xlstm", "takes `cache_params`")])
def test_a_decoder_that_cannot_run_is_refused_in_a_sentence(model_type, reason):
    with pytest.raises(ValueError, match=f"cannot run a decoder of type '{model_type}', because .* {reason}"):
        small_config(text_config={"model_type": model_type, "vocab_size": 103})
