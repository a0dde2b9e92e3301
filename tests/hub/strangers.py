"""Processes without radfm: their environment, and code for them to run."""

import os
from pathlib import Path

from offline_hub import OfflineHub


def environment(hub: OfflineHub, home: Path, **more: str) -> dict[str, str]:
    """Variables of a process that has its own cache and knows no other Hub."""
    left_out = ("HF_", "PYTHON", "RADFM_", "COVERAGE")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(left_out)}
    settings = {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": "hf_test"}
    return {**kept, **settings, "OMP_NUM_THREADS": "1", **more}


# Asks about a CT with the Auto classes alone.
ASK = """
import json, sys
from transformers import AutoModel, AutoProcessor

repo_id, revision = {repo_id!r}, {revision!r}
model = AutoModel.from_pretrained(repo_id, revision=revision, trust_remote_code=True).eval()
processor = AutoProcessor.from_pretrained(repo_id, revision=revision, trust_remote_code=True)
content = [{{"type": "image", "image": "scan.png"}}, {{"type": "text", "text": "Which imaging modality is this?"}}]
options = {{"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}}
inputs = processor.apply_chat_template([{{"role": "user", "content": content}}], **options)
output_ids = model.generate(**inputs, max_new_tokens=20)
answer = processor.post_process_image_text_to_text(output_ids[:, inputs["input_ids"].shape[1] :])[0]
adapters = sum("lora_" in name for name, _ in model.named_parameters())
bits = sum(type(module).__name__ == "Linear4bit" for module in model.modules())
decoder = f"{{model.config.text_config.model_type}} of width {{model.config.text_config.hidden_size}}"
told = {{"answer": answer, "class": type(model).__name__, "decoder": decoder, "adapters": adapters, "four_bit_layers": bits}}
print(json.dumps(told))
"""


def ask(repo_id: str, revision: str | None = None) -> str:
    """Code that loads a model by its id, asks it about scan.png, and prints what it said as a line of JSON."""
    return ASK.format(repo_id=repo_id, revision=revision)


def python_block(card: str) -> str:
    """The last Python block of a card."""
    return card.split("```python\n")[-1].split("```")[0]
