"""Small models for the tests, and the paths of the repository and of test data."""

import os
from pathlib import Path

import torch

from radfm.configuration_radfm import RadFMConfig
from radfm.medmd.prompts import OPEN
from radfm.medmd.questions import VALUES
from radfm.modeling_radfm import RadFMForConditionalGeneration

ROOT = Path(__file__).parent.parent
# The labelled packs of the demo training, which are not part of the repository.
SHARED = Path(os.environ.get("RADFM_SHARED", ROOT.parent / "shared"))
PUBLISHED_SMALL = ROOT / "tests" / "data" / "published-small"

VISION = {
    "image_size": 64,
    "max_slices": 32,
    "patch_size": 16,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "head_dim": 16,
    "intermediate_size": 64,
    "num_image_tokens": 4,
    "perceiver_num_hidden_layers": 2,
    "perceiver_num_attention_heads": 2,
    "perceiver_head_dim": 16,
    "perceiver_intermediate_size": 64,
}
TEXT = {
    "model_type": "llama",
    "vocab_size": 103,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MARKS = {"image_start_token_id": 100, "image_end_token_id": 101, "image_token_id": 102}
IMAGE = [100, 102, 102, 102, 102, 101]


def small_config(**changes) -> RadFMConfig:
    """A config that a CPU runs in milliseconds."""
    return RadFMConfig(**{"vision_config": dict(VISION), "text_config": dict(TEXT), **MARKS, **changes})


def small_model(**changes) -> RadFMForConditionalGeneration:
    """A small model with seeded weights."""
    torch.manual_seed(0)
    return RadFMForConditionalGeneration(small_config(**changes)).eval()


def demo_texts() -> list[str]:
    """Questions and answers of medmd, to train a tokenizer on."""
    questions = [wording for wordings in OPEN.values() for wording in wordings]
    return questions + [f" {value}" for values in VALUES.values() for value in values]
