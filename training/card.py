"""The README of a trained model: what it was trained on and how, so that nobody has to ask."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, ModelCardData

from .recipe import Recipe

CARD = """---
{metadata}
---

# {name}

RadFM ([arXiv 2308.02463](https://arxiv.org/abs/2308.02463)) trained from `{base}` with the recipe below.
**For research. No medical device; not for diagnosis.**

```python
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained("{place}", trust_remote_code=True)
processor = AutoProcessor.from_pretrained("{place}", trust_remote_code=True)
```

## Data

{data}

## Training

{steps:,} steps, {seconds:,.0f} s.

| step | loss | learning rate |
|---|---|---|
{curve}

```yaml
{recipe}```

## Scores

Not evaluated. `radfm bench run --model {place} --data DATA` measures it.
"""
CURVE_ROWS = 20


def write_card(recipe: Recipe, licences: Counter[tuple[str, str, str]], state: Any, out: Path) -> None:
    """Write README.md: base model, data with licences, loss curve and recipe.

    Args:
        licences: how many training rows there are of each (source, licence, access).
        state: Trainer's state after the training.
    """
    place = recipe.hub_id or out.name
    data = "\n".join(
        ["| source | rows | licence | access |", "|---|---|---|---|"]
        + [
            f"| {source} | {count:,} | {licence} | {access} |"
            for (source, licence, access), count in sorted(licences.items())
        ]
    )
    logged = [entry for entry in state.log_history if "loss" in entry]
    shown = logged[:: max(len(logged) // CURVE_ROWS, 1)]
    curve = "\n".join(f"| {e['step']} | {float(e['loss']):.4f} | {float(e['learning_rate']):.2e} |" for e in shown)
    seconds = next((entry["train_runtime"] for entry in state.log_history if "train_runtime" in entry), 0.0)
    base_id = recipe.model if _is_hub_id(recipe.model) else None
    metadata = ModelCardData(
        library_name="transformers",
        pipeline_tag="image-text-to-text",
        base_model=base_id,
        tags=["radiology", "medical", "radfm"],
        language="en",
    )
    # A path of this machine is nobody's business: neither of the base nor of the data.
    public = recipe.model_dump()
    public["model"] = base_id or Path(recipe.model).name
    public["data"] = recipe.data if _is_hub_id(recipe.data) else Path(recipe.data).name
    public["training"] = {**recipe.training, "output_dir": out.name}
    text = CARD.format(
        metadata=metadata.to_yaml(),
        name=place.split("/")[-1],
        base=public["model"],
        place=place,
        data=data,
        steps=state.global_step,
        seconds=float(seconds),
        curve=curve,
        recipe=yaml.safe_dump(public, sort_keys=False),
    )
    ModelCard(text).save(out / "README.md")


def clean_adapter_config(out: Path) -> None:
    """Remove from adapter_config.json what only this machine knows: the module path of the model's class."""
    file = out / "adapter_config.json"
    if file.exists():
        config = json.loads(file.read_text(encoding="utf-8"))
        config["auto_mapping"] = None
        file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _is_hub_id(name: str) -> bool:
    return name.count("/") == 1 and not Path(name).exists()
