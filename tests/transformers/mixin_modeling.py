"""transformers' `ModelTesterMixin` on the whole model and on the vision tower."""

import unittest

import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    MODEL_MAPPING_NAMES,
)
from transformers_tests.test_modeling_common import ModelTesterMixin

from radfm.configuration_radfm import RadFMConfig, RadFMVisionConfig
from radfm.modeling_radfm import RadFMForConditionalGeneration, RadFMModel, RadFMVisionModel

# The mixin looks up in these tables which labels a class takes and whether it can be trained.
AutoConfig.register("radfm", RadFMConfig)
AutoConfig.register("radfm_vision", RadFMVisionConfig)
AutoModel.register(RadFMConfig, RadFMModel)
AutoModel.register(RadFMVisionConfig, RadFMVisionModel)
AutoModelForCausalLM.register(RadFMConfig, RadFMForConditionalGeneration)
AutoModelForImageTextToText.register(RadFMConfig, RadFMForConditionalGeneration)
MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES["radfm"] = "RadFMForConditionalGeneration"
MODEL_FOR_CAUSAL_LM_MAPPING_NAMES["radfm"] = "RadFMForConditionalGeneration"
MODEL_MAPPING_NAMES["radfm"], MODEL_MAPPING_NAMES["radfm_vision"] = "RadFMModel", "RadFMVisionModel"

VISION = {
    "image_size": 32,
    "max_slices": 8,
    "patch_size": 8,
    "patch_depth": 4,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "head_dim": 12,
    "intermediate_size": 32,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "num_image_tokens": 4,
    "perceiver_num_hidden_layers": 1,
    "perceiver_num_attention_heads": 2,
    "perceiver_head_dim": 8,
    "perceiver_intermediate_size": 32,
}
TEXT = {
    "model_type": "llama",
    "vocab_size": 99,
    "hidden_size": 32,
    "intermediate_size": 37,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# Low ids, because some tests shrink the vocabulary and clamp the ids to it.
IMAGE_IDS = {"image_start_token_id": 3, "image_end_token_id": 4, "image_token_id": 5}


class RadFMModelTester:
    """A batch of texts, each with one scan."""

    batch_size, seq_length, num_hidden_layers, hidden_size, num_attention_heads = 3, 13, 2, 32, 2
    is_training, image_size, patch_size, num_channels = True, 32, 8, 3

    def __init__(self, parent):
        self.parent = parent
        self.text_config, self.vision_config = dict(TEXT), dict(VISION)

    def get_config(self):
        return RadFMConfig(vision_config=dict(VISION), text_config=dict(TEXT), **IMAGE_IDS)

    def prepare_config_and_inputs_for_common(self):
        config = self.get_config()
        ids = torch.randint(6, TEXT["vocab_size"], (self.batch_size, self.seq_length))
        ids[:, :6] = torch.tensor([3, 5, 5, 5, 5, 4])
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        return config, {**inputs, "pixel_values": torch.rand(self.batch_size, 3, 16, 32, 4)}


class RadFMModelTest(ModelTesterMixin, unittest.TestCase):
    all_model_classes = (RadFMModel, RadFMForConditionalGeneration)
    _is_composite = True
    test_torch_exportable = False

    def setUp(self):
        self.model_tester = RadFMModelTester(self)


class RadFMTextTester(RadFMModelTester):
    """Texts without scans."""

    def prepare_config_and_inputs_for_common(self):
        ids = torch.randint(6, TEXT["vocab_size"], (self.batch_size, self.seq_length))
        return self.get_config(), {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


class RadFMTextTest(ModelTesterMixin, unittest.TestCase):
    """The tests that leave placeholders without their scans."""

    all_model_classes = (RadFMModel, RadFMForConditionalGeneration)
    only = "test_eager_matches_sdpa_inference.*"

    def setUp(self):
        self.model_tester = RadFMTextTester(self)


class RadFMVisionModelTester(RadFMModelTester):
    """Three scans of one shape, as a tensor."""

    hidden_size = 24

    def get_config(self):
        return RadFMVisionConfig(**VISION)

    def prepare_config_and_inputs_for_common(self):
        return self.get_config(), {"pixel_values": torch.rand(self.batch_size, 3, 16, 32, 4)}


class RadFMVisionModelTest(ModelTesterMixin, unittest.TestCase):
    all_model_classes = (RadFMVisionModel,)
    test_torch_exportable = False
    test_resize_embeddings = False

    def setUp(self):
        self.model_tester = RadFMVisionModelTester(self)
