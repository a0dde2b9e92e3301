"""Recipes for the tests of training."""

import torch

from radfm.modeling_radfm import RadFMForConditionalGeneration
from radfm.training.recipe import Recipe, load_recipe


def recipe_for(base, data, out, *overrides, name="finetune-lora") -> Recipe:
    fixed = [
        f"model={base}",
        f"data={data}",
        f"training.output_dir={out}",
        "training.use_cpu=true",
        "training.report_to=none",
    ]
    return load_recipe(name, [*fixed, "training.disable_tqdm=true", *overrides])


FULL = "projector-only", ["parts.decoder=full", "parts.vision_tower=full", "parts.perceiver=full"]


def weights_of(folder) -> dict[str, torch.Tensor]:
    return RadFMForConditionalGeneration.from_pretrained(folder).state_dict()
