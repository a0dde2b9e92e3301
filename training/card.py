"""What a trained model says about itself: training.json, and the README that `hub/` makes of it."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from radfm.hub.cards import model_card

from .recipe import Recipe

CURVE_ROWS = 20


def write_card(recipe: Recipe, licences: Counter[tuple[str, str, str]], state: Any, out: Path) -> None:
    """Write training.json (base model, data with licences, loss curve, recipe) and README.md.

    Args:
        licences: how many training rows there are of each (source, licence, access).
        state: Trainer's state after the training.
    """
    logged = [entry for entry in state.log_history if "loss" in entry]
    # A path of this machine is nobody's business: neither of the base nor of the data.
    public = recipe.model_dump()
    public["model"] = recipe.model if _is_hub_id(recipe.model) else Path(recipe.model).name
    public["data"] = recipe.data if _is_hub_id(recipe.data) else Path(recipe.data).name
    public["training"] = {**recipe.training, "output_dir": out.name}
    record = {
        "base": public["model"],
        "revision": recipe.revision,
        "data": [
            {"source": source, "rows": count, "licence": licence, "access": access}
            for (source, licence, access), count in sorted(licences.items())
        ],
        "steps": state.global_step,
        "seconds": float(next((entry["train_runtime"] for entry in state.log_history if "train_runtime" in entry), 0.0)),
        "curve": [
            {"step": entry["step"], "loss": float(entry["loss"]), "learning_rate": float(entry["learning_rate"])}
            for entry in logged[:: max(len(logged) // CURVE_ROWS, 1)]
        ],
        "recipe": public,
    }
    (out / "training.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    (out / "README.md").write_text(model_card(out, recipe.hub_id or f"OWNER/{out.name}"), encoding="utf-8")


def clean_adapter_config(out: Path) -> None:
    """Remove from adapter_config.json what only this machine knows: the module path of the model's class."""
    file = out / "adapter_config.json"
    if file.exists():
        config = json.loads(file.read_text(encoding="utf-8"))
        config["auto_mapping"] = None
        file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _is_hub_id(name: str) -> bool:
    return name.count("/") == 1 and not Path(name).exists()
