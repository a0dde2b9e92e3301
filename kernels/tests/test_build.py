"""The kernels as a project of the Hub: laid out as its loader wants them, and loaded by it without a network."""

import ast
import importlib.util
import json
from pathlib import Path

import pytest
import torch
from radfm_kernels.packed_attention import reference
from testing import close, rand, starts

ROOT = Path(__file__).parent.parent
SPEC = importlib.util.spec_from_file_location("build_kernels", ROOT / "build.py")
build_kernels = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(build_kernels)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    out = tmp_path_factory.mktemp("repository")
    build_kernels.build(out)
    return out


def test_each_variant_holds_the_source_and_its_metadata(built):
    for variant, backend in build_kernels.VARIANTS.items():
        folder = built / "build" / variant
        metadata = json.loads((folder / "metadata.json").read_text())
        assert metadata["backend"] == {"type": backend} and metadata["name"] == "radfm-kernels"
        assert metadata["license"] == "Apache-2.0" and metadata["python-depends"] == []
        for file in build_kernels.files():
            text = (folder / file.name).read_text()
            if file.name == "_ops.py":
                assert f'NAMESPACE = "{metadata["id"]}"' in text
            else:
                assert text == file.read_text()


def test_they_know_torch_and_triton_alone():
    for file in build_kernels.files():
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name.split(".")[0] for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module.split(".")[0]]
            else:
                continue
            assert set(names) <= {"torch", "triton", "os", "collections", "typing"}, f"{file.name} imports {names}"


def test_the_kernels_library_reads_build_toml_and_metadata():
    kernels = pytest.importorskip("kernels")
    parse = getattr(kernels, "parse_build_config", None)
    if parse is not None:
        assert parse(ROOT / "build.toml").general.name == "radfm-kernels"


def test_the_kernels_library_loads_them_from_a_folder(built):
    kernels = pytest.importorskip("kernels")
    loaded = kernels.get_local_kernel(built)
    query, key, value = (rand(20, 2, 16) for _ in range(3))
    at = starts(12, 8)
    close(
        loaded.packed_attention(query, key, value, at, at, 12, 12),
        reference(query, key, value, at, at, 0.25),
        torch.float32,
        "packed attention",
    )
    # A second copy beside the first: neither takes the other's operators.
    assert loaded.__name__ != "radfm_kernels"
    assert hasattr(torch.ops, build_kernels.namespace("radfm-kernels"))


def test_kernelize_puts_a_layer_in_its_place(built):
    kernels = pytest.importorskip("kernels")

    @kernels.use_kernel_forward_from_hub("PackedAttention")
    class Plain(torch.nn.Module):
        def forward(self, query, key, value, starts, longest):
            raise AssertionError("the layer was not replaced")

    repository = kernels.LocalLayerRepository(repo_path=built, layer_name="PackedAttention")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with kernels.use_kernel_mapping({"PackedAttention": {device: repository}}):
        model = kernels.kernelize(torch.nn.Sequential(Plain()).eval(), mode=kernels.Mode.INFERENCE, device=device)
    query, key, value = (rand(20, 2, 16) for _ in range(3))
    got = model[0](query, key, value, starts(12, 8), 12)
    close(got, reference(query, key, value, starts(12, 8), starts(12, 8), 0.25), torch.float32, "the layer")
