"""Tiny models of other families with random weights, saved in a folder as their Auto classes load them."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.decoders import ByteLevel
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3ImageProcessor,
    Gemma3Processor,
    Gemma3TextConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    SiglipVisionConfig,
)

IMAGE_SIZE, PATCH = 56, 14
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'] + ': ' }}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}IMAGE{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{{ eos_token if message['role'] == 'assistant' else '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
TEXT = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
VISION = {
    "image_size": IMAGE_SIZE,
    "patch_size": PATCH,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
SIZE = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}


def tokenizer_with(**named: str) -> PreTrainedTokenizerFast:
    """A tokenizer whose tokens are bytes, and named special tokens behind them."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate((*SPECIAL, *alphabet))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens=named,
    )


def save_tiny_llava(folder: Path) -> Path:
    """A LLaVA of 0.2 million parameters."""
    tokenizer = tokenizer_with(image_token="<image>")
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessor(size={"shortest_edge": IMAGE_SIZE}, crop_size=SIZE),
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE.replace("IMAGE", "<image>"),
    )
    config = LlavaConfig(
        text_config=LlamaConfig(vocab_size=len(tokenizer), **TEXT),
        vision_config=CLIPVisionConfig(**VISION),
        image_token_index=tokenizer.image_token_id,
        image_seq_length=(IMAGE_SIZE // PATCH) ** 2,
    )
    return _save(LlavaForConditionalGeneration, config, processor, folder)


def save_tiny_gemma3(folder: Path) -> Path:
    """A Gemma 3, which is what MedGemma is, of 0.2 million parameters."""
    tokenizer = tokenizer_with(image_token="<image_soft_token>", boi_token="<start_of_image>", eoi_token="<end_of_image>")
    processor = Gemma3Processor(
        image_processor=Gemma3ImageProcessor(size=SIZE),
        tokenizer=tokenizer,
        chat_template=CHAT_TEMPLATE.replace("IMAGE", "<start_of_image>"),
        image_seq_length=4,
    )
    config = Gemma3Config(
        text_config=Gemma3TextConfig(vocab_size=len(tokenizer), sliding_window=64, **TEXT),
        vision_config=SiglipVisionConfig(**VISION),
        mm_tokens_per_image=4,
        image_token_index=tokenizer.image_token_id,
        boi_token_index=tokenizer.boi_token_id,
        eoi_token_index=tokenizer.eoi_token_id,
    )
    return _save(Gemma3ForConditionalGeneration, config, processor, folder)


def _save(model_class: Any, config: Any, processor: Any, folder: Path) -> Path:
    torch.manual_seed(0)
    model = model_class(config)
    # Weights of the usual size make all next tokens equally likely, and Gemma's projector starts with zeros.
    with torch.no_grad():
        for weights in model.parameters():
            if weights.ndim > 1:
                weights.normal_(std=0.06)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
