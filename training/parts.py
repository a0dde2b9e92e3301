"""Which parameters are trained: parts of the model in full, by LoRA, or frozen."""

import re

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from .recipe import Recipe, RecipeError

# Module name of each part inside RadFMForConditionalGeneration; the Perceiver is a part of the vision tower.
PART_PREFIXES = {
    "perceiver": r"model\.vision_tower\.perceiver",
    "vision_tower": r"model\.vision_tower(?!\.perceiver)",
    "projector": r"model\.projector",
    "decoder": r"(model\.language_model|lm_head)",
}


def part_of(name: str) -> str:
    """The part that a parameter or module belongs to.

    Example:
        >>> part_of("model.vision_tower.perceiver.latents"), part_of("lm_head.weight")
        ('perceiver', 'decoder')
    """
    return next(part for part, prefix in PART_PREFIXES.items() if re.match(prefix, name))


def in_decoder_layer(name: str) -> bool:
    """Whether a parameter or module belongs to a transformer layer of the decoder, so not to its embedding or head."""
    return part_of(name) == "decoder" and ".layers." in name


def lora_targets(model: PreTrainedModel, recipe: Recipe) -> list[str]:
    """Full names of the linear layers that get an adapter: those of transformer layers of the parts with `lora`.

    Found in the model, so that any decoder works, whatever its layers are called. The patch embedding and the head get
    none: an adapter there would switch off the folded patch weights and the fused loss.
    """
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and ".layers." in name and getattr(recipe.parts, part_of(name)) == "lora"
    ]


def set_trainable_parts(model: PreTrainedModel, recipe: Recipe) -> PreTrainedModel | PeftModel:
    """Freeze, unfreeze and wrap the parts of a model as the recipe says.

    Frozen parts are put in eval mode by `keep_frozen_parts_in_eval`, because Trainer calls `model.train()` at each step.

    Raises:
        RecipeError: the decoder has no layers that an adapter fits.
    """
    for name, parameter in model.named_parameters():
        full = getattr(recipe.parts, part_of(name)) == "full" and torch.is_floating_point(parameter)
        parameter.requires_grad_(full)
    if not recipe.parts.has_adapters:
        return model
    targets = lora_targets(model, recipe)
    if recipe.parts.decoder == "lora" and not any(part_of(name) == "decoder" for name in targets):
        raise RecipeError(f"parts.decoder=lora: {model.config.text_config.model_type} has no layer to adapt; set full.")
    config = LoraConfig(
        r=recipe.lora.r,
        lora_alpha=recipe.lora.alpha,
        lora_dropout=recipe.lora.dropout,
        target_modules=targets,
        # Saved beside the adapters; `recipe._check_parts` admits no other parts.
        modules_to_save=[part for part in ("projector", "perceiver") if getattr(recipe.parts, part) == "full"] or None,
        task_type="CAUSAL_LM",
        revision=recipe.revision,
    )
    return get_peft_model(model, config)


def store_frozen_decoder_in_bfloat16(model: PeftModel) -> None:
    """Convert the frozen linear layers of the decoder to bfloat16, for a training under autocast to bfloat16.

    Autocast converts their weights in each product, so no loss and no gradient changes; the decoder takes half the memory.
    Embedding, norms and head keep float32, in which they are computed, and so do adapters. Layers in 4 or 8 bits stay.
    """
    modules = model.get_base_model().named_modules()
    for linear in [module for name, module in modules if isinstance(module, nn.Linear) and in_decoder_layer(name)]:
        if linear.weight.dtype == torch.float32 and not linear.weight.requires_grad:
            linear.to(torch.bfloat16)


def keep_frozen_parts_in_eval(model: nn.Module) -> None:
    """Eval mode for every module without a trainable parameter: no dropout in a frozen vision tower."""
    for module in model.modules():
        if not any(parameter.requires_grad for parameter in module.parameters()):
            module.eval()


def freeze_decoder(model: nn.Module, frozen: bool) -> None:
    """Freeze or unfreeze the decoder (stage 1 of the paper freezes it in the first epoch)."""
    for name, parameter in model.named_parameters():
        name = name.removeprefix("module.")
        if part_of(name) == "decoder" and torch.is_floating_point(parameter):
            parameter.requires_grad_(not frozen)
