"""Sizes: the paper's by default, nonsense refused by name, and what is saved comes back."""

import doctest
import importlib
import subprocess
import sys

import pytest
from helpers import ROOT, TEXT, VISION, small_config

from radfm.configuration_radfm import RadFMConfig


def test_defaults_are_the_papers_sizes():
    config = RadFMConfig()
    vision, text = config.vision_config, config.text_config
    assert (vision.hidden_size, vision.num_hidden_layers, vision.num_attention_heads, vision.head_dim) == (
        768,
        12,
        8,
        64,
    )
    assert (vision.patch_size, vision.patch_depth, vision.image_size, vision.max_slices) == (32, 4, 512, 512)
    assert (vision.perceiver_num_hidden_layers, vision.perceiver_intermediate_size) == (6, 3072)
    assert (text.hidden_size, text.num_hidden_layers, text.vocab_size) == (5120, 40, 32_003)
    assert config.num_image_tokens == 32
    assert (config.image_start_token_id, config.image_end_token_id, config.image_token_id) == (32_000, 32_001, 32_002)


@pytest.mark.parametrize(
    ("vision", "text", "sentence"),
    [
        ({"hidden_size": 50}, {}, "hidden_size=50 must be a multiple of three"),
        ({"num_attention_heads": 5, "head_dim": None}, {}, "num_attention_heads=5 does not divide hidden_size=48"),
        ({"patch_size": 24}, {}, "patch_size=24 does not divide image_size=64"),
        ({"patch_depth": 5}, {}, "patch_depth=5 does not divide max_slices=32"),
        ({"num_hidden_layers": 0}, {}, "num_hidden_layers=0 must be a whole number above zero"),
        ({}, {"num_attention_heads": 7}, "text_config: num_attention_heads=7 does not divide hidden_size=64"),
        ({}, {"vocab_size": 50}, "image_start_token_id=100 lies outside of the decoder's vocabulary of 50"),
    ],
)
def test_nonsense_is_refused_by_the_name_of_its_field(vision, text, sentence):
    with pytest.raises(ValueError, match=sentence):
        small_config(vision_config={**VISION, **vision}, text_config={**TEXT, **text})


def test_image_ids_must_differ():
    with pytest.raises(ValueError, match="three image ids must differ"):
        small_config(image_end_token_id=100)


@pytest.mark.parametrize("model_type", ["llama", "qwen3", "gemma3_text", "gpt2"])
def test_saved_and_loaded_config_is_the_same(model_type, tmp_path):
    config = small_config(text_config={"model_type": model_type, "vocab_size": 103})
    config.save_pretrained(tmp_path)
    assert RadFMConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()
    assert config.text_config.model_type == model_type


def test_an_older_transformers_is_refused_in_words():
    code = "import transformers; transformers.__version__ = '4.57.6'\nimport radfm.configuration_radfm\n"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT.parent)
    assert "RadFM needs transformers 5.18 or newer, and this is transformers 4.57.6" in run.stderr.splitlines()[-1]


@pytest.mark.parametrize("name", ["configuration_radfm", "attention_radfm", "vision_layers_radfm", "modeling_radfm"])
def test_examples_of_the_docstrings(name):
    assert doctest.testmod(importlib.import_module(f"radfm.{name}")).failed == 0
