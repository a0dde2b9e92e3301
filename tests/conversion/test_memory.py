"""A checkpoint of more than 6 GB, with matrices of the published sizes, is converted with less than 6 GB of memory."""

import shutil
import subprocess
import sys
import zipfile
from multiprocessing import get_context

import pytest
import torch
from helpers import ROOT
from safetensors import safe_open

from radfm.configuration_radfm import PAPER_DECODER, RadFMConfig
from radfm.conversion.names import EMBED_KEY, EMBEDDINGS, HEAD_KEY, LM_HEAD, MARK_KEY, to_published_name
from radfm.modeling_radfm import RadFMForConditionalGeneration

LIMIT_GB, LAYERS = 6.0, 4
# The child's own peak, printed by the child: what this process once held must not count.
MEASURED = """
import resource, sys
from radfm.cli.main import main
sys.argv = ["radfm", "convert", *sys.argv[1:]]
try:
    main()
finally:
    print(f"peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB")
"""


def write_checkpoint(file):
    """The published tensors in float32 at their real sizes, with a decoder of four layers; each starts with its number."""
    decoder = {**PAPER_DECODER, "num_hidden_layers": LAYERS}
    config = RadFMConfig(text_config=decoder)
    with torch.device("meta"):
        model = RadFMForConditionalGeneration(config)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    rows, width = shapes.pop(EMBEDDINGS)
    del shapes[LM_HEAD]
    published = {to_published_name(name): shape for name, shape in shapes.items()}
    published.update({EMBED_KEY: (rows - 3, width), MARK_KEY: (2, width), HEAD_KEY: (rows - 3, width)})
    tensors = {}
    for number, (name, shape) in enumerate(published.items()):
        tensors[name] = torch.zeros(shape)
        tensors[name].view(-1)[0] = number
    tensors["embedding_layer.weight"] = tensors[EMBED_KEY]
    torch.save(tensors, file)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("large")
    if shutil.disk_usage(folder).free < 24e9:
        pytest.skip(f"needs 24 GB of disk in {folder}")
    # Forked from a process with threads it could wait for one that it has not.
    writer = get_context("spawn").Process(target=write_checkpoint, args=(folder / "pytorch_model.bin",))
    writer.start()
    writer.join()
    yield folder / "pytorch_model.bin"
    shutil.rmtree(folder)


def peak_gb(*words):
    run = subprocess.run([sys.executable, "-c", MEASURED, *map(str, words)], capture_output=True, text=True, cwd=ROOT.parent)
    assert run.returncode == 0, run.stderr
    return float(run.stdout.rsplit("peak ", 1)[1].split()[0])


def first_values(folder):
    values = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            values.update({name: tensors.get_slice(name)[:1].flatten()[0].item() for name in tensors.keys()})  # noqa: SIM118
    return values


@pytest.mark.slow  # writes and reads 7 GB several times: minutes
def test_six_gigabytes_as_a_file_and_out_of_its_zip(checkpoint):
    folder = checkpoint.parent
    assert checkpoint.stat().st_size > 6e9
    plain = peak_gb(checkpoint, folder / "plain")
    wanted = first_values(folder / "plain")
    shutil.rmtree(folder / "plain")
    assert len(set(wanted.values())) == len(wanted), "each tensor came from its own"
    with zipfile.ZipFile(folder / "RadFM.zip", "w") as archive:
        archive.write(checkpoint, "RadFM/pytorch_model.bin")
    checkpoint.unlink()
    zipped = peak_gb(folder / "RadFM.zip", folder / "zipped", "--dtype", "bfloat16")
    assert first_values(folder / "zipped").keys() == wanted.keys()
    print(f"peak memory: {plain:.2f} GB from the file, {zipped:.2f} GB out of the zip in bfloat16")
    assert max(plain, zipped) < LIMIT_GB
