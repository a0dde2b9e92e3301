"""Loading from the Hub by users who have no radfm: at a revision, from the cache, kernels, data sets, the Space."""

import json
import socket
import subprocess
import time
from pathlib import Path

import pytest
import yaml
from helpers import ROOT
from PIL import Image
from strangers import ask, environment, python_block

from radfm.medmd.build import BuildOptions, build

pytestmark = pytest.mark.slow  # each test loads libraries in a process of its own: a quarter of a minute

CLOSED_PORT = "http://127.0.0.1:9"


@pytest.fixture(scope="module")
def model(push, hub) -> str:
    """The demo checkpoint on the Hub as me/radfm, with the kernels that its config names; the commit."""
    push("kernels", ROOT / "kernels", "me/radfm-kernels")
    push("model", ROOT, "me/radfm", "--kernels", "me/radfm-kernels")
    return hub.repository("models", "me/radfm").branches["main"]


# Models ---------------------------------------------------------------------------------------------------------------


def test_a_model_loads_at_a_revision(model, hub, run_as_stranger):
    repository = hub.repository("models", "me/radfm")
    repository.tags["v1"] = model
    broken = {**repository.commits[model]}
    del broken["config.json"]
    repository.commit("main", broken)
    try:
        for revision in ("v1", model):
            assert "CT" in json.loads(run_as_stranger(ask("me/radfm", revision)).splitlines()[-1])["answer"]
    finally:
        repository.branches["main"] = model


@pytest.mark.parametrize("gone", [{"HF_ENDPOINT": CLOSED_PORT}, {"HF_ENDPOINT": CLOSED_PORT, "HF_HUB_OFFLINE": "1"}])
def test_a_model_loads_from_the_cache_when_the_hub_is_gone(gone, model, run_as_stranger, tmp_path):
    first = run_as_stranger(ask("me/radfm"), home=tmp_path)
    assert run_as_stranger(ask("me/radfm"), home=tmp_path, **gone) == first


# Kernels --------------------------------------------------------------------------------------------------------------

USES_KERNELS = """
import sys, torch
from transformers import AutoModel

model = AutoModel.from_pretrained("me/radfm", trust_remote_code=True)
attention = sys.modules[type(model).__module__.replace("modeling_radfm", "attention_radfm")]
kernels = attention.kernels_for(torch.device("cuda"), model.config.vision_config.kernels)
print(kernels and kernels.__file__)
"""


def test_the_example_of_the_kernel_card_runs(model, hub, run_as_stranger):
    card = hub.repository("kernels", "me/radfm-kernels").files()["README.md"].decode()
    assert run_as_stranger(python_block(card)) == "torch.Size([20, 8, 64])"


def test_the_branch_of_the_version_holds_the_build_and_main_the_card(model, hub):
    repository = hub.repository("kernels", "me/radfm-kernels")
    assert {"build/torch-cuda/metadata.json", "build/torch-cpu/__init__.py", "build.toml"} <= set(repository.files("v1"))
    assert set(repository.files("main")) == {"README.md", "LICENSE"}


def test_a_model_finds_the_kernels_that_its_config_names(model, hub, run_as_stranger, tmp_path):
    commit = hub.repository("kernels", "me/radfm-kernels").branches["v1"]
    config = json.loads(hub.repository("models", "me/radfm").files()["config.json"])
    assert config["vision_config"]["kernels"] == f"me/radfm-kernels@{commit}"
    # Triton's interpreter stands for a card.
    found = Path(run_as_stranger(USES_KERNELS, home=tmp_path, TRITON_INTERPRET="1"))
    assert found.is_relative_to(tmp_path) and commit in found.parts
    # From the cache, with the Hub gone.
    again = run_as_stranger(USES_KERNELS, home=tmp_path, TRITON_INTERPRET="1", HF_ENDPOINT=CLOSED_PORT, HF_HUB_OFFLINE="1")
    assert Path(again) == found


def test_without_a_network_or_the_library_a_model_takes_pytorch_and_says_so(model, run_as_stranger):
    code = """
import huggingface_hub, logging
logging.basicConfig(stream=sys.stdout, format="%(message)s")
attention.kernels.cache_clear()
huggingface_hub.constants.HF_HUB_OFFLINE = True
print(attention.kernels_for(torch.device("cuda"), model.config.vision_config.kernels))
attention.kernels.cache_clear()
sys.modules["kernels"] = None
print(attention.kernels_for(torch.device("cuda"), model.config.vision_config.kernels))
"""
    loading = USES_KERNELS.split("kernels = ")[0]
    network, nothing, library, nothing_again = run_as_stranger(loading + code, TRITON_INTERPRET="1").splitlines()[-4:]
    assert (nothing, nothing_again) == ("None", "None")
    for line, reason in ((network, "cache"), (library, "import of kernels halted")):
        assert line.startswith("The kernels me/radfm-kernels@") and line.endswith("PyTorch's operators take their place.")
        assert reason in line


def test_kernels_can_be_named_or_switched_off_in_the_environment(model, run_as_stranger, tmp_path):
    off = run_as_stranger(USES_KERNELS, home=tmp_path, TRITON_INTERPRET="1", RADFM_KERNELS="0")
    named = run_as_stranger(USES_KERNELS, home=tmp_path, TRITON_INTERPRET="1", RADFM_KERNELS="me/radfm-kernels")
    assert off == "None" and Path(named).is_relative_to(tmp_path)


INSTALLED = """
import os, sys, torch
sys.modules["radfm_kernels"] = None  # the kernels of this package are not installed
from radfm import attention_radfm, modeling_radfm

attention_radfm.__file__ = os.getcwd()  # no clone beside the file
model = modeling_radfm.RadFMForConditionalGeneration.from_pretrained("me/radfm")
print(attention_radfm.kernels_for(torch.device("cuda"), model.config.vision_config.kernels))
"""


def test_installed_classes_run_no_code_that_a_config_names(model, hub, run_as_owner, tmp_path):
    """Nobody passed trust_remote_code=True there."""
    (tmp_path / "installed.py").write_text(INSTALLED)
    assert run_as_owner(hub, tmp_path / "installed.py", TRITON_INTERPRET="1") == "None"


# Data sets ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dataset(scan_folder, tmp_path_factory) -> Path:
    """Three questions about one CT, built with `radfm data`."""
    own = tmp_path_factory.mktemp("own")
    Image.open(scan_folder / "scan.png").save(own / "0.png")
    lines = ["image,question,answer,group,split"]
    lines += [f"0.png,{question},{answer},p0,train" for question, answer in (("Which modality?", "CT"), ("2D or 3D?", "2D"))]
    (own / "rows.csv").write_text("\n".join([*lines, "missing.png,Which modality?,MRI,p1,train"]) + "\n")
    build({"csv": own / "rows.csv"}, own / "built", BuildOptions(max_broken=0.5))
    return own / "built"


def test_a_data_set_is_streamed_at_a_revision_and_its_card_runs(dataset, push, hub, run_as_stranger):
    push("dataset", dataset, "me/scans", "--private")
    repository = hub.repository("datasets", "me/scans")
    assert repository.private and "report.json" not in repository.files()
    shards = {file.relative_to(dataset).as_posix(): file.read_bytes() for file in dataset.rglob("*.parquet")}
    assert shards and shards.items() <= repository.files().items()
    first = repository.branches["main"]
    repository.commit("main", {})
    stream = f"""
from datasets import load_dataset
rows = list(load_dataset("me/scans", "2d", split="train", streaming=True, revision={first!r}))
print(sorted(message["content"][0]["text"] for row in rows for message in row["messages"] if message["role"] == "assistant"))
print(rows[0]["images"][0].size)
"""
    answers, size = run_as_stranger(stream).splitlines()[-2:]
    assert answers == "['2D', 'CT']" and size == str(Image.open(dataset.parent / "0.png").size)
    repository.branches["main"] = first
    card = repository.files()["README.md"].decode()
    assert "'role': 'user'" in run_as_stranger(python_block(card))


# The Space ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def started_space(model, push, hub, stranger, tmp_path):
    """The Space from the snapshot of its repository, with the variables that the push set; its address."""
    push("space", ROOT / "space", "me/radfm-space", "--model", "me/radfm")
    repository = hub.repository("spaces", "me/radfm-space")
    snapshot = tmp_path / "snapshot"
    for name, content in repository.files().items():
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / name).write_bytes(content)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    variables = {**environment(hub, tmp_path / "home"), **repository.variables, "GRADIO_SERVER_PORT": str(port)}
    log = (tmp_path / "log").open("w+")
    process = subprocess.Popen([stranger, "app.py"], cwd=snapshot, env=variables, stdout=log, stderr=subprocess.STDOUT)
    while not is_listening(port):
        assert process.poll() is None, (tmp_path / "log").read_text()
        time.sleep(0.1)
    yield f"http://127.0.0.1:{port}", repository
    process.terminate()
    process.wait()


def is_listening(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_the_space_starts_from_its_snapshot_and_answers(started_space, model, run_as_stranger, hub):
    address, repository = started_space
    assert repository.variables == {"RADFM_MODEL": "me/radfm", "RADFM_REVISION": model}
    assert repository.created_with["hardware"] == "zero-a10g" and repository.created_with["sdk"] == "gradio"
    card = repository.files()["README.md"].decode()
    settings = yaml.safe_load(card.split("---")[1])
    assert settings["models"] == ["me/radfm"] and settings["suggested_hardware"] == "zero-a10g"
    repo_id, files, commit = settings["preload_from_hub"][0].split()
    assert (repo_id, commit) == ("me/radfm", model)
    assert {"model.safetensors", "config.json", "modeling_radfm.py", "tokenizer.json"} <= set(files.split(","))
    example = python_block(card).replace('"me/radfm-space"', f'"{address}"')
    assert "CT" in run_as_stranger(example).splitlines()[-1]
