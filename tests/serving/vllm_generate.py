"""vllm_generate.py MODEL SCANS: vLLM's Transformers backend answers about a slice, a volume and both.

Runs in vLLM's environment. SCANS is an .npz with "slice", "volume" and "question". The last line is the answers as JSON.
"""

import json
import sys
from importlib import import_module
from pathlib import Path

import numpy as np


def main(model: str, scans: str) -> None:
    """Print the answers."""
    vllm = import_module("vllm")  # not a package of the environment in which the tests run
    # vLLM builds its model around the base class; AutoModel of this repository gives the one that generates.
    auto_map = json.loads((Path(model) / "config.json").read_text())["auto_map"]
    llm = vllm.LLM(
        model=model,
        trust_remote_code=True,
        model_impl="transformers",
        hf_overrides={"auto_map": {**auto_map, "AutoModel": "modeling_radfm.RadFMModel"}},
        dtype="float32",
        enforce_eager=True,
        max_model_len=512,
        limit_mm_per_prompt={"image": 2},
    )
    data = np.load(scans)
    asked = [
        {"prompt": "<image>" * len(images) + str(data["question"]), "multi_modal_data": {"image": images}}
        for images in ([data["slice"]], [data["volume"]], [data["slice"], data["volume"]])
    ]
    outputs = llm.generate(asked, vllm.SamplingParams(temperature=0, max_tokens=8))
    print(json.dumps([output.outputs[0].text.strip() for output in outputs]))


if __name__ == "__main__":
    main(*sys.argv[1:])
